# SPDX-License-Identifier: Apache-2.0
"""The only interpreter of steps: one `match`, an undo stack, and the failure contract.

Contract (docs/architecture.md):

1. Before a step the journal names what it will create; a step that fails leaves nothing of itself. Consecutive steps
   of one kind are one batch: one record names what all of them will create, forced to disk before the first.
2. Until the point of no return every completed step is undone in reverse when a later one fails, not the failing one.
   Undo restores attachments, not what state maps counted meanwhile. Evictions are never undone.
3. An error while undoing never hides the first error; what it leaves over stays in the inventory.
4. A lost compare-and-swap ends the pass for that hook only: the old program stays there, and so does its generation.
   So does any refusal of the kernel in a plan that only repairs: one hook that cannot be mended keeps no other broken.
5. After the point of no return nothing is undone; what cannot be removed is a survivor, tried again by the next pass.

The package reads no clock and makes no decision about what should run.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Final

from reconciler.apply._run import HealthChecks, Journal, Run, failure
from reconciler.apply._steps import perform
from reconciler.apply._undo import undo
from reconciler.errors import KernelError, OccupiedError, ReconcilerError, StaleError
from reconciler.model import (
    Attach,
    ChangeMode,
    Detach,
    Drain,
    Drift,
    DriftKind,
    Evict,
    Load,
    Outcome,
    Package,
    Plan,
    Step,
    StepFailure,
    Switch,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.kernel import Kernel

EXPEDITE_FROM: Final = 8
"""Grace periods in one batch from which `auto` expedites them (reference figures: docs/performance.md)."""


def execute(
    plan: Plan, *, kernel: Kernel, packages: Mapping[str, Package], journal: Journal, checks: HealthChecks
) -> Outcome:
    """Carry out `plan`; never raises for what a step does, the outcome says it.

    Raises:
        StateError: the journal cannot be written *before the first step*; later such an error fails the step.
    """
    run = Run.of(plan.inventory, kernel=kernel, packages=packages, journal=journal, checks=checks)
    run.write("begin", force=False, plan=plan.digest)
    failed: StepFailure | None = None
    undone: tuple[Step, ...] = ()
    before = _worth_expediting(run, plan)
    with nullcontext(enter_result=False) if before is None else kernel.expedite() as expedited:
        for _, batch in groupby(plan.steps, _kind):
            failed = _batch(run, plan, list(batch))
            if failed is not None:
                break
        if failed is not None and not run.committed:
            undone = undo(run)
    return Outcome(
        inventory=run.inventory(),
        done=tuple(run.done),
        undone=undone,
        failed=failed,
        skipped=tuple(run.skipped),
        undo_failures=tuple(run.undo_failures),
        survivors=tuple(run.survivors),
        stale_hooks=tuple(run.stale),
        gaps=run.gaps,
        expedited=expedited,
        unrestored=before if expedited and kernel.grace_setting() == 1 else None,
        committed=run.committed,
    )


def _worth_expediting(run: Run, plan: Plan) -> int | None:
    """What the switch reads now, put on record, if this plan is worth it."""
    waits = sum(isinstance(step, Attach | Switch | ChangeMode | Detach | Drain) for step in plan.steps)
    # A hook is without any program while a mode changes or an occupant is displaced, and that is mostly grace periods.
    urgent = any(
        isinstance(step, Evict | ChangeMode) or getattr(step, "displace", None) is not None for step in plan.steps
    )
    if waits < EXPEDITE_FROM and not urgent:
        return None
    before = run.kernel.grace_setting()
    if before is not None:
        run.write("expedite", before=before)
    return before


def _kind(step: Step) -> object:
    """Neighbours of which this is equal are one batch.

    A step that makes a qdisc is one by itself: nothing marks a qdisc as ours but the record, so that may only name
    what was about to be made.
    """
    return (type(step), step.point) if isinstance(step, Attach) and step.make_qdisc else type(step)


def _batch(run: Run, plan: Plan, steps: list[Step]) -> StepFailure | None:
    """Consecutive steps of one kind; what ended the pass, None when the next batch may come."""
    steps = _not_lost(run, steps)
    announced = False
    while steps:
        count, error = 0, None
        try:
            if not announced:
                _announce(run, steps)
                announced = True
            count, error = perform(run, steps)
        except ReconcilerError as refused:
            error = refused
        run.done += steps[:count]
        if error is None:
            break
        if not _goes_on(run, plan, steps[count], error):
            return failure(steps[count], error)
        steps = steps[count + 1 :]
    return None


def _announce(run: Run, steps: list[Step]) -> None:
    """What these steps will create, on record before the first of them."""
    match steps[0].step:
        case "check-health":
            pass
        case "point-of-no-return":
            run.write("committed")
        case _:
            run.write("intent", steps=steps)


def _not_lost(run: Run, steps: list[Step]) -> list[Step]:
    """Without hooks that should get a generation that could not be loaded; that failure is on record."""
    lost = {skipped.step.generation.name for skipped in run.skipped if isinstance(skipped.step, Load)}
    return [step for step in steps if not (isinstance(step, Attach | Switch | ChangeMode) and step.generation in lost)]


def _goes_on(run: Run, plan: Plan, step: Step, error: ReconcilerError) -> bool:
    """Whether the pass goes on although this step failed; puts the failure where it belongs."""
    match step:
        case Attach() | Switch() | ChangeMode() | Detach() | Evict() if isinstance(error, StaleError | OccupiedError):
            run.stale.append(f"{step.point}: {error}")
            run.contested.add(step.point.key)
        case _ if run.committed:
            run.survivors.append(_survivor(step, error))
        case _ if not plan.changed and isinstance(error, KernelError):
            run.skipped.append(failure(step, error))
        case _:
            return False
    return True


def _survivor(step: Step, error: ReconcilerError) -> Drift:
    match step:
        case Evict():
            return Drift(
                kind=DriftKind.NOT_REMOVABLE,
                where=str(step.point),
                message=f"foreign program {step.program.id} could not be removed: {error}",
                critical=True,
            )
        case Detach():
            return Drift(kind=DriftKind.ORPHANED, where=str(step.point), message=f"could not be detached: {error}")
        case _:
            return Drift(kind=DriftKind.ORPHANED, where=step.step, message=str(error))


__all__ = ["EXPEDITE_FROM", "HealthChecks", "Journal", "execute"]
