# SPDX-License-Identifier: Apache-2.0
"""What one pass knows of itself and must remember: records, findings, events, history.

The records are values that are replaced while the pass goes on, and saved at its end or where the order matters. A dry
run notes everything and saves nothing.
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from reconciler.config import trust_digest
from reconciler.errors import Disposition, ReconcilerError, SourceError, StaleSourceError, StateError
from reconciler.model import ControlRecord, Quarantine, Refusal, SourceFailure, SourceRecord
from reconciler.reconcile._candidate import finding
from reconciler.reconcile._parts import Notes, Parts, Request, Wanted
from reconciler.status import Finding, clean, event

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_QUARANTINE: Final = 50
"""Quarantined states that are remembered; the oldest go first."""


class Ledger:
    """The book of one pass: what was found, and what will be written down.

    Attributes:
        record: what is known of the source; `save_source` at the end of a pass writes it.
        control: what operators decided.
        answered: the source answered in this pass.
    """

    def __init__(self, parts: Parts, request: Request) -> None:
        self.parts = parts
        self.request = request
        self.notes = Notes()
        self.record = SourceRecord()
        self.control = ControlRecord()
        self.answered = False

    # --- findings ----------------------------------------------------------------------------------------

    def found(self, error: ReconcilerError) -> None:
        """An error of this pass, and what it means for the next one."""
        self.notes.findings.append(finding(error))
        self.schedule(error)

    def defect(self, error: Exception) -> None:
        """A defect of ours: said in full, and tried again with growing pauses."""
        self.record = replace(self.record, context="")  # nothing was judged for good
        trace = traceback.extract_tb(error.__traceback__)
        where = f" at {trace[-1].filename}:{trace[-1].lineno}" if trace else ""
        self.emit("defect", error=repr(error), trace="".join(traceback.format_tb(error.__traceback__)))
        message = f"{type(error).__name__}: {error}{where}; this is a defect of reconciler, please report it"
        self.found(ReconcilerError(message, reason="InternalError"))

    def schedule(self, error: ReconcilerError) -> None:
        """When to try again is decided by the disposition alone."""
        match error.disposition:
            case Disposition.RETRY:
                self.notes.retry_now = True
            case Disposition.BACKOFF:
                self.notes.transient = True
            case Disposition.STALLED:
                pass

    def refuse(self, commit: str, error: ReconcilerError) -> None:
        """The advertised commit may not run here; said once, remembered until the source offers another one."""
        self.found(error)
        final = error.disposition is Disposition.STALLED
        refusal = Refusal(
            commit=commit,
            reason=error.reason,
            message=clean(str(error), 2000),
            at=self.now(),
            exit_code=int(error.exit_code),
            final=final,
        )
        if (
            self.record.refusal is None
            or self.record.refusal.commit != commit
            or self.record.refusal.reason != error.reason
        ):
            self.emit("refused", commit=commit, reason=error.reason, message=str(error))
            if not self.request.dry_run:
                self.history("refused", commit=commit, reason=error.reason, message=clean(str(error), 500))
        self.record = replace(self.record, refusal=refusal)

    def remember_refusal(self) -> None:
        """A commit that was refused stays refused until the source offers another one."""
        refusal = self.record.refusal
        if refusal is not None:
            self.notes.findings.append(
                Finding(reason=refusal.reason, message=refusal.message, exit_code=refusal.exit_code)
            )

    def source_failed(self, error: SourceError) -> None:
        """The source or its local copy cannot be read; what was applied last goes on."""
        self.schedule(error)
        self.notes.retry_after = error.retry_after
        failure = SourceFailure(
            reason=error.reason, message=clean(str(error), 1000), at=self.now(), exit_code=int(error.exit_code)
        )
        self.record = replace(self.record, failure=failure)
        self.remember_failure()
        self.remember_refusal()

    def remember_failure(self) -> None:
        """What the last poll found of the source still holds; one that is silent for too long is stale instead."""
        failure, contact = self.record.failure, self.record.contact
        limit = self.parts.config.source.stale_after
        age = self.parts.clock.now() - datetime.fromisoformat(contact) if contact is not None else timedelta()
        # A contact in the future is one by a clock that was wrong; without another one since, nobody knows its age.
        if age > timedelta(seconds=limit) or (failure is not None and -age > timedelta(seconds=limit)):
            why = f" ({failure.message})" if failure else ""
            message = f"the source last answered at {contact}, expected at least every {limit:g} s{why}"
            self.notes.findings.append(finding(StaleSourceError(message)))
        elif failure is not None:
            self.notes.findings.append(
                Finding(reason=failure.reason, message=failure.message, exit_code=failure.exit_code)
            )

    # --- records -----------------------------------------------------------------------------------------

    def quarantine(self, wanted: Wanted, message: str) -> None:
        """A state that was taken back here is not tried again under this policy and kernel."""
        entry = Quarantine(
            state_digest=wanted.state_digest,
            policy=trust_digest(self.parts.config),
            kernel=self.parts.kernel_release,
            commit=wanted.commit,
            message=clean(message, 200),
            at=self.now(),
        )
        self.control = replace(self.control, quarantine=(*self.control.quarantine, entry)[-MAX_QUARANTINE:])
        self.save_control()

    def spend_acceptance(self) -> None:
        """An acceptance is for one pass that asked the source, however that ended."""
        if self.control.acceptance is not None and self.answered:
            self.control = replace(self.control, acceptance=None)
            self.save_control()

    def save_control(self) -> None:
        """Write what operators decided, and what of it was used up."""
        if not self.request.dry_run:
            self.parts.state.save_control(self.control)

    def now(self) -> str:
        """The wall clock, as records carry it."""
        return self.parts.clock.now().isoformat(timespec="seconds")

    def emit(self, kind: str, **fields: object) -> None:
        """An event, for the log."""
        if not self.request.dry_run:
            self.parts.emit(event(kind, self.parts.clock.now(), **fields))

    def history(self, kind: str, **fields: object) -> None:
        """A line of `history`. It may be lost, with a warning; it may not block a repair."""
        record: Mapping[str, object] = event(kind, self.parts.clock.now(), **fields)
        try:
            self.parts.state.append_history(record)
        except StateError as error:
            self.notes.warnings.append(str(error))
