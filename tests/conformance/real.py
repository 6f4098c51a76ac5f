# SPDX-License-Identifier: Apache-2.0
"""`RealLab`: the lab on the running kernel. Others act by ip(8), tc(8) and system calls, not by what is tested."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reconciler.kernel import _attr, _bpf
from reconciler.model import (
    AttachKind,
    Attachment,
    FilterId,
    Generation,
    HookKind,
    Package,
    XdpMode,
)
from tests.conformance.lab import OUR_HANDLE, OUR_PRIO, PARENTS, Lab, Tamper, Way
from tests.kernel import generations, support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from reconciler.kernel import Kernel
    from reconciler.model import HookPoint, OwnedAttachment

TCX_TYPES = {HookKind.TC_INGRESS: _bpf.BPF_TCX_INGRESS, HookKind.TC_EGRESS: _bpf.BPF_TCX_EGRESS}
XDP_FLAGS = {XdpMode.NATIVE: _bpf.XDP_FLAGS_DRV_MODE, XdpMode.GENERIC: _bpf.XDP_FLAGS_SKB_MODE}
DIRECTIONS = {HookKind.TC_INGRESS: "ingress", HookKind.TC_EGRESS: "egress"}
XDP_PASS, TC_ACT_UNSPEC = 2, -1
BPF_F_BEFORE = 8
FOREIGN_NAME = "foreign"
TC_NAME = f"{FOREIGN_NAME}:[*fsobj]"
"""How tc(8) names the filter of a pinned program."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of an interface of the lab."""

    near: support.Netns
    name: str


class RealLab(Lab):
    """Namespaces, pin directories and descriptors of this test's own; `close` removes all of it."""

    def __init__(self, way: Way, start: Callable[[Path], Kernel]) -> None:
        """`start` makes the implementation under test for a pin directory."""
        self.way = way
        self._start = start
        self._spaces: dict[str, support.Netns] = {}
        self._peers: dict[tuple[str, int], Peer] = {}
        self._held: dict[int, list[int]] = {}
        with ExitStack() as stack:
            self._pins = stack.enter_context(support.pin_directory())
            self._foreign_pins = stack.enter_context(support.pin_directory())
            self._foreign_pins.mkdir()
            self._far = stack.enter_context(support.netns())
            self.kernel = start(self._pins)
            stack.callback(self._end)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def _end(self) -> None:
        self.kernel.close()
        for descriptors in self._held.values():
            for descriptor in descriptors:
                os.close(descriptor)

    def next_process(self) -> None:
        self.kernel = self._start(self._pins)

    # --- the machine -------------------------------------------------------------------------------------

    def namespace(self) -> str:
        made = self._stack.enter_context(support.netns())
        self._spaces[made.name] = made
        return made.name

    def interface(self, netns: str, name: str) -> int:
        near, peer = self._spaces[netns], f"peer{len(self._peers)}"
        support.add_veth(near, name, self._far, peer)
        ifindex = near.ifindex(name)
        self._peers[netns, ifindex] = Peer(near, peer)
        return ifindex

    def rename(self, netns: str, old: str, new: str) -> None:
        near = self._spaces[netns]
        near.ip("link", "set", "dev", old, "down")
        near.ip("link", "set", "dev", old, "name", new)
        near.ip("link", "set", "dev", new, "up")

    def remove_interface(self, netns: str, name: str) -> None:
        self._spaces[netns].ip("link", "del", "dev", name)

    def remove_namespace(self, netns: str) -> None:
        support.run("ip", "netns", "del", netns)

    def send(self, point: HookPoint, count: int) -> None:
        peer = self._peers[point.netns, point.ifindex]
        egress = point.kind is HookKind.TC_EGRESS
        space, name = (peer.near, point.interface) if egress else (self._far, peer.name)
        frame = support.udp_frame(b"\xff" * 6, b"\x02" + bytes(5), "10.77.0.2", "10.77.0.1", payload=bytes(64))
        with space.packet_socket(name) as sender:
            for _ in range(count):
                sender.send(frame)

    # --- packages ----------------------------------------------------------------------------------------

    def generation(
        self, members: int = 2, *, text: str = "a", number: int = 0, reuse: bool = False, broken: bool = False
    ) -> tuple[Generation, Mapping[str, Package]]:
        defs = tuple(
            generations.MemberDef(
                name=f"member{index}",
                program="broken" if broken and index == members - 1 else "member",
                deny=(40000 + ord(text),),
            )
            for index in range(members)
        )
        return generations.generation(self.way.kind, defs, text=text, number=number, reuse=reuse)

    # --- others ------------------------------------------------------------------------------------------

    def foreign_xdp(self, point: HookPoint, via: Literal["link", "netlink"], mode: XdpMode) -> Attachment:
        program = self._foreign_program(HookKind.XDP)
        link = None
        if via == "link":
            descriptor = support.in_netns(
                point.netns, lambda: _bpf.link_create_xdp(program, point.ifindex, XDP_FLAGS[mode])
            )
            link = self._hold_link(descriptor)
        else:
            self._with_pin(program, lambda path: self._set_xdp(point, mode, "pinned", path))
        kind = AttachKind.XDP_NETLINK if link is None else AttachKind.XDP_LINK
        return Attachment(kind=kind, program_id=_id(program), link_id=link, mode=mode.value)

    def _set_xdp(self, point: HookPoint, mode: XdpMode, *what: str) -> None:
        keyword = {XdpMode.NATIVE: "xdpdrv", XdpMode.GENERIC: "xdpgeneric"}[mode]
        self._run(point, "ip", "link", "set", "dev", point.interface, keyword, *what)

    @staticmethod
    def _run(point: HookPoint, *command: str) -> None:
        # Not with -n: that mounts a fresh /sys, which holds no pins.
        support.in_netns(point.netns, lambda: support.run(*command))

    def foreign_tcx(
        self, point: HookPoint, via: Literal["link", "prog"], position: Literal["head", "tail"] = "tail"
    ) -> Attachment:
        program = self._foreign_program(point.kind)
        flags = BPF_F_BEFORE if position == "head" else 0
        attach_type = TCX_TYPES[point.kind]
        if via == "prog":
            plain = _attr.ProgAttach(
                target_ifindex=point.ifindex, attach_bpf_fd=program, attach_type=attach_type, attach_flags=flags
            )
            support.in_netns(point.netns, lambda: _bpf.bpf(_bpf.Cmd.PROG_ATTACH, plain))
            return Attachment(kind=AttachKind.TCX_PROG, program_id=_id(program))
        attr = _attr.LinkCreateTcx(prog_fd=program, target_ifindex=point.ifindex, attach_type=attach_type, flags=flags)
        link = self._hold_link(support.in_netns(point.netns, lambda: _bpf.bpf(_bpf.Cmd.LINK_CREATE, attr)))
        return Attachment(kind=AttachKind.TCX_LINK, program_id=_id(program), link_id=link)

    def foreign_filter(self, point: HookPoint, *, prio: int = 40000, handle: int = 1) -> Attachment:
        program = self._foreign_program(HookKind.TC_INGRESS)
        self._spaces[point.netns].tc("qdisc", "add", "dev", point.interface, "clsact", check=False)
        self._with_pin(program, lambda path: self._filter("add", point, prio, handle, path))
        return Attachment(
            kind=AttachKind.CLSACT_FILTER,
            program_id=_id(program),
            filter=FilterId(parent=PARENTS[point.kind], prio=prio, handle=handle),
            name=TC_NAME,
        )

    def _filter(self, verb: str, point: HookPoint, prio: int, handle: int, path: str = "") -> None:
        where = ["dev", point.interface, DIRECTIONS[point.kind], "protocol", "all", "prio", str(prio)]
        what = ["handle", f"{handle:#x}", "bpf"]
        program = ["direct-action", "pinned", path] if path else []
        self._run(point, "tc", "filter", verb, *where, *what, *program)

    def foreign_ingress_qdisc(self, point: HookPoint) -> None:
        self._spaces[point.netns].tc("qdisc", "add", "dev", point.interface, "ingress")

    def tamper(self, how: Tamper, owned: OwnedAttachment) -> None:
        if owned.link_id is None and how == "detach":
            self._filter("del", owned.point, OUR_PRIO, OUR_HANDLE)
        elif owned.link_id is None:
            program = self._foreign_program(owned.point.kind)
            self._with_pin(program, lambda path: self._filter("replace", owned.point, OUR_PRIO, OUR_HANDLE, path))
        else:
            with _bpf.closing(_bpf.link_by_id(owned.link_id)) as link:
                if how == "detach":
                    _bpf.link_detach(link)
                else:
                    attr = _attr.LinkUpdate(link_fd=link, new_prog_fd=self._foreign_program(owned.point.kind))
                    _bpf.bpf(_bpf.Cmd.LINK_UPDATE, attr)

    def remove_foreign(self, point: HookPoint, attachment: Attachment) -> None:
        match attachment.kind:
            case AttachKind.XDP_LINK | AttachKind.TCX_LINK:
                assert attachment.link_id is not None
                for descriptor in self._held.pop(attachment.link_id):
                    _bpf.link_detach(descriptor)
                    os.close(descriptor)
            case AttachKind.XDP_NETLINK:
                self._set_xdp(point, XdpMode(attachment.mode or ""), "off")
            case AttachKind.TCX_PROG:
                (program,) = self._held[-attachment.program_id]
                plain = _attr.ProgAttach(
                    target_ifindex=point.ifindex, attach_bpf_fd=program, attach_type=TCX_TYPES[point.kind]
                )
                support.in_netns(point.netns, lambda: _bpf.bpf(_bpf.Cmd.PROG_DETACH, plain))
            case AttachKind.CLSACT_FILTER:
                assert attachment.filter is not None
                self._filter("del", point, attachment.filter.prio, attachment.filter.handle)

    def unpin(self, path: str) -> None:
        (self._pins / path).unlink()

    def steal(self, path: str) -> None:
        self.unpin(path)
        _bpf.obj_pin(self._foreign_program(HookKind.XDP), str(self._pins / path))

    def write_to_map(self, path: str) -> int:
        with _bpf.closing(_bpf.obj_get(str(self._pins / path))) as descriptor:
            facts = _bpf.map_info(descriptor)
            value = bytes(facts.value_size)
            if facts.type == _bpf.MapType.PROG_ARRAY:
                value = self._foreign_program(self.way.kind).to_bytes(4, "little")
            try:
                _bpf.map_update(descriptor, bytes(facts.key_size), value)
            except OSError as error:
                return error.errno or -1
        return 0

    # --- foreign programs: their descriptors are held under minus their id, those of links under the link's id ---

    def _foreign_program(self, kind: HookKind) -> int:
        xdp = kind is HookKind.XDP
        descriptor = _bpf.load_trivial(
            _bpf.ProgType.XDP if xdp else _bpf.ProgType.SCHED_CLS,
            XDP_PASS if xdp else TC_ACT_UNSPEC,
            _bpf.BPF_XDP if xdp else 0,
        )
        self._held[-_id(descriptor)] = [descriptor]
        return descriptor

    def _hold_link(self, descriptor: int) -> int:
        number = _bpf.link_info(descriptor).id
        self._held[number] = [descriptor]
        return number

    def _with_pin(self, program: int, use: Callable[[str], None]) -> None:
        path = self._foreign_pins / FOREIGN_NAME
        _bpf.obj_pin(program, str(path))
        try:
            use(str(path))
        finally:
            path.unlink()


def _id(program: int) -> int:
    return _bpf.prog_info(program).id


def labs(way: Way, start: Callable[[Path], Kernel]) -> Iterator[Lab]:
    """The body of a `lab` fixture."""
    made = RealLab(way, start)
    try:
        yield made
    finally:
        made.close()
