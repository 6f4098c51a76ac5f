# SPDX-License-Identifier: Apache-2.0
"""One pass: recover → decide what is wanted → observe → plan → guard → apply → record.

Fail static: whatever cannot be trusted or read changes nothing that runs; the pass then enforces what was applied last,
and the finding says why. A pass raises nothing that is a `ReconcilerError`: it ends with a status in any case.
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from reconciler import apply, plan
from reconciler.config import SecureMode, trust_digest
from reconciler.errors import (
    Disposition,
    ExitCode,
    GuardrailError,
    HealthError,
    PlanError,
    ReconcilerError,
    RolledBackError,
    SourceError,
    StaleSourceError,
    StateError,
    StateVersionError,
    SuspendedError,
    TamperError,
)
from reconciler.kernel import Scope
from reconciler.model import (
    CommitRecord,
    ControlRecord,
    Drift,
    DriftKind,
    Guard,
    Inventory,
    Outcome,
    Plan,
    Quarantine,
    Refusal,
    Snapshot,
    SourceFailure,
    SourceRecord,
    Suspension,
    encode_json,
)
from reconciler.reconcile._candidate import (
    context_digest,
    failure_error,
    finding,
    judge,
    last_good,
    nearest_expiry,
    refuse_quarantined,
)
from reconciler.reconcile._health import KernelHealth
from reconciler.reconcile._parts import Notes, Parts, PassResult, Request, Wanted
from reconciler.state import recover, unproven
from reconciler.status import Finding, Status, clean, event, later, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_QUARANTINE: Final = 50
"""Quarantined states that are remembered; the oldest go first."""


MAX_RACES: Final = 2
"""Further looks at the kernel in one pass after a lost race; then the hook is contested, and the loop tries again."""


class Pass:
    """One pass over one host. `run` may be called once."""

    def __init__(self, parts: Parts, request: Request) -> None:
        self.parts = parts
        self.request = request
        self.notes = Notes()
        self.started = parts.clock.monotonic()
        self.record = SourceRecord()
        self.control = ControlRecord()
        self.plan: Plan | None = None
        self.outcome: Outcome | None = None
        self.wanted: Wanted | None = None
        self.source_answered = False
        self.recovered = False
        self.unproven: frozenset[str] = frozenset()

    def run(self) -> PassResult:
        """The whole pass; whatever goes wrong is in its result."""
        try:
            self._run()
        except ReconcilerError as error:
            self._found(error)
        except Exception as error:  # noqa: BLE001  # a defect of ours must not end the agent: what runs goes on
            self._defect(error)
        return self._finish()

    def _defect(self, error: Exception) -> None:
        """Said in full, tried again with growing pauses; what one in `apply` left is recovered from like a crash."""
        self.record = replace(self.record, context="")  # nothing was judged for good
        trace = traceback.extract_tb(error.__traceback__)
        where = f" at {trace[-1].filename}:{trace[-1].lineno}" if trace else ""
        self._emit("defect", error=repr(error), trace="".join(traceback.format_tb(error.__traceback__)))
        message = f"{type(error).__name__}: {error}{where}; this is a defect of reconciler, please report it"
        self._found(ReconcilerError(message, reason="InternalError"))

    def _run(self) -> None:
        state = self.parts.state
        self.control = state.control()
        self.record = self._load_source()
        inventory = self._recover()
        self.recovered = True
        if self.parts.unsafe_first_use:
            self.notes.warnings.append("unsafe: a first head is taken whatever it is (--unsafe-trust-first-use)")
        if self.control.torn_down:
            self.notes.findings.append(
                Finding(
                    reason="TornDown",
                    message="everything was taken off this host by `teardown`",
                    exit_code=ExitCode.SUSPENDED,
                )
            )
            return
        self.wanted = self._decide()
        if self.wanted is None:
            if not self.notes.findings:
                message = "no commit was ever applied here; ask the source with `reconciler apply`"
                self.notes.findings.append(Finding(reason="NothingApplied", message=message, exit_code=ExitCode.ERROR))
            return
        self._converge(self.wanted, inventory)

    # --- recovery ----------------------------------------------------------------------------------------

    def _load_source(self) -> SourceRecord:
        """The watermark; a damaged one counts as lost once somebody accepted a commit."""
        try:
            return self.parts.state.source()
        except StateVersionError:
            raise
        except StateError as error:
            if self.control.acceptance is not None:
                return SourceRecord()
            raise TamperError(f"{error}; nothing is attached, detached or evicted until then") from error

    def _recover(self) -> Inventory:
        """What is ours, after whatever happened since the last pass.

        Raises:
            TamperError: state is gone or damaged while pins of ours are in the kernel.
            StateVersionError: a newer agent wrote the state.
        """
        state, boot = self.parts.state, self.parts.kernel.boot_id()
        empty = Inventory(boot_id=boot)
        accepted = self.control.acceptance is not None
        damage = ""
        try:
            records = state.journal_records()
            self._restore_grace(records, boot)
            self.unproven = unproven(boot, records)
            saved = state.inventory()
            begun = any(entry.get("event") == "begin" and entry.get("boot") == boot for entry in records)
            if saved is not None and saved.boot_id == boot:
                if saved.empty or state.has_source or accepted:
                    return recover(saved, records)
                damage = "source.json is gone: nobody knows which commit was applied"
            elif begun and state.has_source:
                return recover(empty, records)
        except StateVersionError:
            raise
        except StateError as error:
            damage = str(error)
        pins = self.parts.kernel.snapshot(Scope(namespaces=())).pins
        if accepted or not pins:
            return empty
        raise TamperError(
            f"expected records of the {len(pins)} objects that are pinned as ours, got none"
            f"{f' ({damage})' if damage else ''}; nothing is attached, detached or evicted until "
            "`reconciler accept COMMIT --reason TEXT`"
        )

    def _restore_grace(self, records: tuple[dict[str, Any], ...], boot: str) -> None:
        for entry in records:
            before = entry.get("before")
            if entry.get("event") == "expedite" and entry.get("boot") == boot and isinstance(before, int):
                self.parts.kernel.restore_grace(before)

    # --- what is wanted ----------------------------------------------------------------------------------

    def _decide(self) -> Wanted | None:
        """The advertised commit if it may run here, else what was applied last."""
        suspension = self._suspension()
        if self.request.poll and suspension is None:
            fresh = self._poll()
            if fresh is not None:
                return fresh
        elif suspension is not None:
            self._found(SuspendedError(f"new commits are suspended until {suspension.until}: {suspension.reason}"))
            self._remember_refusal()
        else:
            self._remember_failure()
            self._remember_refusal()
        return self._last_good()

    def _last_good(self) -> Wanted | None:
        """What was applied last. Another host configuration can make another state of it: that one may be refused."""
        wanted = last_good(self.parts, self.record, self.notes)
        if wanted is not None and wanted.state_digest != self.record.state_digest:
            refuse_quarantined(wanted, self.control.quarantine, self.parts)
        return wanted

    def _remember_failure(self) -> None:
        """What the last poll found of the source still holds; one that is silent for too long is stale instead."""
        failure, contact = self.record.failure, self.record.contact
        limit = self.parts.config.source.stale_after
        if contact is not None and self.parts.clock.now() - datetime.fromisoformat(contact) > timedelta(seconds=limit):
            why = f" ({failure.message})" if failure else ""
            message = f"the source last answered at {contact}, expected at least every {limit:g} s{why}"
            self.notes.findings.append(finding(StaleSourceError(message)))
        elif failure is not None:
            self.notes.findings.append(
                Finding(reason=failure.reason, message=failure.message, exit_code=failure.exit_code)
            )

    def _remember_refusal(self) -> None:
        """A commit that was refused stays refused until the source offers another one."""
        refusal = self.record.refusal
        if refusal is not None:
            self.notes.findings.append(
                Finding(reason=refusal.reason, message=refusal.message, exit_code=refusal.exit_code)
            )

    def _suspension(self) -> Suspension | None:
        suspension = self.control.suspension
        if suspension is None:
            return None
        if datetime.fromisoformat(suspension.until) <= self.parts.clock.now():
            self.control = replace(self.control, suspension=None)
            self._save_control()
            return None
        return suspension

    def _poll(self) -> Wanted | None:
        """Ask the source; None when what was applied last is still what counts."""
        parts = self.parts
        try:
            head = parts.source.resolve()
            parts.source.fetch(head)
        except SourceError as error:
            self._source_failed(error)
            return None
        self.source_answered = True
        context = context_digest(parts)
        now = parts.clock.now().isoformat(timespec="seconds")
        unchanged = self.record.seen == head and self.record.context == context
        self.record = replace(self.record, contact=now, failure=None)
        applied = self.record.applied
        accepted = self.control.acceptance is not None and self.control.acceptance.commit == head
        if unchanged and not accepted and self.request.confirm is None:
            if applied is not None and applied.id == head and self.record.refusal is None:
                return None
            # A plan is looked at because of the refusal: it shows what was refused, not what runs.
            settled = self.record.refusal is not None and self._settled_refusal(self.record.refusal)
            if settled and not self.request.dry_run:
                self._remember_refusal()
                return None
        self.record = replace(self.record, seen=head, context=context)
        try:
            wanted = judge(parts, head, self.record, self.control, self.notes)
        except SourceError as error:
            self.record = replace(self.record, context="")  # not judged yet
            self._source_failed(error)
            return None
        except ReconcilerError as error:
            self._refuse(head, error)
            return None
        self.record = replace(self.record, refusal=None)
        return wanted

    def _settled_refusal(self, refusal: Refusal) -> bool:
        """Whether judging the same commit again would end the same way (nothing temporary was the reason)."""
        return refusal.commit == self.record.seen and refusal.final

    def _source_failed(self, error: SourceError) -> None:
        """The source or its local copy cannot be read; what was applied last goes on."""
        self._schedule(error)
        failure = SourceFailure(
            reason=error.reason, message=clean(str(error), 1000), at=self._now(), exit_code=int(error.exit_code)
        )
        self.record = replace(self.record, failure=failure)
        self._remember_failure()
        self._remember_refusal()

    def _refuse(self, commit: str, error: ReconcilerError) -> None:
        self._found(error)
        final = error.disposition is Disposition.STALLED
        refusal = Refusal(
            commit=commit,
            reason=error.reason,
            message=clean(str(error), 2000),
            at=self._now(),
            exit_code=int(error.exit_code),
            final=final,
        )
        if (
            self.record.refusal is None
            or self.record.refusal.commit != commit
            or self.record.refusal.reason != error.reason
        ):
            self._emit("refused", commit=commit, reason=error.reason, message=str(error))
            if not self.request.dry_run:
                self._history("refused", commit=commit, reason=error.reason, message=clean(str(error), 500))
        self.record = replace(self.record, refusal=refusal)

    # --- convergence -------------------------------------------------------------------------------------

    def _converge(self, wanted: Wanted, inventory: Inventory) -> None:
        """Plan and apply `wanted`; a fresh commit that cannot be planned falls back to what was applied last."""
        snapshot, earlier = self._observe(wanted, inventory)
        try:
            made = self._make(wanted, inventory, snapshot, earlier)
            if wanted.fresh or made.guard.exceeded:
                self._guard(made, wanted)
        except (PlanError, GuardrailError) as error:
            if not wanted.fresh:
                raise
            self._refuse(wanted.commit, error)
            fallback = self._last_good()
            if fallback is None or self.request.dry_run:
                return
            self.wanted = fallback
            self._converge(fallback, inventory)
            return
        self.plan = made
        if self.request.dry_run:
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

    def _make(self, wanted: Wanted, inventory: Inventory, snapshot: Snapshot, earlier: Snapshot | None) -> Plan:
        config = self.parts.config
        return plan.make(
            plan.PlanInput(
                desired=wanted.desired,
                packages=wanted.packages,
                snapshot=snapshot,
                inventory=inventory,
                secure=config.secure,
                guardrail=config.guardrail,
                state_digest=wanted.state_digest,
                applied_digest=self.record.state_digest,
                earlier=earlier,
                detach_revoked=config.trust.on_revoked == "detach",
                source_answers=self.source_answered,
                unproven=self.unproven,
            )
        )

    def _guard(self, made: Plan, wanted: Wanted) -> None:
        if not made.guard.exceeded or made.state_digest == self.record.state_digest:
            return
        if made.digest in (self.request.confirm, self.control.confirmed):
            return
        guard = made.guard
        limits = f"{100 * guard.share_limit:g}%" if guard.share_limit is not None else ""
        limits += f" or {guard.count_limit}" if guard.count_limit is not None else ""
        self.plan = made
        error = GuardrailError(
            f"commit {wanted.commit[:12]} would remove {guard.removed} of {guard.owned} programs on hooks "
            f"(limit {limits}); look at `reconciler plan`, then `reconciler apply --confirm {made.digest}`"
        )
        raise error

    def _execute(self, wanted: Wanted, made: Plan, inventory: Inventory) -> None:
        """Carry the plan out; hooks on which a race was lost are observed and planned again, with the same gates."""
        outcome = self._carry_out(wanted, made, inventory)
        for _ in range(MAX_RACES):
            if outcome is None or outcome.failed is not None or not outcome.stale_hooks:
                break
            again = self._make(wanted, outcome.inventory, *self._observe(wanted, outcome.inventory))
            self.plan = again
            outcome = _joined(outcome, self._carry_out(wanted, again, outcome.inventory), again.inventory)
        self.outcome = outcome
        if outcome is not None and outcome.stale_hooks:
            self.notes.retry_now = True
        if outcome is None or outcome.failed is None:
            self._record_applied(wanted)

    def _carry_out(self, wanted: Wanted, made: Plan, inventory: Inventory) -> Outcome | None:
        """One plan; None when there is nothing to do."""
        parts = self.parts
        if made.steps:
            parts.state.save_source(self.record)
            self._emit("applying", commit=wanted.commit, steps=len(made.steps), plan=made.digest)
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
            self.record = replace(self.record, state_digest=wanted.state_digest)
            return
        before = self.record.applied
        if before is None or before.id != wanted.commit:
            self.parts.source.promote(wanted.commit)
            applied = CommitRecord(
                id=wanted.commit,
                signer=wanted.signer,
                subject=wanted.subject,
                author_time=wanted.author_time,
                at=self._now(),
            )
            self._history(
                "applied", commit=wanted.commit, signer=wanted.signer, subject=wanted.subject, state=wanted.state_digest
            )
            self._emit("applied", commit=wanted.commit, signer=wanted.signer, subject=wanted.subject)
            self.record = replace(self.record, applied=applied)
        self.record = replace(self.record, state_digest=wanted.state_digest, refusal=None)
        if self.control.acceptance is not None or self.control.confirmed is not None:
            self.control = replace(self.control, acceptance=None, confirmed=None)
            self._save_control()
        self.parts.packages.prune(frozenset(wanted.packages))

    def _judge_outcome(self, wanted: Wanted, made: Plan, outcome: Outcome) -> None:
        for survivor in outcome.survivors:
            self._emit("survivor", where=survivor.where, message=survivor.message)
        for skipped in outcome.skipped:
            self._emit("not-repaired", step=skipped.step.step, reason=skipped.reason, message=skipped.message)
            self._found(failure_error(skipped))
        for step in outcome.done:
            if step.step == "evict":
                self._emit("evicted", where=str(step.point), program=step.program.id, reason=step.reason)
                self._history("evicted", where=str(step.point), program=step.program.id)
        if outcome.failed is None:
            self._report_repairs(made)
            return
        failed = outcome.failed
        message = f"{failed.message}; everything was put back as it was"
        if self.unproven:  # what an interrupted pass switched has no undo here
            message = f"{failed.message}; the next pass puts back what an interrupted one had switched"
            self.notes.retry_now = True
        if outcome.undo_failures:
            message = f"{failed.message}; putting back also failed: " + "; ".join(
                f.message for f in outcome.undo_failures
            )
        self._emit("rolled-back", commit=wanted.commit, reason=failed.reason, message=message)
        self._history("rolled-back", commit=wanted.commit, reason=failed.reason, message=clean(message, 500))
        error = failure_error(replace(failed, message=message))
        if failed.step.step == "check-health":
            error = RolledBackError(f"commit {wanted.commit[:12]} was taken back: {message}")
        if made.changed and error.disposition is Disposition.STALLED:
            self._quarantine(wanted, failed.message)
        if wanted.fresh and error.disposition is Disposition.STALLED:
            self._refuse(wanted.commit, error)
        else:
            self._found(error)

    def _report_repairs(self, made: Plan) -> None:
        for drift in made.drift:
            if drift.kind != DriftKind.REVOKED:
                self._emit(
                    "repaired" if drift.kind is not DriftKind.FOREIGN else "foreign",
                    where=drift.where,
                    message=drift.message,
                )
        if made.drift:
            self._history("repaired", drift=[f"{drift.where}: {drift.message}" for drift in made.drift[:20]])

    def _quarantine(self, wanted: Wanted, message: str) -> None:
        entry = Quarantine(
            state_digest=wanted.state_digest,
            policy=trust_digest(self.parts.config),
            kernel=self.parts.kernel_release,
            commit=wanted.commit,
            message=clean(message, 200),
            at=self._now(),
        )
        self.control = replace(self.control, quarantine=(*self.control.quarantine, entry)[-MAX_QUARANTINE:])
        self._save_control()

    # --- the end -----------------------------------------------------------------------------------------

    def _finish(self) -> PassResult:
        # What could not be read is not replaced: a record that was lost, damaged or is newer stays the evidence of it.
        if self.recovered and not self.request.dry_run:
            try:
                self._spend_acceptance()
                self.parts.state.save_source(self.record)
            except StateError as error:
                self._found(error)
        status = self._status()
        if not self.request.dry_run:
            try:
                self.parts.state.save_status(encode_json(status))
            except StateError:
                self.notes.warnings.append("the status file could not be written")
        return PassResult(
            status=status,
            plan=self.plan,
            outcome=self.outcome,
            wanted=self.wanted,
            retry_now=self.notes.retry_now,
            transient=self.notes.transient,
        )

    def _status(self) -> Status:
        made, config = self.plan, self.parts.config
        drift = self._remaining_drift()
        pending = made.pending if made else ()
        findings = [*self.notes.findings, *self._drift_findings(drift, pending)]
        worst = verdict(findings)
        inventory = self.outcome.inventory if self.outcome else made.inventory if made else None
        waiting = {item.where for item in pending if item.where.startswith("chain ")}
        applied = self.outcome is not None and self.outcome.failed is None
        message = (
            "everything is as declared"
            if not applied
            else f"{len(self.outcome.done) if self.outcome else 0} steps done"
        )
        return Status(
            host=self.parts.facts.name,
            at=self._now(),
            reason=worst.reason if worst else ("Applied" if applied else "InSync"),
            exit_code=worst.exit_code if worst else ExitCode.OK,
            message=worst.message if worst else message,
            mode=config.secure.mode,
            applied=self.record.applied,
            seen=self.record.seen,
            refusal=self.record.refusal,
            contact=self.record.contact,
            next_poll=later(self.parts.clock.now(), config.source.interval),
            suspension=self.control.suspension,
            chains=len(self.wanted.desired.chains) if self.wanted else 0,
            chains_pending=len(waiting),
            hooks=len(inventory.attachments) if inventory else 0,
            drift=drift,
            pending=pending,
            findings=tuple(findings),
            notes=(*self.notes.warnings, *(made.notes if made else ())),
            expiry=nearest_expiry(config.trust),
            policy=trust_digest(config),
            state_digest=self.wanted.state_digest if self.wanted else self.record.state_digest or "",
            plan_digest=made.digest if made else "",
            steps=len(made.steps) if made else 0,
            guard=made.guard if made else Guard(),
            expedited=self.outcome.expedited if self.outcome else False,
            gaps=self.outcome.gaps if self.outcome else {},
            seconds=round(self.parts.clock.monotonic() - self.started, 3),
        )

    def _remaining_drift(self) -> tuple[Drift, ...]:
        """Drift that is still there after this pass."""
        if self.plan is None:
            return ()
        if self.outcome is None or self.outcome.failed is not None:
            return self.plan.drift
        # Not by hook alone: maxEvictions may leave some of those on one hook for the next pass.
        gone = [(str(step.point), step.reason) for step in self.outcome.done if step.step == "evict"]
        stays = (DriftKind.REVOKED, DriftKind.FOREIGN)
        left = tuple(
            d
            for d in self.plan.drift
            if d.kind in stays and not any(where == d.where and why.startswith(d.message) for where, why in gone)
        )
        stale = tuple(Drift(kind=DriftKind.CONTESTED, where="hook", message=text) for text in self.outcome.stale_hooks)
        return (*left, *self.outcome.survivors, *stale)

    def _drift_findings(self, drift: tuple[Drift, ...], pending: tuple[Drift, ...]) -> list[Finding]:
        found = []
        if self.request.dry_run and self.plan is not None and self.plan.steps:
            found.append(
                Finding(reason="Changes", message=f"{len(self.plan.steps)} steps to do", exit_code=ExitCode.CHANGES)
            )
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

    def _spend_acceptance(self) -> None:
        """An acceptance is for one pass that asked the source, however that ended."""
        if self.control.acceptance is not None and self.source_answered:
            self.control = replace(self.control, acceptance=None)
            self._save_control()

    # --- small things ------------------------------------------------------------------------------------

    def _found(self, error: ReconcilerError) -> None:
        self.notes.findings.append(finding(error))
        self._schedule(error)

    def _schedule(self, error: ReconcilerError) -> None:
        """When to try again is decided by the disposition alone."""
        match error.disposition:
            case Disposition.RETRY:
                self.notes.retry_now = True
            case Disposition.BACKOFF:
                self.notes.transient = True
            case Disposition.STALLED:
                pass

    def _now(self) -> str:
        return self.parts.clock.now().isoformat(timespec="seconds")

    def _emit(self, kind: str, **fields: object) -> None:
        if not self.request.dry_run:
            self.parts.emit(event(kind, self.parts.clock.now(), **fields))

    def _history(self, kind: str, **fields: object) -> None:
        record: Mapping[str, object] = event(kind, self.parts.clock.now(), **fields)
        try:
            self.parts.state.append_history(record)
        except StateError as error:
            self.notes.warnings.append(str(error))

    def _save_control(self) -> None:
        if not self.request.dry_run:
            self.parts.state.save_control(self.control)


def _joined(first: Outcome, second: Outcome | None, inventory: Inventory) -> Outcome:
    """Two executions of one pass as one."""
    if second is None:
        return replace(first, inventory=inventory, stale_hooks=(), survivors=())
    return replace(
        second,
        done=(*first.done, *second.done),
        gaps={**first.gaps, **second.gaps},
        expedited=first.expedited or second.expedited,
        committed=first.committed or second.committed,
    )


__all__ = ["HealthError", "Pass"]
