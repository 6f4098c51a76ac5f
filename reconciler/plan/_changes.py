# SPDX-License-Identifier: Apache-2.0
"""The plan in a reviewer's words: what happens to each member on each hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.model import Change, ChangeKind, Evict, LoadedGeneration, MemberLoad, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.plan._hooks import HookPlanner
    from reconciler.plan._observed import Current, Observed
    from reconciler.plan._targets import Target, Targets


def changes_of(targets: Targets, observed: Observed, planner: HookPlanner, evictions: list[Step]) -> tuple[Change, ...]:
    """Lines in the order: hooks that change, hooks that are left, foreign programs."""
    lines: list[Change] = []
    for target in planner.switched:
        current = observed.current.get(target.point)
        lines += _hook(target, current, observed)
    for point in sorted(observed.current):
        if point not in targets.by_point:
            lines += _left(observed.current[point], observed)
    for step in evictions:
        if isinstance(step, Evict):
            lines.append(
                Change(
                    kind=ChangeKind.EVICT,
                    where=str(step.point),
                    chain="",
                    member="",
                    detail=f"{step.reason} → {step.method}",
                )
            )
    return tuple(lines)


def _hook(target: Target, current: Current | None, observed: Observed) -> Iterator[Change]:
    before = _members(current, observed)
    packages = {
        (chain.name, member.name): f"{member.package.name}-{member.package.version} {member.package.digest[:19]}"
        for chain in target.chains
        for member in chain.members
    }
    same = current is not None and current.generation is not None
    digest = observed.instances[current.generation].digest if same and current and current.generation else None
    for load in target.content.members:
        who = (load.chain, load.member)
        if digest == target.content.digest or (current is None and who in before):
            kind = ChangeKind.REPAIR
        else:
            kind = ChangeKind.REPLACE if who in before else ChangeKind.ADD
        yield Change(
            kind=kind,
            where=str(target.point),
            chain=load.chain,
            member=load.member,
            detail=_detail(load),
            after=packages[who],
        )
    for who in before:
        if who not in packages:
            yield Change(kind=ChangeKind.REMOVE, where=str(target.point), chain=who[0], member=who[1], detail="")


def _left(current: Current, observed: Observed) -> Iterator[Change]:
    for chain, member in _members(current, observed):
        yield Change(
            kind=ChangeKind.REMOVE,
            where=str(current.point),
            chain=chain,
            member=member,
            detail="no chain declares it here",
        )


def _members(current: Current | None, observed: Observed) -> list[tuple[str, str]]:
    if current is None or current.generation is None:
        return []
    loaded: LoadedGeneration | None = observed.instances[current.generation].loaded
    return [(program.chain, program.member) for program in loaded.programs] if loaded else []


def _detail(load: MemberLoad) -> str:
    entries = {use.name: len(use.entries) for use in load.maps if use.entries}
    words = [f"program {load.program}"]
    words += [f"{name}: {count} entries" for name, count in sorted(entries.items())]
    return ", ".join(words)
