# SPDX-License-Identifier: Apache-2.0
"""From what is wanted to what runs: observe → plan → guard → apply → record, with what a lost race asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler import apply, plan
from reconciler.config import SecureMode, trust_digest
from reconciler.errors import Disposition, GuardrailError, HealthError, PlanError, RolledBackError
from reconciler.kernel import Scope
from reconciler.model import CommitRecord, DriftKind, Inventory, Outcome, Plan, Snapshot
from reconciler.reconcile._candidate import failure_error
from reconciler.reconcile._decide import enforced
from reconciler.reconcile._health import KernelHealth
from reconciler.reconcile._recover import owe_grace
from reconciler.status import clean

if TYPE_CHECKING:
    from reconciler.reconcile._ledger import Ledger
    from reconciler.reconcile._parts import Wanted

MAX_RACES: Final = 2
"""Further looks at the kernel in one pass after a lost race; then the hook is contested, and the loop tries again."""

UNHEALTHY: Final = frozenset({HealthError.reason, "SourceCutOff"})
"""Reasons of checks that did not hold; whatever else ends a check says nothing about the commit."""


class Convergence:
    """The kernel's half of one pass.

    Attributes:
        wanted: what is enforced; the fallback when a fresh commit could not be planned.
        plan: the last one that was made.
        outcome: of everything that was carried out; None when there was nothing to do.
        unproven: keys of hooks that an interrupted pass took and did not live to judge.
    """

    def __init__(self, ledger: Ledger, unproven: frozenset[str]) -> None:
        self.ledger = ledger
        self.parts = ledger.parts
        self.unproven = unproven
        self.wanted: Wanted | None = None
        self.plan: Plan | None = None
        self.outcome: Outcome | None = None

    def run(self, wanted: Wanted, inventory: Inventory) -> None:
        """Plan and apply `wanted`; a fresh commit that cannot be planned falls back to what was applied last."""
        self.wanted = wanted
        snapshot, earlier = self._observe(wanted, inventory)
        try:
            made = self._make(wanted, inventory, snapshot, earlier)
            if wanted.fresh or made.guard.exceeded:
                self._guard(made, wanted)
        except (PlanError, GuardrailError) as error:
            if not wanted.fresh:
                raise
            self.ledger.refuse(wanted.commit, error)
            fallback = enforced(self.ledger)
            if fallback is None or self.ledger.request.dry_run:
                return
            self.run(fallback, inventory)
            return
        self.plan = made
        if self.ledger.request.dry_run:
            return
        self._execute(wanted, made, inventory)

    def _observe(self, wanted: Wanted, inventory: Inventory) -> tuple[Snapshot, Snapshot | None]:
        """One snapshot, or two in enforce mode: what is foreign must be in both."""
        secure = self.parts.config.secure
        names = plan.required_namespaces(wanted.desired, secure, inventory)
        scope = Scope(namespaces=names)
        snapshot = self.parts.kernel.snapshot(scope)
        if secure.mode is not SecureMode.ENFORCE:
            return snapshot, None
        return self.parts.kernel.snapshot(scope), snapshot

    def _make(
        self, wanted: Wanted, inventory: Inventory, snapshot: Snapshot, earlier: Snapshot | None, *, evicted: int = 0
    ) -> Plan:
        """A plan; `evicted` of maxEvictions were used up by this pass already."""
        config = self.parts.config
        return plan.make(
            plan.PlanInput(
                desired=wanted.desired,
                packages=wanted.packages,
                snapshot=snapshot,
                inventory=inventory,
                secure=replace(config.secure, max_evictions=config.secure.max_evictions - evicted),
                guardrail=config.guardrail,
                state_digest=wanted.state_digest,
                applied_digest=self.ledger.record.state_digest,
                earlier=earlier,
                detach_revoked=config.trust.on_revoked == "detach",
                source_answers=self.ledger.answered,
                unproven=self.unproven,
            )
        )

    def _guard(self, made: Plan, wanted: Wanted) -> None:
        if not made.guard.exceeded or made.state_digest == self.ledger.record.state_digest:
            return
        if made.digest in (self.ledger.request.confirm, self.ledger.control.confirmed):
            return
        guard = made.guard
        limits = f"{100 * guard.share_limit:g}%" if guard.share_limit is not None else ""
        limits += f" or {guard.count_limit}" if guard.count_limit is not None else ""
        self.plan = made
        given = self.ledger.request.confirm
        other = f"; confirmed was another plan, {clean(given, 64)}" if given is not None else ""
        raise GuardrailError(
            f"commit {wanted.commit[:12]} would remove {guard.removed} of {guard.owned} programs on hooks "
            f"(limit {limits}){other}; look at `reconciler plan`, then `reconciler apply --confirm {made.digest}`"
        )

    def _execute(self, wanted: Wanted, made: Plan, inventory: Inventory) -> None:
        """Carry the plan out; hooks on which a race was lost are observed and planned again, with the same gates."""
        outcome = self._carry_out(wanted, made, inventory)
        for _ in range(MAX_RACES):
            if outcome is None or outcome.failed is not None or not outcome.stale_hooks:
                break
            seen = self._observe(wanted, outcome.inventory)
            again = self._make(wanted, outcome.inventory, *seen, evicted=_evictions(outcome))
            self.plan = again
            outcome = _joined(outcome, self._carry_out(wanted, again, outcome.inventory), again.inventory)
        self.outcome = outcome
        if outcome is not None and owe_grace(self.parts, outcome):
            self.ledger.notes.warn("rcu_expedited could not be set back; the next pass tries again")
        if outcome is not None and outcome.stale_hooks:
            self.ledger.notes.retry_now = True
        if outcome is None or outcome.failed is None:
            self._record_applied(wanted)

    def _carry_out(self, wanted: Wanted, made: Plan, inventory: Inventory) -> Outcome | None:
        """One plan; None when there is nothing to do."""
        parts = self.parts
        if made.steps:
            parts.state.save_source(self.ledger.record)
            self.ledger.emit("applying", commit=wanted.commit, steps=len(made.steps), plan=made.digest)
            health = KernelHealth(
                kernel=parts.kernel,
                clock=parts.clock,
                probe=parts.source.probe,
                confirm_timeout=parts.config.source.confirm_timeout,
            )
            outcome = apply.execute(
                made, kernel=parts.kernel, packages=wanted.packages, journal=parts.state, checks=health
            )
            self.outcome = outcome
            parts.state.save_inventory(outcome.inventory)
            parts.state.clear_journal()
            self._judge_outcome(wanted, made, outcome)
            self.unproven = frozenset()
            return outcome
        if made.inventory != inventory or parts.state.journal_records():
            parts.state.save_inventory(made.inventory)
            parts.state.clear_journal()
        return None

    def _record_applied(self, wanted: Wanted) -> None:
        """The watermark moves only after everything is as the commit wants it."""
        if not wanted.fresh:
            self.ledger.record = replace(self.ledger.record, state_digest=wanted.state_digest)
            if self.ledger.record.seen == wanted.commit:  # no other commit waits for its packages
                self.parts.packages.prune(frozenset(wanted.packages))
            return
        before = self.ledger.record.applied
        if before is None or before.id != wanted.commit:
            self.parts.source.promote(wanted.commit)
            applied = CommitRecord(
                id=wanted.commit,
                signer=wanted.signer,
                subject=wanted.subject,
                author_time=wanted.author_time,
                at=self.ledger.now(),
            )
            self.ledger.history(
                "applied",
                commit=wanted.commit,
                signer=wanted.signer,
                subject=wanted.subject,
                state=wanted.state_digest,
                policy=trust_digest(self.parts.config),
                chains=len(wanted.desired.chains),
            )
            self.ledger.emit("applied", commit=wanted.commit, signer=wanted.signer, subject=wanted.subject)
            self.ledger.record = replace(self.ledger.record, applied=applied)
        self.ledger.record = replace(self.ledger.record, state_digest=wanted.state_digest, refusal=None)
        if self.ledger.control.acceptance is not None or self.ledger.control.confirmed is not None:
            self.ledger.control = replace(self.ledger.control, acceptance=None, confirmed=None)
            self.ledger.save_control()
        self.parts.packages.prune(frozenset(wanted.packages))

    def _judge_outcome(self, wanted: Wanted, made: Plan, outcome: Outcome) -> None:
        for survivor in outcome.survivors:
            self.ledger.emit("survivor", where=survivor.where, message=survivor.message)
        for skipped in outcome.skipped:
            self.ledger.emit("not-repaired", step=skipped.step.step, reason=skipped.reason, message=skipped.message)
            self.ledger.found(failure_error(skipped))
        for step in outcome.done:
            if step.step == "evict":
                self.ledger.emit("evicted", where=str(step.point), program=step.program.id, reason=step.reason)
                self.ledger.history("evicted", where=str(step.point), program=step.program.id)
        if outcome.failed is None:
            self._report_repairs(made)
            return
        failed = outcome.failed
        message = f"{failed.message}; everything was put back as it was"
        if self.unproven:  # what an interrupted pass switched has no undo here
            message = f"{failed.message}; the next pass puts back what an interrupted one had switched"
            self.ledger.notes.retry_now = True
        if outcome.undo_failures:
            message = f"{failed.message}; putting back also failed: " + "; ".join(
                f.message for f in outcome.undo_failures
            )
        self.ledger.emit("rolled-back", commit=wanted.commit, reason=failed.reason, message=message)
        self.ledger.history("rolled-back", commit=wanted.commit, reason=failed.reason, message=clean(message, 500))
        error = failure_error(replace(failed, message=message))
        if failed.reason in UNHEALTHY:  # and not one that could not be looked at
            error = RolledBackError(f"commit {wanted.commit[:12]} was taken back: {message}")
        if made.changed and error.disposition is Disposition.STALLED:
            self.ledger.quarantine(wanted, failed.message)
        if wanted.fresh and error.disposition is Disposition.STALLED:
            self.ledger.refuse(wanted.commit, error)
        else:
            self.ledger.found(error)

    def _report_repairs(self, made: Plan) -> None:
        for drift in made.drift:
            if drift.kind != DriftKind.REVOKED:
                self.ledger.emit(
                    "repaired" if drift.kind is not DriftKind.FOREIGN else "foreign",
                    where=drift.where,
                    message=drift.message,
                )
        if made.drift:
            self.ledger.history("repaired", drift=[f"{drift.where}: {drift.message}" for drift in made.drift[:20]])


def _evictions(outcome: Outcome) -> int:
    """Foreign programs that were removed, those included that a switch displaced."""
    return sum(step.step == "evict" or getattr(step, "displace", None) is not None for step in outcome.done)


def _joined(first: Outcome, second: Outcome | None, inventory: Inventory) -> Outcome:
    """Two executions of one pass as one."""
    if second is None:
        return replace(first, inventory=inventory, stale_hooks=(), survivors=())
    return replace(
        second,
        done=(*first.done, *second.done),
        gaps={**first.gaps, **second.gaps},
        expedited=first.expedited or second.expedited,
        unrestored=first.unrestored if second.unrestored is None else second.unrestored,
        committed=first.committed or second.committed,
    )
