# SPDX-License-Identifier: Apache-2.0
"""Where packages come from. A repository can be unavailable; it cannot lie, because the manifest pins the digest."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from reconciler.errors import RepositoryError
from reconciler.packages._archive import MAX_ARCHIVE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reconciler.model import PackageRef

MAX_BUNDLE_BYTES: Final = 4 * 2**20
"""A bundle has 1 to 16 KiB; hostile ones cost seconds beyond this."""
TIMEOUT: Final = 20.0
"""Seconds without a byte after which a web server counts as unavailable."""
MAX_SECONDS: Final = 300.0
"""Seconds for one file altogether: a server that sends a byte a second is unavailable, too."""
BUNDLE_SUFFIX: Final = ".sigstore.json"
_CHUNK: Final = 1 << 16


class Repository(Protocol):
    """A named place that holds NAME-VERSION.tar.gz and its bundle side by side."""

    def fetch(self, ref: PackageRef) -> tuple[bytes, bytes]:
        """The archive and the bundle, neither checked. Raises RepositoryError."""


def archive_name(ref: PackageRef) -> str:
    """File name of a package's archive."""
    return f"{ref.name}-{ref.version}.tar.gz"


@dataclass(frozen=True, slots=True)
class GitRepository:
    """`packages/` of the commit that names the package.

    Attributes:
        blobs: (path, limit in bytes) to a file of that commit, None when it has none.
    """

    blobs: Callable[[str, int], bytes | None]

    def fetch(self, ref: PackageRef) -> tuple[bytes, bytes]:
        """See `Repository`."""
        name = f"packages/{archive_name(ref)}"
        return self._blob(name, MAX_ARCHIVE_BYTES), self._blob(name + BUNDLE_SUFFIX, MAX_BUNDLE_BYTES)

    def _blob(self, path: str, limit: int) -> bytes:
        data = self.blobs(path, limit)
        if data is None:
            raise RepositoryError(f"expected {path} in the same commit, got none; commit it, or name its repository")
        return data


@dataclass(frozen=True, slots=True)
class FolderRepository:
    """A folder of this host."""

    path: Path

    def fetch(self, ref: PackageRef) -> tuple[bytes, bytes]:
        """See `Repository`."""
        name = archive_name(ref)
        return self._file(name, MAX_ARCHIVE_BYTES), self._file(name + BUNDLE_SUFFIX, MAX_BUNDLE_BYTES)

    def _file(self, name: str, limit: int) -> bytes:
        path = self.path / name
        try:
            # O_NONBLOCK: opening a FIFO must not hang; it is refused right after.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise RepositoryError(f"cannot read {path}: {error.strerror}") from error
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise RepositoryError(f"{path}: expected a regular file, got something else")
            data = file.read(limit + 1)
        if len(data) > limit:
            raise RepositoryError(f"{path}: expected at most {limit} bytes, got more")
        return data


@dataclass(frozen=True, slots=True)
class HttpsRepository:
    """A web server; `url` names the folder. Redirects are not followed: they could leak the token.

    Attributes:
        ca_file: PEM of the only authorities that are accepted; None: the system's.
        token_file: read at each fetch, sent as a bearer token, never shown.
    """

    url: str
    ca_file: Path | None = None
    token_file: Path | None = None

    def fetch(self, ref: PackageRef) -> tuple[bytes, bytes]:
        """See `Repository`."""
        if urlsplit(self.url).scheme != "https":
            raise RepositoryError(f"expected an https:// URL, got {self.url!r}")
        address = f"{self.url.rstrip('/')}/{archive_name(ref)}"
        return self._get(address, MAX_ARCHIVE_BYTES), self._get(address + BUNDLE_SUFFIX, MAX_BUNDLE_BYTES)

    def _get(self, address: str, limit: int) -> bytes:
        import time  # noqa: PLC0415

        import requests  # noqa: PLC0415  # 100 ms that hosts without such a repository need not pay

        headers = {"Accept-Encoding": "identity"}
        if self.token_file is not None:
            headers["Authorization"] = f"Bearer {self._token()}"
        deadline = time.monotonic() + MAX_SECONDS
        try:
            with requests.Session() as session:
                session.trust_env = False  # no .netrc, no proxy of whoever started us
                verify = str(self.ca_file) if self.ca_file is not None else True
                with session.get(
                    address, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False, verify=verify
                ) as answer:
                    if answer.status_code != requests.codes.ok:
                        raise RepositoryError(f"{address}: expected status 200, got {answer.status_code}")
                    data = b""
                    for chunk in answer.iter_content(_CHUNK):
                        data += chunk
                        if len(data) > limit:
                            raise RepositoryError(f"{address}: expected at most {limit} bytes, got more")
                        if time.monotonic() > deadline:
                            raise RepositoryError(f"{address}: expected the file within {MAX_SECONDS:g} s")
                    return data
        except requests.RequestException as error:
            # The library's text may quote headers; the class says enough.
            raise RepositoryError(f"{address}: {type(error).__name__}; check the server and caFile") from None
        except OSError as error:
            raise RepositoryError(f"{address}: {error.strerror or type(error).__name__}; check caFile") from None

    def _token(self) -> str:
        try:
            text = self.token_file.read_text(encoding="ascii").strip() if self.token_file else ""
        except (OSError, UnicodeDecodeError) as error:
            raise RepositoryError(f"cannot read the token file {self.token_file}") from error
        if not text or not text.isprintable() or " " in text:
            raise RepositoryError(f"{self.token_file}: expected one line with a token, got something else")
        return text
