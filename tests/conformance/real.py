# SPDX-License-Identifier: Apache-2.0
"""`RealLab`: the lab on the running kernel. Others act by ip(8), tc(8) and plain system calls, not by what is tested."""

from __future__ import annotations

import ctypes
import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reconciler import elf
from reconciler.kernel import _attr, _bpf
from reconciler.model import (
    AttachKind,
    Attachment,
    FilterId,
    Generation,
    GlobalValue,
    HookKind,
    MapRole,
    MapUse,
    MemberLoad,
    Package,
    PackageManifest,
    PackageRef,
    Signer,
    XdpMode,
)
from tests.conformance.lab import OUR_HANDLE, OUR_PRIO, PARENTS, Lab, Tamper, Way
from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reconciler.kernel import Kernel
    from reconciler.model import HookPoint, OwnedAttachment

HERE = Path(__file__).parent
SIGNER = Signer(name="test", identity="test", issuer="key")
TCX_TYPES = {HookKind.TC_INGRESS: _bpf.BPF_TCX_INGRESS, HookKind.TC_EGRESS: _bpf.BPF_TCX_EGRESS}
XDP_FLAGS = {XdpMode.NATIVE: _bpf.XDP_FLAGS_DRV_MODE, XdpMode.GENERIC: _bpf.XDP_FLAGS_SKB_MODE}
DIRECTIONS = {HookKind.TC_INGRESS: "ingress", HookKind.TC_EGRESS: "egress"}
XDP_PASS, TC_ACT_UNSPEC = 2, -1
BPF_F_BEFORE = 8
FOREIGN_NAME = "foreign"
CONFIGS = ("deny", "nets", "table")


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
        near, peer = self._spaces[netns], support.unique("p")
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
        digest = hashlib.sha256(f"{self.way.kind} {members} {text}".encode()).hexdigest()
        name = f"{digest[:32]}_{number}"
        good = _package(support.compile_program(support.PROGS / "member.bpf.c", f"HOOK_{self._type.upper()}"))
        loads = [self._member(good, name, index, members, text=text, reuse=reuse) for index in range(members)]
        packages = {good.ref.digest: good}
        if broken:
            source = {"xdp": support.PROGS / "rejected.bpf.c", "tc": HERE / "progs/rejected_tc.bpf.c"}[self._type]
            bad = _package(support.compile_program(source))
            packages[bad.ref.digest] = bad
            loads[-1] = replace(loads[-1], package=bad.ref.digest, globals=(), maps=())
        return Generation(name=name, digest=digest, kind=self.way.kind, members=tuple(loads)), packages

    @property
    def _type(self) -> Literal["xdp", "tc"]:
        return "xdp" if self.way.kind is HookKind.XDP else "tc"

    def _member(  # the parts of one MemberLoad
        self, package: Package, generation: str, index: int, members: int, *, text: str, reuse: bool
    ) -> MemberLoad:
        settings = {"chain_proceed": 1 << (XDP_PASS if self._type == "xdp" else 31), "chain_last": index == members - 1}
        return MemberLoad(
            chain="chain",
            member=f"member{index}",
            package=package.ref.digest,
            object="member.bpf.o",
            program="member",
            type=self._type,
            pin=f"gen/{generation}/p{index:02}",
            globals=tuple(_global(package, name, int(value)) for name, value in settings.items()),
            maps=self._maps(generation, index, text=text, reuse=reuse),
        )

    def _maps(self, generation: str, index: int, *, text: str, reuse: bool) -> tuple[MapUse, ...]:
        port = (40000 + ord(text[0])).to_bytes(2, "little")
        entries = {"deny": ((port, bytes(4)),), "nets": (), "table": ()}
        kept = [("hits", MapRole.STATE), ("stats", MapRole.STATS)]
        return (
            MapUse(name="next", role=MapRole.NEXT, pin=f"gen/{generation}/n{index:02}"),
            *(
                MapUse(
                    name=name,
                    role=MapRole.CONFIG,
                    pin=f"gen/{generation}/c{index:02}_{number:02}",
                    entries=entries[name],
                )
                for number, name in enumerate(CONFIGS)
            ),
            *(
                MapUse(
                    name=name,
                    role=role,
                    pin=f"state/{hashlib.sha256(f'{index} {name}'.encode()).hexdigest()[:32]}",
                    reuse=reuse,
                    key=f"chain/member{index}/{name}",
                    layout="1",
                )
                for name, role in kept
            ),
        )

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
        self._spaces[point.netns].ip("link", "set", "dev", point.interface, keyword, *what)

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
            name=FOREIGN_NAME,
        )

    def _filter(self, verb: str, point: HookPoint, prio: int, handle: int, path: str = "") -> None:
        where = ["dev", point.interface, DIRECTIONS[point.kind], "protocol", "all", "prio", str(prio)]
        what = ["handle", f"{handle:#x}", "bpf"]
        program = ["direct-action", "pinned", path] if path else []
        self._spaces[point.netns].tc("filter", verb, *where, *what, *program)

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


def _package(data: bytes) -> Package:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return Package(
        ref=PackageRef(name="member", version="1.0.0", digest=digest),
        manifest=PackageManifest(name="member", version="1.0.0", license="GPL", programs=()),
        objects={"member.bpf.o": data},
        signer=SIGNER,
    )


def _global(package: Package, name: str, value: int) -> GlobalValue:
    (data,) = package.objects.values()
    variable = next(each for each in elf.read_object(data, name="member.bpf.o").globals if each.name == name)
    size = ctypes.sizeof(ctypes.c_uint32)
    return GlobalValue(
        name=name, section=variable.section, offset=variable.offset, value=value.to_bytes(size, "little")
    )


def labs(way: Way, start: Callable[[Path], Kernel]) -> Iterator[Lab]:
    """The body of a `lab` fixture."""
    made = RealLab(way, start)
    try:
        yield made
    finally:
        made.close()
