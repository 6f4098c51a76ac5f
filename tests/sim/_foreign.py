# SPDX-License-Identifier: Apache-2.0
"""What others do to the fake kernel: foreign programs, tampering with ours, namespaces, reboots.

None of it counts as a mutation, none of it meets a fault, and what it breaks is no violation.
"""

from __future__ import annotations

import errno
from typing import Literal

from reconciler.errors import KernelError
from reconciler.model import AttachKind, Attachment, FilterId, HookKind, HookPoint, PinKind
from tests.sim._objects import MAP_PROG_ARRAY, FakeFilter, FakeProgram, FakeXdp, TcxEntry
from tests.sim._world import World


class ForeignActivity(World):
    """The world, and everybody else in it."""

    def __init__(self, *, id_limit: int) -> None:
        super().__init__(id_limit=id_limit)
        self.unsettled: set[HookPoint] = set()

    # --- foreign attachments -----------------------------------------------------------------------------

    def attach_foreign_xdp(
        self,
        point: HookPoint,
        *,
        via: Literal["link", "netlink"] = "link",
        mode: Literal["native", "generic"] = "generic",
        name: str = "foreign",
    ) -> Attachment:
        """Somebody attaches an XDP program. Raises KernelError as the kernel would."""
        device = self._device_at(point)
        program = self._foreign_program("xdp", name)
        try:
            link = self._install_xdp(device, program, mode, link=via == "link")
        finally:
            self._drop(program)
        if link is not None:
            self.foreign_descriptors.add((PinKind.LINK, link.id))
        self._settle_down()
        return self.attachments(point)[0]

    def attach_foreign_tcx(
        self,
        point: HookPoint,
        *,
        via: Literal["link", "prog"] = "link",
        position: Literal["head", "tail"] = "tail",
        name: str = "foreign",
    ) -> Attachment:
        """Somebody attaches a tcx program. Raises KernelError as the kernel would."""
        device = self._device_at(point)
        program = self._foreign_program("tc", name)
        try:
            link = self._insert_tcx(device, point.kind, program, head=position == "head", link=via == "link")
        finally:
            self._drop(program)
        if link is not None:
            self.foreign_descriptors.add((PinKind.LINK, link.id))
        self._settle_down()
        return self._attachment_of(point, program)

    def add_foreign_filter(  # what tc(8) takes
        self,
        point: HookPoint,
        *,
        prio: int = 49152,
        handle: int = 1,
        protocol: int = 3,
        name: str = "foreign",
        direct_action: bool = True,
    ) -> Attachment:
        """Somebody adds a cls_bpf filter, and the clsact qdisc where there is none."""
        device = self._device_at(point)
        if device.qdisc == "none":
            self._add_qdisc(device, "clsact")
        program = self._foreign_program("tc", name)
        where = FilterId(parent=self.clsact_parent(point.kind), prio=prio, handle=handle, protocol=protocol)
        try:
            filter_ = FakeFilter(program_id=program.id, name=name, direct_action=direct_action)
            self._add_filter(device, point.kind, where, filter_)
        finally:
            self._drop(program)
        self._settle_down()
        return self._attachment_of(point, program)

    def add_foreign_qdisc(self, point: HookPoint, kind: Literal["clsact", "ingress"] = "ingress") -> None:
        self._add_qdisc(self._device_at(point), kind)

    def remove_qdisc(self, point: HookPoint) -> None:
        """Somebody deletes the clsact or ingress qdisc, and with it every filter."""
        device = self._device_at(point)
        device.qdisc = "none"
        for filters in device.filters.values():
            filters.clear()
        self._settle_down()

    def load_foreign_program(self, type_: str = "tc", name: str = "foreign") -> FakeProgram:
        """Somebody loads a program and keeps its descriptor."""
        return self._foreign_program(type_, name)

    def exit_foreign_processes(self) -> None:
        """Every foreign descriptor is closed: their unpinned links detach."""
        self.foreign_descriptors.clear()
        self._settle_down()

    # --- tampering with what is ours ---------------------------------------------------------------------

    def remove(self, point: HookPoint, attachment: Attachment) -> None:
        """Somebody takes an attachment off its hook, by whatever way there is for its kind."""
        device = self._device_at(point)
        match attachment.kind:
            case AttachKind.XDP_LINK | AttachKind.TCX_LINK:
                assert attachment.link_id is not None
                self._detach_link(self.links[attachment.link_id])
            case AttachKind.XDP_NETLINK:
                device.xdp = None
            case AttachKind.TCX_PROG:
                hook = device.tcx[point.kind]
                hook.entries = [entry for entry in hook.entries if entry.program_id != attachment.program_id]
                hook.bump()
            case AttachKind.CLSACT_FILTER:
                assert attachment.filter is not None
                self._delete_filter(device, point.kind, attachment.filter)
        self._settle_down()

    def replace(self, point: HookPoint, attachment: Attachment, *, name: str = "foreign") -> Attachment:
        """Somebody puts another program in the place of `attachment`: same link, same filter, same position."""
        device = self._device_at(point)
        program = self._foreign_program("xdp" if point.kind is HookKind.XDP else "tc", name)
        match attachment.kind:
            case AttachKind.XDP_LINK | AttachKind.TCX_LINK:
                assert attachment.link_id is not None
                self._update_link(self.links[attachment.link_id], program.id, None)
            case AttachKind.XDP_NETLINK:
                device.xdp = FakeXdp(kind=attachment.kind, program_id=program.id, mode=attachment.mode or "generic")
            case AttachKind.TCX_PROG:
                hook = device.tcx[point.kind]
                ids = [entry.program_id for entry in hook.entries]
                hook.entries[ids.index(attachment.program_id)] = TcxEntry(program_id=program.id)
                hook.bump()
            case AttachKind.CLSACT_FILTER:
                assert attachment.filter is not None
                self._set_filter(device, point.kind, attachment.filter, program.id)
        self._drop(program)
        self._settle_down()
        return self._attachment_of(point, program)

    def unpin(self, path: str) -> None:
        """Somebody removes a pin of ours."""
        del self.pins[path]
        self._settle_down()

    def steal(self, path: str) -> None:
        """Somebody puts an object of their own behind a pin path of ours."""
        self.pins[path] = (PinKind.PROGRAM, self._foreign_program("xdp", "thief").id)
        self._settle_down()

    def poke_map(self, path: str, key: bytes = b"\0\0\0\0", value: bytes | None = None) -> None:
        """Somebody writes (or with None deletes) an entry of a pinned map.

        Raises:
            KernelError: EPERM, the map is frozen.
        """
        map_ = self.maps[self.pins[path][1]]
        if map_.frozen:
            raise KernelError(f"BPF_MAP_UPDATE_ELEM {path}", errno.EPERM, "the map is frozen")
        if map_.type == MAP_PROG_ARRAY:
            map_.slot = int.from_bytes(value, "little") if value else None
        elif value is None:
            map_.entries.pop(key, None)
        else:
            map_.entries[key] = value
        self._settle_down()

    # --- the machine -------------------------------------------------------------------------------------

    def reboot(self) -> None:
        """A new boot: names, inodes and interfaces stay, everything of bpf and tc is gone."""
        self.boot += 1
        for device in self.devices.values():
            fresh = type(device)(netns=device.netns, ifindex=device.ifindex, name=device.name, native=device.native)
            self.devices[device.netns, device.ifindex] = fresh
        self.clock = 1_000_000
        self.links.clear()
        self.hidden_pins.clear()
        self.descriptors.clear()
        self.foreign_descriptors.clear()
        self.pins.clear()
        self.pending.clear()
        self.unsettled.clear()
        self._collect()
        self._ids = {kind: type(ids)(ids.limit) for kind, ids in self._ids.items()}
        self.bpffs_id += 1
        self._broken = set()

    def remount_bpffs(self, *, over: bool = False) -> None:
        """Another bpffs at the same place; with `over` the old one is only hidden and keeps its objects alive."""
        if over:
            self.hidden_pins += self.pins.values()
        self.pins.clear()
        self.bpffs_id += 1
        self._settle_down()

    def _foreign_program(self, type_: str, name: str) -> FakeProgram:
        program = self._add_program(type=type_, name=name[:15], tag=name.encode().hex()[:16].ljust(16, "0"))
        self.foreign_descriptors.add((PinKind.PROGRAM, program.id))
        return program

    def _attachment_of(self, point: HookPoint, program: FakeProgram) -> Attachment:
        return next(seen for seen in self.attachments(point) if seen.program_id == program.id)

    def _drop(self, program: FakeProgram) -> None:
        self.foreign_descriptors.discard((PinKind.PROGRAM, program.id))
