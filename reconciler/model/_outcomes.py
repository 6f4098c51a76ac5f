# SPDX-License-Identifier: Apache-2.0
"""Plans for a reviewer, and what executing one did."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.model._encoding import encode_record
from reconciler.model._owned import Inventory
from reconciler.model._steps import Step


class DriftKind(enum.StrEnum):
    """What differs from the desired state without a new commit asking for it."""

    DETACHED = "detached"
    REPLACED = "replaced"
    UNPINNED = "unpinned"
    ALTERED = "altered"
    FOREIGN = "foreign"
    NOT_REMOVABLE = "not-removable"
    OCCUPIED = "hook-occupied"
    CONTESTED = "contested"
    ABSENT = "absent"
    REVOKED = "revoked"
    ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One difference between the kernel and the *last applied* desired state, or something that keeps pending.

    Attributes:
        critical: operators must look: it will not go away by itself.
    """

    kind: DriftKind
    where: str
    message: str
    critical: bool = False


class ChangeKind(enum.StrEnum):
    """What happens to a member."""

    ADD = "add"
    REPLACE = "replace"
    REMOVE = "remove"
    REPAIR = "repair"
    EVICT = "evict"
    KEEP = "keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line for a reviewer: what happens to one member (or one foreign program) on one hook."""

    kind: ChangeKind
    where: str
    chain: str
    member: str
    detail: str
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """How much of what we own the plan removes, against the host's limits."""

    removed: int = 0
    owned: int = 0
    count_limit: int | None = None
    share_limit: float | None = None
    exceeded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Ordered steps from the snapshot to the desired state; empty `steps` means in sync.

    Attributes:
        state_digest: of the host's canonical DesiredState.
        inventory: what is owned already when nothing is executed (adopted objects); apply starts from it.
        changed: another desired state than the one applied last: all or nothing. A repair is for each hook by itself.
        pending: hooks that cannot be served now (absent, occupied, contested): drift, not failure.
        notes: what the kernel forces (gaps, state that is lost), one sentence each.
    """

    state_digest: str
    steps: tuple[Step, ...] = ()
    changes: tuple[Change, ...] = ()
    drift: tuple[Drift, ...] = ()
    pending: tuple[Drift, ...] = ()
    notes: tuple[str, ...] = ()
    guard: Guard = field(default_factory=Guard)
    inventory: Inventory = field(default_factory=lambda: Inventory(boot_id=""))
    changed: bool = True

    @property
    def digest(self) -> str:
        """What `apply --confirm` takes: sha256 hex over the steps, independent of when the plan was made."""
        return hashlib.sha256(encode_record({"state": self.state_digest, "steps": self.steps})).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailure:
    """A step that did not take effect, and why.

    Attributes:
        disposition: the error's, as text: whether trying again can help.
    """

    step: Step
    reason: str
    message: str
    disposition: str = "backoff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What executing a plan did.

    Attributes:
        done: steps that took effect and stand.
        undone: steps that took effect and were taken back.
        failed: the first error, which ended the pass; later ones are in `undo_failures`.
        skipped: steps that failed in a plan that only repairs: each hook for itself, the others stand.
        survivors: what should be gone and is not: foreign programs that resisted, pins that stayed.
        inventory: what is owned now, also after a failure.
        stale_hooks: hooks on which a compare-and-swap lost; observe again.
        gaps: hook to seconds without any program, where the kernel forces one.
        expedited: grace periods were expedited.
        unrestored: what rcu_expedited read before, if it could not be written back.
    """

    inventory: Inventory
    done: tuple[Step, ...] = ()
    undone: tuple[Step, ...] = ()
    failed: StepFailure | None = None
    skipped: tuple[StepFailure, ...] = ()
    undo_failures: tuple[StepFailure, ...] = ()
    survivors: tuple[Drift, ...] = ()
    stale_hooks: tuple[str, ...] = ()
    gaps: Mapping[str, float] = field(default_factory=dict)
    expedited: bool = False
    unrestored: int | None = None
    committed: bool = False
