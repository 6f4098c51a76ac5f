# SPDX-License-Identifier: Apache-2.0
"""bpf(2), one typed function per command.

Every function raises `OSError` with the kernel's errno; what an errno *means* is decided by the callers, who know what
they tried. Returned descriptors are plain integers, close-on-exec, owned by the caller. Nothing here knows of
namespaces: commands that take an ifindex use the calling thread's.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from reconciler import _points
from reconciler.kernel import _attr

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_SYSCALLS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
"""__NR_bpf (arch/*/include/uapi/asm/unistd*.h)."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_syscall = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, use_errno=True)(
    ("syscall", _libc)
)
_NR_BPF = _SYSCALLS.get(platform.machine(), -1)

MAX_MPROG = 64
"""BPF_MPROG_MAX (include/linux/bpf_mprog.h): entries on one tcx hook."""

BPF_F_REPLACE = 4
BPF_F_BEFORE = 8
BPF_F_RDONLY_PROG = 1 << 7

BPF_XDP = 37
BPF_TCX_INGRESS = 46
BPF_TCX_EGRESS = 47

XDP_FLAGS_SKB_MODE = 2
XDP_FLAGS_DRV_MODE = 4
XDP_FLAGS_HW_MODE = 8
XDP_FLAGS_REPLACE = 16


class Cmd(enum.IntEnum):
    """enum bpf_cmd."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_ATTACH = 8
    PROG_DETACH = 9
    PROG_TEST_RUN = 10
    PROG_GET_NEXT_ID = 11
    MAP_GET_NEXT_ID = 12
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    MAP_FREEZE = 22
    MAP_LOOKUP_BATCH = 24
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31
    LINK_DETACH = 34


class MapType(enum.IntEnum):
    """enum bpf_map_type, those that are treated in a way of their own."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12


class ProgType(enum.IntEnum):
    """enum bpf_prog_type."""

    SCHED_CLS = 3
    XDP = 6


class LinkType(enum.IntEnum):
    """enum bpf_link_type."""

    XDP = 6
    TCX = 11


LINK_TYPE_NAMES = {
    1: "raw_tracepoint",
    2: "tracing",
    3: "cgroup",
    4: "iter",
    5: "netns",
    6: "xdp",
    7: "perf_event",
    8: "kprobe_multi",
    9: "struct_ops",
    10: "netfilter",
    11: "tcx",
    12: "uprobe_multi",
    13: "netkit",
    14: "sockmap",
}
PROG_TYPE_NAMES = {3: "tc", 6: "xdp"}


_CHANGES = frozenset(
    {
        Cmd.MAP_CREATE,
        Cmd.MAP_UPDATE_ELEM,
        Cmd.MAP_DELETE_ELEM,
        Cmd.MAP_FREEZE,
        Cmd.PROG_LOAD,
        Cmd.PROG_ATTACH,
        Cmd.PROG_DETACH,
        Cmd.OBJ_PIN,
        Cmd.LINK_CREATE,
        Cmd.LINK_UPDATE,
        Cmd.LINK_DETACH,
    }
)
"""Commands that change something; the others only read."""


def bpf(command: Cmd, attr: ctypes.Structure) -> int:
    """Make the system call. Raises OSError."""
    if _points.hook is None or command not in _CHANGES:
        return _call(command, attr)
    return _points.at(f"bpf {command.name}", _call, command, attr)


def _call(command: Cmd, attr: ctypes.Structure) -> int:
    result: int = _syscall(_NR_BPF, command, ctypes.addressof(attr), ctypes.sizeof(attr))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class closing:  # noqa: N801  # as in contextlib
    """The descriptor for a `with` block that owns it."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


# === ids, descriptors, infos ===============================================================================


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
    bpf(Cmd.OBJ_PIN, _attr.Obj(pathname=_address(name), bpf_fd=descriptor))


def obj_get(path: str) -> int:
    name = ctypes.create_string_buffer(path.encode())
    return bpf(Cmd.OBJ_GET, _attr.Obj(pathname=_address(name)))


# === maps ==================================================================================================


def map_create(kind: MapType, key_size: int, value_size: int, max_entries: int, inner: int = 0) -> int:
    attr = _attr.MapCreate(
        map_type=kind, key_size=key_size, value_size=value_size, max_entries=max_entries, inner_map_fd=inner
    )
    return bpf(Cmd.MAP_CREATE, attr)


def map_update(descriptor: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Set one entry; `flags`: 0 any, 1 BPF_NOEXIST, 2 BPF_EXIST."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value, len(value))
    attr = _attr.MapElem(map_fd=descriptor, key=_address(key_buffer), value=_address(value_buffer), flags=flags)
    bpf(Cmd.MAP_UPDATE_ELEM, attr)


def map_lookup(descriptor: int, key: bytes, size: int) -> bytes:
    """One entry's value; `size` bytes, for per-CPU maps the padded value size times the possible CPUs."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(size)
    attr = _attr.MapElem(map_fd=descriptor, key=_address(key_buffer), value=_address(value_buffer))
    bpf(Cmd.MAP_LOOKUP_ELEM, attr)
    return value_buffer.raw


def map_delete(descriptor: int, key: bytes) -> None:
    key_buffer = ctypes.create_string_buffer(key, len(key))
    bpf(Cmd.MAP_DELETE_ELEM, _attr.MapElem(map_fd=descriptor, key=_address(key_buffer)))


def map_freeze(descriptor: int) -> None:
    bpf(Cmd.MAP_FREEZE, _attr.MapElem(map_fd=descriptor))


def map_keys(descriptor: int, key_size: int) -> Iterator[bytes]:
    """All keys of a map that nobody changes meanwhile."""
    current = ctypes.create_string_buffer(key_size)
    following = ctypes.create_string_buffer(key_size)
    attr = _attr.MapElem(map_fd=descriptor, key=0, value=_address(following))
    while True:
        try:
            bpf(Cmd.MAP_GET_NEXT_KEY, attr)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        yield following.raw
        current.raw = following.raw
        attr.key = _address(current)


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
    attr = _attr.MapBatch(map_fd=descriptor, out_batch=_address(cursor), keys=_address(keys), values=_address(values))
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
        attr.in_batch = _address(cursor)
    return tuple(entries)


# === programs and links ====================================================================================


_LOAD_TRIES = 5


def load_trivial(kind: ProgType, verdict: int, attach_type: int = 0) -> int:
    """Load `return verdict`; for probes and comparisons only."""
    return _load((_attr.Insn(code=0xB7, imm=verdict), _attr.Insn(code=0x95)), kind, attach_type, 0)


def load_tail_call(array: int, attach_type: int, flags: int) -> int:
    """Load an XDP program that goes on with the one in slot 0 of `array`, and lets packets pass if there is none."""
    insns = (
        _attr.Insn(code=0x18, registers=0x12, imm=array),  # r2 = array (BPF_PSEUDO_MAP_FD), two instructions long
        _attr.Insn(),
        _attr.Insn(code=0xB7, registers=3),  # r3 = 0
        _attr.Insn(code=0x85, imm=12),  # bpf_tail_call(r1, r2, r3)
        _attr.Insn(code=0xB7, imm=2),
        _attr.Insn(code=0x95),
    )
    return _load(insns, ProgType.XDP, attach_type, flags)


def _load(code: tuple[_attr.Insn, ...], kind: ProgType, attach_type: int, flags: int) -> int:
    insns = (_attr.Insn * len(code))(*code)
    licence = ctypes.create_string_buffer(b"GPL")
    attr = _attr.ProgLoad(
        prog_type=kind,
        insn_cnt=len(code),
        insns=ctypes.addressof(insns),
        license=_address(licence),
        prog_flags=flags,
        prog_name=b"reconciler_nop",
        expected_attach_type=attach_type,
    )
    for _ in range(_LOAD_TRIES - 1):
        # EAGAIN: a signal came while the verifier ran (do_check); libbpf tries again too.
        with suppress(BlockingIOError):
            return bpf(Cmd.PROG_LOAD, attr)
    return bpf(Cmd.PROG_LOAD, attr)


class Mprog(NamedTuple):
    """What runs on one tcx hook, in order: (program id, link id or 0), and the hook's revision."""

    entries: tuple[tuple[int, int], ...]
    revision: int


class TcxQuery:
    """BPF_PROG_QUERY on tcx hooks of the calling thread's namespace, with buffers for one thread."""

    def __init__(self) -> None:
        self._make_room(MAX_MPROG)

    def _make_room(self, entries: int) -> None:
        self._room = entries
        self._programs, self._links = (ctypes.c_uint32 * entries)(), (ctypes.c_uint32 * entries)()
        self._attr = _attr.Query(
            prog_ids=ctypes.addressof(self._programs), link_ids=ctypes.addressof(self._links), count=entries
        )

    def __call__(self, ifindex: int, attach_type: int) -> Mprog:
        """What runs there. Raises OSError ENODEV."""
        while True:
            attr = self._attr
            attr.target_ifindex, attr.attach_type, attr.count = ifindex, attach_type, self._room
            try:
                _call(Cmd.PROG_QUERY, attr)
            except OSError as error:
                if error.errno == errno.ENOENT:  # kernels before 6.8 answer so for a hook that never had an entry
                    return Mprog((), 1)
                if error.errno != errno.ENOSPC or attr.count <= self._room:
                    raise
                self._make_room(attr.count)  # a kernel that allows more entries than any does today
                continue
            count = attr.count
            if not count:
                return Mprog((), attr.revision)
            return Mprog(tuple(zip(self._programs[:count], self._links[:count], strict=True)), attr.revision)


def tcx_query(ifindex: int, attach_type: int) -> Mprog:
    """`TcxQuery`, once."""
    return TcxQuery()(ifindex, attach_type)


def link_create_xdp(program: int, ifindex: int, flags: int) -> int:
    attr = _attr.LinkCreate(prog_fd=program, target_ifindex=ifindex, attach_type=BPF_XDP, flags=flags)
    return bpf(Cmd.LINK_CREATE, attr)


def link_create_tcx(program: int, ifindex: int, attach_type: int, revision: int | None) -> int:
    """A tcx link at the head of the hook; ESTALE if `revision` is given and not the hook's."""
    attr = _attr.LinkCreateTcx(
        prog_fd=program,
        target_ifindex=ifindex,
        attach_type=attach_type,
        flags=BPF_F_BEFORE,
        expected_revision=revision or 0,
    )
    return bpf(Cmd.LINK_CREATE, attr)


def link_update(link: int, new: int, old: int) -> None:
    """Replace the link's program if it is `old`; EPERM if it is not, ENOLINK if the link is defunct."""
    bpf(Cmd.LINK_UPDATE, _attr.LinkUpdate(link_fd=link, new_prog_fd=new, flags=BPF_F_REPLACE, old_prog_fd=old))


def link_detach(link: int) -> None:
    bpf(Cmd.LINK_DETACH, _attr.LinkDetach(link_fd=link))


def tcx_attach(program: int, ifindex: int, attach_type: int) -> None:
    """Attach without a link, at the tail."""
    bpf(Cmd.PROG_ATTACH, _attr.ProgAttach(target_ifindex=ifindex, attach_bpf_fd=program, attach_type=attach_type))


def tcx_detach(program: int, ifindex: int, attach_type: int, revision: int | None) -> None:
    """Detach an entry that has no link; ESTALE, ENOENT, or EBUSY when a link owns it."""
    attr = _attr.ProgAttach(
        target_ifindex=ifindex, attach_bpf_fd=program, attach_type=attach_type, expected_revision=revision or 0
    )
    bpf(Cmd.PROG_DETACH, attr)
