# SPDX-License-Identifier: Apache-2.0
"""Take back what was done, in reverse; a grace period comes before anything is unloaded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from reconciler.apply._run import failure
from reconciler.errors import KernelError, ReconcilerError, StateError
from reconciler.model import Attach, ChangeMode, Detach, Load, Step, Switch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reconciler.apply._run import Run
    from reconciler.kernel import Progress
    from reconciler.model import LoadedGeneration, OwnedAttachment

    Done: TypeAlias = tuple[Step, OwnedAttachment | None]


def undo(run: Run) -> tuple[Step, ...]:
    """What could be taken back; what could not is in `run.undo_failures`, and what it leaves in the inventory."""
    undone: list[Step] = []
    for _, group in groupby(reversed(run.undo), lambda done: type(done[0])):
        batch = list(group)
        with suppress(StateError):  # a full disk must not stop the undo; the intents are on record already
            run.write("undo", force=False, steps=[step for step, _ in batch])
        for step, error in _take_back(run, batch):
            if error is None:
                undone.append(step)
                continue
            run.undo_failures.append(failure(step, error))
            if isinstance(step, Load) and not run.in_use(step.generation.name):
                run.leftovers.update(_own_pins(run.generations[step.generation.name], step))
    run.undo.clear()
    gone = {id(step) for step in undone}
    run.done = [step for step in run.done if id(step) not in gone]
    return tuple(undone)


def _take_back(run: Run, batch: list[Done]) -> list[tuple[Step, ReconcilerError | None]]:
    """Each of them, whatever happens to the others."""
    match batch[0][0]:
        case Attach():
            return _detach(run, [step for step, _ in batch if isinstance(step, Attach)])
        case Switch():
            return _switch_back(run, [(step, before) for step, before in batch if isinstance(step, Switch)])
        case _:
            return [(step, _attempt(run, step, before)) for step, before in batch]


def _attempt(run: Run, step: Step, before: OwnedAttachment | None) -> ReconcilerError | None:
    try:
        match step:
            case Load():
                _unload(run, step)
            case ChangeMode():
                _change_back(run, step, before)
            case _:
                raise AssertionError(step)
    except ReconcilerError as error:
        return error
    return None


def _unload(run: Run, step: Load) -> None:
    if run.in_use(step.generation.name):
        raise KernelError(f"unloading {step.generation.name}", 0, "a hook could not be put back and runs it")
    if not run.drained:
        run.kernel.drain()
        run.drained = True
    run.kernel.unload(_own_pins(run.generations[step.generation.name], step))
    del run.generations[step.generation.name]


def _own_pins(loaded: LoadedGeneration, step: Load) -> tuple[str, ...]:
    """Pins that this load made: never a state map that an older generation uses too."""
    reused = {use.pin for member in step.generation.members for use in member.maps if use.reuse}
    pins = [program.pin for program in loaded.programs]
    pins += [loaded_map.pin for loaded_map in loaded.maps if loaded_map.pin not in reused]
    return tuple(pins)


def _detach(run: Run, steps: list[Attach]) -> list[tuple[Step, ReconcilerError | None]]:
    run.drained = False
    detaches = [
        Detach(
            point=step.point,
            kind=step.kind,
            generation=step.generation,
            reason="undo",
            pin=owned.pin,
            link_id=owned.link_id,
            filter=owned.filter,
            remove_qdisc=owned.made_qdisc,
        )
        for step, owned in ((step, run.attachments[step.point]) for step in steps)
    ]
    results = _each(detaches, run.kernel.detach)
    for step, result in zip(steps, results, strict=True):
        if not isinstance(result, ReconcilerError):
            del run.attachments[step.point]
    return _errors(steps, results)


def _switch_back(
    run: Run, batch: list[tuple[Switch, OwnedAttachment | None]]
) -> list[tuple[Step, ReconcilerError | None]]:
    run.drained = False
    first = {step.old: step.program for step, _ in batch}
    backs = [
        replace(step, generation=step.old, old=step.generation, program=run.first(step.generation), reason="undo")
        for step, _ in batch
    ]
    results = _each(backs, lambda steps: run.kernel.switch(steps, first))
    for (step, before), result in zip(batch, results, strict=True):
        if not isinstance(result, ReconcilerError):
            run.attachments[step.point] = _restored(result, before)
    return _errors([step for step, _ in batch], results)


def _change_back(run: Run, step: ChangeMode, before: OwnedAttachment | None) -> None:
    run.drained = False
    owned = run.attachments[step.point]
    back = replace(
        step,
        generation=step.old,
        old=step.generation,
        link_id=owned.link_id or 0,
        mode=step.old_mode,
        old_mode=step.mode,
        reason="undo",
    )
    restored, gap = run.kernel.change_mode(back, run.first(step.old))
    run.gaps[str(step.point)] = run.gaps.get(str(step.point), 0.0) + gap
    run.attachments[step.point] = _restored(restored, before)


S = TypeVar("S", bound=Step)
T = TypeVar("T")


def _each(steps: list[S], call: Callable[[list[S]], Progress[T]]) -> list[T | ReconcilerError]:
    """What became of each step; one that fails keeps no other from being tried."""
    results: list[T | ReconcilerError] = []
    while len(results) < len(steps):
        progress = call(steps[len(results) :])
        results += progress.done
        if progress.error is not None:
            results.append(progress.error)
    return results


def _errors(steps: Sequence[Step], results: Sequence[object]) -> list[tuple[Step, ReconcilerError | None]]:
    return [
        (step, result if isinstance(result, ReconcilerError) else None)
        for step, result in zip(steps, results, strict=True)
    ]


def _restored(owned: OwnedAttachment, before: OwnedAttachment | None) -> OwnedAttachment:
    return replace(owned, made_qdisc=before.made_qdisc) if before else owned
