# SPDX-License-Identifier: Apache-2.0
"""The system call itself, its commands and its numbers."""

from __future__ import annotations

import ctypes
import enum
import os
import platform
from typing import TYPE_CHECKING

from reconciler import _points

if TYPE_CHECKING:
    from types import TracebackType

_SYSCALLS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
"""__NR_bpf (arch/*/include/uapi/asm/unistd*.h)."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_syscall = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, use_errno=True)(
    ("syscall", _libc)
)
_NR_BPF = _SYSCALLS.get(platform.machine(), -1)

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
        return call(command, attr)
    return _points.at(f"bpf {command.name}", call, command, attr)


def call(command: Cmd, attr: ctypes.Structure) -> int:
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


def address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)
