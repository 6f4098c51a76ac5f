# SPDX-License-Identifier: Apache-2.0
"""Packages from a web server, within a bounded time whatever the server does.

A server that sends a byte now and then would keep a client with mere socket timeouts for hours, and while a pass waits
nothing is repaired. So looking up the name, and every read and write, gets what is left of one deadline as its timeout.
Nothing of the environment counts (proxies, .netrc, SSL_CERT_FILE, SSLKEYLOGFILE), redirects are not followed (they
could leak the token), and content encodings are not decoded: the digest is that of the bytes as they are.
"""

from __future__ import annotations

import http.client
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from reconciler._connect import connect
from reconciler.config import read_protected
from reconciler.errors import ConfigError, RepositoryError
from reconciler.packages._archive import MAX_ARCHIVE_BYTES
from reconciler.packages._repositories import BUNDLE_SUFFIX, archive_name
from reconciler.trust import MAX_BUNDLE_BYTES

if TYPE_CHECKING:
    from reconciler.model import PackageRef

TOTAL_SECONDS: Final = 300.0
"""For all files of one pass from one repository: a slow server must not keep a host from repairing what runs. What was
fetched is kept, so that the next try goes on from there."""
CONNECT_SECONDS: Final = 10.0
"""To connect to one address; a host name may have several."""
MAX_TOKEN_BYTES: Final = 64 << 10
_CHUNK: Final = 1 << 16
_PORT: Final = 443
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class HttpsRepository:
    """A folder of a web server that holds NAME-VERSION.tar.gz and NAME-VERSION.tar.gz.sigstore.json.

    Attributes:
        url: of the folder, https.
        ca_file: PEM of the only authorities that are accepted; None: the system's.
        token_file: read at each fetch, sent as a bearer token, never shown.
        seconds: for one file altogether.
        until: monotonic time after which nothing is fetched any more; made for one pass.
    """

    url: str
    ca_file: Path | None = None
    token_file: Path | None = None
    seconds: float = 120.0
    until: float = field(default_factory=lambda: time.monotonic() + TOTAL_SECONDS)

    def fetch(self, ref: PackageRef) -> tuple[bytes, bytes]:
        """The archive and the bundle, neither checked.

        Raises:
            RepositoryError: cannot be reached, does not hold them, or sends more than allowed.
        """
        address = f"{self.url.rstrip('/')}/{quote(archive_name(ref), safe='+')}"
        return self._get(address, MAX_ARCHIVE_BYTES), self._get(address + BUNDLE_SUFFIX, MAX_BUNDLE_BYTES)

    def _get(self, address: str, limit: int) -> bytes:
        headers = {"Accept-Encoding": "identity", "User-Agent": "reconciler", "Connection": "close"}
        if self.token_file is not None:
            headers["Authorization"] = f"Bearer {_token(self.token_file)}"
        host, port, path = self._parts(address)
        now = time.monotonic()
        if now >= self.until:
            raise RepositoryError(f"{address}: no time left in this pass; the server is too slow, the next one goes on")
        seconds = min(self.seconds, self.until - now)
        deadline = now + seconds
        try:
            context = _context(self.ca_file, deadline)
            connection = _Connection(host, port, context, deadline)
            try:
                connection.request("GET", path, headers=headers)
                with connection.getresponse() as response:
                    return _body(response, address, limit)
            finally:
                connection.close()
        except ssl.SSLCertVerificationError as error:
            message = f"{address}: the server's certificate is not accepted: {error.verify_message}; check caFile"
            raise RepositoryError(message) from error
        except TimeoutError as error:
            message = f"{address}: no whole answer within {seconds:.3g} s; check the server and the network"
            raise RepositoryError(message) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Texts of these errors hold no header of ours, so the token stays out of them.
            what = getattr(error, "strerror", None) or str(error)[:200] or type(error).__name__
            raise RepositoryError(f"{address}: {what}; check the server, and caFile if there is one") from error

    def _parts(self, address: str) -> tuple[str, int, str]:
        try:
            parts = urlsplit(address)
            port = parts.port or _PORT
        except ValueError as error:
            raise RepositoryError(f"expected a URL https://HOST/PATH, got {self.url!r}: {error}") from error
        if parts.scheme != "https" or not parts.hostname or parts.username is not None:
            raise RepositoryError(f"expected a URL https://HOST/PATH, got {self.url!r}")
        return parts.hostname, port, parts.path


def _body(response: http.client.HTTPResponse, address: str, limit: int) -> bytes:
    if response.status != _OK:
        raise RepositoryError(f"{address}: expected status {_OK}, got {response.status} {response.reason[:60]!r}")
    body = bytearray()
    while chunk := response.read1(_CHUNK):
        body += chunk
        if len(body) > limit:
            raise RepositoryError(f"{address}: expected at most {limit} bytes, got more")
    if response.length:
        raise RepositoryError(f"{address}: expected {response.length} more bytes, the server stopped early")
    return bytes(body)


class _Connection(http.client.HTTPSConnection):
    """One that is made before the deadline, or not at all."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, deadline: float) -> None:
        super().__init__(host, port, context=context)
        self._made_with, self._deadline = context, deadline

    def connect(self) -> None:
        plain = connect(self.host, self.port, self._deadline - time.monotonic(), each=CONNECT_SECONDS)
        try:
            self.sock = self._made_with.wrap_socket(plain, server_hostname=self.host)
        finally:
            plain.close()  # nothing by now, unless it could not be wrapped


def _context(ca_file: Path | None, deadline: float) -> ssl.SSLContext:
    class DeadlineSocket(ssl.SSLSocket):
        """Each call takes at most what is left until the deadline; all that http.client uses is here."""

        def _remain(self) -> None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.settimeout(left)

        def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - ssl's own signature
            self._remain()
            super().do_handshake(block)

        def recv_into(self, *arguments: Any, **options: Any) -> int:  # noqa: ANN401 - ssl's own signature
            self._remain()
            return super().recv_into(*arguments, **options)

        def sendall(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - ssl's own signature
            self._remain()
            super().sendall(*arguments, **options)

    # Not ssl.create_default_context: it lets the environment name more authorities, and a file for sessions' keys.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is not None:
        context.load_verify_locations(cafile=str(ca_file))
    else:
        system = ssl.get_default_verify_paths()
        if (bundle := Path(system.openssl_cafile)).is_file():
            context.load_verify_locations(cafile=str(bundle))
        if (folder := Path(system.openssl_capath)).is_dir():
            context.load_verify_locations(capath=str(folder))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = DeadlineSocket
    return context


def _token(path: Path) -> str:
    try:
        text = read_protected(path, secret=True)[:MAX_TOKEN_BYTES].decode("ascii").strip()
    except ConfigError as error:
        raise RepositoryError(f"token file: {error}") from error
    except UnicodeDecodeError as error:
        raise RepositoryError(f"cannot read the token file {path}; expected one line of ASCII") from error
    if not text or not text.isprintable() or " " in text:
        raise RepositoryError(f"{path}: expected one line with a token, got something else")
    return text
