# SPDX-License-Identifier: Apache-2.0
"""What one pass is given and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from reconciler.config import Config
    from reconciler.kernel import Kernel
    from reconciler.model import DesiredState, HostFacts, Outcome, Package, PackageRef, Plan
    from reconciler.source import BlobReader, Source
    from reconciler.state import State
    from reconciler.status import Finding, Status


class Clock(Protocol):
    """The time, so that tests own it."""

    def now(self) -> datetime:
        """Wall clock, with a time zone."""

    def monotonic(self) -> float:
        """Seconds that never jump."""

    def sleep(self, seconds: float) -> None: ...


class PackageSource(Protocol):
    """Verified packages, from whichever repository of the host's configuration."""

    def ensure(
        self, refs: tuple[PackageRef, ...], *, blobs: BlobReader, running: frozenset[str], now: datetime
    ) -> dict[str, Package]:
        """Every package by digest; raises TrustError, PackageError or RepositoryError.

        Args:
            blobs: reads files of the commit that names the packages.
            running: digests that may be revoked and yet stay.
        """

    def prune(self, keep: frozenset[str]) -> None:
        """Forget stored packages whose digest is not in `keep`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCommit:
    """One commit as this host reads it; configuration and host are the same for the whole process.

    Attributes:
        blobs: reads the commit's other files, for packages that the store does not hold.
        policies: ids that the commit's groups give for the policy of this host; for the report only.
    """

    commit: str
    desired: DesiredState
    state_digest: str
    subject: str
    author_time: int
    blobs: BlobReader
    policies: frozenset[str] = frozenset()


@dataclass(slots=True)
class Memo:
    """What a process need not compute in every pass.

    Attributes:
        good: the commit applied last, read against itself.
        raw: id and bytes of the commit whose signature was verified last; it is verified again in every pass.
        ends: when what the configuration trusts ends, and what that is.
    """

    good: ReadCommit | None = None
    raw: tuple[str, bytes] | None = None
    ends: tuple[tuple[datetime, str], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The real objects that a pass works with; built by `cli`, or by a test.

    Attributes:
        source: None when there is none to be opened (then the last good commit cannot be read either).
        kernel_release: part of what a quarantine is bound to.
        emit: takes JSON-lines events.
        unsafe_first_use: take the first head without `minimumCommit`.
    """

    config: Config
    facts: HostFacts
    kernel: Kernel
    state: State
    source: Source
    packages: PackageSource
    clock: Clock
    kernel_release: str
    emit: Callable[[Mapping[str, object]], None]
    unsafe_first_use: bool = False
    memo: Memo = field(default_factory=Memo)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the source said: a head that is here now, or an error.

    Attributes:
        head: the commit that it advertises, fetched; empty with an error.
        error: why there is none.
    """

    head: str = ""
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What this pass is asked to do.

    Attributes:
        poll: ask the source; otherwise only the last good commit is enforced.
        answer: what it said when it was asked right before; None: the pass asks.
        dry_run: plan, and change nothing: neither the kernel nor what is remembered.
        confirm: digest of the one plan that may exceed the guardrail.
    """

    poll: bool = True
    answer: Answer | None = None
    dry_run: bool = False
    confirm: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A commit that this host may run: verified, parsed for this host, its packages verified.

    Attributes:
        fresh: not applied yet (or judged anew under another policy or configuration).
        policies: as in `ReadCommit`.
    """

    commit: str
    signer: str
    subject: str
    author_time: int
    desired: DesiredState
    state_digest: str
    packages: Mapping[str, Package]
    fresh: bool
    policies: frozenset[str] = frozenset()


@dataclass(slots=True)
class PassResult:
    """Everything that one pass saw and did."""

    status: Status
    plan: Plan | None = None
    outcome: Outcome | None = None
    wanted: Wanted | None = None
    retry_now: bool = False
    transient: bool = False
    retry_after: float | None = None


@dataclass(slots=True)
class Notes:
    """What a pass collects on its way."""

    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    transient: bool = False
    retry_now: bool = False
    retry_after: float | None = None

    def warn(self, text: str) -> None:
        """A warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def find(self, finding: Finding) -> None:
        """A finding, once."""
        if finding not in self.findings:
            self.findings.append(finding)
