# SPDX-License-Identifier: Apache-2.0
"""What `check` asks about this host's tools: libbpf, bpffs, bcc. Reads only; loads no program."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Final

MINIMUM_LIBBPF: Final = (1, 1)
"""Debian 12's; what is newer is called through bpf(2) directly."""

BPFFS: Final = Path("/sys/fs/bpf")
"""Where bpffs belongs, and where the agent mounts one when there is none."""

MOUNTS: Final = Path("/proc/self/mounts")
NETNS: Final = Path("/run/netns")
"""Where iproute2 keeps network namespaces."""
FILESYSTEMS: Final = Path("/proc/filesystems")


def libbpf_version() -> tuple[int, int] | None:
    """Major and minor version of libbpf.so.1, None when it is not installed."""
    try:
        library = ctypes.CDLL("libbpf.so.1")
    except OSError:
        return None
    return int(library.libbpf_major_version()), int(library.libbpf_minor_version())


def has_bcc() -> bool:
    """Whether `bcc` could be imported (Debian's python3-bpfcc); nothing is imported."""
    return importlib.util.find_spec("bcc") is not None


def bpffs_mounts(mounts: Path = MOUNTS) -> tuple[str, ...]:
    """Where a bpffs is mounted, as this process sees it.

    Raises:
        OSError: `mounts` cannot be read.
    """
    fields = [line.split(" ") for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    return tuple(field[1] for field in fields if field[2:3] == ["bpf"])  # device, place, type


def is_passing(mounts: Path = MOUNTS, netns: Path = NETNS) -> bool:
    """Whether this is the mount namespace that `ip netns exec` makes for one command: what is pinned ends with it.

    It mounts a /sys of its own whose source is the network namespace's name (iproute2 6.1, lib/namespace.c,
    netns_switch).
    """
    fields = [line.split(" ") for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    sources = [field[0] for field in fields if field[1:3] == ["/sys", "sysfs"]]
    return bool(sources) and (netns / sources[-1]).is_file()


def can_mount_bpffs(filesystems: Path = FILESYSTEMS) -> bool:
    """Whether this kernel has bpffs and the place for it is there (sysfs makes it); nothing is mounted."""
    try:
        known = filesystems.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return False
    return "bpf" in known and BPFFS.is_dir()
