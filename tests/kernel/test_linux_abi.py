# SPDX-License-Identifier: Apache-2.0
"""Every structure that is given to bpf(2) has the layout that the running kernel's own BTF says."""

from __future__ import annotations

import ctypes
import subprocess
from typing import TYPE_CHECKING

import pytest

from reconciler.kernel import _attr
from tests.kernel import support

if TYPE_CHECKING:
    from pathlib import Path

ATTR = "union bpf_attr"

STRUCTURES = {
    _attr.MapCreate: (ATTR, ""),
    _attr.MapElem: (ATTR, ""),
    _attr.MapBatch: (ATTR, "batch."),
    _attr.ProgLoad: (ATTR, ""),
    _attr.TestRun: (ATTR, "test."),
    _attr.Obj: (ATTR, ""),
    _attr.ProgAttach: (ATTR, ""),
    _attr.Ids: (ATTR, ""),
    _attr.Info: (ATTR, "info."),
    _attr.Query: (ATTR, "query."),
    _attr.LinkCreate: (ATTR, "link_create."),
    _attr.LinkCreateTcx: (ATTR, "link_create."),
    _attr.LinkUpdate: (ATTR, "link_update."),
    _attr.LinkDetach: (ATTR, "link_detach."),
    _attr.ProgInfo: ("struct bpf_prog_info", ""),
    _attr.MapInfo: ("struct bpf_map_info", ""),
    _attr.LinkInfo: ("struct bpf_link_info", ""),
    _attr.Insn: ("struct bpf_insn", ""),
}
"""Structure to the kernel's type, and where in it."""

DEEPER = {
    (_attr.LinkCreateTcx, "relative_fd"): ("tcx.relative_fd",),
    (_attr.LinkCreateTcx, "expected_revision"): ("tcx.expected_revision",),
    (_attr.LinkInfo, "ifindex"): ("xdp.ifindex", "tcx.ifindex", "netkit.ifindex"),
    (_attr.LinkInfo, "attach_type"): ("tcx.attach_type", "netkit.attach_type"),
}
OURS_ALONE = {"_pad", "_rest", "registers"}
"""Padding, and the two bit fields of bpf_insn, which have no offset."""


@pytest.fixture(scope="module")
def vmlinux_h(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("btf") / "vmlinux.h"
    path.write_text(support.run("bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "c"))
    return path


def test_every_structure_is_compared() -> None:
    named = {value for value in vars(_attr).values() if isinstance(value, type) and issubclass(value, ctypes.Structure)}
    assert named == set(STRUCTURES)


def test_layouts_are_the_kernels(vmlinux_h: Path) -> None:
    done = compile_against(vmlinux_h, [line for structure in STRUCTURES for line in assertions(structure)])
    assert done.returncode == 0, done.stderr


def test_a_wrong_layout_is_noticed(vmlinux_h: Path) -> None:
    class Wrong(ctypes.Structure):
        _fields_ = (("link_fd", ctypes.c_uint64), ("new_prog_fd", ctypes.c_uint32))

    done = compile_against(vmlinux_h, list(assertions(Wrong, (ATTR, "link_update."))))
    assert done.stderr.count("static_assert") + done.stderr.count("static assertion") >= 2


def assertions(structure: type[ctypes.Structure], where: tuple[str, str] | None = None) -> list[str]:
    kernel_type, prefix = where or STRUCTURES[structure]
    lines = []
    for name, *_ in structure._fields_:
        if name in OURS_ALONE:
            continue
        ours = getattr(structure, name)
        for path in DEEPER.get((structure, name), (name,)):
            place = f"{prefix}{path}"
            lines += [
                f'_Static_assert(__builtin_offsetof({kernel_type}, {place}) == {ours.offset}, "{place}");',
                f'_Static_assert(sizeof((({kernel_type} *)0)->{place}) == {ours.size}, "{place}");',
            ]
    return lines


def compile_against(vmlinux_h: Path, lines: list[str]) -> subprocess.CompletedProcess[str]:
    source = f'#include "{vmlinux_h}"\n' + "\n".join(lines)
    command = ["clang", "-target", "bpf", "-fsyntax-only", "-Wno-everything", "-x", "c", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False)
