# SPDX-License-Identifier: Apache-2.0
"""Somebody else with root: attaches programs that nobody declared, and tampers with those that somebody did.

Acts by ip(8), tc(8), bpftool(8) and plain system calls in a namespace. Everything it holds is released by `close`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from reconciler.kernel import _attr, _bpf
from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

PASS = {"xdp": 2, "tc": -1}
TCX = {"tc-ingress": _bpf.BPF_TCX_INGRESS, "tc-egress": _bpf.BPF_TCX_EGRESS}


class Intruder:
    """Acts on one interface; `pins` is a folder on bpffs for what tools want pinned."""

    def __init__(self, netns: support.Netns, interface: str, pins: Path) -> None:
        self.netns, self.interface, self.pins = netns, interface, pins
        self._held: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    # --- programs of its own -----------------------------------------------------------------------------

    def program(self, kind: str) -> int:
        """A program that lets everything pass; its descriptor is held."""
        xdp = kind == "xdp"
        made = _bpf.load_trivial(
            _bpf.ProgType.XDP if xdp else _bpf.ProgType.SCHED_CLS,
            PASS["xdp" if xdp else "tc"],
            _bpf.BPF_XDP if xdp else 0,
        )
        self._held.append(made)
        return made

    def xdp_link(self) -> int:
        """An XDP program by a link; its id."""
        program, index = self.program("xdp"), self.netns.ifindex(self.interface)
        self._held.append(self.netns.run(lambda: _bpf.link_create_xdp(program, index, _bpf.XDP_FLAGS_SKB_MODE)))
        return _bpf.prog_info(program).id

    def xdp_netlink(self) -> int:
        """An XDP program as ip(8) attaches it; its id."""
        program = self.program("xdp")
        self._pinned(
            program, lambda path: self._run("ip", "link", "set", "dev", self.interface, "xdpdrv", "pinned", path)
        )
        return _bpf.prog_info(program).id

    def tcx_link(self, kind: str = "tc-ingress") -> int:
        """A tcx program in front of all others, by a link; its id."""
        program, index = self.program(kind), self.netns.ifindex(self.interface)
        attr = _attr.LinkCreateTcx(
            prog_fd=program, target_ifindex=index, attach_type=TCX[kind], flags=_bpf.BPF_F_BEFORE
        )
        self._held.append(self.netns.run(lambda: _bpf.bpf(_bpf.Cmd.LINK_CREATE, attr)))
        return _bpf.prog_info(program).id

    def tcx_program(self, kind: str = "tc-ingress") -> int:
        """A tcx program behind all others, without a link; its id."""
        program, index = self.program(kind), self.netns.ifindex(self.interface)
        self.netns.run(lambda: _bpf.tcx_attach(program, index, TCX[kind]))
        return _bpf.prog_info(program).id

    def filter(self, direction: str = "ingress", prio: int = 7) -> int:
        """A cls_bpf filter on clsact, as tc(8) makes it; the program's id."""
        program = self.program("tc")
        self.netns.tc("qdisc", "add", "dev", self.interface, "clsact", check=False)
        where = ("dev", self.interface, direction, "prio", str(prio))
        self._pinned(program, lambda path: self._run("tc", "filter", "add", *where, "bpf", "da", "pinned", path))
        return _bpf.prog_info(program).id

    def _pinned(self, program: int, use: Callable[[str], None]) -> None:
        self.pins.mkdir(exist_ok=True)
        path = self.pins / "intruder"
        _bpf.obj_pin(program, str(path))
        try:
            use(str(path))
        finally:
            path.unlink()

    def _run(self, *command: str) -> None:
        # Not with -n: that mounts a fresh /sys, which holds no pins.
        self.netns.run(lambda: support.run(*command))

    # --- what is ours ------------------------------------------------------------------------------------

    def detach(self, link: int) -> None:
        """LINK_DETACH by id, as bpftool does it."""
        support.run("bpftool", "link", "detach", "id", str(link))

    def replace(self, link: int, kind: str) -> int:
        """Puts another program behind a link of ours; its id."""
        program = self.program(kind)
        with _bpf.closing(_bpf.link_by_id(link)) as descriptor:
            _bpf.bpf(_bpf.Cmd.LINK_UPDATE, _attr.LinkUpdate(link_fd=descriptor, new_prog_fd=program))
        return _bpf.prog_info(program).id

    @staticmethod
    def write(path: Path) -> int:
        """The errno of an attempt to change the first entry of a pinned map; 0 when it worked."""
        with _bpf.closing(_bpf.obj_get(str(path))) as descriptor:
            facts = _bpf.map_info(descriptor)
            key = next(iter(_bpf.map_keys(descriptor, facts.key_size)), bytes(facts.key_size))
            try:
                _bpf.map_delete(descriptor, key)
            except OSError as error:
                return error.errno or -1
        return 0
