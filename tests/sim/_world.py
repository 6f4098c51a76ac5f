# SPDX-License-Identifier: Apache-2.0
"""The fake kernel's own state and rules: what exists, what refers to what, what is freed, what a packet sees.

Nothing in here knows of the reconciler's protocol, of faults or of foreign activity. Like the kernel it counts
references: a program lives while a pin, a descriptor, an attachment or a slot refers to it, a link without pin and
descriptor detaches, and a PROG_ARRAY without pin and descriptor is flushed although programs still use it.
"""

from __future__ import annotations

import errno
from dataclasses import asdict
from typing import TYPE_CHECKING

from reconciler.errors import KernelError
from reconciler.model import AttachKind, Attachment, FilterId, HookKind, HookPoint, PinKind
from tests.sim._net import Network
from tests.sim._objects import (
    CLSACT_PARENTS,
    MAP_PROG_ARRAY,
    MPROG_MAX,
    Device,
    FakeFilter,
    FakeLink,
    FakeMap,
    FakeProgram,
    FakeXdp,
    Ids,
    ObjectKey,
    TcxEntry,
    Trace,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TC_KINDS = (HookKind.TC_INGRESS, HookKind.TC_EGRESS)
MAX_TAIL_CALLS = 33


class World(Network):
    """One machine."""

    def __init__(self, *, id_limit: int) -> None:
        super().__init__()
        self.boot = 1
        self.bpffs_id = 20
        self.clock = 1_000_000
        self.programs: dict[int, FakeProgram] = {}
        self.maps: dict[int, FakeMap] = {}
        self.links: dict[int, FakeLink] = {}
        self.pins: dict[str, ObjectKey] = {}
        self.folders: set[str] = set()
        self.hidden_pins: list[ObjectKey] = []
        self.descriptors: set[ObjectKey] = set()
        self.foreign_descriptors: set[ObjectKey] = set()
        self.pending: set[int] = set()
        self.violations: list[str] = []
        self.wholes: dict[str, tuple[tuple[str, str], ...]] = {}
        self._ids = {kind: Ids(id_limit) for kind in PinKind}
        self._broken: set[str] = set()

    def _remove_device(self, device: Device) -> None:
        super()._remove_device(device)
        for link in self.links.values():
            if link.device is device:
                link.device = None
        self._settle_down()

    # --- objects -----------------------------------------------------------------------------------------

    def _new_id(self, kind: PinKind) -> int:
        return self._ids[kind].allocate(self._table(kind))

    def _tick(self) -> int:
        self.clock += 1_000
        return self.clock

    def _exists(self, key: ObjectKey) -> bool:
        kind, number = key
        return number in self._table(kind)

    def _table(self, kind: PinKind) -> Mapping[int, object]:
        tables: dict[PinKind, Mapping[int, object]] = {
            PinKind.PROGRAM: self.programs,
            PinKind.MAP: self.maps,
            PinKind.LINK: self.links,
        }
        return tables[kind]

    def _add_program(self, **fields: object) -> FakeProgram:
        number = self._new_id(PinKind.PROGRAM)
        program = FakeProgram(id=number, load_time=self._tick(), **fields)  # type: ignore[arg-type]  # by the callers
        self.programs[number] = program
        return program

    def _pin(self, path: str, key: ObjectKey) -> None:
        if path in self.pins:
            raise KernelError(f"BPF_OBJ_PIN {path}", errno.EEXIST, "the path exists")
        if not all(part and "." not in part for part in path.split("/")):
            raise KernelError(f"BPF_OBJ_PIN {path}", errno.EPERM, "bpffs refuses dots in names")
        self.pins[path] = key

    # --- attaching: each of these is one system call -----------------------------------------------------

    def _install_xdp(self, device: Device, program: FakeProgram, mode: str, *, link: bool) -> FakeLink | None:
        call = f"XDP on {device.name}"
        if device.xdp is not None:
            number = errno.EBUSY if device.xdp.mode == mode else errno.EEXIST
            raise KernelError(call, number, "a program is attached")
        if mode == "native" and not device.native:
            raise KernelError(call, errno.EOPNOTSUPP, "the driver has no native XDP")
        made = self._new_link("xdp", program, HookKind.XDP, device) if link else None
        kind = AttachKind.XDP_LINK if link else AttachKind.XDP_NETLINK
        device.xdp = FakeXdp(kind=kind, program_id=program.id, mode=mode, link_id=made.id if made else None)
        return made

    def _insert_tcx(  # one system call, its attributes
        self,
        device: Device,
        kind: HookKind,
        program: FakeProgram,
        *,
        head: bool,
        link: bool,
        revision: int | None = None,
    ) -> FakeLink | None:
        hook = device.tcx[kind]
        call = f"tcx on {device.name} {kind}"
        if revision is not None and revision != hook.revision:
            raise KernelError(call, errno.ESTALE, f"expected revision {revision}, got {hook.revision}")
        if any(entry.program_id == program.id for entry in hook.entries):
            raise KernelError(call, errno.EEXIST, "the program is on this hook already")
        if len(hook.entries) >= MPROG_MAX:
            raise KernelError(call, errno.ERANGE, f"more than {MPROG_MAX} programs")
        made = self._new_link("tcx", program, kind, device) if link else None
        entry = TcxEntry(program_id=program.id, link_id=made.id if made else None)
        hook.entries.insert(0 if head else len(hook.entries), entry)
        hook.bump()
        return made

    def _new_link(self, type_: str, program: FakeProgram, hook: HookKind, device: Device) -> FakeLink:
        link = FakeLink(
            id=self._new_id(PinKind.LINK),
            type=type_,  # type: ignore[arg-type]  # by the two callers
            program_id=program.id,
            hook=hook,
            device=device,
        )
        self.links[link.id] = link
        return link

    def _update_link(self, link: FakeLink, program_id: int, expected: int | None) -> None:
        call = f"BPF_LINK_UPDATE {link.id}"
        if link.device is None:
            raise KernelError(call, errno.ENOLINK, "the link is defunct")
        if expected is not None and link.program_id != expected:
            raise KernelError(call, errno.EPERM, f"expected program {expected}, got {link.program_id}")
        if link.hook is HookKind.XDP:
            assert link.device.xdp is not None
            link.device.xdp.program_id = program_id
        else:
            hook = link.device.tcx[link.hook]
            if program_id != link.program_id and any(entry.program_id == program_id for entry in hook.entries):
                raise KernelError(call, errno.EEXIST, "the program is on this hook already")
            next(entry for entry in hook.entries if entry.link_id == link.id).program_id = program_id
            hook.bump()
        self._supersede(link.program_id)
        link.program_id = program_id

    def _detach_link(self, link: FakeLink) -> None:
        device, link.device = link.device, None
        if device is None:
            return
        self._supersede(link.program_id)
        if link.hook is HookKind.XDP:
            device.xdp = None
        else:
            hook = device.tcx[link.hook]
            hook.entries = [entry for entry in hook.entries if entry.link_id != link.id]
            hook.bump()

    def _add_qdisc(self, device: Device, kind: str) -> None:
        if device.qdisc != "none":
            raise KernelError(f"RTM_NEWQDISC {kind} on {device.name}", errno.EEXIST, f"got {device.qdisc}")
        device.qdisc = kind  # type: ignore[assignment]  # "clsact" or "ingress", by the callers

    def _add_filter(self, device: Device, kind: HookKind, where: FilterId, filter_: FakeFilter) -> None:
        call = f"RTM_NEWTFILTER on {device.name} {kind}"
        if device.qdisc == "none" or (device.qdisc == "ingress" and kind is HookKind.TC_EGRESS):
            raise KernelError(call, errno.EINVAL, "no qdisc")
        if where in device.filters[kind]:
            raise KernelError(call, errno.EEXIST, f"prio {where.prio} handle {where.handle} is taken")
        device.filters[kind][where] = filter_

    def _set_filter(self, device: Device, kind: HookKind, where: FilterId, program_id: int) -> None:
        filter_ = device.filters[kind][where]
        self._supersede(filter_.program_id)
        filter_.program_id = program_id

    def _delete_filter(self, device: Device, kind: HookKind, where: FilterId) -> None:
        self._supersede(device.filters[kind].pop(where).program_id)

    # --- references --------------------------------------------------------------------------------------

    def _roots(self) -> set[ObjectKey]:
        roots = {*self.pins.values(), *self.hidden_pins, *self.descriptors, *self.foreign_descriptors}
        for device in self.devices.values():
            roots |= {(PinKind.PROGRAM, number) for number in self._attached(device)}
        return roots

    def _attached(self, device: Device) -> Iterator[int]:
        # A link's own reference is not an attachment's: without pin and descriptor it detaches.
        if device.xdp is not None and device.xdp.link_id is None:
            yield device.xdp.program_id
        for kind in TC_KINDS:
            yield from (entry.program_id for entry in device.tcx[kind].entries if entry.link_id is None)
            yield from (filter_.program_id for filter_ in device.filters[kind].values())

    def _reachable(self) -> set[ObjectKey]:
        seen: set[ObjectKey] = set()
        todo = [key for key in self._roots() if self._exists(key)]
        while todo:
            key = todo.pop()
            if key in seen:
                continue
            seen.add(key)
            kind, number = key
            if kind is PinKind.LINK:
                todo.append((PinKind.PROGRAM, self.links[number].program_id))
            elif kind is PinKind.PROGRAM:
                todo += [(PinKind.MAP, map_id) for map_id in self.programs[number].map_ids]
            elif (slot := self.maps[number].slot) is not None:
                todo.append((PinKind.PROGRAM, slot))
        return seen

    def _flush_arrays(self) -> None:
        held = {*self.pins.values(), *self.hidden_pins, *self.descriptors, *self.foreign_descriptors}
        for map_ in self.maps.values():
            if map_.type == MAP_PROG_ARRAY and map_.slot is not None and (PinKind.MAP, map_.id) not in held:
                map_.slot = None
                if map_.id in self.pending:
                    self.violations.append(f"tail-call array {map_.id} flushed before a grace period was waited for")

    def _collect(self) -> None:
        """Free what nothing refers to, until nothing more goes."""
        while True:
            self._flush_arrays()
            live = self._reachable()
            links = [link for link in self.links.values() if (PinKind.LINK, link.id) not in live]
            for link in links:
                self._detach_link(link)
                del self.links[link.id]
            if links:
                continue
            self.programs = {n: prog for n, prog in self.programs.items() if (PinKind.PROGRAM, n) in live}
            self.maps = {n: map_ for n, map_ in self.maps.items() if (PinKind.MAP, n) in live}
            self.pending &= self.maps.keys()
            return

    def _settle_down(self) -> None:
        """After something that was not ours: free what went, and take what it broke as given."""
        self._collect()
        self._broken = set(self._half_chains())

    def _judge(self, what: str) -> None:
        """After something of ours: free what went, and say what it broke that was whole before."""
        self._collect()
        broken = self._half_chains()
        self.violations += [f"{text}, after {what}" for place, text in broken.items() if place not in self._broken]
        self._broken = set(broken)

    def _supersede(self, program_id: int) -> None:
        """Packets may be inside this program's chain until the next grace period."""
        todo, seen = [program_id], set()
        while todo:
            program = self.programs[todo.pop()]
            if program.id in seen:
                continue
            seen.add(program.id)
            if program.next_map is not None:
                self.pending.add(program.next_map)
                if (slot := self.maps[program.next_map].slot) is not None:
                    todo.append(slot)

    # --- reading -----------------------------------------------------------------------------------------

    def attachments(self, point: HookPoint) -> tuple[Attachment, ...]:
        """What is attached to a hook, in order of execution."""
        device = self._device_at(point)
        if point.kind is HookKind.XDP:
            xdp = device.xdp
            return () if xdp is None else (Attachment(**asdict(xdp)),)
        entries = tuple(
            Attachment(
                kind=AttachKind.TCX_PROG if entry.link_id is None else AttachKind.TCX_LINK,
                program_id=entry.program_id,
                link_id=entry.link_id,
            )
            for entry in device.tcx[point.kind].entries
        )
        filters = device.filters[point.kind]
        return entries + tuple(
            Attachment(
                kind=AttachKind.CLSACT_FILTER,
                program_id=filters[where].program_id,
                filter=where,
                name=filters[where].name,
                direct_action=filters[where].direct_action,
            )
            for where in sorted(filters, key=lambda w: (w.prio, w.handle))
        )

    # --- packets -----------------------------------------------------------------------------------------

    def run_packet(self, point: HookPoint, size: int = 64) -> Trace:
        """Send one packet of `size` bytes through a hook; every member lets it through and counts it."""
        return self._run(self._device_at(point), point.kind, size)

    def _run(self, device: Device, kind: HookKind, size: int) -> Trace:
        members: list[tuple[str, str]] = []
        broken = False
        for number in self._order(device, kind):
            trace = self._walk(self.programs[number], size)
            members += trace.members
            broken = broken or trace.broken
            if trace.broken or self.programs[number].stops:
                break
        return Trace(members=tuple(members), broken=broken)

    def _order(self, device: Device, kind: HookKind) -> Iterator[int]:
        if kind is HookKind.XDP:
            if device.xdp is not None:
                yield device.xdp.program_id
            return
        yield from (entry.program_id for entry in device.tcx[kind].entries)
        filters = device.filters[kind]
        yield from (filters[where].program_id for where in sorted(filters, key=lambda w: (w.prio, w.handle)))

    def _walk(self, program: FakeProgram, size: int) -> Trace:
        members: list[tuple[str, str]] = []
        for _ in range(MAX_TAIL_CALLS + 1):
            members.append((program.chain, program.member or program.name))
            if size and program.stats_map in self.maps:
                self.maps[program.stats_map].count("seen", size)
                self.maps[program.stats_map].count("passed", size)
            if program.last or program.next_map is None:
                return Trace(members=tuple(members))
            slot = self.maps[program.next_map].slot
            if slot is None:
                return Trace(members=tuple(members), broken=True)
            program = self.programs[slot]
        return Trace(members=tuple(members), broken=True)

    def _half_chains(self) -> dict[str, str]:
        """Hooks whose packets see something else than one whole generation, and what they see."""
        found = {}
        for device in self.devices.values():
            for kind in HookKind:
                for number in self._order(device, kind):
                    program = self.programs[number]
                    whole = self.wholes.get(program.generation)
                    trace = self._walk(program, 0)
                    if whole is not None and (trace.broken or trace.members != whole):
                        place = f"{device.netns}/{device.name} {kind} program {number}"
                        found[place] = f"{place}: a packet sees {trace.members} of {whole}"
        return found

    @staticmethod
    def clsact_parent(kind: HookKind) -> int:
        return CLSACT_PARENTS[kind]
