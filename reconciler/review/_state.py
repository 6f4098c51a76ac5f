# SPDX-License-Identifier: Apache-2.0
"""State that a change would lose: maps that get another layout, stateVersion, scope or name."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from reconciler import elf, plan
from reconciler.errors import ElfError
from reconciler.model import MapRole, encode_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.model import Chain, Member
    from reconciler.review._values import ReviewPackage

Placed: TypeAlias = "tuple[Chain, Member, ReviewPackage | None]"

MAX_LAYOUT = 160
"""Characters of a layout that are shown."""


def state_losses(before: Placed, after: Placed) -> Iterator[tuple[str, str]]:
    """Findings about state of one member: id and message."""
    (old_chain, old_member, old_package), (new_chain, new_member, new_package) = before, after
    if old_package is None or new_package is None:
        return
    old, new = layouts(old_member, old_package), layouts(new_member, new_package)
    if (old_chain.name, old_member.name) != (new_chain.name, new_member.name):
        if old:
            names = ", ".join(sorted(old))
            yield "RV030", f"renamed, so {names} of {old_chain.name}/{old_member.name} starts anew"
        return
    if old_chain.state_scope != new_chain.state_scope and old:
        scope = f"stateScope {old_chain.state_scope} → {new_chain.state_scope}"
        yield "RV030", f"{scope}, so {', '.join(sorted(old))} starts anew"
        return
    for name, layout in sorted(old.items()):
        if name not in new:
            yield "RV030", f"map {name} is gone, and what it counted with it"
        elif new[name] != layout:
            difference = layout_difference(layout, new[name])
            if new_member.allow_state_loss:
                yield "RV030", f"map {name} starts anew: {difference}"
            else:
                yield "RV007", f"map {name} would start anew ({difference}); set allowStateLoss: true if that is meant"


def layouts(member: Member, package: ReviewPackage) -> dict[str, elf.JsonValue]:
    """Layout of each state map that the member's program has, by name."""
    program = next((spec for spec in package.manifest.programs if spec.name == member.program), None)
    if program is None or program.object not in package.objects:
        return {}
    try:
        obj = plan.read_object(package.objects[program.object], program.object)
        return {
            spec.name: elf.map_layout(obj, spec.name, spec.state_version)
            for spec in package.manifest.maps
            if spec.role is MapRole.STATE and obj.find_map(spec.name) is not None
        }
    except ElfError:
        return {}


def layout_difference(old: elf.JsonValue, new: elf.JsonValue) -> str:
    """The fields of a layout that differ, such as "value {…} → {…}, maxEntries 64 → 128"."""
    assert isinstance(old, dict)  # noqa: S101 - what map_layout returns
    assert isinstance(new, dict)  # noqa: S101
    parts = []
    for name in sorted({*old, *new}):
        was, now = (encode_json(side.get(name)).decode() for side in (old, new))
        if was != now:
            parts.append(f"{name} {_cut(was)} → {_cut(now)}")
    return ", ".join(parts)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_LAYOUT else f"{text[: MAX_LAYOUT - 1]}…"
