# SPDX-License-Identifier: Apache-2.0
"""Archives of packages as a review and an offline plan read them: nothing is verified, so nothing of it is loaded."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from reconciler import packages, trust
from reconciler.errors import PackageError, SourceError, TrustError
from reconciler.review import ReviewPackage

if TYPE_CHECKING:
    from reconciler.model import PackageRef, Signer
    from reconciler.source import BlobReader


class PackageReader:
    """Reads archives of the repository: digest, form, package.yaml against its objects; never libbpf."""

    def __init__(self) -> None:
        self._parsed: dict[PackageRef, ReviewPackage] = {}

    def read(self, ref: PackageRef, blobs: BlobReader) -> ReviewPackage | str | None:
        """The package, why it cannot be had, or None if it lies elsewhere."""
        if ref.repository != "git":
            return None
        path = f"packages/{packages.archive_name(ref)}"
        try:
            archive = blobs(path, packages.MAX_ARCHIVE_BYTES)
            if archive is None:
                return f"expected {path} in the repository, got none"
            digest = packages.digest_of(archive)
            if digest != ref.digest:
                return f"expected the digest {ref.digest}, got {digest}"
            if ref not in self._parsed:
                self._parsed[ref] = self._open(ref, archive, path, blobs)
        except (PackageError, SourceError) as error:
            return "; ".join(str(finding) for finding in error.diagnostics()[:3])
        return self._parsed[ref]

    def _open(self, ref: PackageRef, archive: bytes, path: str, blobs: BlobReader) -> ReviewPackage:
        parsed, files = packages.open_archive(archive, file=path)
        if (parsed.name, parsed.version) != (ref.name, ref.version):
            raise PackageError(f"expected {ref.name} {ref.version} in package.yaml, got {parsed.name} {parsed.version}")
        objects = {program.object: files[program.object] for program in parsed.programs}
        signer = self._signer(f"{path}{packages.BUNDLE_SUFFIX}", blobs)
        return ReviewPackage(ref=ref, manifest=parsed, objects=objects, signer=signer)

    def _signer(self, path: str, blobs: BlobReader) -> Signer | None:
        with contextlib.suppress(SourceError, TrustError):
            bundle = blobs(path, packages.MAX_BUNDLE_BYTES)
            return trust.claimed_signer(bundle) if bundle is not None else None
        return None
