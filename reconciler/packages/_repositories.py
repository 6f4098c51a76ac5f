# SPDX-License-Identifier: Apache-2.0
"""Where packages come from. A repository can be unavailable; it cannot lie, because the manifest pins the digest."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from reconciler.errors import RepositoryError, SignatureError, SourceError
from reconciler.packages._archive import MAX_ARCHIVE_BYTES
from reconciler.packages._files import read_regular
from reconciler.trust import MAX_BUNDLE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reconciler.model import PackageRef

BUNDLE_SUFFIX: Final = ".sigstore.json"
_SAFE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,199}")
"""Names and versions that may become part of a path; what the schema allows is less."""


class Repository(Protocol):
    """A named place that holds NAME-VERSION.tar.gz and its bundle side by side."""

    def fetch(self, ref: PackageRef) -> tuple[bytes, bytes]:
        """The archive and the bundle, neither checked.

        Raises:
            RepositoryError: they cannot be had.
            SignatureError: there is no bundle, and there never will be.
        """


def archive_name(ref: PackageRef) -> str:
    """File name of a package's archive.

    Raises:
        RepositoryError: the name or version could be more than a part of a file's name.
    """
    for part in (ref.name, ref.version):
        if not _SAFE.fullmatch(part):
            raise RepositoryError(f"expected a plain package name and version, got {part[:80]!r}")
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
        archive, bundle = self._blob(name, MAX_ARCHIVE_BYTES), self._blob(name + BUNDLE_SUFFIX, MAX_BUNDLE_BYTES)
        if archive is None:
            raise RepositoryError(f"expected {name} in the same commit, got none; commit it, or name its repository")
        if bundle is None:
            # A commit never changes: what it does not sign is not late, it is unsigned.
            raise SignatureError(
                f"{name}: expected its signature {archive_name(ref)}{BUNDLE_SUFFIX} in the same commit, got none; "
                "run `reconciler package sign`",
                reason="Unsigned",
            )
        return archive, bundle

    def _blob(self, path: str, limit: int) -> bytes | None:
        try:
            return self.blobs(path, limit)
        except SourceError as error:
            raise RepositoryError(f"cannot read {path} of the commit: {error}") from error


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
            return read_regular(path, limit)
        except OSError as error:
            what = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise RepositoryError(f"cannot read {path}: {what}; put the archive and its bundle there") from error
