# SPDX-License-Identifier: Apache-2.0
"""One coherent look at the kernel, without locks.

All hooks are read, then all links and programs, then all hooks again. A hook whose two reads agree is settled, and what
was read in between belongs to it; one that changed gets three more tries by itself, so churn on one hook costs nothing
elsewhere. What vanishes between an id and its descriptor has vanished and is no error; a walk that cannot be
finished makes the snapshot incomplete.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from reconciler.kernel import Scope, _bpf, _hooks, _netns
from reconciler.kernel._objects import PinWalk, links_now, read_program
from reconciler.model import (
    HookPoint,
    HookState,
    Interface,
    Link,
    Program,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from reconciler.kernel._netlink import Device

T = TypeVar("T")

RETRIES = 3
"""Tries after the first double read of a hook (docs/architecture.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """What reading hooks needs of the kernel object.

    Attributes:
        other_program: a descriptor of an XDP program that is attached nowhere.
        known: interfaces as they were read last, by the namespace's inode; dumps are compared with them.
    """

    worker: _netns.Worker
    tcx: bool
    other_program: Callable[[], int]
    known: dict[int, Mapping[int, Device]] = field(default_factory=dict)

    def inside(self, point: HookPoint, call: Callable[[], T]) -> T:
        """Run `call` in the hook's namespace. Raises OSError ENODEV when the namespace is not there any more."""
        try:
            return self.worker.run(point.netns, point.netns_inode, call)
        except FileNotFoundError as error:
            raise OSError(errno.ENODEV, f"{point}: {error.strerror}") from error

    def raw(self, point: HookPoint) -> tuple[Device, _hooks.Raw]:
        """Read one hook. Raises OSError ENODEV when its interface is gone."""
        return self.inside(point, lambda: _hooks.read_again(point.ifindex, point.kind, tcx=self.tcx))

    def held_by_link(self, point: HookPoint, mode: str) -> bool:
        """Whether a link holds this XDP hook."""
        other = self.other_program()
        try:
            return self.inside(point, lambda: _hooks.held_by_link(point.ifindex, mode, other))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise

    def hook(
        self, point: HookPoint, pinned: Mapping[int, str], links: Callable[[str, int], Iterable[_bpf.LinkFacts]]
    ) -> HookState:
        """Read one hook until two reads agree, at most 1 + RETRIES times.

        Args:
            pinned: pin paths of our links by id.
            links: the links that may hold the hook in this mode with a program of this id, read when it is called.

        Raises:
            OSError: ENODEV when its interface is gone.
        """
        state = self._twice(point, pinned, links)
        for _ in range(RETRIES):
            if state.settled:
                break
            state = self._twice(point, pinned, links)
        return state

    def _twice(
        self, point: HookPoint, pinned: Mapping[int, str], links: Callable[[str, int], Iterable[_bpf.LinkFacts]]
    ) -> HookState:
        """Two reads, with the links read in between."""
        _, before = self.raw(point)
        found = [link for mode, program in before.xdp for link in links(mode, program)]
        device, after = self.raw(point)
        resolver = _hooks.XdpLinks(found, pinned)
        return self.state(_renamed(point, device.name), after, resolver, settled=before == after)

    def state(self, point: HookPoint, raw: _hooks.Raw, resolver: _hooks.XdpLinks, *, settled: bool) -> HookState:
        """`raw` as a model value, with the links of XDP found out."""

        def link_of(point: HookPoint, mode: str, program: int) -> int | None:
            return resolver.find(point, program, lambda: self.held_by_link(point, mode))

        return _hooks.to_state(point, raw, settled=settled, xdp_link=link_of)


@dataclass(slots=True)
class Look:
    """What a snapshot gathers."""

    interfaces: list[Interface] = field(default_factory=list)
    hooks: dict[HookPoint, HookState] = field(default_factory=dict)
    programs: dict[int, Program] = field(default_factory=dict)
    links: dict[int, _bpf.LinkFacts] = field(default_factory=dict)
    namespaces: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    complete: bool = True

    def model_links(self) -> dict[int, Link]:
        """All links as model values."""
        return {
            link.id: Link(
                id=link.id,
                type=_bpf.LINK_TYPE_NAMES.get(link.type, str(link.type)),
                program_id=link.prog_id,
                ifindex=link.ifindex,
            )
            for link in self.links.values()
        }


def look(reader: Reader, scope: Scope, pins: PinWalk) -> Look:
    """Read everything in the scope."""
    seen = Look()
    for name in scope.namespaces:
        inode = _netns.inode_of(name)
        if inode is None:
            seen.missing.append(name)
        else:
            seen.namespaces[name] = inode
    for gone in reader.known.keys() - seen.namespaces.values():
        del reader.known[gone]
    first = _read_all(reader, scope, pins, seen)
    seen.complete &= _walk_objects(seen)
    second = _read_all(reader, scope, pins, seen, first)
    resolver = _hooks.XdpLinks(seen.links.values(), pins.links)
    unsettled: list[HookPoint] = []
    for name, namespace in second.items():
        _add_interfaces(seen, name, namespace.devices)
        before = first[name].hooks if name in first else {}
        for point, raw in _points(name, seen.namespaces[name], namespace):
            if before.get(point.ifindex, {}).get(point.kind) != raw or not (raw.empty or _known(seen, raw)):
                unsettled.append(point)
            else:
                seen.hooks[point] = reader.state(point, raw, resolver, settled=True)
    for point in unsettled:
        _settle(reader, pins, seen, point)
    return seen


def _read_all(
    reader: Reader, scope: Scope, pins: PinWalk, seen: Look, before: Mapping[str, _hooks.RawNamespace] | None = None
) -> dict[str, _hooks.RawNamespace]:
    """Everything in the scope; what was empty `before` is not read again.

    Nobody is evicted from where nothing is, and who attaches there in between is found by the attach that follows: the
    kernel compares.
    """
    found = {}
    for name, inode in list(seen.namespaces.items()):
        if before is not None and name in before and before[name].empty:
            found[name] = before[name]
            continue
        wanted, known = _wanted(scope, name, inode, pins), reader.known.get(inode)
        read = partial(_hooks.read_namespace, wanted, pins.programs, known, tcx=reader.tcx)
        try:
            found[name] = reader.worker.run(name, inode, read)
            reader.known[inode] = found[name].devices
        except FileNotFoundError:  # it went away, or its name is another's now
            seen.namespaces.pop(name)
            seen.missing.append(name)
        except OSError:
            seen.complete = False
    return found


def _wanted(scope: Scope, name: str, inode: int, pins: PinWalk) -> Callable[[Device], bool]:
    if scope.interfaces is None:
        return lambda _: True
    patterns = scope.interfaces.get(name, ())
    ours = pins.ifindexes(inode)

    def wanted(device: Device) -> bool:
        return device.ifindex in ours or any(fnmatchcase(device.name, pattern) for pattern in patterns)

    return wanted


def _walk_objects(seen: Look) -> bool:
    """All links and programs by id; whether both walks finished."""
    try:
        seen.links = {link.id: link for link in links_now()}
        for number in _bpf.next_ids(_bpf.Cmd.PROG_GET_NEXT_ID):
            program = read_program(number)
            if program is not None:
                seen.programs[number] = program
    except OSError:
        return False
    return True


def _known(seen: Look, raw: _hooks.Raw) -> bool:
    """Whether every program of the hook was seen; asks for those that came after the walk."""
    for number in raw.programs():
        if number not in seen.programs:
            program = read_program(number)
            if program is None:
                return False
            seen.programs[number] = program
    return True


def _settle(reader: Reader, pins: PinWalk, seen: Look, point: HookPoint) -> None:
    """Further tries on one hook that changed between the two reads."""

    def links(_: str, __: int) -> Iterable[_bpf.LinkFacts]:
        seen.links = {link.id: link for link in links_now()}
        return seen.links.values()

    try:
        state = reader.hook(point, pins.links, links)
    except OSError as error:
        if error.errno != errno.ENODEV:
            seen.complete = False
        return
    for attachment in state.attachments:
        program = read_program(attachment.program_id)
        if program is not None:
            seen.programs[program.id] = program
    seen.hooks[state.point] = state


def _points(name: str, inode: int, namespace: _hooks.RawNamespace) -> Iterator[tuple[HookPoint, _hooks.Raw]]:
    for ifindex, kinds in namespace.hooks.items():
        interface = namespace.devices[ifindex].name
        for kind, raw in kinds.items():
            yield (
                HookPoint(kind=kind, netns_inode=inode, ifindex=ifindex, netns=name, interface=interface),
                raw,
            )


def _add_interfaces(seen: Look, name: str, devices: Mapping[int, Device]) -> None:
    seen.interfaces.extend(
        Interface(netns=name, netns_inode=seen.namespaces[name], ifindex=device.ifindex, name=device.name)
        for device in devices.values()
    )


def _renamed(point: HookPoint, interface: str) -> HookPoint:
    return HookPoint(
        kind=point.kind,
        netns_inode=point.netns_inode,
        ifindex=point.ifindex,
        netns=point.netns,
        interface=interface,
    )
