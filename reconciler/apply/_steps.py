# SPDX-License-Identifier: Apache-2.0
"""Act and account: what each kind of step does. Nothing here writes intents or decides what a failure means."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from reconciler.errors import DrainError, ReconcilerError
from reconciler.model import (
    Attach,
    ChangeMode,
    CheckHealth,
    Detach,
    Drain,
    Evict,
    HookKind,
    Load,
    LoadedGeneration,
    PointOfNoReturn,
    Repin,
    Step,
    Switch,
    Unload,
    Unpin,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reconciler.apply._run import Run
    from reconciler.model import HookPoint, Identity, OwnedAttachment


def perform(run: Run, steps: list[Step]) -> tuple[int, ReconcilerError | None]:
    """Steps of one kind in order, up to the first that fails: how many took effect, and that error.

    Raises:
        ReconcilerError: the first of them failed, or what they did could not be written down.
    """
    match steps[0]:
        case Attach():
            return _attach(run, [step for step in steps if isinstance(step, Attach)])
        case Switch():
            return _switch(run, [step for step in steps if isinstance(step, Switch)])
        case Detach():
            return _detach(run, [step for step in steps if isinstance(step, Detach)])
        case Load():
            return _load(run, [step for step in steps if isinstance(step, Load)])
        case _:
            for count, step in enumerate(steps):
                try:
                    _one(run, step)
                except ReconcilerError as error:
                    return count, error
            return len(steps), None


def _one(run: Run, step: Step) -> None:
    """A step that is not done in batches. Leaves nothing of itself when it raises."""
    match step:
        case PointOfNoReturn():
            run.committed = True
            run.undo.clear()
        case CheckHealth():
            # A hook on which a race was lost is observed again by this pass; the change is not judged by it.
            ours = {key: name for key, name in step.generations.items() if key not in run.contested}
            run.checks.check(replace(step, generations=ours), run.inventory())
        case Drain():
            run.kernel.drain()
            run.drained = True
        case ChangeMode():
            run.drained = False
            owned, run.gaps[str(step.point)] = run.kernel.change_mode(step, run.first(step.generation))
            _account(run, step, owned)
        case Repin():
            run.kernel.repin(step.path, step.kind, step.identity)
        case Unload() | Unpin():
            _unload(run, step)
        case Evict():
            run.kernel.evict(step)
        case Load() | Attach() | Switch() | Detach():
            raise AssertionError(step)
        case _:
            assert_never(step)


def _load(run: Run, steps: list[Load]) -> tuple[int, ReconcilerError | None]:
    """One generation after the other; what they became is on record before anything else is announced."""
    made: list[LoadedGeneration] = []
    error: ReconcilerError | None = None
    for step in steps:
        try:
            made.append(_described(run.kernel.load(step.generation, run.packages), step))
        except ReconcilerError as refused:
            error = refused
            break
        run.generations[made[-1].name] = made[-1]
        run.undo.append((step, None))
    if made:
        run.write("loaded", force=False, results=made)
    return len(made), error


def _described(loaded: LoadedGeneration, step: Load) -> LoadedGeneration:
    """The kernel knows no parameters; the inventory keeps them, so that later plans can say what changes."""
    settings = {member.pin: member.settings for member in step.generation.members}
    programs = tuple(replace(program, settings=settings[program.pin]) for program in loaded.programs)
    return replace(loaded, programs=programs)


def _attach(run: Run, steps: list[Attach]) -> tuple[int, ReconcilerError | None]:
    first = _firsts(run, steps)
    drained, run.drained = run.drained, False  # also what fails may have been live for a moment
    progress = run.kernel.attach(steps, first)
    for step, owned in zip(steps, progress.done, strict=False):
        if owned.gap is not None:
            run.gaps[str(step.point)] = owned.gap
        _account(run, step, owned)
    if progress.error is None:
        run.drained = drained and all(step.displace is None for step in steps)
    return len(progress.done), progress.error


def _switch(run: Run, steps: list[Switch]) -> tuple[int, ReconcilerError | None]:
    first = _firsts(run, steps)
    run.drained = False
    progress = run.kernel.switch(steps, first)
    for step, owned in zip(steps, progress.done, strict=False):
        _account(run, step, owned)
    return len(progress.done), progress.error


def _firsts(run: Run, steps: Sequence[Attach | Switch]) -> dict[str, Identity]:
    return {name: run.first(name) for name in {step.generation: None for step in steps}}


def _account(run: Run, step: Attach | Switch | ChangeMode, owned: OwnedAttachment) -> None:
    before = run.attachments.get(step.point)
    if owned.filter is not None and _qdisc_is_ours(run, step.point):
        owned = replace(owned, made_qdisc=True)
    run.attachments[step.point] = owned
    run.undo.append((step, before))


def _qdisc_is_ours(run: Run, point: HookPoint) -> bool:
    """Whether we made the interface's clsact qdisc, for whichever direction: what stays on it last takes it along."""
    on_device = (run.attachments.get(replace(point, kind=kind)) for kind in HookKind)
    return any(owned is not None and owned.made_qdisc for owned in on_device)


def _detach(run: Run, steps: list[Detach]) -> tuple[int, ReconcilerError | None]:
    run.drained = False
    progress = run.kernel.detach(steps)
    for step in steps[: len(progress.done)]:
        run.attachments.pop(step.point, None)
    return len(progress.done), progress.error


def _unload(run: Run, step: Unload | Unpin) -> None:
    """Unpin what nothing uses; what a hook still runs (a lost race, a failed detach) or was not drained stays."""
    if isinstance(step, Unload):
        if run.in_use(step.generation):
            return
        if not run.drained:
            raise DrainError("drain", 0, f"generation {step.generation} stays: no grace period could be waited for")
    elif any(path.startswith("links/") for path in step.pins):
        run.drained = False  # a link without a pin detaches
    run.kernel.unload(step.pins)
    run.leftovers.difference_update(step.pins)
    if isinstance(step, Unload):
        run.generations.pop(step.generation, None)
