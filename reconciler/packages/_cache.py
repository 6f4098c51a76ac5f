# SPDX-License-Identifier: Apache-2.0
"""From references to packages that may be loaded: the order of checks, and nothing that skips one.

size limits → digest pinned by the manifest → bundle → identity policy → archive → name and version → package.yaml
against the objects; revocation is looked up each time. What passed is kept in memory for one policy id, by the whole
reference (the policy was chosen by its name); a restart or another policy checks again.

What ran already and is not acceptable any more is no reason to detach: a package that this host verified once, and that
the last applied commit names, is kept and marked, as `revoked` when it was revoked and as `untrusted` when its signer
left the policy. Only the first takes programs off hooks, under `onRevoked: detach`: a damaged trust root does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from reconciler import trust as verifier
from reconciler.errors import (
    DigestError,
    Disposition,
    PackageError,
    ReconcilerError,
    RepositoryError,
    RevokedError,
    SignatureError,
    TrustError,
)
from reconciler.model import Package
from reconciler.packages._archive import MAX_ARCHIVE_BYTES, open_archive
from reconciler.packages._repositories import archive_name
from reconciler.packages._store import Store, digest_of
from reconciler.trust import MAX_BUNDLE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reconciler.config import Trust
    from reconciler.model import PackageRef, Signer
    from reconciler.packages._repositories import Repository


class UnknownRepositoryError(RepositoryError):
    """A manifest names a repository of packages that the host's configuration does not define."""

    reason = "UnknownRepository"
    disposition = Disposition.STALLED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What one call of `ensure` is judged by."""

    repositories: Mapping[str, Repository]
    trust: Trust
    running: frozenset[str]
    now: datetime


NEVER: Final = datetime.min.replace(tzinfo=UTC)
RETRY_AFTER: Final = timedelta(minutes=5)
"""Between two tries to get another bundle for what runs although nobody vouches for it: every pass asks for it."""


@dataclass(slots=True)
class Cache:
    """Verified packages of this process, on top of the store."""

    store: Store
    _policy: str = ""
    _known: dict[PackageRef, Package] = field(default_factory=dict)
    _tried: dict[PackageRef, datetime] = field(default_factory=dict)

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
            running: digests that the last applied commit names: what this host verified of them may stay.
            policy_id: changes whenever `trust` does.

        Raises:
            TrustError: a package is not signed by anybody whom this host trusts, or is revoked. Trust goes first
                when several packages fail.
            PackageError: an archive is not acceptable.
            RepositoryError: an archive cannot be had.
            StateError: the store does not take one.
        """
        if policy_id != self._policy:
            self._policy, self._known, self._tried = policy_id, {}, {}
        terms = _Terms(repositories=repositories, trust=trust, running=running, now=now)
        found: dict[str, Package] = {}
        errors: list[ReconcilerError] = []
        with verifier.apart():
            for ref in refs:
                try:
                    found[ref.digest] = self._judge(ref, terms)
                except ReconcilerError as error:
                    errors.append(error)
        if errors:
            raise min(errors, key=lambda error: not isinstance(error, TrustError))
        return found

    def prune(self, keep: frozenset[str]) -> None:
        """Forget packages whose digest is not in `keep`, in memory and on disk.

        Raises:
            StateError: a file cannot be removed.
        """
        self._known = {ref: package for ref, package in self._known.items() if ref.digest in keep}
        self.store.prune(keep)

    def _judge(self, ref: PackageRef, terms: _Terms) -> Package:
        reason = verifier.check_revoked(terms.trust.revoked, digest=ref.digest)
        if reason is not None and not self._may_stay(ref, terms):
            raise RevokedError(f"{_name(ref)}: {reason}")  # nothing of it is fetched or parsed
        try:
            package, files = self._verified(ref, terms)
        except DigestError:
            raise
        except TrustError as error:
            kept = self._kept(ref, terms, error)
            if kept is None:
                raise
            return kept
        reason = verifier.check_revoked(terms.trust.revoked, digest=ref.digest, signer=package.signer)
        if reason is not None and not self._may_stay(ref, terms):
            raise RevokedError(f"{_name(ref)}: {reason}")
        if files is not None and reason is None:
            self.store.put(ref.digest, *files, package.signer)
        self._known[ref] = package
        return package if reason is None else replace(package, revoked=reason)

    def _may_stay(self, ref: PackageRef, terms: _Terms) -> bool:
        if ref.digest not in terms.running:
            return False
        # Under `detach` nothing starts by staying. Otherwise the last applied commit may name what was never taken
        # here, because it was for other hosts until this one's labels changed.
        return terms.trust.on_revoked == "detach" or self.store.signer(ref.digest) is not None

    def _verified(self, ref: PackageRef, terms: _Terms) -> tuple[Package, tuple[bytes, bytes] | None]:
        """The package, and archive and bundle if the store does not hold them as they were verified now."""
        known = self._known.get(ref)
        if known is not None:
            return known, None
        stored = self.store.get(ref.digest)
        refusal: TrustError | None = None
        if stored is not None:
            try:
                package = _verify(ref, *stored, terms)
            except TrustError as error:
                refusal = error  # the repository may hold another bundle for the same bytes
            else:
                return package, None if self.store.signer(ref.digest) == package.signer else stored
            if ref.digest in terms.running and terms.now - self._tried.get(ref, NEVER) < RETRY_AFTER:
                raise refusal
            self._tried[ref] = terms.now
        try:
            fetched = _fetch(ref, terms.repositories)
        except (RepositoryError, SignatureError):
            if refusal is None:
                raise
            raise refusal from None
        return _verify(ref, *fetched, terms), fetched

    def _kept(self, ref: PackageRef, terms: _Terms, error: TrustError) -> Package | None:
        """What runs although nobody vouches for it any more; it was verified here, and has the pinned digest."""
        signer, stored = self.store.signer(ref.digest), self.store.get(ref.digest)
        if ref.digest not in terms.running or signer is None or stored is None:
            return None
        reason = verifier.check_revoked(terms.trust.revoked, digest=ref.digest, signer=signer)
        return replace(_open(ref, stored[0], signer), revoked=reason, untrusted=f"not trusted any more: {error}")


def _name(ref: PackageRef) -> str:
    return f"package {ref.name} {ref.version} of repository {ref.repository}"


def _fetch(ref: PackageRef, repositories: Mapping[str, Repository]) -> tuple[bytes, bytes]:
    repository = repositories.get(ref.repository)
    if repository is None:
        known = ", ".join(sorted(repositories))
        raise UnknownRepositoryError(f"{_name(ref)}: expected a repository that this host defines ({known})")
    try:
        return repository.fetch(ref)
    except RepositoryError as error:
        raise RepositoryError(f"{_name(ref)}: {error}", reason=error.reason) from error
    except SignatureError as error:
        raise SignatureError(f"{_name(ref)}: {error}", reason=error.reason) from error


def _verify(ref: PackageRef, archive: bytes, bundle: bytes, terms: _Terms) -> Package:
    for data, limit in ((archive, MAX_ARCHIVE_BYTES), (bundle, MAX_BUNDLE_BYTES)):
        if len(data) > limit:
            raise PackageError(f"{_name(ref)}: expected at most {limit} bytes, got {len(data)}", reason="TooLarge")
    digest = digest_of(archive)
    if digest != ref.digest:
        raise DigestError(f"{_name(ref)}: expected {ref.digest}, got {digest}; pin the digest of what was reviewed")
    try:
        signer = verifier.verify_package(
            archive, bundle, package=ref.name, rules=terms.trust.signers, roots=terms.trust.roots, now=terms.now
        )
    except TrustError as error:
        raise type(error)(f"{_name(ref)}: {error}", reason=error.reason) from error
    return _open(ref, archive, signer)


def _open(ref: PackageRef, archive: bytes, signer: Signer) -> Package:
    parsed, files = open_archive(archive, file=archive_name(ref))
    if (parsed.name, parsed.version) != (ref.name, ref.version):
        # The policy was chosen by the manifest's name: another package's signer must not sign for this one.
        got = f"{parsed.name} {parsed.version}"
        raise PackageError(f"{_name(ref)}: expected this name and version in package.yaml, got {got}")
    objects = {program.object: files[program.object] for program in parsed.programs}
    return Package(ref=ref, manifest=parsed, objects=objects, signer=signer)
