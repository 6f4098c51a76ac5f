# SPDX-License-Identifier: Apache-2.0
"""Grace periods: wait for one (drain), and make them short for a while (expedite)."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reconciler import _points
from reconciler.errors import DrainError, KernelError
from reconciler.kernel import _bpf
from reconciler.kernel._failing import failing

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMBARRIER = "membarrier"
MAP_IN_MAP = "map-in-map"

EXPEDITE_LIMIT = 20.0
"""Seconds after which expedited grace periods end, whatever the batch still does."""

RCU_EXPEDITED = Path("/sys/kernel/rcu_expedited")
_RCU_NORMAL = Path("/sys/kernel/rcu_normal")
_REALTIME = Path("/sys/kernel/realtime")
_CPUS = Path("/sys/devices/system/cpu")

_MEMBARRIER_SYSCALLS = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
"""__NR_membarrier (arch/*/include/uapi/asm/unistd*.h)."""
_MEMBARRIER_CMD_QUERY, _MEMBARRIER_CMD_GLOBAL = 0, 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def membarrier(command: int) -> int:
    """Make the system call. Raises OSError."""
    number = _MEMBARRIER_SYSCALLS.get(platform.machine(), -1)
    result: int = _libc.syscall(number, command, 0, 0)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def membarrier_waits() -> bool:
    """Whether MEMBARRIER_CMD_GLOBAL waits for a grace period here.

    The kernel does not list it where CPUs are nohz_full, and returns without waiting on a single CPU
    (sys_membarrier in kernel/sched/membarrier.c).
    """
    with suppress(OSError):
        return (
            bool(membarrier(_MEMBARRIER_CMD_QUERY) & _MEMBARRIER_CMD_GLOBAL) and os.sysconf("SC_NPROCESSORS_ONLN") > 1
        )
    return False


def wait_by_map() -> None:
    """Wait for a grace period: an update of an ARRAY_OF_MAPS slot ends with one (maybe_wait_bpf_programs).

    Raises:
        OSError: such a map cannot be made here.
    """
    with (
        _bpf.closing(_bpf.map_create(_bpf.MapType.ARRAY, 4, 4, 1)) as inner,
        _bpf.closing(_bpf.map_create(_bpf.MapType.ARRAY_OF_MAPS, 4, 4, 1, inner)) as outer,
    ):
        _bpf.map_update(outer, bytes(4), inner.to_bytes(4, sys.byteorder))


def drain(ways: tuple[str, ...]) -> str:
    """Wait one grace period in the first of `ways` that works; its name.

    Raises:
        DrainError: none did.
    """
    failures = []
    for way in ways:
        try:
            if way == MEMBARRIER:
                membarrier(_MEMBARRIER_CMD_GLOBAL)
            else:
                wait_by_map()
        except OSError as error:
            failures.append(f"{way}: {error.strerror}")
        else:
            return way
    detail = "; ".join(failures) or "this kernel offers no way to wait for a grace period"
    raise DrainError("drain", errno.EOPNOTSUPP, detail)


# === expedite ==============================================================================================


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="ascii").strip()
    return ""


def may_expedite() -> bool:
    """Whether rcu_expedited may be touched: writable, effective, and no CPU is kept free of interrupts."""
    protected = (_CPUS / "isolated", _CPUS / "nohz_full")
    return (
        os.access(RCU_EXPEDITED, os.W_OK)
        and _read(RCU_EXPEDITED) in {"0", "1"}
        and _read(_RCU_NORMAL) in {"", "0"}
        and _read(_REALTIME) in {"", "0"}
        and all(_read(path) in {"", "(null)"} for path in protected)
    )


def setting() -> int | None:
    """rcu_expedited now, None where it cannot be read."""
    text = _read(RCU_EXPEDITED)
    return int(text) if text.isdecimal() else None


def _write(value: int) -> None:
    with failing(f"write {RCU_EXPEDITED}"):
        _points.at("write rcu_expedited", RCU_EXPEDITED.write_text, f"{value}\n", encoding="ascii")


def _switch_on() -> bool:
    with suppress(KernelError):  # only slower
        _write(1)
        return True
    return False


def restore(value: int) -> None:
    """Write the old value back, if it still reads 1; if not, somebody else decided meanwhile."""
    if setting() == 1:
        _write(value)


@contextmanager
def expedited(policy: Literal["auto", "never"], *, allowed: bool, limit: float = EXPEDITE_LIMIT) -> Iterator[bool]:
    """Expedited grace periods for the block, at most `limit` seconds; yields whether we switched them on.

    Where the old value cannot be written back, `setting` goes on to read 1.
    """
    # 1 is somebody else's, and on already.
    if policy == "never" or not allowed or setting() != 0 or not _switch_on():
        yield False
        return
    lock, done = threading.Lock(), False

    def back() -> None:
        nonlocal done
        with lock, suppress(KernelError):
            if not done:
                restore(0)
                done = True

    timer = threading.Timer(limit, back)
    timer.daemon = True
    timer.start()
    try:
        yield True
    finally:
        timer.cancel()
        back()
