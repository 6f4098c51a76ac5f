# SPDX-License-Identifier: Apache-2.0
"""What this kernel can do, found out by trying: never from its version.

"No" is said only for the errno that means it; everything else (most often EPERM) is "could not tell".
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.kernel import _bpf, _grace, _netns
from reconciler.kernel._netlink import ETH_P_ALL, MIN_INGRESS, BpfFilter, Route
from reconciler.model import Features, Support

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BTF = Path("/sys/kernel/btf/vmlinux")
_LOOPBACK = 1
_NO_SUCH_INTERFACE = 0x7FFFFFFF
_XDP_PASS, _UNSPEC = 2, -1


def _probe(attempt: Callable[[], None], no: frozenset[int], yes: frozenset[int] = frozenset()) -> Support:
    try:
        attempt()
    except OSError as error:
        if error.errno in yes:
            return Support.YES
        return Support.NO if error.errno in no else Support.UNKNOWN
    return Support.YES


def _tcx() -> None:
    _bpf.tcx_query(_NO_SUCH_INTERFACE, _bpf.BPF_TCX_INGRESS)


def _xdp_link() -> None:
    """In a namespace of its own: the kernel gives EINVAL for a missing interface and for a missing feature alike."""
    with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.XDP, _XDP_PASS, _bpf.BPF_XDP)) as program:
        os.close(_bpf.link_create_xdp(program, _LOOPBACK, _bpf.XDP_FLAGS_SKB_MODE))


def _clsact() -> None:
    """In a namespace of its own: a qdisc and a filter, which need two modules."""
    probe = BpfFilter(
        ifindex=_LOOPBACK,
        parent=MIN_INGRESS,
        prio=1,
        protocol=ETH_P_ALL,
        chain=0,
        handle=1,
        program_id=0,
        name="probe",
        direct_action=True,
    )
    with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.SCHED_CLS, _UNSPEC)) as program, Route() as route:
        route.add_clsact(_LOOPBACK)
        route.set_filter(probe, program, replace=False)


def _in_fresh(worker: _netns.Worker, attempt: Callable[[], None], no: frozenset[int]) -> Support:
    try:
        return worker.fresh(lambda: _probe(attempt, no))
    except OSError:  # no namespace could be made
        return Support.UNKNOWN


def _file(path: Path) -> Support:
    try:
        return Support.YES if path.exists() else Support.NO
    except OSError:
        return Support.UNKNOWN


def _map_in_map() -> Support:
    return _probe(_grace.wait_by_map, no=frozenset({errno.EINVAL}))


def probe(worker: _netns.Worker, force: Mapping[str, Support]) -> Features:
    """Probe everything; `force` gives answers by name instead (also "membarrier" and "map-in-map")."""

    def answer(name: str, ask: Callable[[], Support]) -> Support:
        return force[name] if name in force else ask()

    unknown = frozenset({errno.EINVAL})
    ways = {
        _grace.MEMBARRIER: lambda: Support.YES if _grace.membarrier_waits() else Support.NO,
        _grace.MAP_IN_MAP: _map_in_map,
    }
    return Features(
        xdp_link=answer("xdp_link", lambda: _in_fresh(worker, _xdp_link, unknown)),
        # ENODEV: the kernel knows the attach type and looked for the interface.
        tcx=answer("tcx", lambda: _probe(_tcx, no=unknown, yes=frozenset({errno.ENODEV}))),
        clsact=answer("clsact", lambda: _in_fresh(worker, _clsact, frozenset({errno.ENOENT, errno.EOPNOTSUPP}))),
        btf=answer("btf", lambda: _file(BTF)),
        expedite=answer("expedite", lambda: Support.YES if _grace.may_expedite() else Support.NO),
        drain=tuple(name for name, ask in ways.items() if answer(name, ask) is Support.YES),
    )
