# SPDX-License-Identifier: Apache-2.0
"""From an advertised commit to something that may run here, or to a refusal that names the commit.

Order: ancestry against the watermark → every new commit's signature → checkout → manifests for this host →
quarantine → packages. Nothing is adopted before all of it held; a refusal changes nothing but the record of it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from reconciler import manifest, trust
from reconciler.config import trust_digest
from reconciler.errors import (
    ConfigError,
    Disposition,
    GuardrailError,
    HistoryError,
    ManifestError,
    ReconcilerError,
    RolledBackError,
    SourceError,
    TrustError,
)
from reconciler.model import DesiredState, PackageRef, digest_of
from reconciler.reconcile._parts import Notes, Parts, ReadCommit, Wanted
from reconciler.source import Ancestry
from reconciler.status import Finding, clean

if TYPE_CHECKING:
    from reconciler.model import ControlRecord, Hook, Package, Quarantine, SourceRecord, StepFailure
    from reconciler.source import Checkout


def context_digest(parts: Parts) -> str:
    """What besides the commit decides about it: policy, labels, host name, and the rest of the configuration."""
    config = parts.config
    return digest_of(
        {
            "policy": trust_digest(config),
            "labels": config.labels,
            "host": parts.facts.name,
            "repositories": config.repositories,
            "guardrail": config.guardrail,
            "repository": config.source.repository,
            "minimum": config.source.minimum_commit,
            "unsafe": parts.unsafe_first_use,
            "kernel": parts.kernel_release,
        }
    )


def judge(parts: Parts, head: str, record: SourceRecord, control: ControlRecord, notes: Notes) -> Wanted:
    """The advertised commit, which the local repository holds, as something that may run here.

    Raises:
        ReconcilerError: why it may not; `exit_code` and `reason` say of which kind.
    """
    watermark = record.applied.id if record.applied else None
    accepted = control.acceptance is not None and control.acceptance.commit == head
    base = _base(parts, head, watermark, accepted=accepted)
    signer = _verify_commits(parts, base, head, notes)
    wanted = read_commit(parts, head, signer, record, fresh=True)
    if accepted:
        return wanted
    refuse_quarantined(wanted, control.quarantine, parts)
    return wanted


def _base(parts: Parts, head: str, watermark: str | None, *, accepted: bool) -> str | None:
    """The commit after which everything must be verified; None when only the head itself can be."""
    minimum = parts.config.source.minimum_commit
    old, what = (watermark, "the commit applied last") if watermark is not None else (minimum, "source.minimumCommit")
    if old is None:
        if parts.unsafe_first_use or accepted:
            return None
        raise GuardrailError(
            f"first start: nothing says that {head[:12]} is not an old commit; set source.minimumCommit in the "
            "configuration (or start once with --unsafe-trust-first-use)",
            reason="NoMinimumCommit",
        )
    ancestry = parts.source.ancestry(old, head)
    if ancestry in (Ancestry.EQUAL, Ancestry.DESCENDANT):
        return old
    if accepted:
        return None if ancestry is Ancestry.UNKNOWN else old
    how = {
        Ancestry.REWOUND: "was rewound to",
        Ancestry.UNRELATED: "was rewritten to",
        Ancestry.UNKNOWN: "cannot be compared with",
    }[ancestry]
    raise HistoryError(
        f"expected a commit that descends from {what} ({old[:12]}), but the source {how} {head[:12]}; nothing is taken "
        f"from it: restore the branch, or `reconciler accept {head} --reason TEXT`"
    )


def _verify_commits(parts: Parts, base: str | None, head: str, notes: Notes) -> str:
    """Every commit after `base`, and the head in any case; returns who signed the head."""
    config = parts.config.trust.commits
    if config.unsafe_allow_unsigned:
        notes.warn("unsafe: commits are accepted whoever made them (trust.commits.unsafeAllowUnsigned)")
        return ""
    commits = parts.source.new_commits(base, head) if base is not None else (head,)
    signer = ""
    for commit in commits or (head,):
        if parts.memo.raw is None or parts.memo.raw[0] != commit:
            parts.memo.raw = (commit, parts.source.read_commit(commit))
        verified = trust.verify_commit(
            parts.memo.raw[1],
            commit=commit,
            allowed_signers=config.allowed_signers,
            revoked=config.revoked,
            now=parts.clock.now(),
        )
        signer = verified.identity if not verified.name else verified.name
    return signer


def read_commit(parts: Parts, commit: str, signer: str, record: SourceRecord, *, fresh: bool) -> Wanted:
    """Manifests and packages of one commit that is in the local repository.

    Raises:
        ManifestError: not acceptable for this host; all findings.
        TrustError, PackageError, RepositoryError: a package is not.
    """
    read = _read(parts, commit, record)
    expected = parts.config.source.repository
    if expected is not None and read.desired.repository != expected:
        raise GuardrailError(
            f"expected the repository {expected} (source.repository), got {clean(read.desired.repository, 60)}",
            reason="WrongRepository",
        )
    return Wanted(
        commit=commit,
        signer=signer,
        subject=read.subject,
        author_time=read.author_time,
        desired=read.desired,
        state_digest=read.state_digest,
        packages=_packages(parts, read, record, fresh=fresh),
        fresh=fresh,
        policies=read.policies,
    )


def _read(parts: Parts, commit: str, record: SourceRecord) -> ReadCommit:
    """The commit as this host reads it; the one applied last is read once per process, not in every pass."""
    applied = record.applied is not None and record.applied.id == commit
    known = parts.memo.good
    if applied and known is not None and known.commit == commit:
        return known
    checkout = parts.source.checkout(commit)
    desired = _parse(parts, checkout, _previous(parts, checkout, record))
    info = parts.source.describe(commit)
    read = ReadCommit(
        commit=commit,
        desired=desired,
        state_digest=manifest.state_digest(desired),
        subject=clean(info.subject, 120),
        author_time=info.time,
        blobs=checkout.blobs,
        policies=_policies(parts, commit),
    )
    if applied:
        parts.memo.good = read
    return read


def _policies(parts: Parts, commit: str) -> frozenset[str]:
    """What the commit's groups say about this host's policy: told in `status`, and never obeyed."""
    with suppress(SourceError):
        return manifest.policies_of(manifest.parse_groups(parts.source.paper(commit)).groups, parts.facts)
    return frozenset()


def _previous(parts: Parts, checkout: Checkout, record: SourceRecord) -> Checkout | None:
    """The commit that this host applied last, which decides about files that do not select it; None at first."""
    if record.applied is None:
        return None
    if record.applied.id == checkout.commit:
        return checkout
    with suppress(SourceError):  # an accepted history may come without what was applied before
        return parts.source.checkout(record.applied.id)
    return None


def _parse(parts: Parts, checkout: Checkout, previous: Checkout | None) -> DesiredState:
    return manifest.parse(
        checkout.files,
        host=parts.facts,
        problems=checkout.problems,
        previous=previous.files if previous else None,
        previous_problems=previous.problems if previous else (),
    )


def _packages(parts: Parts, read: ReadCommit, record: SourceRecord, *, fresh: bool) -> dict[str, Package]:
    refs = package_refs(read.desired)
    running = frozenset(ref.digest for ref in refs)
    if fresh and (record.applied is None or record.applied.id != read.commit):
        running = _running(parts, record, read.desired)
    return parts.packages.ensure(refs, blobs=read.blobs, running=running, now=parts.clock.now())


def _running(parts: Parts, record: SourceRecord, desired: DesiredState) -> frozenset[str]:
    """Digests that revocation does not stop: `desired` wants them only where the last applied commit has them.

    A package that is revoked must not spread either: to another chain, another hook or more interfaces.
    """
    if record.applied is None:
        return frozenset()
    try:
        before = _places(_read(parts, record.applied.id, record).desired)
    except (ManifestError, SourceError):
        return frozenset()
    return frozenset(digest for digest, places in _places(desired).items() if places <= before.get(digest, set()))


def _places(desired: DesiredState) -> dict[str, set[tuple[str, str, Hook]]]:
    """Where each package stands: chain, member and hook, by digest."""
    places: dict[str, set[tuple[str, str, Hook]]] = {}
    for chain in desired.chains:
        for member in chain.members:
            places.setdefault(member.package.digest, set()).add((chain.name, member.name, chain.hook))
    return places


def package_refs(desired: DesiredState) -> tuple[PackageRef, ...]:
    """Every package that the desired state names, once."""
    return tuple(sorted({member.package for chain in desired.chains for member in chain.members}))


def refuse_quarantined(wanted: Wanted, quarantine: tuple[Quarantine, ...], parts: Parts) -> None:
    """A state that was taken back here is not tried again, whichever commit wants it.

    Raises:
        RolledBackError: it was.
    """
    policy = trust_digest(parts.config)
    for entry in quarantine:
        if (entry.state_digest, entry.policy, entry.kernel) == (wanted.state_digest, policy, parts.kernel_release):
            raise RolledBackError(
                f"commit {wanted.commit[:12]} wants the state that was taken back here at {entry.at} "
                f"({entry.message}); push a commit that fixes it",
                reason="Quarantined",
            )


def last_good(parts: Parts, record: SourceRecord, notes: Notes) -> Wanted | None:
    """What was applied last, from the local store; None when nothing was.

    It is verified again; a signer that is no longer allowed is a critical finding, not a reason to detach.
    """
    if record.applied is None:
        return None
    wanted = read_commit(parts, record.applied.id, record.applied.signer, record, fresh=False)
    try:
        _verify_commits(parts, None, record.applied.id, notes)
    except (TrustError, ConfigError) as error:
        notes.find(finding(error, f"what runs stays, but: {error}"))
    return wanted


def failure_error(failure: StepFailure) -> ReconcilerError:
    """A step's failure as the error that it was, as far as the pass needs it."""
    error = ReconcilerError(failure.message, reason=failure.reason)
    error.disposition = Disposition(failure.disposition)
    return error


def finding(error: ReconcilerError, message: str | None = None) -> Finding:
    """An error as a finding of the pass."""
    return Finding(reason=error.reason, message=clean(message or str(error), 1000), exit_code=int(error.exit_code))


__all__ = [
    "SourceError",
    "context_digest",
    "finding",
    "judge",
    "last_good",
    "package_refs",
    "read_commit",
]
