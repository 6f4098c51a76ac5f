# SPDX-License-Identifier: Apache-2.0
"""The end of a pass as a status: one verdict, what drifts still, what comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.config import trust_digest
from reconciler.errors import ExitCode
from reconciler.model import Drift, DriftKind, Guard, Outcome, Plan
from reconciler.reconcile._ahead import look_ahead
from reconciler.status import Finding, Status, clean, later, verdict

if TYPE_CHECKING:
    from reconciler.reconcile._ledger import Ledger
    from reconciler.reconcile._parts import Wanted


def summarize(
    ledger: Ledger, *, wanted: Wanted | None, made: Plan | None, outcome: Outcome | None, seconds: float
) -> Status:
    """Everything that `status` shows; `seconds` is how long the pass took."""
    config, ahead = ledger.parts.config, look_ahead(ledger.parts)
    drift = _remaining_drift(made, outcome)
    pending = made.pending if made else ()
    findings = [*ledger.notes.findings, *_drift_findings(made if ledger.request.dry_run else None, drift, pending)]
    worst = verdict(findings)
    inventory = outcome.inventory if outcome else made.inventory if made else None
    waiting = {item.where for item in pending if item.where.startswith("chain ")}
    applied = outcome is not None and outcome.failed is None
    message = f"{len(outcome.done) if outcome else 0} steps done" if applied else _as_declared(ledger, wanted)
    return Status(
        host=ledger.parts.facts.name,
        at=ledger.now(),
        reason=worst.reason if worst else ("Applied" if applied else "InSync"),
        exit_code=worst.exit_code if worst else ExitCode.OK,
        message=worst.message if worst else message,
        mode=config.secure.mode,
        applied=ledger.record.applied,
        seen=ledger.record.seen,
        refusal=ledger.record.refusal,
        contact=ledger.record.contact,
        next_poll=later(ledger.parts.clock.now(), config.source.interval),
        suspension=ledger.control.suspension,
        chains=len(wanted.desired.chains) if wanted else 0,
        chains_pending=len(waiting),
        hooks=len(inventory.attachments) if inventory else 0,
        drift=drift,
        pending=pending,
        findings=tuple(findings),
        notes=(*ledger.notes.warnings, *(made.notes if made else ())),
        warnings=ahead.warnings,
        disk_free=ahead.disk_free,
        expiry=ahead.expiry,
        policy=trust_digest(config),
        reviewed_policy=_reviewed(trust_digest(config), wanted),
        state_digest=wanted.state_digest if wanted else ledger.record.state_digest or "",
        plan_digest=made.digest if made else "",
        steps=len(made.steps) if made else 0,
        guard=made.guard if made else Guard(),
        expedited=outcome.expedited if outcome else False,
        gaps=outcome.gaps if outcome else {},
        seconds=round(seconds, 3),
    )


def _as_declared(ledger: Ledger, wanted: Wanted | None) -> str:
    """In sync; where that is with nothing, a label may be mistyped on one of both sides."""
    if wanted is None or wanted.desired.chains:
        return "everything is as declared"
    facts = ledger.parts.facts
    labels = ", ".join(f"{key}={value}" for key, value in sorted(facts.labels.items())) or "none"
    return f"no chain of this commit selects this host ({clean(facts.name, 80)}, labels {clean(labels, 200)})"


def _reviewed(policy: str, wanted: Wanted | None) -> str:
    """The policy id that this host's group was reviewed for, if it is another than the host's."""
    said = sorted(wanted.policies) if wanted else []
    return "" if not said or any(policy.startswith(each) for each in said) else said[0]


def _remaining_drift(made: Plan | None, outcome: Outcome | None) -> tuple[Drift, ...]:
    """Drift that is still there after this pass."""
    if made is None:
        return ()
    if outcome is None or outcome.failed is not None:
        return made.drift
    # Not by hook alone: maxEvictions may leave some of those on one hook for the next pass.
    gone = [(str(step.point), step.reason) for step in outcome.done if step.step == "evict"]
    stays = (DriftKind.REVOKED, DriftKind.FOREIGN)
    left = tuple(
        d
        for d in made.drift
        if d.kind in stays and not any(where == d.where and why.startswith(d.message) for where, why in gone)
    )
    stale = tuple(Drift(kind=DriftKind.CONTESTED, where="hook", message=text) for text in outcome.stale_hooks)
    return (*left, *outcome.survivors, *stale)


def _drift_findings(to_do: Plan | None, drift: tuple[Drift, ...], pending: tuple[Drift, ...]) -> list[Finding]:
    found = []
    if to_do is not None and to_do.steps:
        found.append(Finding(reason="Changes", message=f"{len(to_do.steps)} steps to do", exit_code=ExitCode.CHANGES))
    for item in (*drift, *pending):
        reason = {
            DriftKind.FOREIGN: "ForeignPrograms",
            DriftKind.NOT_REMOVABLE: "NotRemovable",
            DriftKind.OCCUPIED: "HookOccupied",
            DriftKind.CONTESTED: "HookContested",
            DriftKind.ABSENT: "HookAbsent",
            DriftKind.REVOKED: "Revoked",
        }.get(item.kind, "Drift")
        found.append(Finding(reason=reason, message=f"{item.where}: {item.message}", exit_code=ExitCode.CHANGES))
    return found
