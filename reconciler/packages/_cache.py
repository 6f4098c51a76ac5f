# SPDX-License-Identifier: Apache-2.0
"""From references to packages that may be loaded: the order of checks, and nothing that skips one.

size limits → digest pinned by the manifest → bundle → identity policy → revocation → archive → name and version →
package.yaml against the objects. What passed is kept in memory by (digest, policy id); a restart checks again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler import trust as verifier
from reconciler.errors import (
    DigestError,
    PackageError,
    ReconcilerError,
    RepositoryError,
    RevokedError,
    SignatureError,
    TrustError,
)
from reconciler.model import Package
from reconciler.packages._archive import MAX_ARCHIVE_BYTES, open_archive
from reconciler.packages._repositories import MAX_BUNDLE_BYTES, archive_name
from reconciler.packages._store import Store, digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from reconciler.config import Trust
    from reconciler.model import PackageRef, Signer
    from reconciler.packages._repositories import Repository


class Cache:
    """Verified packages of this process, on top of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, str], tuple[Package, ...]] = {}

    def ensure(
        self,
        refs: Iterable[PackageRef],
        *,
        repositories: Mapping[str, Repository],
        trust: Trust,
        running: frozenset[str],
        policy_id: str,
        now: datetime,
    ) -> dict[str, Package]:
        """Every package by digest.

        Args:
            repositories: by name; "git" is the commit's own.
            running: digests that run already: revocation does not stop these, it marks them.
            policy_id: changes whenever `trust` does.

        Raises:
            TrustError: first of all packages that nobody whom this host trusts signed, or that are revoked.
            PackageError: an archive is not acceptable.
            RepositoryError: an archive cannot be had.
        """
        found: dict[str, Package] = {}
        errors: list[ReconcilerError] = []
        for ref in refs:
            try:
                package = self._one(ref, repositories, trust, policy_id, now)
                found[ref.digest] = _revocation(package, trust, running)
            except ReconcilerError as error:
                errors.append(error)
        if errors:
            raise min(errors, key=lambda error: not isinstance(error, TrustError))
        return found

    def prune(self, keep: frozenset[str]) -> None:
        """Forget packages whose digest is not in `keep`, in memory and on disk."""
        self._known = {key: value for key, value in self._known.items() if key[0] in keep}
        self._store.prune(keep)

    def _one(
        self, ref: PackageRef, repositories: Mapping[str, Repository], trust: Trust, policy_id: str, now: datetime
    ) -> Package:
        for package in self._known.get((ref.digest, policy_id), ()):
            if package.ref == ref:
                return package
        kept = self._store.get(ref.digest)
        if kept is not None:
            try:
                return self._remember(_verify(ref, *kept, trust, now), policy_id)
            except SignatureError:
                pass  # the repository may hold a newer bundle for the same bytes
        repository = repositories.get(ref.repository)
        if repository is None:
            known = ", ".join(sorted(repositories))
            raise RepositoryError(f"{_name(ref)}: expected a repository of this host ({known}), got {ref.repository}")
        archive, bundle = repository.fetch(ref)
        package = _verify(ref, archive, bundle, trust, now)
        self._store.put(ref.digest, archive, bundle)
        return self._remember(package, policy_id)

    def _remember(self, package: Package, policy_id: str) -> Package:
        key = (package.ref.digest, policy_id)
        self._known[key] = (*self._known.get(key, ()), package)
        return package


def _name(ref: PackageRef) -> str:
    return f"package {ref.name} {ref.version} of repository {ref.repository}"


def _verify(ref: PackageRef, archive: bytes, bundle: bytes, trust: Trust, now: datetime) -> Package:
    if len(archive) > MAX_ARCHIVE_BYTES or len(bundle) > MAX_BUNDLE_BYTES:
        raise PackageError(f"{_name(ref)}: expected at most {MAX_ARCHIVE_BYTES} bytes, got more", reason="TooLarge")
    digest = digest_of(archive)
    if digest != ref.digest:
        raise DigestError(f"{_name(ref)}: expected {ref.digest}, got {digest}; pin the digest of what was reviewed")
    signer = _signer(ref, archive, bundle, trust, now)
    parsed, files = open_archive(archive, file=archive_name(ref))
    if (parsed.name, parsed.version) != (ref.name, ref.version):
        got = f"{parsed.name} {parsed.version}"
        raise PackageError(f"{_name(ref)}: expected this name and version in package.yaml, got {got}")
    objects = {program.object: files[program.object] for program in parsed.programs}
    return Package(ref=ref, manifest=parsed, objects=objects, signer=signer)


def _signer(ref: PackageRef, archive: bytes, bundle: bytes, trust: Trust, now: datetime) -> Signer:
    try:
        return verifier.verify_package(
            archive, bundle, package=ref.name, rules=trust.signers, roots=trust.roots, now=now
        )
    except TrustError as error:
        raise type(error)(f"{_name(ref)}: {error}", reason=error.reason) from error


def _revocation(package: Package, trust: Trust, running: frozenset[str]) -> Package:
    reason = verifier.check_revoked(trust.revoked, digest=package.ref.digest, signer=package.signer)
    if reason is None:
        return package
    if package.ref.digest not in running:
        raise RevokedError(f"{_name(package.ref)}: {reason}")
    return replace(package, revoked=reason)
