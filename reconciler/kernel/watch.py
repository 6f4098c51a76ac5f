# SPDX-License-Identifier: Apache-2.0
"""Descriptors that become readable when interfaces or network namespaces come, go or change their names.

They only wake: what an event says is dropped. Attaching, updating or detaching a `bpf_link` sends no event at all, so
nothing here replaces looking again at intervals. One netlink socket per namespace, and inotify on /run/netns; a socket
keeps its namespace alive, so it is closed as soon as the name goes.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from reconciler.kernel import _netns
from reconciler.kernel._netlink import NETLINK_ROUTE, RTMGRP_LINK
from reconciler.model import HOST_NETNS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE, _IN_DELETE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400
_EVENTS = _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF
"""inotify(7)."""

_READ = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


def _system_call(function: str, *arguments: object) -> int:
    result: int = getattr(_libc, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
    return result


def _link_events() -> socket.socket:
    """A socket with the interface events of the calling thread's namespace."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE)
    try:
        made.bind((0, RTMGRP_LINK))
    except OSError:
        made.close()
        raise
    return made


class InterfaceWatch:
    """All namespaces behind one descriptor. Made by `open_watches`."""

    def __init__(self, namespaces: tuple[str, ...], folder: Path) -> None:
        self._names = namespaces
        self._folder = folder
        self._worker = _netns.Worker()
        self._sockets: dict[str, tuple[int, socket.socket]] = {}
        self._inotify: int | None = None
        self._epoll = select.epoll()
        try:
            self._watch_folder()
            self._follow()
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._epoll.fileno()

    def drain(self) -> None:
        """Drop what came, and follow namespaces that appeared, vanished or became others."""
        ready = [descriptor for descriptor, _ in self._epoll.poll(0)]
        sockets = {each.fileno(): each for _, each in self._sockets.values()}
        for descriptor in ready:
            if descriptor in sockets:
                _empty(sockets[descriptor])
            else:
                with suppress(BlockingIOError):
                    os.read(descriptor, _READ)
        if self._inotify in ready:
            with suppress(OSError):  # no descriptor is left, for example: the timer will find what happens there
                self._watch_folder()
                self._follow()

    def close(self) -> None:
        """Release every descriptor. Idempotent."""
        for _, each in self._sockets.values():
            each.close()
        self._sockets.clear()
        if self._inotify is not None:
            os.close(self._inotify)
            self._inotify = None
        self._worker.close()
        self._epoll.close()

    def _watch_folder(self) -> None:
        """Watch the folder of named namespaces, or the one above until it exists. Watching twice is the same watch."""
        if all(name == HOST_NETNS for name in self._names):
            return
        if self._inotify is None:
            self._inotify = _system_call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
            self._epoll.register(self._inotify, select.EPOLLIN)
        place = self._folder if self._folder.is_dir() else self._folder.parent
        with suppress(FileNotFoundError):
            _system_call("inotify_add_watch", self._inotify, os.fsencode(place), _EVENTS)

    def _follow(self) -> None:
        """One socket for each namespace that is there now."""
        for name in self._names:
            inode = _netns.inode_of(name)
            held = self._sockets.get(name)
            if held is not None and held[0] != inode:
                self._epoll.unregister(held[1])
                held[1].close()
                del self._sockets[name]
            if inode is not None and name not in self._sockets:
                with suppress(OSError):  # it went again, or cannot be entered: the timer will find what happens there
                    made = self._worker.run(name, inode, _link_events)
                    self._sockets[name] = (inode, made)
                    self._epoll.register(made, select.EPOLLIN)


def _empty(source: socket.socket) -> None:
    try:
        while source.recv(_READ):
            pass
    except BlockingIOError:
        return
    except OSError:  # ENOBUFS: events were lost, which is no loss here
        return


def open_watches(namespaces: Iterable[str]) -> list[InterfaceWatch]:
    """Descriptors to wait for; each has `fileno()`, `drain()` and `close()`, and is its caller's to close.

    Args:
        namespaces: names; those that do not exist yet are picked up when they appear.

    Raises:
        OSError: no socket could be made.
    """
    return [InterfaceWatch(tuple(sorted(set(namespaces))), _netns.NAMED)]
