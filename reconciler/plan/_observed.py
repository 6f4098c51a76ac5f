# SPDX-License-Identifier: Apache-2.0
"""What of ours the snapshot shows: which generations are whole, which one each hook runs.

The kernel is asked first (a pinned link at `links/<hook>`, an attached program whose id is behind some `gen/*/p00`);
the inventory only confirms that ids and contents are the ones that we made. Nothing here depends on what is desired.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from reconciler.model import (
    AttachKind,
    Attachment,
    FilterId,
    HookKind,
    HookPoint,
    HookState,
    Identity,
    LoadedGeneration,
    MapRole,
    Pin,
    PinKind,
    Repin,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reconciler.model import Inventory, LoadedMap, OwnedAttachment, Snapshot

CLSACT_MAJOR: Final = 0xFFFF0000
"""TC_H_CLSACT (include/uapi/linux/pkt_sched.h)."""

TC_PARENT: Final = {HookKind.TC_INGRESS: CLSACT_MAJOR | 0xFFF2, HookKind.TC_EGRESS: CLSACT_MAJOR | 0xFFF3}
"""TC_H_MIN_INGRESS and TC_H_MIN_EGRESS below clsact."""

FILTER_PRIO: Final = 1
"""Our clsact filter comes first, so that nobody's TC_ACT_OK hides packets from it."""

FILTER_HANDLE: Final = 0x72636E31
"""Fixed handle ("rcn1"), so that one filter per hook is ours and is replaced in place."""


def our_filter(kind: HookKind) -> FilterId:
    """The one place at which a filter of ours sits on a clsact hook."""
    return FilterId(parent=TC_PARENT[kind], prio=FILTER_PRIO, handle=FILTER_HANDLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A generation found below gen/.

    Attributes:
        loaded: its record, None when nobody recorded it (a crash while loading).
        whole: every object is the recorded one, joined and frozen; only whole ones are kept.
        problems: what is not as it was loaded.
        repins: how pins that somebody removed come back.
    """

    name: str
    pins: tuple[str, ...]
    first: Identity | None
    loaded: LoadedGeneration | None = None
    whole: bool = False
    problems: tuple[str, ...] = ()
    repins: tuple[Repin, ...] = ()

    @property
    def digest(self) -> str | None:
        return self.loaded.digest if self.loaded else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """Our attachment on one hook, as the kernel has it.

    Attributes:
        generation: name of the generation whose first program runs; None when it is none of ours.
        pin: the link's pin as it exists now, None when it is missing or the attachment is no link.
        made_qdisc: we made the clsact qdisc of this interface, as the inventory says.
    """

    point: HookPoint
    attachment: Attachment
    program: Identity
    generation: str | None
    pin: str | None = None
    made_qdisc: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The snapshot, seen from what is ours.

    Attributes:
        defunct: link pins whose link is on no hook that was read: detached, or its interface is gone, or elsewhere.
        elsewhere: those of them whose link is attached all the same (in a namespace without a name), and the generation
            that runs there, if it is one of ours.
        emptied: what the inventory says of filters that are gone while the qdisc that we made for them is still there.
    """

    instances: Mapping[str, Instance]
    current: Mapping[HookPoint, Current]
    defunct: tuple[str, ...] = ()
    elsewhere: Mapping[str, str | None] = field(default_factory=dict)
    map_pins: Mapping[str, int] = field(default_factory=dict)
    emptied: Mapping[HookPoint, OwnedAttachment] = field(default_factory=dict)


def observe(snapshot: Snapshot, inventory: Inventory) -> Observed:
    """Both views of what is ours, joined."""
    pins = {pin.path: pin for pin in snapshot.pins}
    records = {loaded.name: loaded for loaded in inventory.generations}
    directories: dict[str, list[Pin]] = {}
    for pin in snapshot.pins:
        parts = pin.path.split("/")
        if parts[0] == "gen" and len(parts) == len(("gen", "NAME", "PIN")):
            directories.setdefault(parts[1], []).append(pin)
    names = sorted(directories.keys() | records.keys())
    seen = _Seen(snapshot, pins, frozenset(each for program in snapshot.programs.values() for each in program.map_ids))
    instances = {name: _instance(name, tuple(directories.get(name, ())), records.get(name), seen) for name in names}
    # Somebody may have pinned a program of ours a second time: what is on record comes last, so it wins.
    first = {
        instance.first.id: name
        for name, instance in sorted(instances.items(), key=lambda item: item[1].loaded is not None)
        if instance.first is not None and instance.first.id in snapshot.programs
    }
    link_pins = {pin.id: pin.path for pin in snapshot.pins if pin.kind is PinKind.LINK}
    owned = {attachment.point: attachment for attachment in inventory.attachments}
    qdiscs = {each.point.device for each in inventory.attachments if each.made_qdisc}
    current: dict[HookPoint, Current] = {}
    for state in snapshot.hooks.values():
        found = _current(state, first, link_pins, owned.get(state.point), snapshot)
        if found is not None:
            # Both directions share one qdisc: whichever leaves last takes it along.
            made_qdisc = found.pin is None and state.point.device in qdiscs
            current[state.point] = replace(found, made_qdisc=made_qdisc)
    used = {found.pin for found in current.values()}
    defunct = {number: path for number, path in link_pins.items() if path not in used}
    attached = {number: link for number, link in snapshot.links.items() if number in defunct and link.ifindex}
    return Observed(
        instances=instances,
        current=current,
        defunct=tuple(sorted(defunct.values())),
        elsewhere={defunct[number]: first.get(link.program_id) for number, link in sorted(attached.items())},
        map_pins={pin.path: pin.id for pin in snapshot.pins if pin.kind is PinKind.MAP},
        emptied={
            owned.point: owned
            for owned in inventory.attachments
            if owned.made_qdisc
            and owned.point not in current
            and (hook := snapshot.hooks.get(owned.point)) is not None
            and hook.clsact == "clsact"
        },
    )


def _current(
    state: HookState,
    first: Mapping[int, str],
    link_pins: Mapping[int, str],
    owned: OwnedAttachment | None,
    snapshot: Snapshot,
) -> Current | None:
    for attachment in state.attachments:
        pin = link_pins.get(attachment.link_id) if attachment.link_id is not None else None
        known_link = owned is not None and owned.link_id is not None and owned.link_id == attachment.link_id
        # A filter at our place is ours if it runs what is ours, or if we made it: then somebody replaced its program.
        our_place = attachment.filter is not None and attachment.filter == our_filter(state.point.kind)
        made_by_us = owned is not None and owned.filter is not None and owned.filter == attachment.filter
        if not (
            pin is not None
            or (known_link and attachment.program_id in first)
            or (our_place and (attachment.program_id in first or made_by_us))
        ):
            continue
        program = snapshot.programs.get(attachment.program_id)
        identity = program.identity if program else Identity(id=attachment.program_id)
        return Current(
            point=state.point,
            attachment=attachment,
            program=identity,
            generation=first.get(attachment.program_id),
            pin=pin,
        )
    return None


# --- generations -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    """What all generations are compared with.

    Attributes:
        pins: by path.
        maps: ids of the maps that programs use, whoever's.
    """

    snapshot: Snapshot
    pins: Mapping[str, Pin]
    maps: frozenset[int]


def _instance(name: str, pins: tuple[Pin, ...], loaded: LoadedGeneration | None, seen: _Seen) -> Instance:
    paths = tuple(pin.path for pin in pins)
    if loaded is None:
        head = next((pin for pin in pins if pin.path.endswith("/p00") and pin.kind is PinKind.PROGRAM), None)
        program = seen.snapshot.programs.get(head.id) if head else None
        return Instance(name=name, pins=paths, first=program.identity if program else None, problems=("not recorded",))
    problems: list[str] = []
    repins: list[Repin] = []
    _check_programs(loaded, seen, problems, repins)
    _check_maps(loaded, seen, problems, repins)
    unknown = set(paths) - {program.pin for program in loaded.programs} - {entry.pin for entry in loaded.maps}
    problems += [f"{path} is not ours" for path in sorted(unknown)]
    return Instance(
        name=name,
        pins=paths,
        first=loaded.programs[0].identity if loaded.programs else None,
        loaded=loaded,
        whole=not problems,
        problems=tuple(problems),
        repins=tuple(repins) if not problems else (),
    )


def _check_programs(
    loaded: LoadedGeneration,
    seen: _Seen,
    problems: list[str],
    repins: list[Repin],
) -> None:
    for record in loaded.programs:
        program = seen.snapshot.programs.get(record.identity.id)
        if program is None and not seen.snapshot.complete:
            continue  # could not tell
        if program is None or program.identity != record.identity:
            problems.append(f"program of {record.chain}/{record.member} is gone")
            continue
        pin = seen.pins.get(record.pin)
        if pin is None:
            reason = f"somebody removed the pin of {record.chain}/{record.member}"
            repins.append(Repin(path=record.pin, kind=PinKind.PROGRAM, identity=record.identity, reason=reason))
        elif pin.id != record.identity.id:
            problems.append(f"another program is pinned as {record.chain}/{record.member}")


def _check_maps(
    loaded: LoadedGeneration,
    seen: _Seen,
    problems: list[str],
    repins: list[Repin],
) -> None:
    ids = [record.identity.id for record in loaded.programs]
    slots = dict(zip([(r.chain, r.member) for r in loaded.programs], [*ids[1:], None], strict=True))
    for record in loaded.maps:
        who = f"map {record.name} of {record.chain}/{record.member}"
        pin = seen.pins.get(record.pin)
        if pin is None:
            # An array without a pin is emptied with its last descriptor: it cannot be trusted any more.
            if record.id in seen.maps and record.role is not MapRole.NEXT:
                identity = Identity(id=record.id)
                repins.append(
                    Repin(
                        path=record.pin,
                        kind=PinKind.MAP,
                        identity=identity,
                        reason=f"somebody removed the pin of {who}",
                    )
                )
            elif seen.snapshot.complete:
                problems.append(f"{who} is gone")
            continue
        if pin.id != record.id:
            problems.append(f"another map is pinned as {who}")
            continue
        problems += _content_problems(record, who, seen.snapshot, slots)


def _content_problems(
    record: LoadedMap, who: str, snapshot: Snapshot, slots: Mapping[tuple[str, str], int | None]
) -> Iterator[str]:
    seen = snapshot.maps.get(record.id)
    if seen is None or record.role in (MapRole.STATE, MapRole.STATS):
        return
    if not seen.frozen:
        yield f"{who} is not frozen"
    if record.role is MapRole.NEXT and seen.slot != slots.get((record.chain, record.member)):
        yield f"{who} leads to another program"
    if record.role is MapRole.CONFIG and seen.content != record.content:
        yield f"{who} does not hold the declared entries"


__all__ = ["AttachKind", "Current", "Instance", "Observed", "observe", "our_filter"]
