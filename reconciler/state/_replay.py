# SPDX-License-Identifier: Apache-2.0
"""What the journal of a pass that did not end says: what may exist since then, and what was never judged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from reconciler.errors import StateError
from reconciler.model import (
    Attach,
    AttachKind,
    ChangeMode,
    HookPoint,
    Inventory,
    LoadedGeneration,
    OwnedAttachment,
    Switch,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def recover(inventory: Inventory, records: tuple[dict[str, Any], ...]) -> Inventory:
    """The inventory after a crash: what was saved, and what the journal says may exist since then.

    Records of another boot say nothing: that kernel is gone. Candidates that do not exist are dropped by the next plan.

    Raises:
        StateError: a whole record is not what this program writes.
    """
    try:
        return _replay(inventory, records)
    except (KeyError, msgspec.ValidationError) as error:
        raise StateError(f"journal: damaged ({error}); run `reconciler accept`") from error


def _replay(inventory: Inventory, records: tuple[dict[str, Any], ...]) -> Inventory:
    generations = {generation.name: generation for generation in inventory.generations}
    attachments = {owned.point: owned for owned in inventory.attachments}
    for record in records:
        if record.get("boot") != inventory.boot_id:
            continue
        if record.get("event") == "loaded":
            for loaded in msgspec.convert(record["results"], type=tuple[LoadedGeneration, ...]):
                generations[loaded.name] = loaded
        for raw in _taking(record):
            step = msgspec.convert(raw, type=_TAKING[raw["step"]])
            attachments[step.point] = candidate(step, attachments.get(step.point))
    ordered = tuple(attachments[point] for point in sorted(attachments))
    return replace(inventory, generations=tuple(generations.values()), attachments=ordered)


def unproven(boot_id: str, records: tuple[dict[str, Any], ...]) -> frozenset[str]:
    """Keys of hooks that a pass took and did not live to judge: it ended before its point of no return.

    What runs there was never found healthy, so the commit that wants it must still pass its health checks.

    Raises:
        StateError: a whole record is not what this program writes.
    """
    taken: set[str] = set()
    for record in records:
        if record.get("boot") != boot_id:
            continue
        if record.get("event") == "committed":
            taken.clear()
        try:
            taken |= {msgspec.convert(raw["point"], type=HookPoint).key for raw in _taking(record)}
        except (KeyError, msgspec.ValidationError) as error:
            raise StateError(f"journal: damaged ({error}); run `reconciler accept`") from error
    return frozenset(taken)


_TAKING: Final[dict[str, type[Attach | Switch | ChangeMode]]] = {
    "attach": Attach,
    "switch": Switch,
    "change-mode": ChangeMode,
}


def _taking(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Steps that take a hook, of a record that announces some."""
    if record.get("event") == "intent":
        for raw in msgspec.convert(record["steps"], type=list[Any]):
            if isinstance(raw, dict) and raw.get("step") in _TAKING:
                yield raw


def candidate(step: Attach | Switch | ChangeMode, before: OwnedAttachment | None = None) -> OwnedAttachment:
    """What a step will have made if it got as far; `before` is what was there."""
    made_qdisc = isinstance(step, Attach) and step.make_qdisc
    return OwnedAttachment(
        point=step.point,
        kind=AttachKind.XDP_LINK if isinstance(step, ChangeMode) else step.kind,
        generation=step.generation,
        pin=step.pin,
        link_id=before.link_id if before else None,
        filter=None if isinstance(step, ChangeMode) else step.filter,
        mode=before.mode if before else None,
        made_qdisc=made_qdisc or (before is not None and before.made_qdisc),
    )
