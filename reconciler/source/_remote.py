# SPDX-License-Identifier: Apache-2.0
"""From settings to what git needs to reach the source, and from what git prints to a reason.

Secrets become lines of a configuration file in memory; nothing else here holds them. `explain` reads standard error
(in the C locale) only to choose a reason, and not in what the server says there; what it repeats is one line, redacted
and without control characters. Of the headers that the server sent it takes how long to wait, and nothing else.
"""

from __future__ import annotations

import base64
import re
import shlex
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from reconciler.config import read_protected
from reconciler.errors import ConfigError, SourceError
from reconciler.source._git import Completed, Remote
from reconciler.source._types import SourceMovedError, SourceRefusedError, SourceSettings
from reconciler.source._url import RemoteUrl, check_url

if TYPE_CHECKING:
    from pathlib import Path

MAX_TOKEN_BYTES: Final = 16 << 10
"""Bytes; tokens of identity providers reach a few KiB, request headers of common servers end at 8 to 16 KiB."""
MAX_DETAIL: Final = 300
"""Characters of git's own words that a message repeats."""

MAX_RETRY_AFTER: Final = 3600.0
"""Seconds; a server, or whoever speaks for it, cannot silence a host for longer with one answer."""

_PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9._+=@/-]+")
_USER_INFORMATION: Final = re.compile(r"(?<=://)[^/@\s]*@")
_SERVERS_WORDS: Final = re.compile(r"^remote:.*|(?<=^fatal: remote error: ).*", re.DOTALL)
"""In a line of git's: what the server says in it (git's sideband.c, pkt-line.c), which chooses no reason."""

# First match wins. Each pattern was seen with git 2.39 (GnuTLS) and OpenSSH 9.2, or stands in their sources. A server
# chooses what git repeats of it: no pattern may look further from each place than the longest URL.
_REASONS: Final[tuple[tuple[str, str, str], ...]] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|No \S+ host key is known",
        "HostKeyRefused",
        "the server's host key is not the one in the known hosts file",
    ),
    (r"UNPROTECTED PRIVATE KEY|bad permissions", "AuthenticationFailed", "the SSH key file must have mode 0600"),
    (
        r"SSL certificate|certificate (verif|subject name)|CAfile|server verification failed|ca cert file"
        r"|SSL routines|SSL_ERROR|gnutls_handshake",
        "TlsRefused",
        "the server's certificate does not verify under the configured authorities",
    ),
    (
        r"Authentication failed|could not read (Username|Password)|error: 40[137]\b|Permission denied"
        r"|Too many authentication failures|response 407|HTTP code 407 from proxy",
        "AuthenticationFailed",
        "the source refuses this host's credentials",
    ),
    (r"unable to update url base from redirection|error: 30\d\b|redirect", "RedirectRefused", "the source redirects"),
    (r"error: 429\b", "SourceThrottled", "the source asks for fewer requests"),
    (
        r"not valid: is this a git repository|does not appear to be a git repository|[Rr]epository.{0,2200}?not found"
        r"|error: 404\b|expected flush|bad line length|invalid server response|protocol error",
        "NotARepository",
        "there is no git repository at this URL",
    ),
    (r"dubious ownership", "OwnerRefused", "the repository belongs to another user; git refuses to read it"),
    (r"mismatched algorithms", "ObjectFormatChanged", "the source changed its object format"),
    (
        r"couldn't find remote ref|no matching remote head",
        "RefMissing",
        "the ref is not at the source (any more)",
    ),
    (r"No space left on device|Disk quota exceeded", "DiskFull", "there is no space left for the repository"),
    (
        r"File too large|signal 25|signal 9|Out of memory|Cannot allocate|exceeds maximum allowed size|unable to mmap",
        "SourceTooLarge",
        "the source sends more than the limits allow",
    ),
    (
        r"fsck error|error: object [0-9a-f]+: \w+:|SHA1 COLLISION|part of a collision attack"
        r"|did not send all necessary objects|bad object",
        "ObjectsRefused",
        "the source sends objects that do not pass git's checks",
    ),
)
_HEADER: Final = re.compile(
    rb"^\S+ \S+ +<= Recv header: (?P<name>date|retry-after): *(?P<value>[ -~]{1,64}?)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_STALLED: Final = frozenset({"ObjectFormatChanged", "OwnerRefused", "ObjectsRefused"})


def prepare(settings: SourceSettings, nothing: Path) -> Remote:
    """What a command needs to reach the source; files with secrets are read anew each time, so they may rotate.

    Args:
        settings: the host's.
        nothing: an empty directory.

    Raises:
        ConfigError: a URL or a combination that cannot work.
        SourceError: a configured file cannot be read.
    """
    url = check_url(settings.url, allow_file=settings.allow_file)
    environment: dict[str, str] = {}
    lines: list[str] = []
    secrets: list[str] = []
    match url.scheme:
        case "https":
            _https(settings, url, nothing, lines, secrets)
        case "ssh":
            environment |= {"GIT_SSH_COMMAND": _ssh_command(settings), "GIT_SSH_VARIANT": "ssh"}
        case "file":
            pass
    return Remote(
        transport=url.scheme,
        environment=environment,
        config="".join(f"{line}\n" for line in lines).encode(),
        secrets=tuple(secrets),
        memory_bytes=settings.limits.memory_bytes,
        file_bytes=settings.limits.pack_bytes,
    )


def explain(action: str, done: Completed, remote: Remote | None = None) -> SourceError:
    """The error for a command that failed.

    Args:
        action: what was tried, for example "poll refs/heads/main".
        done: how the command ended.
        remote: whose secrets are to be redacted.
    """
    error = _explained(action, done.messages, done.code, remote)
    error.retry_after = retry_after(done.headers)
    return error


def retry_after(trace: bytes) -> float | None:
    """Seconds that a server asked for in its last `Retry-After`, at most `MAX_RETRY_AFTER`; None: it did not.

    A date is compared with the server's own, so that no clock of this host is needed.
    """
    last = {match["name"].lower(): match["value"].decode("ascii") for match in _HEADER.finditer(trace)}
    value = last.get(b"retry-after")
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,18}", value):
        return min(float(value), MAX_RETRY_AFTER)
    try:
        seconds = (parsedate_to_datetime(value) - parsedate_to_datetime(last.get(b"date", ""))).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _explained(action: str, messages: bytes, code: int, remote: Remote | None) -> SourceError:
    text = messages.decode("utf-8", "backslashreplace")
    for secret in sorted(filter(None, remote.secrets if remote else ()), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _USER_INFORMATION.sub("***@", text)
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    detail = _detail([line for line in lines if line and not line.startswith("remote:")])
    own = "\n".join(_SERVERS_WORDS.sub("", line) for line in lines)
    if code in (-9, -24, -25, 128 + 24, 128 + 25):  # SIGKILL, SIGXCPU, SIGXFSZ
        return SourceError(f"{action}: ended by a limit on memory, time or size", reason="SourceTooLarge")
    for pattern, reason, meaning in _REASONS:
        if re.search(pattern, own):
            kind = SourceRefusedError if reason in _STALLED else SourceError
            return kind(f"{action}: {meaning}{detail}", reason=reason)
    return SourceError(f"{action}: the source cannot be reached{detail} (git ended with {code})")


def moved(expected: str, got: str) -> SourceMovedError:
    """The ref moved between `ls-remote` and `fetch`."""
    return SourceMovedError(f"fetch: expected commit {expected}, got {got}; the ref moved in between")


def _detail(lines: list[str]) -> str:
    # One line in git's or ssh's own words, without control characters.
    chosen = next((line for line in lines if line.startswith(("fatal:", "error:", "ssh:"))), lines[-1] if lines else "")
    clean = "".join(character if character.isprintable() else "?" for character in chosen)
    return f" ({clean[:MAX_DETAIL]})" if clean else ""


def _https(settings: SourceSettings, url: RemoteUrl, nothing: Path, lines: list[str], secrets: list[str]) -> None:
    auth = settings.auth
    # Bound to this server, so that no other URL can ever receive it.
    authority = url.host if url.port is None else f"{url.host}:{url.port}"
    lines.append(f"[http {_quoted(f'https://{authority}/')}]")
    if auth.token_file is not None:
        header, values = _authorization(auth.token_file)
        secrets += values
        lines.append(f"\textraHeader = {_quoted(header)}")
    if auth.ca_file is not None:
        lines.append(f"\tsslCAInfo = {_quoted(_readable(auth.ca_file, 'caFile'))}")
        # Without it Debian's libcurl (7.88, GnuTLS) trusts everything in /etc/ssl/certs as well; tested.
        lines.append(f"\tsslCAPath = {_quoted(str(nothing))}")
    if auth.client_cert_file is not None:
        lines.append(f"\tsslCert = {_quoted(_readable(auth.client_cert_file, 'clientCertFile'))}")
    if auth.client_key_file is not None:
        lines.append(f"\tsslKey = {_quoted(_readable(auth.client_key_file, 'clientKeyFile', secret=True))}")
    if auth.proxy is not None:
        proxy, hidden = _proxy(auth.proxy, auth.proxy_auth_file)
        secrets += hidden
        lines.append(f"\tproxy = {_quoted(proxy)}")


def _authorization(path: Path) -> tuple[str, list[str]]:
    content = _protected(path, "tokenFile", secret=True)
    token = content.decode("ascii", "replace").strip()
    if not token or len(content) > MAX_TOKEN_BYTES or not all(" " <= character <= "~" for character in token):
        raise SourceError(
            f"{path}: expected one line, TOKEN, USER:TOKEN or Bearer TOKEN, of printable ASCII",
            reason="AuthenticationFailed",
        )
    if token.startswith("Bearer "):
        return f"Authorization: {token}", [token.removeprefix("Bearer ").strip()]
    # What the common forges take: any user name with a token as the password.
    pair = token if ":" in token else f"x-access-token:{token}"
    encoded = base64.b64encode(pair.encode("ascii")).decode("ascii")
    return f"Authorization: Basic {encoded}", [encoded, pair, pair.partition(":")[2]]


def _proxy(url: str, file: Path | None) -> tuple[str, list[str]]:
    parts = None
    with suppress(ValueError):
        parts = urlsplit(url)
        parts = parts if parts.scheme in ("http", "https") and parts.hostname and parts.port is not None else None
    if parts is None or "@" in url or not all("!" <= character <= "~" for character in url):
        raise ConfigError("source auth: expected a proxy of the form http://HOST:PORT")
    if file is None:
        return url, []
    content = _protected(file, "proxyAuthFile", secret=True)
    pair = content.decode("ascii", "replace").strip()
    user, _, password = pair.partition(":")
    if not user or not password or len(content) > MAX_TOKEN_BYTES or not all(" " <= each <= "~" for each in pair):
        raise SourceError(
            f"{file}: expected one line, USER:PASSWORD, of printable ASCII", reason="AuthenticationFailed"
        )
    quoted = f"{quote(user, safe='')}:{quote(password, safe='')}"
    encoded = base64.b64encode(pair.encode("ascii")).decode("ascii")
    return f"{parts.scheme}://{quoted}@{parts.netloc}", [encoded, quoted, pair, quote(password, safe=""), password]


def _ssh_command(settings: SourceSettings) -> str:
    auth = settings.auth
    if auth.proxy is not None:
        raise ConfigError("source auth: a proxy is for https sources only, got it with ssh")
    if auth.ssh_key_file is None or auth.known_hosts_file is None:
        raise ConfigError("source auth: an ssh source needs sshKeyFile and knownHostsFile")
    key = _readable(auth.ssh_key_file, "sshKeyFile", secret=True)
    hosts = _readable(auth.known_hosts_file, "knownHostsFile")
    options = (
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        f"UserKnownHostsFile={hosts}",
        "GlobalKnownHostsFile=/dev/null",
        "UpdateHostKeys=no",
        "VerifyHostKeyDNS=no",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "PreferredAuthentications=publickey",
        "ConnectTimeout=10",
        "ServerAliveInterval=5",
        "ServerAliveCountMax=4",
        "ControlMaster=no",
        "ControlPath=none",
        "ForwardAgent=no",
        "ForwardX11=no",
        "ClearAllForwardings=yes",
        "ProxyCommand=none",
        "ProxyJump=none",
        "PermitLocalCommand=no",
        "CanonicalizeHostname=no",
        "LogLevel=ERROR",
    )
    words = ["ssh", "-F", "none", "-i", key, *(f"-o{option}" for option in options)]
    return " ".join(shlex.quote(word) for word in words)


def _readable(path: Path, what: str, *, secret: bool = False) -> str:
    # ssh splits some options at blanks and expands '%' and '~' in them, and git expands '~': so plain paths only.
    text = str(path)
    if not _PLAIN_PATH.fullmatch(text):
        raise ConfigError(f"source auth: expected {what} as an absolute path of plain characters, got {text!a}")
    _protected(path, what, secret=secret)
    return text


def _protected(path: Path, what: str, *, secret: bool) -> bytes:
    # At each poll: whoever rotates a file may leave it readable, or in a folder of somebody else.
    try:
        return read_protected(path, secret=secret)
    except ConfigError as error:
        reason = "AuthenticationFailed" if isinstance(error.__cause__, OSError) else "CredentialsUnsafe"
        raise SourceError(f"source auth, {what}: {error}", reason=reason) from error


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
