# SPDX-License-Identifier: Apache-2.0
"""A neighbour that replaces its program on one hook every 3 ms, each time by one that it has just loaded.

    python -m tests.e2e.churner NETNS INTERFACE xdp|tc-ingress

Prints a line when it has begun, goes on until its standard input is closed, takes its program off and prints how often
it replaced it. On XDP it uses netlink, and begins anew whatever happened to its program; on tcx it uses a link.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from contextlib import suppress

from reconciler.kernel import _bpf
from reconciler.kernel._netlink import Route
from tests.kernel import support

PERIOD = 0.003
"""Seconds."""


def churn_xdp(index: int) -> int:
    """Netlink XDP without any comparison, as ip(8) does it."""
    rounds = 0
    with Route() as route:
        while not _ended():
            with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.XDP, 2, _bpf.BPF_XDP)) as program, suppress(OSError):
                _set(route, index, program)
                rounds = _counted(rounds)
        with suppress(OSError):
            _set(route, index, -1)
    return rounds


def _set(route: Route, index: int, program: int) -> None:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: PLC0415

    message = ifinfmsg()
    message["index"] = index
    values = [("IFLA_XDP_FD", program), ("IFLA_XDP_FLAGS", _bpf.XDP_FLAGS_DRV_MODE)]
    message["attrs"] = [("IFLA_XDP", {"attrs": values})]
    route._change(19, 0, message)


def churn_tcx(index: int) -> int:
    """One link at the tail, and again and again another program behind it."""
    rounds, old = 0, _bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)
    with _bpf.closing(_bpf.link_create_tcx(old, index, _bpf.BPF_TCX_INGRESS, None)) as link:
        while not _ended():
            new = _bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)
            with suppress(OSError):  # somebody detached it: whoever churns does not mind
                _bpf.link_update(link, new, old)
                rounds = _counted(rounds)
            os.close(old)
            old = new
    os.close(old)
    return rounds


def _counted(rounds: int) -> int:
    if not rounds:
        print("begun", flush=True)  # noqa: T201
    return rounds + 1


def _ended() -> bool:
    """Waits for one period; whether standard input was closed meanwhile."""
    return bool(select.select([sys.stdin], [], [], PERIOD)[0])


def main(netns: str, interface: str, kind: str) -> None:
    churn = churn_xdp if kind == "xdp" else churn_tcx
    print(support.in_netns(netns, lambda: churn(socket.if_nametoindex(interface))))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
