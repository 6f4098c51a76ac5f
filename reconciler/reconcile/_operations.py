# SPDX-License-Identifier: Apache-2.0
"""What operators ask for: each is recorded, and each leaves the host in a state that the next pass understands."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from reconciler import apply, plan
from reconciler.errors import GuardrailError, ReconcilerError, StateError, StateVersionError, SuspendedError
from reconciler.kernel import Scope
from reconciler.model import Acceptance, ControlRecord, Inventory, Outcome, Plan, Suspension
from reconciler.reconcile._parts import Request
from reconciler.reconcile._pass import Pass
from reconciler.reconcile._poller import ask
from reconciler.reconcile._recover import owe_grace
from reconciler.state import recover
from reconciler.status import event

if TYPE_CHECKING:
    from reconciler.model import CheckHealth
    from reconciler.reconcile._parts import Answer, Parts, PassResult


def accept(parts: Parts, commit: str, *, reason: str, by: str, known: Answer | None = None) -> PassResult:
    """Take the head that is advertised now against history, fully verified, once, on record.

    `known` is what the source said when it was asked right before.

    Raises:
        GuardrailError: `commit` is not what the source advertises.
        SuspendedError: no new commits are taken at all, or everything was taken off by a teardown.
        SourceError: the source cannot be asked.
    """
    control = _control(parts)
    if control.torn_down or _suspended(control, parts):
        raise SuspendedError("no commits are taken on this host now; `reconciler resume` first")
    answer = known or ask(parts.source, expecting=True)
    if answer.error is not None:
        raise answer.error
    head = answer.head
    if head != commit:
        raise GuardrailError(
            f"expected the commit that the source advertises now ({head}), got {commit}; accept takes nothing else",
            reason="NotAdvertised",
        )
    acceptance = Acceptance(commit=commit, reason=reason, by=by, at=_now(parts))
    _record(parts, "accepted", commit=commit, reason=reason, by=by)
    parts.state.save_control(replace(control, acceptance=acceptance))
    return Pass(parts, Request(poll=True, answer=answer)).run()


def suspend(parts: Parts, *, seconds: float, reason: str, by: str) -> Suspension:
    """No new commits for a while; repair and secure mode go on.

    Raises:
        ValueError, OverflowError: it would end now, or after the end of the calendar.
    """
    if not seconds > 0:
        raise ValueError(f"expected seconds above zero, got {seconds:g}")
    until = (parts.clock.now() + timedelta(seconds=seconds)).isoformat(timespec="seconds")
    suspension = Suspension(until=until, reason=reason, by=by, at=_now(parts))
    control = _control(parts)
    _record(parts, "suspended", until=until, reason=reason, by=by)
    parts.state.save_control(replace(control, suspension=suspension))
    return suspension


def resume(parts: Parts, *, by: str) -> None:
    """New commits are taken again; after a teardown, chains are put back by the next pass."""
    control = _control(parts)
    _record(parts, "resumed", by=by)
    parts.state.save_control(replace(control, suspension=None, torn_down=False))


def teardown(parts: Parts, *, by: str) -> tuple[Plan, Outcome]:
    """Take everything of ours off this host; nothing is attached again until `resume`.

    Raises:
        KernelError: the kernel cannot be read.
        StateVersionError: a newer agent wrote the state.
    """
    control, inventory = _control(parts), _inventory(parts)
    parts.state.save_control(replace(control, torn_down=True, suspension=None, confirmed=None))
    scope = Scope(namespaces=tuple(sorted({"host"} | {owned.point.netns for owned in inventory.attachments})))
    snapshot = parts.kernel.snapshot(scope)
    made = plan.make_teardown(snapshot, inventory, parts.config.guardrail, parts.config.secure)
    outcome = apply.execute(made, kernel=parts.kernel, packages={}, journal=parts.state, checks=_NoChecks())
    parts.state.save_inventory(outcome.inventory)
    parts.state.clear_journal()
    owe_grace(parts, outcome)
    parts.kernel.unload(())  # that of an earlier one that was killed, where it had nothing else left to remove
    _record(parts, "torn-down", by=by, steps=len(outcome.done))
    Pass(parts, Request(poll=False)).run()  # attaches nothing now; `status` must not go on saying that all is in sync
    return made, outcome


class _NoChecks:
    def check(self, step: CheckHealth, inventory: Inventory) -> None:  # noqa: ARG002  # the protocol's signature
        raise ReconcilerError("a teardown has no health checks")


def _inventory(parts: Parts) -> Inventory:
    """What is ours as far as the records tell; the pins tell the rest."""
    boot = parts.kernel.boot_id()
    empty = saved = Inventory(boot_id=boot)
    try:
        saved = parts.state.inventory() or empty
        saved = saved if saved.boot_id == boot else empty
        return recover(saved, parts.state.journal_records())
    except StateVersionError:
        raise
    except StateError:
        return saved


def _control(parts: Parts) -> ControlRecord:
    """What operators decided before; a damaged record is replaced, a newer one is refused."""
    try:
        return parts.state.control()
    except StateVersionError:
        raise
    except StateError:
        return ControlRecord()


def _suspended(control: ControlRecord, parts: Parts) -> bool:
    suspension = control.suspension
    return suspension is not None and datetime.fromisoformat(suspension.until) > parts.clock.now()


def _record(parts: Parts, kind: str, **fields: object) -> None:
    """Write down who decided what: before it is in force, so that nothing is without a record."""
    parts.state.append_history(event(kind, parts.clock.now(), **fields))
    parts.emit(event(kind, parts.clock.now(), **fields))


def _now(parts: Parts) -> str:
    return parts.clock.now().isoformat(timespec="seconds")
