# SPDX-License-Identifier: Apache-2.0
"""Others on the same host: what they attach, and a record of it, byte for byte as the kernel says it.

`Neighbours` attaches, on one interface that ours share (`main`) and on spare ones that are theirs alone, what a host
may hold besides ours. `record` reads all of it by raw netlink dumps, program and link infos and pins. Two records are
equal only if every byte is the same, but for what IPv6 says of an interface, which changes by itself.

A libxdp dispatcher is as real as this kernel allows: where `freplace` programs do not load, `xdp-loader` itself
attaches one program without a dispatcher (`legacy0`). `disp0` therefore gets Debian's own dispatcher object (libxdp1),
configured for two members, attached and pinned as libxdp does it; the pinned members are plain XDP programs, not
freplace ones, so they are listed (`xdp-loader status` takes it for a dispatcher of its own) and do not run.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from reconciler.kernel import _attr, _bpf
from reconciler.kernel._libbpf import Object
from reconciler.kernel._netlink import MIN_EGRESS, MIN_INGRESS, Route
from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

DISPATCHER: Final = Path(f"/usr/lib/{os.uname().machine}-linux-gnu/bpf/xdp-dispatcher.o")
PASS: Final = {"xdp": 2, "tc": -1}
TCX: Final = {"ingress": _bpf.BPF_TCX_INGRESS, "egress": _bpf.BPF_TCX_EGRESS}
SPARE: Final = ("disp0", "legacy0", "netn0", "netg0", "link0", "ing0")
"""Interfaces of theirs: a dispatcher, xdp-loader without one, netlink XDP native and generic, a link, `ingress`."""
XDP_HELD: Final = SPARE[:5]

_RTM_GETLINK, _RTM_GETQDISC, _RTM_GETTCLASS, _RTM_GETTFILTER = 18, 38, 42, 46
_INGRESS, _HTB, _ALL = 0xFFFF0000, 0x00010000, 3
_IFLA_AF_SPEC, _IFLA_XDP = 26, 43
_TCMSG = struct.Struct("=BxxxiIII")
_ATTR = struct.Struct("=HH")
_DISPATCHER_V2 = struct.Struct("<4B10I10I10I")
_MAGIC, _RETVAL = 236, 1 << 31
"""Of libxdp's protocol: the dispatcher's first byte, and the bit that is set in every mask."""


# === the record ============================================================================================

Attributes = dict[int, bytes]


def attributes(data: bytes, offset: int) -> Attributes:
    """Netlink attributes, values raw."""
    found = {}
    while offset + _ATTR.size <= len(data):
        length, kind = _ATTR.unpack_from(data, offset)
        found[kind & 0x3FFF] = data[offset + _ATTR.size : offset + length]
        offset += (max(length, _ATTR.size) + 3) & ~3
    return found


@dataclass(frozen=True, slots=True)
class Record:
    """What the kernel says of a namespace's interfaces.

    Attributes:
        links: by interface, the raw attributes of RTM_GETLINK.
        xdp: by interface, IFLA_XDP alone.
        qdiscs: every qdisc, raw.
        classes: every class, raw.
        filters: by (interface, parent), raw and in order.
        tcx: by (interface, direction), (program id, link id) in order.
        objects: infos of programs and links by id, those that still exist.
        pins: path below the neighbours' folder to inode and link target or object.
    """

    links: dict[str, Attributes]
    xdp: dict[str, bytes]
    qdiscs: tuple[bytes, ...]
    classes: tuple[bytes, ...]
    filters: dict[tuple[str, str], tuple[bytes, ...]]
    tcx: dict[tuple[str, str], tuple[tuple[int, int], ...]]
    objects: dict[tuple[str, int], object]
    pins: dict[str, tuple[int, int]]


PARENTS: Final = {"ingress": MIN_INGRESS, "egress": MIN_EGRESS, "old-ingress": _INGRESS, "root": _HTB}


def record(space: support.Netns, interfaces: tuple[str, ...], pins: Path, objects: list[tuple[str, int]]) -> Record:
    """Read everything now."""

    def inside() -> Record:
        with Route() as route:
            indexes = {name: socket.if_nametoindex(name) for name in interfaces}
            links = {name: _link(route, index) for name, index in indexes.items()}
            return Record(
                links=links,
                xdp={name: found.pop(_IFLA_XDP) for name, found in links.items()},
                qdiscs=_dump(route, _RTM_GETQDISC, 0, 0),
                classes=tuple(item for index in indexes.values() for item in _dump(route, _RTM_GETTCLASS, index, 0)),
                filters={
                    (name, parent): _dump(route, _RTM_GETTFILTER, index, handle)
                    for name, index in indexes.items()
                    for parent, handle in PARENTS.items()
                },
                tcx={
                    (name, direction): _bpf.tcx_query(index, hook).entries
                    for name, index in indexes.items()
                    for direction, hook in TCX.items()
                },
                objects={key: _facts(*key) for key in objects},
                pins={str(path.relative_to(pins)): _pin(path) for path in sorted(pins.rglob("*"))},
            )

    return space.run(inside)


def _link(route: Route, index: int) -> Attributes:
    """An interface; what IPv6 says of it holds a number that the kernel draws anew every few minutes."""
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0)
    ((_, _, payload),) = list(route._exchange(_RTM_GETLINK, 1, body))
    found = attributes(bytes(payload), 16)
    found.pop(_IFLA_AF_SPEC, None)
    return found


def _dump(route: Route, kind: int, index: int, parent: int) -> tuple[bytes, ...]:
    try:
        return tuple(bytes(item) for item in route._dump(kind, _TCMSG.pack(0, index, 0, parent, 0)))
    except OSError:  # that interface has no such parent
        return ()


def _facts(kind: str, number: int) -> object:
    try:
        descriptor = _bpf.link_by_id(number) if kind == "link" else _bpf.prog_by_id(number)
    except FileNotFoundError:
        return None
    with _bpf.closing(descriptor):
        return _bpf.link_info(descriptor) if kind == "link" else _bpf.prog_info(descriptor, maps=True)


def _pin(path: Path) -> tuple[int, int]:
    """Inode, and the id of the program behind it (0 for folders)."""
    if path.is_dir():
        return path.stat().st_ino, 0
    with _bpf.closing(_bpf.obj_get(str(path))) as descriptor:
        return path.stat().st_ino, _bpf.prog_info(descriptor).id


def is_ebpf(payload: bytes) -> bool:
    """Whether a raw filter runs an eBPF program (TCA_BPF_ID)."""
    found = attributes(payload, _TCMSG.size)
    return found.get(1) == b"bpf\0" and 11 in attributes(found.get(2, b""), 0)


def place(payload: bytes) -> tuple[int, bytes]:
    """What the filters of one priority have in common: (prio and protocol, chain)."""
    return _TCMSG.unpack_from(payload)[4], attributes(payload, _TCMSG.size).get(11, b"")


def without_ebpf(filters: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Filters without those that run eBPF programs, and without the heads of priorities that held no others."""
    left = [item for item in filters if not is_ebpf(item)]
    used = {place(item) for item in left if _TCMSG.unpack_from(item)[2]}
    emptied = {place(item) for item in filters if is_ebpf(item)} - used
    return tuple(item for item in left if place(item) not in emptied)


def part_of(smaller: tuple[object, ...], larger: tuple[object, ...]) -> bool:
    """Whether all of `smaller` is in `larger`, in the same order."""
    rest = iter(larger)
    return all(any(item == other for other in rest) for item in smaller)


# === who attaches what =====================================================================================


@dataclass
class Neighbours:
    """Everything that they hold; `close` releases it."""

    space: support.Netns
    main: str
    pins: Path
    tcx: bool = True
    held: list[int] = field(default_factory=list)
    programs: list[int] = field(default_factory=list)
    links: list[int] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self.held:
            os.close(descriptor)
        self.held.clear()

    @property
    def xdp_pins(self) -> Path:
        """Where libxdp keeps its pins (LIBXDP_BPFFS)."""
        return self.pins / "xdp"

    def record(self) -> Record:
        objects = [("prog", number) for number in self.programs] + [("link", number) for number in self.links]
        return record(self.space, (self.main, *SPARE), self.pins, objects)

    def program(self, kind: str) -> int:
        """A program that lets everything pass, held here."""
        xdp = kind == "xdp"
        made = _bpf.load_trivial(
            _bpf.ProgType.XDP if xdp else _bpf.ProgType.SCHED_CLS, PASS[kind], _bpf.BPF_XDP if xdp else 0
        )
        return self._hold(made)

    def _hold(self, program: int) -> int:
        self.held.append(program)
        self.programs.append(_bpf.prog_info(program).id)
        return program

    def _hold_link(self, link: int) -> None:
        self.held.append(link)
        self.links.append(_bpf.link_info(link).id)

    # --- the interface that ours share -----------------------------------------------------------------------

    def share(self) -> None:
        """On `main`: htb with a class and filters, clsact with filters of several kinds, tcx before and after ours."""
        dev = ("dev", self.main)
        self.space.tc("qdisc", "add", *dev, "root", "handle", "1:", "htb", "default", "10")
        self.space.tc("class", "add", *dev, "parent", "1:", "classid", "1:10", "htb", "rate", "1gbit")
        self.space.tc("qdisc", "add", *dev, "clsact")
        always = ("u32", "match", "u32", "0", "0", "flowid", "1:10")
        for parent in (("parent", "1:"), ("ingress",), ("egress",)):
            self.space.tc("filter", "add", *dev, *parent, "prio", "49000", "protocol", "ip", *always)
            # Classic BPF: no eBPF program, so no program that anybody could have declared.
            self.space.tc(
                "filter", "add", *dev, *parent, "prio", "400", "bpf", "bytecode", "1,6 0 0 0,", "flowid", "1:10"
            )
        self._with_pin(self.program("tc"), lambda path: self._filters(dev, path))
        if self.tcx:
            for direction in TCX.values():
                self._tcx_entries(direction)

    def _filters(self, dev: tuple[str, ...], path: str) -> None:
        """Below htb, and in both directions: two handles of one priority, another protocol, behind everything."""
        for parent in (("parent", "1:"), ("ingress",), ("egress",)):
            for where in (
                ("prio", "300", "handle", "0x1"),
                ("prio", "300", "handle", "0x2"),
                ("prio", "301", "protocol", "ip"),
                ("prio", "60000"),
            ):
                self._run("tc", "filter", "add", *dev, *parent, *where, "bpf", "da", "pinned", path)

    def _tcx_entries(self, hook: int) -> None:
        """A link and a plain program, both before and after: what ours puts at the head comes in front of them."""
        index = self.space.ifindex(self.main)
        first, plain, last = (self.program("tc") for _ in range(3))
        head = _attr.LinkCreateTcx(prog_fd=first, target_ifindex=index, attach_type=hook, flags=_bpf.BPF_F_BEFORE)
        tail = _attr.LinkCreateTcx(prog_fd=last, target_ifindex=index, attach_type=hook)
        self._hold_link(self.space.run(lambda: _bpf.bpf(_bpf.Cmd.LINK_CREATE, head)))
        self.space.run(lambda: _bpf.tcx_attach(plain, index, hook))
        self._hold_link(self.space.run(lambda: _bpf.bpf(_bpf.Cmd.LINK_CREATE, tail)))

    def go_in_front(self) -> None:
        """On `main`, another link in each direction, before everything that is there."""
        index = self.space.ifindex(self.main)
        for hook in TCX.values():
            attr = _attr.LinkCreateTcx(
                prog_fd=self.program("tc"), target_ifindex=index, attach_type=hook, flags=_bpf.BPF_F_BEFORE
            )
            self._hold_link(self.space.run(partial(_bpf.bpf, _bpf.Cmd.LINK_CREATE, attr)))

    # --- interfaces of theirs ----------------------------------------------------------------------------------

    def occupy(self) -> None:
        """On the spare interfaces, as their names say."""
        self.dispatcher("disp0")
        self.xdp_loader("load", "-m", "native", "legacy0", str(self._object()))
        self._note_occupant("legacy0")
        for name, mode in (("netn0", "xdpdrv"), ("netg0", "xdpgeneric")):
            self._attach_xdp(self.program("xdp"), name, mode)
        program, index = self.program("xdp"), self.space.ifindex("link0")
        self._hold_link(self.space.run(lambda: _bpf.link_create_xdp(program, index, _bpf.XDP_FLAGS_DRV_MODE)))
        dev = ("dev", "ing0")
        self.space.tc("qdisc", "add", *dev, "ingress")
        self.space.tc("filter", "add", *dev, "ingress", "prio", "9", "protocol", "ip", "u32", "match", "u32", "0", "0")
        self._with_pin(
            self.program("tc"),
            lambda path: self._run("tc", "filter", "add", *dev, "ingress", "prio", "8", "bpf", "da", "pinned", path),
        )

    def dispatcher(self, interface: str) -> None:
        """Debian's dispatcher for two members, generic, by netlink, and the pins that libxdp makes for them."""
        rodata = _DISPATCHER_V2.pack(
            _MAGIC, 2, 2, 0, *[_RETVAL | 1 << PASS["xdp"]] * 2, *[0] * 8, *[50] * 2, *[0] * 8, *[0] * 10
        )
        with Object(DISPATCHER.read_bytes(), "xdp_disp") as opened:
            opened.choose("xdp_dispatcher")
            opened.patch(".rodata", [(0, rodata)])
            program = self._hold(os.dup(opened.load()))
        os.set_inheritable(program, False)
        self._with_pin(
            program, lambda path: self._run("ip", "link", "set", "dev", interface, "xdpgeneric", "pinned", path)
        )
        number = _bpf.prog_info(program).id
        folder = self.xdp_pins / f"dispatch-{self.space.ifindex(interface)}-{number}"
        folder.mkdir(mode=0o700, parents=True)
        for place_ in range(2):
            _bpf.obj_pin(self.program("xdp"), str(folder / f"prog{place_}-prog"))

    def _attach_xdp(self, program: int, name: str, mode: str) -> None:
        self._with_pin(program, lambda path: self._run("ip", "link", "set", "dev", name, mode, "pinned", path))

    def xdp_loader(self, *arguments: str) -> str:
        """Debian's xdp-loader in this namespace, with the neighbours' folder for its bpffs."""
        environment = ("env", f"LIBXDP_BPFFS={self.pins}")
        with support.exclusive("xdp-loader"):  # it has a lock file of its own, and gives up when another one runs
            return self.space.run(lambda: support.run(*environment, "/usr/sbin/xdp-loader", *arguments))

    def status(self) -> str:
        """What xdp-loader says of this namespace."""
        return self.xdp_loader("status")

    @staticmethod
    def _object() -> Path:
        data = support.compile_program(support.PROGS / "neighbour.bpf.c")
        path = Path(support._build_folder(), "neighbour.o")
        path.write_bytes(data)
        return path

    def _note_occupant(self, interface: str) -> None:
        def number() -> int:
            with Route() as route:
                ((_, found),) = route.device(socket.if_nametoindex(interface)).xdp
                return found

        self.programs.append(self.space.run(number))

    def _with_pin(self, program: int, use: Callable[[str], None]) -> None:
        path = self.pins / "neighbour"
        _bpf.obj_pin(program, str(path))
        try:
            use(str(path))
        finally:
            path.unlink()

    def _run(self, *command: str) -> None:
        # Not with -n: that mounts a fresh /sys, which holds no pins.
        self.space.run(lambda: support.run(*command))


@contextlib.contextmanager
def neighbours(near: support.Netns, far: support.Netns, main: str, *, tcx: bool = True) -> Iterator[Neighbours]:
    """All of them around `main`, with spare interfaces whose other ends lie in `far`."""
    for name in SPARE:
        support.add_veth(near, name, far, f"x{name}")
    with support.pin_directory() as pins:
        pins.mkdir()
        with Neighbours(near, main, pins, tcx=tcx) as made:
            made.share()
            made.occupy()
            yield made
