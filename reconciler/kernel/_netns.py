# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: find them by name, and run a call inside one.

A call runs in a worker thread that enters the namespace and leaves it in a `finally`; the caller's thread never moves.
Nothing is kept open between calls, because a descriptor or a socket keeps a deleted namespace (and its interfaces)
alive. Names are files in /run/netns, or "host": the namespace this process was started in.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from reconciler.model import HOST_NETNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

NAMED = Path("/run/netns")
_HERE = Path("/proc/thread-self/ns/net")
_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
"""ioctl_ns(2)."""
_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: int) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _path(name: str) -> str:
    if name == HOST_NETNS:
        return "/proc/self/ns/net"  # of the thread group's leader, which never moves
    if "/" in name or "\0" in name or name in {"", ".", ".."}:
        raise OSError(errno.ENOENT, f"no network namespace can be called {name!r}")
    return f"{NAMED}/{name}"


@contextmanager
def opened(name: str, inode: int | None = None) -> Iterator[int]:
    """A descriptor of the namespace.

    Raises:
        OSError: ENOENT when there is none of this name now, or it is not the one with `inode` any more.
    """
    descriptor = os.open(_path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
        except OSError as error:
            raise OSError(errno.ENOENT, f"{_path(name)} is no namespace") from error
        if kind != _CLONE_NEWNET:
            raise OSError(errno.ENOENT, f"{_path(name)} is no network namespace")
        if inode is not None and os.fstat(descriptor).st_ino != inode:
            raise OSError(errno.ENOENT, f"the network namespace {name} is another one now (expected inode {inode})")
        yield descriptor
    finally:
        os.close(descriptor)


def inode_of(name: str) -> int | None:
    """Inode of a namespace, None when there is none of this name."""
    try:
        with opened(name) as descriptor:
            return os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return None


class Worker:
    """The thread that enters namespaces. `close()` ends it."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._here = threading.local()
        self._lost = False  # the thread could not come back

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def run(self, name: str, inode: int | None, call: Callable[[], T]) -> T:
        """The result of `call` inside the namespace; a call within such a call, for the same one, is made right there.

        Raises:
            OSError: ENOENT when the namespace is not there (any more), and whatever `call` raises.
            RuntimeError: made inside a call for another namespace; the one thread would wait for itself for ever.
        """
        if inode is not None and getattr(self._here, "place", None) == (name, inode):
            return call()
        with opened(name, inode) as target:
            if _is_here(target):
                return self._at((name, inode), call)
            return self._submit(lambda: self._inside(target, lambda: self._at((name, inode), call)))

    def _at(self, place: tuple[str, int | None], call: Callable[[], T]) -> T:
        self._here.place = place
        try:
            return call()
        finally:
            self._here.place = None

    def fresh(self, call: Callable[[], T]) -> T:
        """The result of `call` inside a new, empty namespace, which vanishes afterwards."""
        return self._submit(lambda: self._inside(None, call))

    def _submit(self, work: Callable[[], T]) -> T:
        if getattr(self._here, "entered", False):
            raise RuntimeError("expected no call for another network namespace inside a call for one, got one")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reconciler-netns")
        try:
            return self._pool.submit(work).result()
        finally:
            if self._lost:
                self.close()  # never used again
                self._lost = False

    def _inside(self, target: int | None, call: Callable[[], T]) -> T:
        """`call` in the thread that runs this; what it did stands, also when there is no memory for the way back."""
        home = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        self._here.entered = True
        try:
            if target is None:
                _call("unshare", _CLONE_NEWNET)
            else:
                _call("setns", target, _CLONE_NEWNET)
            try:
                return call()
            finally:
                try:
                    _call("setns", home, _CLONE_NEWNET)
                except OSError:
                    self._lost = True
        finally:
            self._here.entered = False
            os.close(home)


def _is_here(descriptor: int) -> bool:
    one, here = os.fstat(descriptor), _HERE.stat()
    return (one.st_dev, one.st_ino) == (here.st_dev, here.st_ino)
