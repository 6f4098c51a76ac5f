# SPDX-License-Identifier: Apache-2.0
"""What a source's URL and ref may look like: an allow-list, checked before git sees a byte of either.

Git accepts far more (helpers such as `ext::`, options such as `--upload-pack`, user information, scp-style
addresses). Everything that is not spelled out here is refused, and a message never repeats user information.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import unquote_to_bytes

from reconciler.errors import ConfigError

Scheme: TypeAlias = Literal["https", "ssh", "file"]

MAX_URL_LENGTH = 2048
"""Characters; what common servers accept in a request line is 8 KiB and less."""
MAX_REF_LENGTH = 255
"""Bytes; a component of a loose ref is a file name (NAME_MAX)."""

MAX_PORT = 0xFFFF

_URL = re.compile(r"(?P<scheme>[a-z]+)://(?P<authority>[^/]*)(?P<path>/.*)?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]{{2,45}}\]")
_PATH = re.compile(r"/[A-Za-z0-9._~+=,:@/%-]*")
_REF = re.compile(r"refs(?:/[A-Za-z0-9_+=,@%.#!-]+){2,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteUrl:
    """A URL that passed `check_url`; `text` is safe to print and to hand to git."""

    text: str
    scheme: Scheme
    host: str
    port: int | None
    user: str | None
    path: str


def check_url(url: str, *, allow_file: bool = False) -> RemoteUrl:
    """The parts of a source's URL.

    Args:
        url: https://HOST[:PORT]/PATH, ssh://[USER@]HOST[:PORT]/PATH, or file:///PATH.
        allow_file: whether the host's configuration allows `file://` by name.

    Raises:
        ConfigError: anything else, user information in an https URL, or bytes that need no place in a URL.
    """
    if len(url) > MAX_URL_LENGTH:
        raise _refused(f"expected at most {MAX_URL_LENGTH} characters, got {len(url)}")
    if not all("!" <= character <= "~" for character in url):
        raise _refused("expected printable ASCII without spaces (write international names in punycode)")
    found = _URL.fullmatch(url)
    if found is None:
        raise _refused(
            "expected https://HOST/PATH or ssh://USER@HOST/PATH, got another form (scp-style is not accepted)"
        )
    scheme, authority, path = found["scheme"], found["authority"], found["path"] or ""
    _check_path(path)
    match scheme:
        case "https":
            host, port = _host_and_port(authority, "https")
            return RemoteUrl(text=url, scheme="https", host=host, port=port, user=None, path=path)
        case "ssh":
            user, at, rest = authority.rpartition("@")
            if at and not _USER.fullmatch(user):
                raise _refused("expected a plain user name before '@' (no password, no option)")
            host, port = _host_and_port(rest, "ssh")
            return RemoteUrl(text=url, scheme="ssh", host=host, port=port, user=user or None, path=path)
        case "file":
            if not allow_file:
                raise _refused("file:// is refused unless the host's configuration allows it (allowFile: true)")
            if authority:
                raise _refused("expected file:///PATH without a host")
            return RemoteUrl(text=url, scheme="file", host="", port=None, user=None, path=path)
        case _:
            raise _refused(f"expected scheme https or ssh, got {scheme!r}")


def check_ref(ref: str) -> str:
    """`ref` if it is one fully qualified ref name that cannot be read as anything else.

    Raises:
        ConfigError: not refs/…/…, or a name that git or a shell could take for something else.
    """
    if len(ref) > MAX_REF_LENGTH or not _REF.fullmatch(ref):
        raise ConfigError(
            f"source ref: expected a fully qualified name such as refs/heads/main "
            f"(ASCII, at most {MAX_REF_LENGTH} characters), got {ref[:80]!a}"
        )
    for part in ref.split("/"):
        if part.startswith((".", "-")) or part.endswith((".", ".lock")) or ".." in part or "@{" in part or part == "@":
            raise ConfigError(f"source ref: expected a name that git accepts, got the component {part!r} in {ref!r}")
    if ref.startswith("refs/replace/"):
        raise ConfigError("source ref: expected a branch or a tag, got a replacement ref")
    return ref


def _check_path(path: str) -> None:
    if path in ("", "/"):
        raise _refused("expected a path to a repository after the host")
    if not _PATH.fullmatch(path):
        raise _refused("expected a path of letters, digits and ._~+=,:@/%- (no query, no fragment, no quotes)")
    if re.search(r"%(?![0-9A-Fa-f]{2})", path):
        raise _refused("expected two hex digits after every '%' of the path")
    decoded = unquote_to_bytes(path)
    if re.search(rb"[\x00-\x1f\x7f]", decoded):
        raise _refused("expected no control characters in the path, also not percent-encoded")
    parts = decoded.split(b"/")
    if b".." in parts or b"." in parts:
        raise _refused("expected a path without '.' and '..'")
    if any(part.startswith(b"-") for part in parts):
        raise _refused("expected no component of the path to start with '-'")


def _host_and_port(text: str, scheme: str) -> tuple[str, int | None]:
    if "@" in text:
        raise _refused(f"expected no user information in an {scheme} URL; put the token into a file (auth.tokenFile)")
    host, colon, digits = text, "", ""
    if not text.endswith("]") and ":" in text:
        host, colon, digits = text.rpartition(":")
    if not _HOST.fullmatch(host):
        raise _refused("expected a host name, an IPv4 address or an [IPv6] address without a zone")
    if not colon:
        return host, None
    if not re.fullmatch(r"[1-9][0-9]{0,4}", digits) or int(digits) > MAX_PORT:
        raise _refused("expected a port from 1 to 65535")
    return host, int(digits)


def _refused(why: str) -> ConfigError:
    return ConfigError(f"source url: {why}", reason="InvalidConfig")
