# SPDX-License-Identifier: Apache-2.0
"""What this host shall run: the advertised commit if it may, else what was applied last."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from reconciler.errors import ReconcilerError, SourceError, SuspendedError
from reconciler.reconcile._candidate import context_digest, judge, last_good, refuse_quarantined
from reconciler.reconcile._poller import ask

if TYPE_CHECKING:
    from reconciler.model import Refusal, Suspension
    from reconciler.reconcile._ledger import Ledger
    from reconciler.reconcile._parts import Wanted


def decide(ledger: Ledger) -> Wanted | None:
    """The advertised commit if it may run here, else what was applied last."""
    suspension = _suspension(ledger)
    if ledger.request.poll and suspension is None:
        fresh = _poll(ledger)
        if fresh is not None:
            return fresh
    elif suspension is not None:
        ledger.found(SuspendedError(f"new commits are suspended until {suspension.until}: {suspension.reason}"))
        ledger.remember_refusal()
    else:
        ledger.remember_failure()
        ledger.remember_refusal()
    return enforced(ledger)


def enforced(ledger: Ledger) -> Wanted | None:
    """What was applied last. Another host configuration can make another state of it: that one may be refused."""
    wanted = last_good(ledger.parts, ledger.record, ledger.notes)
    if wanted is not None and wanted.state_digest != ledger.record.state_digest:
        refuse_quarantined(wanted, ledger.control.quarantine, ledger.parts)
    return wanted


def _suspension(ledger: Ledger) -> Suspension | None:
    suspension = ledger.control.suspension
    if suspension is None:
        return None
    if datetime.fromisoformat(suspension.until) <= ledger.parts.clock.now():
        ledger.control = replace(ledger.control, suspension=None)
        ledger.save_control()
        return None
    return suspension


def _poll(ledger: Ledger) -> Wanted | None:
    """Ask the source; None when what was applied last is still what counts."""
    parts = ledger.parts
    answer = ledger.request.answer or ask(parts.source, expecting=True)
    if isinstance(answer.error, SourceError):
        ledger.source_failed(answer.error)
        return None
    if answer.error is not None:  # whatever went wrong in asking keeps nothing from being repaired
        if isinstance(answer.error, ReconcilerError):
            ledger.found(answer.error)
        else:
            ledger.defect(answer.error)
        ledger.remember_refusal()
        return None
    head = answer.head
    ledger.answered = True
    context = context_digest(parts)
    now = parts.clock.now().isoformat(timespec="seconds")
    unchanged = ledger.record.seen == head and ledger.record.context == context
    ledger.record = replace(ledger.record, contact=now, failure=None)
    applied = ledger.record.applied
    accepted = ledger.control.acceptance is not None and ledger.control.acceptance.commit == head
    if unchanged and not accepted and ledger.request.confirm is None:
        if applied is not None and applied.id == head and ledger.record.refusal is None:
            return None
        # A plan is looked at because of the refusal: it shows what was refused, not what runs.
        settled = ledger.record.refusal is not None and _settled_refusal(ledger, ledger.record.refusal)
        if settled and not ledger.request.dry_run:
            ledger.remember_refusal()
            return None
    ledger.record = replace(ledger.record, seen=head, context=context)
    try:
        wanted = judge(parts, head, ledger.record, ledger.control, ledger.notes)
    except SourceError as error:
        ledger.record = replace(ledger.record, context="")  # not judged yet
        ledger.source_failed(error)
        return None
    except ReconcilerError as error:
        ledger.refuse(head, error)
        return None
    ledger.record = replace(ledger.record, refusal=None)
    return wanted


def _settled_refusal(ledger: Ledger, refusal: Refusal) -> bool:
    """Whether judging the same commit again would end the same way (nothing temporary was the reason)."""
    return refusal.commit == ledger.record.seen and refusal.final
