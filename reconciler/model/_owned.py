# SPDX-License-Identifier: Apache-2.0
"""What we own in this boot."""

from __future__ import annotations

from dataclasses import dataclass, field

from reconciler.model._generations import LoadedGeneration
from reconciler.model._observed import AttachKind, FilterId, HookPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedAttachment:
    """An attachment of ours.

    Attributes:
        generation: name of the generation whose first program is attached.
        pin: the link's pin, None for filters.
        link_id: the link's id, None for filters.
        filter: for clsact only.
        mode: for XDP: the mode in which it was attached.
        made_qdisc: we created the clsact qdisc and may remove it when nothing else uses it.
        gap: seconds without any program while a foreign occupant was displaced; for the report, not part of identity.
    """

    point: HookPoint
    kind: AttachKind
    generation: str
    pin: str | None = None
    link_id: int | None = None
    filter: FilterId | None = None
    mode: str | None = None
    made_qdisc: bool = False
    gap: float | None = field(default=None, compare=False)


INVENTORY_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What we own in this boot; the one record that says which pins, links and filters are ours."""

    boot_id: str
    version: int = INVENTORY_VERSION
    generations: tuple[LoadedGeneration, ...] = ()
    attachments: tuple[OwnedAttachment, ...] = ()
    leftovers: tuple[str, ...] = ()
    """Pin paths that an undo could not remove; removed by the next pass."""
    bpffs_id: int = 0

    @property
    def empty(self) -> bool:
        """Whether nothing is owned."""
        return not (self.generations or self.attachments or self.leftovers)
