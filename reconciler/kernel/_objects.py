# SPDX-License-Identifier: Apache-2.0
"""Programs, links, maps and pins, read into model values."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reconciler.kernel import _bpf
from reconciler.kernel._pins import Pins, kind_of
from reconciler.model import ObservedMap, Pin, PinKind, Program, content_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

_SLOT = b"\0\0\0\0"


def links_now() -> Iterator[_bpf.LinkFacts]:
    """All links of the kernel; those that vanish meanwhile are left out."""
    found = map(read_link, _bpf.next_ids(_bpf.Cmd.LINK_GET_NEXT_ID))
    return (link for link in found if link is not None)


def read_link(number: int) -> _bpf.LinkFacts | None:
    """A link by id, None when it has vanished."""
    try:
        descriptor = _bpf.link_by_id(number)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EAGAIN}:  # EAGAIN: not yet visible, it is being made
            return None
        raise
    with _bpf.closing(descriptor):
        return _bpf.link_info(descriptor)


def read_program(number: int) -> Program | None:
    """A program by id, None when it has vanished."""
    try:
        descriptor = _bpf.prog_by_id(number)
    except FileNotFoundError:
        return None
    with _bpf.closing(descriptor):
        try:
            facts = _bpf.prog_info(descriptor, maps=True)
        except OSError as error:
            if error.errno == errno.ENODEV:  # offloaded, and its device is gone: it runs nowhere and never will
                return None
            raise
    return Program(
        id=facts.id,
        type=_bpf.PROG_TYPE_NAMES.get(facts.type, str(facts.type)),
        name=facts.name,
        tag=facts.tag,
        load_time=facts.load_time,
        map_ids=facts.map_ids,
        uid=facts.uid,
    )


@dataclass(slots=True)
class PinWalk:
    """Our pins.

    Attributes:
        links: link id to pin path.
        programs: ids of pinned programs.
        maps: map id to what was observed.
        folders: those without anything.
        places: (type, ifindex) of pinned links; ifindex 0 for defunct ones.
    """

    pins: list[Pin] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: dict[int, str] = field(default_factory=dict)
    programs: frozenset[int] = frozenset()
    maps: dict[int, ObservedMap] = field(default_factory=dict)
    places: set[int] = field(default_factory=set)
    complete: bool = True

    def ifindexes(self, inode: int) -> frozenset[int]:
        """Interfaces of a namespace that hold, or held, a link of ours, by the pins' names; and where links are now."""
        named = set(self.places)
        for path in self.links.values():
            _, separator, ifindex = path.rpartition(f"_{inode}_")  # HookPoint.key
            if separator and ifindex.isdecimal():
                named.add(int(ifindex))
        return frozenset(named)


class MapKeeper:
    """Remembers, for the life of the agent, what must not be lost or need not be read again.

    A PROG_ARRAY is emptied when its last pin and descriptor go, even while programs use it: so a descriptor to each of
    our `next` arrays is held. And the content of a frozen map that programs cannot write either stays what it is.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, int] = {}
        self._contents: dict[int, str] = {}

    def close(self) -> None:
        for descriptor in self._arrays.values():
            os.close(descriptor)
        self._arrays.clear()

    def hold(self, path: str, descriptor: int) -> None:
        """Own a descriptor of the array pinned at `path`."""
        self.release(path)
        self._arrays[path] = descriptor

    def release(self, path: str) -> None:
        """The array at `path` is not needed any more."""
        descriptor = self._arrays.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def held(self, path: str) -> int | None:
        """The descriptor held for `path`; still the keeper's."""
        return self._arrays.get(path)

    def observe(self, path: str, descriptor: int) -> ObservedMap:
        """What is to be known about a map of ours, and a hold on it if it is a `next` array."""
        facts = _bpf.map_info(descriptor)
        frozen = is_frozen(descriptor)
        slot = content = None
        if facts.type == _bpf.MapType.PROG_ARRAY:
            slot = _slot(descriptor)
            if path not in self._arrays:
                self._arrays[path] = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
        elif path.startswith("gen/"):
            constant = frozen and facts.flags & _bpf.BPF_F_RDONLY_PROG
            content = self._contents.get(facts.id) if constant else None
            if content is None:
                content = content_digest(_bpf.map_entries(descriptor, facts))
            if constant:
                self._contents[facts.id] = content
        return ObservedMap(
            id=facts.id,
            type=facts.type,
            key_size=facts.key_size,
            value_size=facts.value_size,
            max_entries=facts.max_entries,
            flags=facts.flags,
            frozen=frozen,
            slot=slot,
            content=content,
        )

    def forget_contents(self, alive: set[int]) -> None:
        """Drop what is remembered of maps that are gone."""
        self._contents = {number: content for number, content in self._contents.items() if number in alive}


def is_frozen(descriptor: int) -> bool:
    """Whether user space can no longer change the map; bpf_map_info does not say it, fdinfo does."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:  # noqa: PTH123  # hot path  # hot path
        return b"\nfrozen:\t1" in file.read()


def _slot(descriptor: int) -> int | None:
    try:
        return int.from_bytes(_bpf.map_lookup(descriptor, _SLOT, 4), "little")
    except FileNotFoundError:
        return None


def walk_pins(pins: Pins, keeper: MapKeeper) -> PinWalk:
    """Everything under our directory. Pins that vanish meanwhile are left out.

    Raises:
        KernelError: others may change the directory; what is in it is then nobody's.
    """
    pins.refuse_strangers()
    walk = PinWalk()
    programs: set[int] = set()
    try:
        for path in sorted(pins.walk()):
            if path.endswith("/"):
                walk.folders.append(path[:-1])
                continue
            try:
                descriptor = _bpf.obj_get(f"{pins.root}/{path}")
            except FileNotFoundError:
                continue
            with _bpf.closing(descriptor):
                _add_pin(walk, programs, keeper, path, descriptor)
    except OSError:
        walk.complete = False
    walk.programs = frozenset(programs)
    keeper.forget_contents(set(walk.maps))
    return walk


def _add_pin(walk: PinWalk, programs: set[int], keeper: MapKeeper, path: str, descriptor: int) -> None:
    kind = kind_of(descriptor)
    match kind:
        case PinKind.PROGRAM:
            number = _bpf.prog_info(descriptor).id
            programs.add(number)
        case PinKind.MAP:
            observed = keeper.observe(path, descriptor)
            number = observed.id
            walk.maps[number] = observed
        case PinKind.LINK:
            facts = _bpf.link_info(descriptor)
            number = facts.id
            walk.links[number] = path
            if facts.ifindex:
                walk.places.add(facts.ifindex)
        case _:  # an iterator, a token: nothing of ours
            return
    walk.pins.append(Pin(path=path, kind=kind, id=number))
