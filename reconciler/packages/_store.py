# SPDX-License-Identifier: Apache-2.0
"""The content-addressed store: what a host needs to run its last good commit without any repository.

A file is named by the digest of the archive and is hashed again at every read: a name is never proof. Beside archive
and bundle lies who signed it when this host verified it, which says that the package was adopted here and nothing more:
it replaces no verification.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Final

import msgspec

from reconciler import _points
from reconciler.errors import StateError
from reconciler.model import NOT_JSON, Signer, encode_json
from reconciler.packages._archive import MAX_ARCHIVE_BYTES
from reconciler.packages._files import read_regular
from reconciler.trust import MAX_BUNDLE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_FILE: Final = re.compile(r"\.?([0-9a-f]{64})\.(?:tar\.gz|json|signer)(\.new)?")
_MAX_SIGNER_BYTES: Final = MAX_BUNDLE_BYTES
"""An identity comes out of a bundle and is not longer than that."""


class Store:
    """Archives and bundles below one directory, which is made at the first `put`; one writer (the agent's lock)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, digest: str) -> tuple[bytes, bytes] | None:
        """The archive and the bundle with this digest; None when they are not there or are not intact."""
        archive, bundle, _ = self._paths(digest)
        data = _read(archive, MAX_ARCHIVE_BYTES)
        signature = _read(bundle, MAX_BUNDLE_BYTES)
        if data is None or signature is None or digest_of(data) != digest:
            return None
        return data, signature

    def signer(self, digest: str) -> Signer | None:
        """Who had signed the package when this host last verified it; None if it never did."""
        data = _read(self._paths(digest)[2], _MAX_SIGNER_BYTES)
        try:
            return None if data is None else msgspec.json.decode(data, type=Signer)
        except NOT_JSON:
            return None

    def put(self, digest: str, archive: bytes, bundle: bytes, signer: Signer) -> None:
        """Keep a verified package; each file appears whole or not at all, the signer last.

        Raises:
            StateError: the disk does not take them.
        """
        contents = (archive, bundle, encode_json(signer))
        try:
            _points.at("mkdir packages", self.directory.mkdir, mode=0o700, parents=True, exist_ok=True)
            for path, data in zip(self._paths(digest), contents, strict=True):
                _write(path, data)
            _sync_folder(self.directory)
        except OSError as error:
            raise StateError(f"cannot keep a package in {self.directory}: {error.strerror}; check the disk") from error

    def prune(self, keep: frozenset[str]) -> None:
        """Remove every package whose digest is not in `keep`, and what an interrupted `put` left.

        Raises:
            StateError: a file cannot be removed.
        """
        wanted = {digest.removeprefix("sha256:") for digest in keep}
        try:
            for path in self.directory.iterdir() if self.directory.is_dir() else ():
                found = _FILE.fullmatch(path.name)
                if found and (found[1] not in wanted or found[2]):
                    _points.at("unlink package", path.unlink, missing_ok=True)
        except OSError as error:
            raise StateError(f"cannot tidy {self.directory}: {error.strerror}") from error

    def _paths(self, digest: str) -> tuple[Path, Path, Path]:
        found = _DIGEST.fullmatch(digest)
        if found is None:
            raise StateError(f"expected a digest sha256:<64 hex digits>, got {digest[:80]!r}")
        base = self.directory / found[1]
        return base.with_suffix(".tar.gz"), base.with_suffix(".json"), base.with_suffix(".signer")


def digest_of(data: bytes) -> str:
    """The digest of an archive, as manifests spell it: sha256: and 64 hex digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _read(path: Path, limit: int) -> bytes | None:
    try:
        return read_regular(path, limit)
    except OSError:
        return None


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = _points.at("open package", os.open, temporary, flags, 0o600)
    with os.fdopen(fd, "wb") as file:
        _points.at("write package", file.write, data)
        file.flush()
        _points.at("fsync package", os.fsync, fd)
    _points.at("rename package", temporary.replace, path)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        _points.at("fsync packages", os.fsync, fd)
    finally:
        os.close(fd)
