# SPDX-License-Identifier: Apache-2.0
"""The only interpreter of steps: one `match`, an undo stack, and the failure contract.

Contract (docs/architecture.md):

1. Before each step the journal names what it will create; a step that fails leaves nothing of itself.
2. Until the point of no return every completed step is undone in reverse when a later one fails, not the failing one.
   Undo restores attachments, not what state maps counted meanwhile. Evictions are never undone.
3. An error while undoing never hides the first error; what it leaves over stays in the inventory.
4. A lost compare-and-swap ends the pass for that hook only: the old program stays there, and so does its generation.
   So does any refusal of the kernel in a plan that only repairs: one hook that cannot be mended keeps no other broken.
5. After the point of no return nothing is undone; what cannot be removed is a survivor, tried again by the next pass.

The module reads no clock and makes no decision about what should run.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol, assert_never

from reconciler.errors import DrainError, KernelError, OccupiedError, ReconcilerError, StaleError, StateError
from reconciler.model import (
    Attach,
    ChangeMode,
    CheckHealth,
    Detach,
    Drain,
    Drift,
    DriftKind,
    Evict,
    HookKind,
    HookPoint,
    Identity,
    Inventory,
    Load,
    LoadedGeneration,
    MapRole,
    Outcome,
    OwnedAttachment,
    Package,
    Plan,
    PointOfNoReturn,
    Repin,
    Step,
    StepFailure,
    Switch,
    Unload,
    Unpin,
    XdpMode,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.kernel import Kernel

EXPEDITE_FROM: Final = 8
"""Grace periods in one batch from which `auto` expedites them (reference figures: docs/performance.md)."""


class Journal(Protocol):
    """Where intentions are made durable before they become facts."""

    def journal(self, boot_id: str, event: str, **fields: object) -> None:
        """Append one record and force it to disk. Raises StateError."""


class HealthChecks(Protocol):
    """What must hold between the switch and the point of no return."""

    def check(self, step: CheckHealth, inventory: Inventory) -> None:
        """Raises HealthError naming what does not hold."""


@dataclass(slots=True)
class _Run:
    """Everything that one execution changes."""

    kernel: Kernel
    packages: Mapping[str, Package]
    journal: Journal
    checks: HealthChecks
    boot_id: str
    generations: dict[str, LoadedGeneration]
    attachments: dict[HookPoint, OwnedAttachment]
    leftovers: set[str]
    undo: list[tuple[Step, OwnedAttachment | None]] = field(default_factory=list)
    done: list[Step] = field(default_factory=list)
    survivors: list[Drift] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    contested: set[str] = field(default_factory=set)
    skipped: list[StepFailure] = field(default_factory=list)
    gaps: dict[str, float] = field(default_factory=dict)
    committed: bool = False
    drained: bool = True
    bpffs_id: int = 0

    def inventory(self) -> Inventory:
        return Inventory(
            boot_id=self.boot_id,
            generations=tuple(self.generations[name] for name in sorted(self.generations)),
            attachments=tuple(self.attachments[point] for point in sorted(self.attachments)),
            leftovers=tuple(sorted(self.leftovers)),
            bpffs_id=self.bpffs_id,
        )


def execute(
    plan: Plan, *, kernel: Kernel, packages: Mapping[str, Package], journal: Journal, checks: HealthChecks
) -> Outcome:
    """Carry out `plan`; never raises for what a step does, the outcome says it.

    Raises:
        StateError: the journal cannot be written *before the first step*; later such an error fails the step.
    """
    run = _Run(
        kernel=kernel,
        packages=packages,
        journal=journal,
        checks=checks,
        boot_id=plan.inventory.boot_id,
        generations={generation.name: generation for generation in plan.inventory.generations},
        attachments={owned.point: owned for owned in plan.inventory.attachments},
        leftovers=set(plan.inventory.leftovers),
        bpffs_id=plan.inventory.bpffs_id,
    )
    journal.journal(run.boot_id, "begin", plan=plan.digest)
    failed: StepFailure | None = None
    undo_failures: list[StepFailure] = []
    with ExitStack() as stack:
        expedited = _expedite(run, plan, stack)
        for step in plan.steps:
            if _lost(run, step):
                continue
            try:
                _step(run, step)
            except ReconcilerError as error:
                if not _goes_on(run, plan, step, error):
                    failed = _failure(step, error)
                    break
        undone = _undo(run, undo_failures) if failed and not run.committed else ()
    return Outcome(
        inventory=run.inventory(),
        done=tuple(run.done),
        undone=undone,
        failed=failed,
        skipped=tuple(run.skipped),
        undo_failures=tuple(undo_failures),
        survivors=tuple(run.survivors),
        stale_hooks=tuple(run.stale),
        gaps=run.gaps,
        expedited=expedited,
        committed=run.committed,
    )


def _expedite(run: _Run, plan: Plan, stack: ExitStack) -> bool:
    waits = sum(isinstance(step, Attach | Switch | ChangeMode | Detach | Drain) for step in plan.steps)
    # A hook is without any program while a mode changes or an occupant is displaced, and that is mostly grace periods.
    urgent = any(
        isinstance(step, Evict | ChangeMode) or getattr(step, "displace", None) is not None for step in plan.steps
    )
    if waits < EXPEDITE_FROM and not urgent:
        return False
    before = run.kernel.grace_setting()
    if before is None:
        return False
    run.journal.journal(run.boot_id, "expedite", before=before)
    return stack.enter_context(run.kernel.expedite())


def _step(run: _Run, step: Step) -> None:
    """One step: journal, act, account. Leaves nothing of itself when it raises."""
    match step:
        case PointOfNoReturn():
            run.journal.journal(run.boot_id, "committed")
            run.committed = True
            run.undo.clear()
        case CheckHealth():
            # A hook on which a race was lost is observed again by this pass; the change is not judged by it.
            ours = {key: name for key, name in step.generations.items() if key not in run.contested}
            run.checks.check(replace(step, generations=ours), run.inventory())
        case Drain():
            _drain(run, step)
        case Load():
            _load(run, step)
        case Attach() | Switch() | ChangeMode():
            _take_hook(run, step)
        case Detach():
            _detach(run, step)
        case Repin():
            run.journal.journal(run.boot_id, "intent", step=step)
            run.kernel.repin(step.path, step.kind, step.identity)
        case Unload() | Unpin():
            _unload(run, step)
        case Evict():
            run.journal.journal(run.boot_id, "intent", step=step)
            run.kernel.evict(step)
        case _:
            assert_never(step)
    run.done.append(step)


def _load(run: _Run, step: Load) -> None:
    run.journal.journal(run.boot_id, "intent", step=step)
    loaded = _described(run.kernel.load(step.generation, run.packages), step)
    run.generations[loaded.name] = loaded
    run.undo.append((step, None))
    run.journal.journal(run.boot_id, "loaded", result=loaded)


def _described(loaded: LoadedGeneration, step: Load) -> LoadedGeneration:
    """The kernel knows no parameters; the inventory keeps them, so that later plans can say what changes."""
    settings = {member.pin: member.settings for member in step.generation.members}
    programs = tuple(replace(program, settings=settings[program.pin]) for program in loaded.programs)
    return replace(loaded, programs=programs)


def _take_hook(run: _Run, step: Attach | Switch | ChangeMode) -> None:
    """Attach, switch or change mode: afterwards the hook runs `step.generation`."""
    first = run.kernel.first_program(step.generation)
    before = run.attachments.get(step.point)
    run.journal.journal(run.boot_id, "intent", step=step)
    drained, run.drained = run.drained, False  # also what fails may have been live for a moment
    if isinstance(step, Attach):
        owned = run.kernel.attach(step, first)
        run.drained = drained and step.displace is None
        if owned.gap is not None:
            run.gaps[str(step.point)] = owned.gap
    elif isinstance(step, Switch):
        owned = run.kernel.switch(step, first)
    else:
        owned, gap = run.kernel.change_mode(step, first)
        run.gaps[str(step.point)] = gap
    if owned.filter is not None and _qdisc_is_ours(run, step.point):
        owned = replace(owned, made_qdisc=True)
    run.attachments[step.point] = owned
    run.undo.append((step, before))


def _qdisc_is_ours(run: _Run, point: HookPoint) -> bool:
    """Whether we made the interface's clsact qdisc, for whichever direction: what stays on it last takes it along."""
    owners = (run.attachments.get(replace(point, kind=kind)) for kind in HookKind)
    return any(owned.made_qdisc for owned in owners if owned is not None)


def _drain(run: _Run, step: Drain) -> None:
    """One grace period; without one, what was superseded stays."""
    run.journal.journal(run.boot_id, "intent", step=step)
    run.kernel.drain()
    run.drained = True


def _detach(run: _Run, step: Detach) -> None:
    run.journal.journal(run.boot_id, "intent", step=step)
    run.drained = False
    run.kernel.detach(step)
    run.attachments.pop(step.point, None)


def _unload(run: _Run, step: Unload | Unpin) -> None:
    """Unpin what nothing uses; what a hook still runs (a lost race, a failed detach) or was not drained stays."""
    if isinstance(step, Unload):
        if _in_use(run, step.generation):
            return
        if not run.drained:
            raise DrainError("drain", 0, f"generation {step.generation} stays: no grace period could be waited for")
    elif any(path.startswith("links/") for path in step.pins):
        run.drained = False  # a link without a pin detaches
    run.journal.journal(run.boot_id, "intent", step=step)
    run.kernel.unload(step.pins)
    run.leftovers.difference_update(step.pins)
    if isinstance(step, Unload):
        run.generations.pop(step.generation, None)


def _lost(run: _Run, step: Step) -> bool:
    """Whether the generation that this hook should get could not be loaded; that failure is on record."""
    lost = {failure.step.generation.name for failure in run.skipped if isinstance(failure.step, Load)}
    return isinstance(step, Attach | Switch | ChangeMode) and step.generation in lost


def _goes_on(run: _Run, plan: Plan, step: Step, error: ReconcilerError) -> bool:
    """Whether the pass goes on although this step failed; puts the failure where it belongs."""
    match step:
        case Attach() | Switch() | ChangeMode() | Detach() | Evict() if isinstance(error, StaleError | OccupiedError):
            run.stale.append(f"{step.point}: {error}")
            run.contested.add(step.point.key)
        case _ if run.committed:
            run.survivors.append(_survivor(step, error))
        case _ if not plan.changed and isinstance(error, KernelError):
            run.skipped.append(_failure(step, error))
        case _:
            return False
    return True


def _failure(step: Step, error: ReconcilerError) -> StepFailure:
    return StepFailure(step=step, reason=error.reason, message=str(error), disposition=error.disposition.value)


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


# --- undo --------------------------------------------------------------------------------------------------


def _undo(run: _Run, failures: list[StepFailure]) -> tuple[Step, ...]:
    """Take back what was done, in reverse; a grace period comes before anything is unloaded."""
    undone: list[Step] = []
    for step, before in reversed(run.undo):
        with suppress(StateError):  # a full disk must not stop the undo; the intent is on record already
            run.journal.journal(run.boot_id, "undo", step=step)
        try:
            _undo_one(run, step, before)
        except ReconcilerError as error:
            failures.append(_failure(step, error))
            if isinstance(step, Load) and not _in_use(run, step.generation.name):
                run.leftovers.update(_own_pins(run.generations[step.generation.name], step))
        else:
            undone.append(step)
    taken_back = set(map(id, undone))
    run.done[:] = [step for step in run.done if id(step) not in taken_back]
    run.undo.clear()
    return tuple(undone)


def _undo_one(run: _Run, step: Step, before: OwnedAttachment | None) -> None:
    match step:
        case Load():
            if _in_use(run, step.generation.name):
                raise KernelError(f"unloading {step.generation.name}", 0, "a hook could not be put back and runs it")
            if not run.drained:
                run.kernel.drain()
                run.drained = True
            loaded = run.generations[step.generation.name]
            run.kernel.unload(_own_pins(loaded, step))
            del run.generations[step.generation.name]
        case Attach():
            run.drained = False
            owned = run.attachments[step.point]
            run.kernel.detach(
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
            )
            del run.attachments[step.point]
        case Switch():
            run.drained = False
            first = run.kernel.first_program(step.generation)
            back = replace(step, generation=step.old, old=step.generation, program=first, reason="undo")
            owned = run.kernel.switch(back, step.program)
            run.attachments[step.point] = _restored(owned, before)
        case ChangeMode():
            run.drained = False
            owned = run.attachments[step.point]
            back_mode = replace(
                step,
                generation=step.old,
                old=step.generation,
                link_id=owned.link_id or 0,
                mode=step.old_mode,
                old_mode=step.mode,
                reason="undo",
            )
            restored, gap = run.kernel.change_mode(back_mode, run.kernel.first_program(step.old))
            run.gaps[str(step.point)] = run.gaps.get(str(step.point), 0.0) + gap
            run.attachments[step.point] = _restored(restored, before)
        case _:
            raise AssertionError(step)


def _in_use(run: _Run, generation: str) -> bool:
    return any(owned.generation == generation for owned in run.attachments.values())


def _restored(owned: OwnedAttachment, before: OwnedAttachment | None) -> OwnedAttachment:
    return replace(owned, made_qdisc=before.made_qdisc) if before else owned


def _own_pins(loaded: LoadedGeneration, step: Load) -> tuple[str, ...]:
    """Pins that this load made: never a state map that an older generation uses too."""
    reused = {use.pin for member in step.generation.members for use in member.maps if use.reuse}
    pins = [program.pin for program in loaded.programs]
    pins += [loaded_map.pin for loaded_map in loaded.maps if loaded_map.pin not in reused]
    return tuple(pins)


__all__ = ["EXPEDITE_FROM", "HealthChecks", "Identity", "Journal", "MapRole", "XdpMode", "execute"]
