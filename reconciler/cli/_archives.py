# SPDX-License-Identifier: Apache-2.0
"""Archives of packages as a review and an offline plan read them: no host vouches for them, so nothing is loaded."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from reconciler import packages, trust
from reconciler.config import IdentityRule, KeyRule
from reconciler.errors import PackageError, SourceError, TrustError
from reconciler.review import ReviewPackage

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from reconciler.model import PackageRef, PaperSigner
    from reconciler.source import BlobReader


MAX_TOTAL_BYTES: Final = 512 << 20
"""Of archives and of what is unpacked and kept, in one review: anybody may open a pull request."""


class PackageReader:
    """Reads archives of the repository: digest, form, package.yaml against its objects; never libbpf.

    `signers` and `roots` are those of groups that BASE has. Who signed is verified with their public keys, and for
    packages among `certified` with their trust roots: certificates take half a second.
    """

    def __init__(
        self,
        signers: Iterable[PaperSigner] = (),
        roots: Mapping[str, bytes] | None = None,
        certified: Container[PackageRef] = (),
    ) -> None:
        signers = tuple(signers)
        self._roots, self._certified = roots or {}, certified
        self._failed = ""
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
        made = ReviewPackage(ref=ref, manifest=parsed, objects=objects)
        return made if bundle is None else self._signed(made, archive, bundle)

    def _spend(self, size: int, path: str) -> None:
        self._left -= size
        if self._left <= 0:
            limit = f"{MAX_TOTAL_BYTES >> 20} MiB of packages in one review"
            raise PackageError(f"{path}: expected at most {limit}, got more; not looked at")

    def _signed(self, package: ReviewPackage, archive: bytes, bundle: bytes) -> ReviewPackage:
        """With who signed it: verified where it can be, else whom the bundle claims."""
        now = datetime.now(UTC)
        name = package.ref.name
        with contextlib.suppress(TrustError):
            signer = trust.verify_package(archive, bundle, package=name, rules=self._rules, roots={}, now=now)
            return replace(package, signer=signer, verified=True)
        try:
            claimed = trust.claimed_signer(bundle)
        except TrustError:
            return package
        if claimed.issuer == "key" or package.ref not in self._certified:
            return replace(package, signer=claimed)
        if self._failed:
            return replace(package, signer=claimed, refusal=self._failed)
        held: set[str] = set()
        refusal = ""
        for root in sorted(self._roots):
            # Whom the groups allow is for the review to say; whether this is who signed, for the root.
            rule = IdentityRule(
                name="claimed", packages=("*",), identity=claimed.identity, issuer=claimed.issuer, root=root
            )
            try:
                claimed = trust.verify_package(archive, bundle, package=name, rules=(rule,), roots=self._roots, now=now)
                held.add(root)
            except trust.VerifierFailedError as error:
                # A bundle of HEAD may be made to end the verifier: then it is asked no more.
                self._failed = refusal = str(error)
                break
            except TrustError as error:
                refusal = refusal or f"under {root}: {error}"
        refusal = "" if held else refusal
        return replace(package, signer=claimed, verified=bool(held), roots=frozenset(held), refusal=refusal)


def bundle_of(ref: PackageRef, blobs: BlobReader) -> bytes | None:
    """The signature that lies beside an archive of the repository; None if there is none that can be read."""
    with contextlib.suppress(SourceError):
        return blobs(f"packages/{packages.archive_name(ref)}{packages.BUNDLE_SUFFIX}", packages.MAX_BUNDLE_BYTES)
    return None
