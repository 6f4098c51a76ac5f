# SPDX-License-Identifier: Apache-2.0
"""What tests on a real kernel share: namespaces, veth pairs, compiled programs, raw packets, leak checks.

Everything that is made here is a context manager or lives in a temporary folder; nothing touches interfaces of the
host's own namespace.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import ctypes
import fcntl
import functools
import hashlib
import json
import os
import platform
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

PROGS = Path(__file__).parent / "progs"
BPFFS = Path("/sys/fs/bpf")
BPF_FS_MAGIC = 0xCAFE4A11
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str, check: bool = True) -> str:
    """Run a command; its standard output."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if check and done.returncode != 0:
        message = f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}"
        raise RuntimeError(message)
    return done.stdout


def need(condition: object, why: str) -> None:
    """Skip a test that this machine cannot run (tests/conftest.py makes a failure of it where it must not skip)."""
    if not condition:
        pytest.skip(why)


@functools.cache
def need_kernel() -> None:
    """Root, the tools, and a mounted bpffs (mounted here when it is not)."""
    need(os.geteuid() == 0, "root is needed")
    for tool in ("ip", "tc", "clang", "bpftool"):
        need(shutil.which(tool), f"{tool} is needed")
    mount_bpffs()
    need(is_bpffs(BPFFS), "a bpffs on /sys/fs/bpf is needed")


def is_bpffs(path: Path) -> bool:
    """Whether `path` lies on a bpffs."""
    return run("stat", "-f", "-c", "%t", str(path)).strip() == f"{BPF_FS_MAGIC:x}"


def mount_bpffs() -> None:
    """Mount a bpffs on /sys/fs/bpf unless there is one."""
    if not is_bpffs(BPFFS):
        run("mount", "-t", "bpf", "bpf", str(BPFFS))


SETTLE_SECONDS = 5.0
"""How long the kernel may take to free what lost its last reference; a bound on waiting, nothing that is measured."""


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it holds within SETTLE_SECONDS."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# === namespaces ============================================================================================


def unique(stem: str = "") -> str:
    """A name that no other test uses: one that the leak check knows as this run's (tests/conftest.py), for namespaces
    and pin directories, or one that begins with a short stem and fits an interface."""
    return f"{stem}-{secrets.token_hex(4)}" if stem else f"rct{os.getpid()}-{secrets.token_hex(4)}"


def in_netns(name: str, call: Callable[[], T]) -> T:
    """Run `call` in a thread of its own inside the named namespace; this thread never moves."""

    def work() -> T:
        descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(descriptor, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns {name}")
        finally:
            os.close(descriptor)
        return call()

    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:  # the thread ends, so it need not go back
        return pool.submit(work).result()


@dataclass(frozen=True, slots=True)
class Netns:
    """A named network namespace."""

    name: str

    @property
    def inode(self) -> int:
        return Path("/run/netns", self.name).stat().st_ino

    def ip(self, *arguments: str, check: bool = True) -> str:
        return run("ip", "-n", self.name, *arguments, check=check)

    def tc(self, *arguments: str, check: bool = True) -> str:
        return run("tc", "-n", self.name, *arguments, check=check)

    def run(self, call: Callable[[], T]) -> T:
        return in_netns(self.name, call)

    def ifindex(self, interface: str) -> int:
        return self.run(lambda: socket.if_nametoindex(interface))

    def bpftool(self, *arguments: str) -> Any:
        """bpftool's JSON, asked inside the namespace (it must not be started by `ip netns exec`: fresh /sys)."""

        def work() -> Any:
            return json.loads(run("bpftool", "-j", *arguments) or "null")

        return self.run(work)

    def packet_socket(self, interface: str, *, timeout: float = 2.0) -> socket.socket:
        """A bound AF_PACKET socket; it stays in the namespace wherever it is used."""

        def work() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            try:
                made.bind((interface, 0))
            except OSError:
                made.close()
                raise
            made.settimeout(timeout)
            return made

        return self.run(work)

    def socket(self, family: int, type_: int, *, timeout: float = 2.0) -> socket.socket:
        made = self.run(lambda: socket.socket(family, type_))
        made.settimeout(timeout)
        return made


@contextlib.contextmanager
def netns() -> Iterator[Netns]:
    """A fresh named namespace with `lo` up, removed at the end (also when the test removed it itself)."""
    name = unique()
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield Netns(name)
    finally:
        run("ip", "netns", "del", name, check=False)


def add_veth(left: Netns, left_name: str, right: Netns, right_name: str, *, up: bool = True) -> None:
    """A veth pair between two namespaces; IPv6 autoconfiguration is off so that the wire is quiet."""
    left.ip("link", "add", "name", left_name, "type", "veth", "peer", "name", right_name, "netns", right.name)
    for space, name in ((left, left_name), (right, right_name)):
        space.ip("link", "set", "dev", name, "addrgenmode", "none")
        if up:
            space.ip("link", "set", "dev", name, "up")


@dataclass(frozen=True, slots=True)
class Wire:
    """Two namespaces joined by one veth pair; packets go from `far` to `near`, where chains are attached."""

    near: Netns
    far: Netns
    interface: str
    far_interface: str
    near_address: str = "10.77.0.1"
    far_address: str = "10.77.0.2"

    @property
    def ifindex(self) -> int:
        return self.near.ifindex(self.interface)

    def mac(self, space: Netns, interface: str) -> bytes:
        (link,) = json.loads(space.ip("-j", "link", "show", "dev", interface))
        return bytes.fromhex(link["address"].replace(":", ""))

    def frame(self, *, dport: int = 9, payload: bytes = b"\0" * 32, source: str | None = None) -> bytes:
        """A UDP frame from far to near."""
        return udp_frame(
            self.mac(self.near, self.interface),
            self.mac(self.far, self.far_interface),
            source or self.far_address,
            self.near_address,
            dport=dport,
            payload=payload,
        )


@contextlib.contextmanager
def wire(interface: str = "near0", far_interface: str = "far0", *, addresses: bool = True) -> Iterator[Wire]:
    """Two fresh namespaces and a veth pair, with addresses and static neighbours."""
    with netns() as near, netns() as far:
        add_veth(near, interface, far, far_interface)
        made = Wire(near=near, far=far, interface=interface, far_interface=far_interface)
        if addresses:
            near.ip("addr", "add", f"{made.near_address}/24", "dev", interface)
            far.ip("addr", "add", f"{made.far_address}/24", "dev", far_interface)
            near_mac, far_mac = made.mac(near, interface).hex(":"), made.mac(far, far_interface).hex(":")
            near.ip("neigh", "add", made.far_address, "lladdr", far_mac, "dev", interface)
            far.ip("neigh", "add", made.near_address, "lladdr", near_mac, "dev", far_interface)
        yield made


# === packets ===============================================================================================


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_frame(  # a frame has that many fields
    dst_mac: bytes, src_mac: bytes, src: str, dst: str, *, sport: int = 4000, dport: int = 9, payload: bytes = b""
) -> bytes:
    """Ethernet, IPv4, UDP without UDP checksum (0 is allowed over IPv4); the payload begins at byte 42."""
    udp = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, socket.inet_aton(src), socket.inet_aton(dst)
    )
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return dst_mac + src_mac + b"\x08\x00" + header + udp


def receive_all(receiver: socket.socket, *, quiet: float = 0.2) -> list[bytes]:
    """Everything that arrives until nothing comes for `quiet` seconds (packets this end sent are not among it)."""
    frames = []
    old = receiver.gettimeout()
    receiver.settimeout(quiet)
    try:
        while True:
            data, address = receiver.recvfrom(65536)
            if receiver.family != socket.AF_PACKET or address[2] != socket.PACKET_OUTGOING:
                frames.append(data)
    except TimeoutError:
        return frames
    finally:
        receiver.settimeout(old)


# === programs ==============================================================================================


@functools.cache
def _build_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="reconciler-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def compile_program(source: Path, *defines: str, include: tuple[Path, ...] = ()) -> bytes:
    """Compile a BPF C source as packages are compiled; the object's bytes. Cached for the session."""
    multiarch = f"/usr/include/{platform.machine()}-linux-gnu"
    name = hashlib.sha256(repr((source, defines)).encode()).hexdigest()[:16]
    target = _build_folder() / f"{source.stem}-{name}.o"
    flags = ["-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-mcpu=v3", "-I", multiarch]
    for folder in include:
        flags += ["-I", str(folder)]
    run("clang", *flags, *(f"-D{define}" for define in defines), "-c", str(source), "-o", str(target))
    run("llvm-strip", "-g", str(target))
    return target.read_bytes()


@contextlib.contextmanager
def exclusive(what: str) -> Iterator[None]:
    """One process at a time: for what is one for the whole machine."""
    path = Path(tempfile.gettempdir(), f"reconciler-test-{what}.lock")
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# === bpffs =================================================================================================


@contextlib.contextmanager
def pin_directory() -> Iterator[Path]:
    """A pin directory of its own; whatever is left in it is removed at the end."""
    need_kernel()
    path = BPFFS / unique()
    try:
        yield path
    finally:
        remove_pins(path)


def remove_pins(path: Path) -> None:
    """Unlink everything below `path`, and `path`. Links that lose their last reference are detached."""
    if path.exists():
        shutil.rmtree(path)


def kernel_objects() -> dict[str, set[int]]:
    """Ids of all programs, maps and links."""
    return {
        kind: {item["id"] for item in json.loads(run("bpftool", "-j", kind, "show") or "[]")}
        for kind in ("prog", "map", "link")
    }
