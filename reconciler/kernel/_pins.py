# SPDX-License-Identifier: Apache-2.0
"""Our directory on bpffs. Paths are relative to it; folders are made when needed and removed when empty."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler import _points
from reconciler.errors import KernelError
from reconciler.kernel import _bpf
from reconciler.kernel._failing import failing
from reconciler.kernel.about import BPFFS
from reconciler.model import Identity, PinKind

if TYPE_CHECKING:
    from collections.abc import Iterator

_BPF_FS_MAGIC = 0xCAFE4A11
"""include/uapi/linux/magic.h."""
_MODE = 0o700
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

_libc = ctypes.CDLL(None, use_errno=True)
_KINDS = {"bpf-prog": PinKind.PROGRAM, "bpf-map": PinKind.MAP, "bpf_link": PinKind.LINK, "bpf-link": PinKind.LINK}


def _filesystem(path: Path) -> int:
    buffer = ctypes.create_string_buffer(512)  # struct statfs begins with f_type, a long
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return 0
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def mount_bpffs() -> None:
    """Mount a bpffs where one belongs, as bpftool and libbpf do when there is none.

    Raises:
        KernelError: it cannot be mounted.
    """
    if _filesystem(BPFFS) == _BPF_FS_MAGIC:
        return
    with failing(f"mount bpf on {BPFFS}"):
        _points.at("mount bpffs", _mount)


def _mount() -> None:
    if _libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", 0, b"mode=0700") != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def kind_of(descriptor: int) -> PinKind | None:
    """What a descriptor from OBJ_GET is; the kernel says it only in the descriptor's name."""
    name = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115  # hot path
    return _KINDS.get(name.removeprefix("anon_inode:").strip("[]"))


def identity_of(descriptor: int, kind: PinKind) -> Identity:
    """Identity of the object behind a descriptor."""
    match kind:
        case PinKind.PROGRAM:
            facts = _bpf.prog_info(descriptor)
            return Identity(id=facts.id, load_time=facts.load_time)
        case PinKind.MAP:
            return Identity(id=_bpf.map_info(descriptor).id)
        case PinKind.LINK:
            return Identity(id=_bpf.link_info(descriptor).id)


def _refuse_folder(place: Path, found: os.stat_result, *, sticky_is_fine: bool) -> None:
    problem = ""
    if not stat.S_ISDIR(found.st_mode):
        problem = "something that is no folder"
    elif found.st_uid not in {0, os.geteuid()}:
        problem = f"a folder of uid {found.st_uid}"
    elif found.st_mode & _OTHERS_WRITE and not (sticky_is_fine and found.st_mode & stat.S_ISVTX):
        problem = f"mode {stat.S_IMODE(found.st_mode):o}"
    if problem:
        message = (
            f"expected a folder of root that nobody else can write to, got {problem}; look into it, then remove it"
        )
        raise KernelError(f"use {place}", errno.EPERM, message)


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # something was pinned there since
            raise


def _make(folder: Path) -> None:
    """The folder, and those above it that are missing, each for us alone whatever the umask is."""
    try:
        _points.at("mkdir bpffs", folder.mkdir, mode=_MODE, exist_ok=True)
    except FileNotFoundError:
        _make(folder.parent)
        _points.at("mkdir bpffs", folder.mkdir, mode=_MODE, exist_ok=True)


class Pins:
    """The pin directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = f"{root}/"
        self._refused = False  # looked for strangers, and the directory is the one that was looked at

    def path(self, relative: str) -> str:
        """The absolute path. Raises KernelError EINVAL for a path that would leave the directory."""
        if not relative or relative.startswith("/") or "." in relative:
            raise KernelError(
                f"pin path {relative!r}", errno.EINVAL, "expected a relative path without dots (bpffs refuses them)"
            )
        return f"{self._prefix}{relative}"

    def filesystem_id(self) -> int:
        """Device number of the bpffs (a remount changes it), 0 when there is none."""
        for place in (self.root, *self.root.parents):
            with suppress(OSError):
                return place.stat().st_dev if _filesystem(place) == _BPF_FS_MAGIC else 0
        return 0

    def pin(self, descriptor: int, relative: str) -> None:
        """Pin an object. Raises KernelError, EEXIST when the path is taken."""
        path = self.path(relative)
        if not self._refused:
            self.refuse_strangers()
        with failing(f"pin {relative}"):
            try:
                _bpf.obj_pin(descriptor, path)
            except FileNotFoundError:  # no folder yet, or no bpffs
                if self.root.is_relative_to(BPFFS):
                    mount_bpffs()
                self.refuse_strangers()
                _make(Path(path).parent)
                _bpf.obj_pin(descriptor, path)

    def refuse_strangers(self) -> None:
        """Nobody but us may change what lies in the pin directory, or put another one in its place.

        A bpffs that was mounted without a mode is writable by all (and sticky): whoever makes our directory first owns
        it, or makes it a link to another one's pins.

        Raises:
            KernelError: EPERM for a folder on bpffs, from its mount point to ours, that others own or may write to.
        """
        for place in (self.root, *self.root.parents):
            with failing(f"look at {place}"), suppress(FileNotFoundError, NotADirectoryError):
                found = place.lstat()
                mounted = _filesystem(place.parent) != _BPF_FS_MAGIC
                if mounted and _filesystem(place) != _BPF_FS_MAGIC:
                    break
                _refuse_folder(place, found, sticky_is_fine=mounted)
        self._refused = True

    def exists(self, relative: str) -> bool:
        return os.path.lexists(self.path(relative))

    def opened(self, relative: str) -> _bpf.closing:
        """A descriptor of the pinned object, for a `with` block. Raises KernelError, ENOENT when there is none."""
        path = self.path(relative)
        with failing(f"open pin {relative}"):
            return _bpf.closing(_bpf.obj_get(path))

    def unlink(self, relative: str) -> None:
        """Remove a pin or an empty folder, and the folders that became empty; what does not exist is fine."""
        path = self.path(relative)
        with failing(f"unpin {relative}"), suppress(FileNotFoundError):
            try:
                _points.at("unlink bpffs", os.unlink, path)
            except IsADirectoryError:
                _points.at("rmdir bpffs", _remove_if_empty, Path(path))
        with suppress(OSError):  # not empty, or gone; a folder that stays is seen by the next `walk`
            while len(path) > len(self._prefix):
                path = path.rpartition("/")[0]
                _points.at("rmdir bpffs", os.rmdir, path)
                self._refused &= len(path) > len(self._prefix)

    def remove_root(self) -> None:
        """Remove the directory itself if it is empty: a process died after it had removed the last folder in it."""
        with suppress(OSError):
            _points.at("rmdir bpffs", os.rmdir, self.root)
            self._refused = False

    def walk(self) -> Iterator[str]:
        """Relative paths of all pins, and of empty folders with a slash at the end, in no order.

        Raises:
            OSError: a folder cannot be read.
        """
        yield from self._walk(str(self.root), "")

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        if not entries and prefix:
            yield prefix
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name
