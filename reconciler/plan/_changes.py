# SPDX-License-Identifier: Apache-2.0
"""The plan in a reviewer's words: what happens to each member on each hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.model import Change, ChangeKind, ChangeMode, Evict, LoadedGeneration, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reconciler.model import Inventory, MemberLoad
    from reconciler.plan._hooks import HookPlanner
    from reconciler.plan._observed import Current, Observed
    from reconciler.plan._targets import Target, Targets


def changes_of(
    targets: Targets, observed: Observed, planner: HookPlanner, inventory: Inventory, evictions: list[Step]
) -> tuple[Change, ...]:
    """Lines in the order: hooks that change, hooks that are left, foreign programs."""
    lines: list[Change] = []
    recorded = {owned.point: owned.generation for owned in inventory.attachments}
    # A mode that a commit asks for is a change; one that somebody else chose is drift like any other.
    told: dict[int, str] = {}  # what is said of a member's settings, by the member's id: many hooks share it
    modes = {step.point: step for step in planner.hooks if isinstance(step, ChangeMode) and planner.changed}
    for target in planner.switched:
        current = observed.current.get(target.point)
        running = current.generation if current is not None else recorded.get(target.point)
        lines += _hook(target, _loaded(running, observed), modes.get(target.point), told)
    for point in sorted(observed.current):
        if point not in targets.by_point:
            lines += _left(observed.current[point], observed)
    lines += [_eviction(step) for step in evictions if isinstance(step, Evict)]
    return tuple(lines)


def _eviction(step: Evict) -> Change:
    detail = f"{step.reason} → {step.method}"
    return Change(kind=ChangeKind.EVICT, where=str(step.point), chain="", member="", detail=detail)


def _loaded(generation: str | None, observed: Observed) -> LoadedGeneration | None:
    instance = observed.instances.get(generation) if generation is not None else None
    return instance.loaded if instance is not None else None


def _hook(
    target: Target, loaded: LoadedGeneration | None, mode: ChangeMode | None, told: dict[int, str]
) -> Iterator[Change]:
    """Every member of the hook; those whose settings stay are told as kept, since the whole generation is new."""
    before = {(program.chain, program.member): program for program in loaded.programs} if loaded else {}
    restored = loaded is not None and loaded.digest == target.content.digest
    for load in target.content.members:
        program = before.pop((load.chain, load.member), None)
        if program is None:
            kind, detail = ChangeKind.ADD, _all(load, told)
        elif restored and mode is not None:
            kind, detail = ChangeKind.REPLACE, f"mode {mode.old_mode} → {mode.mode}"
        elif restored:
            kind, detail = ChangeKind.REPAIR, _all(load, told)
        else:
            detail = _difference(program.settings, load.settings)
            kind = ChangeKind.REPLACE if detail else ChangeKind.KEEP
        yield Change(
            kind=kind,
            where=str(target.point),
            chain=load.chain,
            member=load.member,
            detail=detail,
            before=program.settings.get("package") if program else None,
            after=load.settings.get("package"),
        )
    for chain, member in before:
        yield Change(kind=ChangeKind.REMOVE, where=str(target.point), chain=chain, member=member, detail="")


def _left(current: Current, observed: Observed) -> Iterator[Change]:
    loaded = _loaded(current.generation, observed)
    for program in loaded.programs if loaded else ():
        yield Change(
            kind=ChangeKind.REMOVE,
            where=str(current.point),
            chain=program.chain,
            member=program.member,
            detail="no chain declares it here",
            before=program.settings.get("package"),
        )


def _all(load: MemberLoad, told: dict[int, str]) -> str:
    if id(load) not in told:
        settings = load.settings.items()
        told[id(load)] = ", ".join(f"{name} {value}" for name, value in settings if name not in ("package", "program"))
    return told[id(load)]


def _difference(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    names = [*before, *(name for name in after if name not in before)]
    changed = [name for name in names if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name, 'none')} → {after.get(name, 'none')}" for name in changed)
