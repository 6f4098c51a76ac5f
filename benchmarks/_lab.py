# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the kernel share: many interfaces, a host with real state on disk, and the bare loop."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reconciler import apply
from reconciler.cli._compose import SystemClock
from reconciler.config import SecureConfig, SecureMode
from reconciler.kernel import _bpf, _hooks, _load
from reconciler.kernel._pins import Pins
from reconciler.kernel.linux import LinuxKernel
from reconciler.model import Attach, HookKind, Inventory, Load
from reconciler.reconcile._health import KernelHealth
from reconciler.state import State, open_state
from tests.kernel import support
from tests.sim.world import World, desired, member, tc_chain, xdp_chain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.model import DesiredState, HookPoint, Outcome

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def interfaces(count: int) -> Iterator[str]:
    """A namespace with `count` veth interfaces b0, b1, …; their peers lie in another."""
    with support.netns() as near, support.netns() as far:
        batch = "".join(f"link add b{n} up type veth peer name b{n} netns {far.name}\n" for n in range(count))
        subprocess.run(["ip", "-n", near.name, "-batch", "-"], input=batch.encode(), check=True)
        yield near.name


def xdp_state(netns: str) -> DesiredState:
    """One XDP chain of two on every interface."""
    members = member("ratelimit", params={"rate": 100}), member("firewall", program="firewall_xdp")
    return desired(xdp_chain("edge", *members, interfaces=("b*",), netns=netns))


def tc_state(netns: str) -> DesiredState:
    """Two chains of two, tc in and out, on every interface."""
    chains = (
        tc_chain(
            f"tc-{way}",
            member("flowcount"),
            member("firewall", program=f"firewall_{way}gress"),
            direction=f"{way}gress",
            interfaces=("b*",),
            netns=netns,
        )
        for way in ("in", "e")
    )
    return desired(*chains)


@dataclass
class Machine:
    """A host around the real kernel, with its state on disk."""

    kernel: LinuxKernel
    state: State
    world: World

    def converge(self, state: DesiredState) -> Outcome:
        """Look, plan, carry out and write down: what a pass does once it knows what is wanted."""
        made = self.world.plan(state)
        clock = SystemClock()
        health = KernelHealth(kernel=self.kernel, clock=clock, probe=lambda _: True, confirm_timeout=1.0)
        outcome = apply.execute(
            made, kernel=self.kernel, packages=self.world.packages, journal=self.state, checks=health
        )
        assert outcome.failed is None, outcome.failed
        self.state.save_inventory(outcome.inventory)
        self.state.clear_journal()
        self.world.inventory, self.world.applied = outcome.inventory, made.state_digest
        return outcome


@contextlib.contextmanager
def machine(*namespaces: str, expedite: Literal["auto", "never"] = "auto") -> Iterator[Machine]:
    """A machine that watches these namespaces, with nothing of ours yet, and nothing left afterwards."""
    with ExitStack() as stack:
        pins = stack.enter_context(support.pin_directory())
        kernel = stack.enter_context(contextlib.closing(LinuxKernel(pin_dir=pins / "rc", expedite=expedite)))
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT / "build"))
        state = stack.enter_context(contextlib.closing(open_state(Path(folder, "state"))))
        secure = SecureConfig(mode=SecureMode.AUDIT, namespaces=namespaces)
        world = World(kernel=kernel, inventory=Inventory(boot_id=kernel.boot_id()), secure=secure)
        yield Machine(kernel, state, world)


@dataclass
class Bare:
    """The same programs and links by bpf(2) alone, from the same language, in the order of a naive loader.

    It loads each generation once (through libbpf, which relocates, as ours does), joins its members, makes one link
    for each hook and keeps the descriptors; later it detaches each and closes it. It does *not* look at what is there,
    compare, verify afterwards, pin, write anything down, freeze, wait for packets in flight or undo.
    """

    world: World
    state: DesiredState
    links: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        steps = self.world.plan(self.state).steps
        self.generations = {step.generation.name: step.generation for step in steps if isinstance(step, Load)}
        hooks = [(step.generation, step.point) for step in steps if isinstance(step, Attach)]
        self.hooks = [(netns, list(group)) for netns, group in groupby(hooks, key=lambda hook: hook[1].netns)]

    def attach(self) -> float:
        """Seconds to load everything and make every link."""
        start = time.perf_counter()
        with ExitStack() as objects:
            first = {}
            for name, generation in self.generations.items():
                members = [
                    _load._load_member(objects, Pins(Path()), spec, self.world.packages) for spec in generation.members
                ]
                _load._join(members)
                first[name] = members[0].program
            for netns, hooks in self.hooks:
                support.in_netns(netns, partial(self._link, first, hooks))
        return time.perf_counter() - start

    def _link(self, first: dict[str, int], hooks: list[tuple[str, HookPoint]]) -> None:
        for name, point in hooks:
            if point.kind is HookKind.XDP:
                link = _bpf.link_create_xdp(first[name], point.ifindex, _bpf.XDP_FLAGS_DRV_MODE)
            else:
                link = _bpf.link_create_tcx(first[name], point.ifindex, _hooks.TCX_TYPES[point.kind], None)
            self.links.append(link)

    def detach(self) -> float:
        """Seconds to take every link away."""
        start = time.perf_counter()
        for link in self.links:
            _bpf.link_detach(link)
            os.close(link)
        self.links.clear()
        return time.perf_counter() - start
