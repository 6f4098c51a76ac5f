# SPDX-License-Identifier: Apache-2.0
"""Archives of packages as a review and an offline plan read them: nothing is verified, so nothing of it is loaded."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from reconciler import packages, trust
from reconciler.config import KeyRule
from reconciler.errors import PackageError, SourceError, TrustError
from reconciler.review import ReviewPackage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reconciler.model import PackageRef, PaperSigner, Signer
    from reconciler.source import BlobReader


MAX_TOTAL_BYTES: Final = 512 << 20
"""Of archives and of what is unpacked and kept, in one review: anybody may open a pull request."""


class PackageReader:
    """Reads archives of the repository: digest, form, package.yaml against its objects; never libbpf.

    `signers` are rules of groups that BASE has: who signed is verified with their public keys where they have one.
    """

    def __init__(self, signers: Iterable[PaperSigner] = ()) -> None:
        self._rules = tuple(
            KeyRule(name=each.name, packages=each.packages, key_pem=each.public_key.encode())
            for each in signers
            if each.public_key is not None
        )
        self._parsed: dict[tuple[PackageRef, bytes | None], ReviewPackage] = {}
        self._left = MAX_TOTAL_BYTES

    def read(self, ref: PackageRef, blobs: BlobReader) -> ReviewPackage | str | None:
        """The package, why it cannot be had, or None if it lies elsewhere."""
        if ref.repository != "git":
            return None
        path = f"packages/{packages.archive_name(ref)}"
        try:
            self._spend(0, path)
            archive = blobs(path, packages.MAX_ARCHIVE_BYTES)
            if archive is None:
                return f"expected {path} in the repository, got none"
            self._spend(len(archive), path)
            digest = packages.digest_of(archive)
            if digest != ref.digest:
                return f"expected the digest {ref.digest}, got {digest}"
            bundle = bundle_of(ref, blobs)
            if (ref, bundle) not in self._parsed:
                self._parsed[ref, bundle] = self._open(ref, archive, path, bundle)
        except (PackageError, SourceError) as error:
            return "; ".join(str(finding) for finding in error.diagnostics()[:3])
        return self._parsed[ref, bundle]

    def _open(self, ref: PackageRef, archive: bytes, path: str, bundle: bytes | None) -> ReviewPackage:
        parsed, files = packages.open_archive(archive, file=path)
        if (parsed.name, parsed.version) != (ref.name, ref.version):
            raise PackageError(f"expected {ref.name} {ref.version} in package.yaml, got {parsed.name} {parsed.version}")
        objects = {program.object: files[program.object] for program in parsed.programs}
        self._spend(sum(map(len, objects.values())), path)
        signer, verified = self._signer(ref, archive, bundle)
        return ReviewPackage(ref=ref, manifest=parsed, objects=objects, signer=signer, verified=verified)

    def _spend(self, size: int, path: str) -> None:
        self._left -= size
        if self._left <= 0:
            limit = f"{MAX_TOTAL_BYTES >> 20} MiB of packages in one review"
            raise PackageError(f"{path}: expected at most {limit}, got more; not looked at")

    def _signer(self, ref: PackageRef, archive: bytes, bundle: bytes | None) -> tuple[Signer | None, bool]:
        """Who signed, and whether that was verified; else whom the bundle claims."""
        if bundle is None:
            return None, False
        with contextlib.suppress(TrustError):
            now = datetime.now(UTC)
            rules = self._rules
            return trust.verify_package(archive, bundle, package=ref.name, rules=rules, roots={}, now=now), True
        with contextlib.suppress(TrustError):
            return trust.claimed_signer(bundle), False
        return None, False


def bundle_of(ref: PackageRef, blobs: BlobReader) -> bytes | None:
    """The signature that lies beside an archive of the repository; None if there is none that can be read."""
    with contextlib.suppress(SourceError):
        return blobs(f"packages/{packages.archive_name(ref)}{packages.BUNDLE_SUFFIX}", packages.MAX_BUNDLE_BYTES)
    return None
