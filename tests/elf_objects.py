# SPDX-License-Identifier: Apache-2.0
"""Compiles C to eBPF objects for the tests of `reconciler.elf`, and takes objects apart to alter them."""

from __future__ import annotations

import functools
import platform
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Final

CLANG: Final = ("clang", "-target", "bpf", "-O2", "-g", "-mcpu=v3", f"-I/usr/include/{platform.machine()}-linux-gnu")

PRELUDE: Final = """
#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_helpers.h>
"""

PROGRAM: Final = """
SEC("xdp") int prog(struct xdp_md *ctx) { return XDP_PASS; }
char LICENSE[] SEC("license") = "Dual BSD/GPL";
"""


@functools.cache
def compile_c(source: str, *flags: str) -> bytes:
    """The object that clang makes of `source`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "a.bpf.c").write_text(source)
        subprocess.run([*CLANG, *flags, "-c", path / "a.bpf.c", "-o", path / "a.o"], check=True)
        return (path / "a.o").read_bytes()


def compile_program(declarations: str) -> bytes:
    """An object with one XDP program, the licence, and `declarations`."""
    return compile_c(PRELUDE + declarations + PROGRAM)


def run_on(data: bytes, *command: str) -> bytes:
    """Run a tool on an object; {in} and {out} in `command` are files; returns {out}, or what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        names = {"in": f"{folder}/in.o", "out": f"{folder}/out.o"}
        Path(names["in"]).write_bytes(data)
        done = subprocess.run([part.format(**names) for part in command], check=True, capture_output=True)
        out = Path(names["out"])
        return out.read_bytes() if out.exists() else done.stdout


def strip(data: bytes) -> bytes:
    """Without debug sections, as packages are built."""
    return run_on(data, "llvm-strip", "-g", "{in}", "-o", "{out}")


def section_headers(data: bytes) -> dict[str, tuple[int, ...]]:
    """Section headers by name, each preceded by its own offset in the object."""
    (table,) = struct.unpack_from("<Q", data, 40)
    count, names = struct.unpack_from("<HH", data, 60)
    headers = [(table + 64 * i, *struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i)) for i in range(count)]
    strings = headers[names][5]
    return {data[strings + header[1] :].split(b"\0", 1)[0].decode(): header for header in headers}


def section_of(data: bytes, name: str) -> bytes:
    """The contents of one section."""
    header = section_headers(data)[name]
    return data[header[5] : header[5] + header[6]]


def patch(data: bytes, offset: int, layout: str, *values: int) -> bytes:
    """The object with `values` written at `offset`."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, *values)
    return bytes(changed)


class BtfBuilder:
    """Writes BTF by hand, for types that no compiler would write."""

    def __init__(self) -> None:
        self._types = b""
        self._strings = b"\0"
        self.count = 0

    def string(self, text: str) -> int:
        if not text:
            return 0
        self._strings += text.encode() + b"\0"
        return len(self._strings) - len(text.encode()) - 1

    def add(self, kind: int, name: str, value: int, *extra: int, vlen: int = 0, flag: bool = False) -> int:
        """Add a type; `value` is its size or type, `extra` the words that follow. Returns its id."""
        info = kind << 24 | vlen | (1 << 31 if flag else 0)
        self._types += struct.pack("<III", self.string(name), info, value)
        self._types += b"".join(struct.pack("<I", word & 0xFFFFFFFF) for word in extra)
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        return self.add(1, name, size, encoding << 24 | size * 8)

    def pointer(self, to: int) -> int:
        return self.add(2, "", to)

    def array(self, of: int, count: int) -> int:
        return self.add(3, "", 0, of, 0, count)

    def composite(
        self, name: str, size: int, *members: tuple[str, int, int], union: bool = False, flag: bool = False
    ) -> int:
        """Members are (name, type, offset in bits; with `flag` the width is in its upper 8 bits)."""
        words = [word for member, type_id, offset in members for word in (self.string(member), type_id, offset)]
        return self.add(5 if union else 4, name, size, *words, vlen=len(members), flag=flag)

    def data(self) -> bytes:
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self._strings))
        return header + self._types + self._strings
