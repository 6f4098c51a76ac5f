# SPDX-License-Identifier: Apache-2.0
"""What maps hold."""

from __future__ import annotations

import ctypes
import errno
from contextlib import suppress
from typing import TYPE_CHECKING

from reconciler.kernel import _attr
from reconciler.kernel._bpf._call import Cmd, MapType, address, bpf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.kernel._bpf._objects import MapFacts


def map_create(kind: MapType, key_size: int, value_size: int, max_entries: int, inner: int = 0) -> int:
    attr = _attr.MapCreate(
        map_type=kind, key_size=key_size, value_size=value_size, max_entries=max_entries, inner_map_fd=inner
    )
    return bpf(Cmd.MAP_CREATE, attr)


def map_update(descriptor: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Set one entry; `flags`: 0 any, 1 BPF_NOEXIST, 2 BPF_EXIST."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value, len(value))
    attr = _attr.MapElem(map_fd=descriptor, key=address(key_buffer), value=address(value_buffer), flags=flags)
    bpf(Cmd.MAP_UPDATE_ELEM, attr)


def map_lookup(descriptor: int, key: bytes, size: int) -> bytes:
    """One entry's value; `size` bytes, for per-CPU maps the padded value size times the possible CPUs."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(size)
    attr = _attr.MapElem(map_fd=descriptor, key=address(key_buffer), value=address(value_buffer))
    bpf(Cmd.MAP_LOOKUP_ELEM, attr)
    return value_buffer.raw


def map_delete(descriptor: int, key: bytes) -> None:
    key_buffer = ctypes.create_string_buffer(key, len(key))
    bpf(Cmd.MAP_DELETE_ELEM, _attr.MapElem(map_fd=descriptor, key=address(key_buffer)))


def map_freeze(descriptor: int) -> None:
    bpf(Cmd.MAP_FREEZE, _attr.MapElem(map_fd=descriptor))


def map_keys(descriptor: int, key_size: int) -> Iterator[bytes]:
    """All keys of a map that nobody changes meanwhile."""
    current = ctypes.create_string_buffer(key_size)
    following = ctypes.create_string_buffer(key_size)
    attr = _attr.MapElem(map_fd=descriptor, key=0, value=address(following))
    while True:
        try:
            bpf(Cmd.MAP_GET_NEXT_KEY, attr)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        yield following.raw
        current.raw = following.raw
        attr.key = address(current)


def map_entries(descriptor: int, facts: MapFacts) -> tuple[tuple[bytes, bytes], ...]:
    """All entries of a map that is not per-CPU."""
    with suppress(OSError):  # kernels and types without batches: one by one, below
        return _batched_entries(descriptor, facts)
    return tuple((key, map_lookup(descriptor, key, facts.value_size)) for key in map_keys(descriptor, facts.key_size))


_BATCH = 4096


def _batched_entries(descriptor: int, facts: MapFacts) -> tuple[tuple[bytes, bytes], ...]:
    size = min(_BATCH, facts.max_entries)
    keys = ctypes.create_string_buffer(facts.key_size * size)
    values = ctypes.create_string_buffer(facts.value_size * size)
    cursor = ctypes.create_string_buffer(max(facts.key_size, 8))
    attr = _attr.MapBatch(map_fd=descriptor, out_batch=address(cursor), keys=address(keys), values=address(values))
    entries: list[tuple[bytes, bytes]] = []
    finished = False
    while not finished:
        attr.count = size
        try:
            bpf(Cmd.MAP_LOOKUP_BATCH, attr)
        except OSError as error:
            if error.errno != errno.ENOENT:  # ENOENT: that was the last batch, `count` entries are good
                raise
            finished = True
        raw_keys, raw_values = keys.raw, values.raw
        entries.extend(
            (
                raw_keys[index * facts.key_size : (index + 1) * facts.key_size],
                raw_values[index * facts.value_size : (index + 1) * facts.value_size],
            )
            for index in range(attr.count)
        )
        attr.in_batch = address(cursor)
    return tuple(entries)
