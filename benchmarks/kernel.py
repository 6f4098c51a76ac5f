# SPDX-License-Identifier: Apache-2.0
"""The kernel's side: first attach, taking away, a pass without changes, and how they grow with the interfaces."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._compare import Comparison, Measure, Options, interleaved, quiet, seconds
from benchmarks._lab import ROOT, Bare, interfaces, machine, tc_state, xdp_state
from reconciler.config import SecureMode
from reconciler.kernel import _grace
from reconciler.kernel.linux import LinuxKernel
from reconciler.model import to_builtins
from reconciler.reconcile import teardown
from tests.kernel import scale, support
from tests.sim import host as sim
from tests.sim.world import desired, member, xdp_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from benchmarks._lab import Machine
    from reconciler.model import DesiredState

SIZES = (10, 100, 1000, 4000)
"""Interfaces of the scaling figures."""

QUIET_SECONDS = 60.0
"""How long to wait for others to switch `rcu_expedited` back."""

GROWTH = ROOT / "benchmarks" / "scaling.json"


def grace_periods(options: Options) -> Iterable[Comparison]:
    """200 interfaces with two tc chains of two, from nothing and back, with and without expedited grace periods."""
    count = options.some(200)
    with interfaces(count) as netns, ExitStack() as stack:
        state = tc_state(netns)
        plain = stack.enter_context(machine(netns, expedite="never"))
        fast = stack.enter_context(machine(netns))
        bare = Bare(plain.world, state)
        taken: dict[str, list[float]] = {}

        def side(name: str, attach: float, detach: float) -> None:
            taken.setdefault(f"{name} attach", []).append(attach)
            taken.setdefault(f"{name} detach", []).append(detach)

        for _ in range(max(1, options.rounds // 2)):
            with support.exclusive("rcu_expedited"):
                side("bare", _unexpedited(bare.attach), _unexpedited(bare.detach))
                side("plain", *(_unexpedited(partial(_converging, plain, wanted)) for wanted in (state, desired())))
                side("fast", *(_converging(fast, wanted) for wanted in (state, desired())))
    for what, phase in (("attach", "first attach"), ("detach", "taking away")):
        for side_name, how, target in (("plain", "default", 1.15), ("fast", "expedited", 0.1)):
            yield Comparison(
                name=f"(a) {phase}, {count} × tc in and out, {how} grace periods",
                ours=1000 * _median(taken[f"{side_name} {what}"]),
                baseline=1000 * _median(taken[f"bare {what}"]),
                unit="ms",
                target=target,
            )


def _unexpedited(action: Callable[[], float]) -> float:
    """What `action` measures while nobody on this machine expedites grace periods; waits for that, within reason."""
    deadline = time.monotonic() + QUIET_SECONDS
    while _grace.setting() != 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    before = _grace.setting()
    taken = action()
    if (before, _grace.setting()) != (0, 0):
        print("warning: somebody else switched rcu_expedited; this figure does not count", file=sys.stderr)
    return taken


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _converging(host: Machine, state: DesiredState) -> float:
    return seconds(lambda: host.converge(state))


def first_attach(options: Options) -> Iterable[Comparison]:
    """One XDP chain of two on 1,000 interfaces, from nothing."""
    yield _first_attach(options.some(1000), options.rounds)


def _first_attach(count: int, rounds: int) -> Comparison:
    with interfaces(count) as netns, machine(netns) as host:
        mine, other = _beside_bare(host, xdp_state(netns), rounds)
    return Comparison(name=f"(b) first attach, {count} × XDP", ours=mine, baseline=other, unit="ms", target=2.5)


def _beside_bare(host: Machine, state: DesiredState, rounds: int) -> tuple[float, ...]:
    bare = Bare(host.world, state)

    def ours() -> float:
        spent = _converging(host, state)
        host.converge(desired())
        return spent

    def baseline() -> float:
        spent = bare.attach()
        bare.detach()
        return spent

    return interleaved(ours, baseline, rounds=rounds)


def idle_pass(options: Options) -> Iterable[Comparison]:
    """A whole pass without changes over 1,000 interfaces with XDP and tc in and out, against bpftool."""
    yield _idle_pass(options.some(1000), options.rounds)


def _idle_pass(count: int, rounds: int) -> Comparison:
    with interfaces(count) as netns, applied((netns,), _three_chains(netns)) as host:
        mine, others = _beside_bpftool(host, (netns,), rounds)
    name = f"(c) pass without changes, {count} × XDP and tc in and out"
    return Comparison(name=name, ours=mine, baseline=others, unit="ms", target=1.5)


def _beside_bpftool(host: sim.Host, namespaces: tuple[str, ...], rounds: int) -> tuple[float, ...]:
    def ours() -> float:
        return seconds(lambda: _nothing_to_do(host))

    def baseline() -> float:
        spent = sum(seconds(partial(quiet, "bpftool", "-j", "net", netns=netns)) for netns in namespaces)
        spent += seconds(lambda: quiet("bpftool", "-j", "prog"))
        return spent + seconds(lambda: quiet("bpftool", "-j", "link"))

    return interleaved(ours, baseline, rounds=rounds)


def _nothing_to_do(host: sim.Host) -> None:
    result = host.repair()
    assert result.plan is not None
    assert result.plan.steps == (), result.status


def _three_chains(netns: str) -> list[dict[str, Any]]:
    """XDP, tc in and tc out on every interface, two members each."""

    def on(name: str, kind: dict[str, object], *members: object) -> dict[str, Any]:
        return sim.chain(name, *members, hook={**kind, "interfaces": ["b*"], "netns": netns})

    ingress, egress = (sim.member("firewall", program=f"firewall_{way}") for way in ("ingress", "egress"))
    return [
        on("edge", {"type": "xdp"}, sim.member(), sim.member("firewall", program="firewall_xdp")),
        on("in", {"type": "tc", "direction": "ingress"}, sim.member("flowcount"), ingress),
        on("out", {"type": "tc", "direction": "egress"}, sim.member("flowcount"), egress),
    ]


def crowded(options: Options) -> Iterable[Comparison]:
    """(b) and (c) where it is crowded: 200 namespaces, 1,000 interfaces and 2,000 programs of others, in audit."""
    count, devices, strangers = options.some(200), options.some(1000) // 2 * 2, options.some(2000)
    name = f"{count} namespaces, {devices} interfaces, {strangers} foreign programs"
    with scale.host(count, devices) as made:
        made.attach_foreign(strangers)
        spaces = tuple(made.spaces)
        # XDP alone, as in (b): a tc hook is mostly one grace period, which (a) is about.
        edge = (xdp_chain(f"edge-{netns}", member("ratelimit"), interfaces=("w*",), netns=netns) for netns in spaces)
        with machine(*spaces) as host:
            mine, other = _beside_bare(host, desired(*edge), options.rounds)
        yield Comparison(name=f"(b) first attach, {name}", ours=mine, baseline=other, unit="ms", target=2.5)
        chains = [
            sim.chain(f"edge-{netns}", sim.member(), hook={"type": "xdp", "interfaces": ["w*"], "netns": netns})
            for netns in spaces
        ]
        with applied(spaces, chains) as whole:
            mine, other = _beside_bpftool(whole, spaces, options.rounds)
        yield Comparison(name=f"(c) pass without changes, {name}", ours=mine, baseline=other, unit="ms", target=1.5)


@contextlib.contextmanager
def applied(namespaces: tuple[str, ...], chains: list[dict[str, Any]]) -> Iterator[sim.Host]:
    """A whole host (repository, signatures, state on disk) whose one commit is applied; it watches the namespaces."""
    folder = Path(tempfile.mkdtemp(dir=ROOT / "build"))
    with support.pin_directory() as pins, contextlib.closing(LinuxKernel(pin_dir=pins / "rc")) as kernel:
        host = sim.Host(folder)
        try:
            host.set_source(minimum_commit=host.origin.commit(*chains))
            host.secure(SecureMode.AUDIT, namespaces=namespaces)
            host.kernel = kernel  # type: ignore[assignment]  # from here on the real one
            result = host.apply()
            assert result.outcome is not None
            assert result.outcome.failed is None, result.status
            yield host
        finally:
            teardown(host.parts(), by="benchmark")
            host.close()
            shutil.rmtree(folder)


def scaling(options: Options) -> Iterable[Comparison]:
    """(b) and (c) at 10, 100, 1,000 and 4,000 interfaces; also written to benchmarks/scaling.json for the plot."""
    found = {}
    for count in (options.some(size) for size in SIZES):
        rounds = max(1, options.rounds if count < 1000 else options.rounds // 2)
        both = _first_attach(count, rounds), _idle_pass(count, rounds)
        found[count] = [result.row() for result in both]
        GROWTH.write_text(json.dumps(to_builtins(found), indent=2) + "\n")
        yield from both


MEASURES = (
    Measure(key="a", what="first attach and taking away beside a bare loop", run=grace_periods),
    Measure(key="b", what="first attach of XDP beside a bare loop", run=first_attach),
    Measure(key="c", what="a pass without changes beside bpftool", run=idle_pass),
    Measure(key="crowded", what="b and c with many namespaces and foreign programs", run=crowded),
    Measure(key="i", what="both at 10 to 4,000 interfaces", run=scaling),
)
