# SPDX-License-Identifier: Apache-2.0
"""Ids, descriptors and infos of programs, maps and links."""

from __future__ import annotations

import ctypes
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler.kernel import _attr
from reconciler.kernel._bpf._call import Cmd, LinkType, address, bpf

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgFacts:
    """bpf_prog_info, what is used of it; load_time in ns since boot."""

    id: int
    type: int
    name: str
    tag: str
    load_time: int
    uid: int
    map_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFacts:
    """bpf_map_info, what is used of it."""

    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFacts:
    """bpf_link_info, what is used of it; `ifindex` 0 for defunct links and for types that have none."""

    id: int
    type: int
    prog_id: int
    ifindex: int
    attach_type: int


def next_ids(command: Cmd) -> Iterator[int]:
    """Walk all ids of one kind (PROG_, MAP_ or LINK_GET_NEXT_ID)."""
    attr = _attr.Ids()
    while True:
        try:
            bpf(command, attr)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        yield attr.next_id
        attr.start_id = attr.next_id


def prog_by_id(number: int) -> int:
    return bpf(Cmd.PROG_GET_FD_BY_ID, _attr.Ids(start_id=number))


def map_by_id(number: int) -> int:
    return bpf(Cmd.MAP_GET_FD_BY_ID, _attr.Ids(start_id=number))


def link_by_id(number: int) -> int:
    return bpf(Cmd.LINK_GET_FD_BY_ID, _attr.Ids(start_id=number))


def _info(descriptor: int, info: ctypes.Structure) -> None:
    attr = _attr.Info(bpf_fd=descriptor, info_len=ctypes.sizeof(info), info=ctypes.addressof(info))
    bpf(Cmd.OBJ_GET_INFO_BY_FD, attr)


def prog_info(descriptor: int, *, maps: bool = False) -> ProgFacts:
    """What the kernel says about a program; `maps` asks for the ids of its maps too (one more call)."""
    info = _attr.ProgInfo()
    _info(descriptor, info)
    map_ids: tuple[int, ...] = ()
    if maps and info.nr_map_ids:
        ids = (ctypes.c_uint32 * info.nr_map_ids)()
        again = _attr.ProgInfo(nr_map_ids=info.nr_map_ids, map_ids=ctypes.addressof(ids))
        _info(descriptor, again)
        map_ids = tuple(ids)
    return ProgFacts(
        id=info.id,
        type=info.type,
        name=info.name.decode("ascii", "replace"),
        tag=bytes(info.tag).hex(),
        load_time=info.load_time,
        uid=info.created_by_uid,
        map_ids=map_ids,
    )


def map_info(descriptor: int) -> MapFacts:
    info = _attr.MapInfo()
    _info(descriptor, info)
    return MapFacts(
        id=info.id,
        type=info.type,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        flags=info.map_flags,
        name=info.name.decode("ascii", "replace"),
    )


_WITH_IFINDEX = frozenset({6, 11, 13})


def link_info(descriptor: int) -> LinkFacts:
    info = _attr.LinkInfo()
    _info(descriptor, info)
    on_device = info.type in _WITH_IFINDEX
    return LinkFacts(
        id=info.id,
        type=info.type,
        prog_id=info.prog_id,
        ifindex=info.ifindex if on_device else 0,
        attach_type=info.attach_type if on_device and info.type != LinkType.XDP else 0,
    )


def obj_pin(descriptor: int, path: str) -> None:
    name = ctypes.create_string_buffer(path.encode())
    bpf(Cmd.OBJ_PIN, _attr.Obj(pathname=address(name), bpf_fd=descriptor))


def obj_get(path: str) -> int:
    name = ctypes.create_string_buffer(path.encode())
    return bpf(Cmd.OBJ_GET, _attr.Obj(pathname=address(name)))
