# SPDX-License-Identifier: Apache-2.0
"""Small programs, links, and what runs on tcx hooks."""

from __future__ import annotations

import ctypes
import errno
from contextlib import suppress
from typing import NamedTuple

from reconciler.kernel import _attr
from reconciler.kernel._bpf._call import BPF_F_BEFORE, BPF_F_REPLACE, BPF_XDP, Cmd, ProgType, address, bpf, call

MAX_MPROG = 64
"""BPF_MPROG_MAX (include/linux/bpf_mprog.h): entries on one tcx hook."""


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
        license=address(licence),
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
                call(Cmd.PROG_QUERY, attr)
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
