# SPDX-License-Identifier: Apache-2.0
"""A host with many namespaces, interfaces and foreign programs, and passes over it with their times by phase.

    python -m tests.kernel.scale [NAMESPACES INTERFACES PROGRAMS]

prints the table that `make torture` prints as well. The journal is in memory: what a real one adds is one fsync a step.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from reconciler import plan
from reconciler.config import SecureConfig, SecureMode
from reconciler.kernel import Scope, _bpf
from reconciler.kernel._netlink import MIN_INGRESS, BpfFilter, Route
from reconciler.kernel.linux import LinuxKernel
from reconciler.model import DriftKind, Inventory
from tests.kernel import support
from tests.sim.world import World, desired, member, tc_chain, xdp_chain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reconciler.model import DesiredState, Outcome, Plan

TCX = {"tcx ingress": _bpf.BPF_TCX_INGRESS, "tcx egress": _bpf.BPF_TCX_EGRESS}
Attached = dict[tuple[str, str, str], tuple[int, ...]]
"""Ids of programs in their order, by namespace, interface and hook."""

TC_SHARE = 10
"""One namespace in so many has a tc chain of ours as well."""

OCCUPIED_SHARE = 20
"""One interface in so many has a foreign XDP program in the place of ours."""


@dataclass
class Host:
    """The machine.

    Attributes:
        spaces: by name, the interfaces' names.
        foreign: ids of foreign programs that are attached.
        held: descriptors of foreign links.
    """

    spaces: dict[str, list[str]]
    foreign: set[int] = field(default_factory=set)
    held: list[int] = field(default_factory=list)

    @property
    def state(self) -> DesiredState:
        """One XDP chain in each namespace, on all of its interfaces; in some a tc chain too."""
        names = list(self.spaces)
        edge = (xdp_chain(f"edge-{name}", member("ratelimit"), interfaces=("w*",), netns=name) for name in names)
        count = (
            tc_chain(f"in-{name}", member("flowcount"), interfaces=("w*",), netns=name) for name in names[::TC_SHARE]
        )
        return desired(*edge, *count)

    @property
    def wanted(self) -> set[tuple[str, str, str]]:
        """Where our programs belong: namespace, interface, hook."""
        spaces = list(self.spaces.items())
        edge = {(name, interface, "xdp") for name, found in spaces for interface in found}
        return edge | {(name, interface, "tcx ingress") for name, found in spaces[::TC_SHARE] for interface in found}

    def attach_foreign(self, count: int) -> None:
        """`count` programs, each another one, spread evenly: tcx links and programs, clsact filters, XDP by netlink."""
        total = sum(map(len, self.spaces.values()))
        number = 0
        for name, interfaces in self.spaces.items():
            wanted = [count // total + (place < count % total) for place in range(number, number + len(interfaces))]
            support.in_netns(name, partial(self._fill, interfaces, wanted, number))
            number += len(interfaces)

    def _fill(self, interfaces: list[str], wanted: list[int], number: int) -> None:
        with Route() as route:
            for place, (interface, count) in enumerate(zip(interfaces, wanted, strict=True)):
                index = socket.if_nametoindex(interface)
                xdp = count and (number + place) % OCCUPIED_SHARE == 0
                if xdp:
                    self._xdp(route, index)
                for turn in range(count - bool(xdp)):
                    self._tc(route, index, number + place + turn, turn)

    def _xdp(self, route: Route, index: int) -> None:
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: PLC0415

        with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.XDP, 2, _bpf.BPF_XDP)) as program:
            message = ifinfmsg()
            message["index"] = index
            values = [("IFLA_XDP_FD", program), ("IFLA_XDP_FLAGS", _bpf.XDP_FLAGS_DRV_MODE)]
            message["attrs"] = [("IFLA_XDP", {"attrs": values})]
            route._change(19, 0, message)
            self.foreign.add(_bpf.prog_info(program).id)

    def _tc(self, route: Route, index: int, kind: int, turn: int) -> None:
        with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)) as program:
            match kind % 3:
                case 0:
                    self.held.append(_bpf.link_create_tcx(program, index, tuple(TCX.values())[turn % 2], None))
                case 1:
                    _bpf.tcx_attach(program, index, tuple(TCX.values())[turn % 2])
                case _:
                    with contextlib.suppress(FileExistsError):
                        route.add_clsact(index)
                    wanted = BpfFilter(
                        ifindex=index,
                        parent=MIN_INGRESS,
                        prio=300 + turn,
                        protocol=3,
                        chain=0,
                        handle=1,
                        program_id=0,
                        name="theirs",
                        direct_action=True,
                    )
                    route.set_filter(wanted, program, replace=False)
            self.foreign.add(_bpf.prog_info(program).id)

    def attached(self) -> Attached:
        """What other tools would find."""
        found: Attached = {}

        def look(name: str) -> None:
            with Route() as route:
                qdiscs = route.clsact()
                for index, device in route.devices().items():
                    if not device.name.startswith("w"):
                        continue
                    for hook, number in TCX.items():
                        entries = _bpf.tcx_query(index, number).entries
                        found[name, device.name, hook] = tuple(program for program, _ in entries)
                    filters = route.filters(index, MIN_INGRESS) if index in qdiscs else ()
                    found[name, device.name, "clsact"] = tuple(item.program_id for item in filters)
                    found[name, device.name, "xdp"] = tuple(program for _, program in device.xdp)

        for name in self.spaces:
            support.in_netns(name, partial(look, name))
        return found


@contextlib.contextmanager
def host(namespaces: int, interfaces: int) -> Iterator[Host]:
    """So many namespaces, and interfaces w0, w1, … spread over them; each is joined to its neighbour's."""
    names = [support.unique() for _ in range(namespaces)]
    ends = [(names[number * namespaces // interfaces], number) for number in range(interfaces)]
    spaces: dict[str, list[str]] = {name: [] for name in names}
    lines = []
    for (left, _), (right, _) in zip(ends[::2], ends[1::2], strict=True):
        near, far = f"w{len(spaces[left])}", f"w{len(spaces[right]) + (left == right)}"
        spaces[left].append(near)
        spaces[right].append(far)
        lines.append(f"link add name {near} netns {left} type veth peer name {far} netns {right}")
    made = Host(spaces)
    try:
        batch([f"netns add {name}" for name in names])
        batch(lines)
        yield made
    finally:
        for descriptor in made.held:
            os.close(descriptor)
        batch([f"netns del {name}" for name in names], check=False)


def batch(lines: list[str], *, check: bool = True) -> None:
    """Commands for ip(8), in one process."""
    subprocess.run(["ip", "-force", "-batch", "-"], input="\n".join(lines).encode(), check=check, capture_output=True)


# === passes ================================================================================================


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: (seconds, seconds of CPU, the kernel's for us among them) by phase, and what came out."""

    name: str
    phases: dict[str, tuple[float, float]]
    made: Plan
    outcome: Outcome

    @property
    def evicted(self) -> set[int]:
        """Programs that were evicted or displaced."""
        gone = {step.program.id for step in self.outcome.done if step.step == "evict"}
        return gone | {
            step.displace.program_id for step in self.outcome.done if step.step == "attach" and step.displace
        }

    @property
    def foreign(self) -> int:
        """How many are said to be foreign."""
        return sum(drift.kind is DriftKind.FOREIGN for drift in self.made.drift)

    def __str__(self) -> str:
        counts = Counter(step.step for step in self.outcome.done)
        steps = " ".join(f"{count} {kind}" for kind, count in counts.most_common() if count > 1) or "nothing"
        spent = (f"{phase} {wall:6.2f} s ({cpu:5.2f} cpu)" for phase, (wall, cpu) in self.phases.items())
        return "  ".join((f"{self.name:20}", *spent, steps))


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def between(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    return end[0] - start[0], end[1] - start[1]


class Watched(World):
    """A world that says how long each phase takes."""

    def one_pass(self, name: str, state: DesiredState | None) -> Pass:
        """To this state; None is what `reconciler teardown` does."""
        real, looked = self.kernel.snapshot, [(0.0, 0.0)]

        def snapshot(scope: object) -> object:
            start = clocks()
            found = real(scope)  # type: ignore[arg-type]
            looked.append(between(start, clocks()))
            return found

        self.kernel.snapshot = snapshot  # type: ignore[method-assign, assignment]
        start = clocks()
        try:
            made = self.plan(state) if state is not None else self._teardown()
        finally:
            self.kernel.snapshot = real  # type: ignore[method-assign]
        planned = clocks()
        outcome = self.execute(made)
        looking = (sum(wall for wall, _ in looked), sum(cpu for _, cpu in looked))
        phases = {
            "snapshot": looking,
            "plan": between(looking, between(start, planned)),
            "apply": between(planned, clocks()),
        }
        done = Pass(name, phases, made, outcome)
        print(done, flush=True)  # noqa: T201  # shown by `make torture` and on failure
        return done

    def _teardown(self) -> Plan:
        scope = Scope(namespaces=tuple(sorted({owned.point.netns for owned in self.inventory.attachments})))
        return plan.make_teardown(self.kernel.snapshot(scope), self.inventory, self.guardrail, self.secure)


def world(kernel: LinuxKernel, made: Host, mode: SecureMode, limit: int) -> Watched:
    secure = SecureConfig(mode=mode, namespaces=tuple(made.spaces), interfaces=("w*",), max_evictions=limit)
    return Watched(kernel=kernel, inventory=Inventory(boot_id=kernel.boot_id()), secure=secure)


@dataclass(frozen=True, slots=True)
class Story:
    """What `story` saw; places are (namespace, interface, hook).

    Attributes:
        foreign: ids of the programs that others attached.
        passes: two in audit, then in enforce until one has nothing to do.
        teardown: between audit and enforce.
        occupied: places without our program after audit.
        before: what was attached before the first pass.
        after: the same after the teardown.
        missing: places without our program at the end.
        left: foreign programs that were still attached at the end.
    """

    foreign: set[int]
    passes: list[Pass]
    teardown: Pass
    occupied: set[tuple[str, str, str]]
    before: Attached
    after: Attached
    missing: set[tuple[str, str, str]]
    left: set[int]


def story(pins: Path, namespaces: int, interfaces: int, programs: int, limit: int) -> Story:
    """Audit, teardown, enforce over several passes, and back to nothing; what came out is judged by the caller."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(host(namespaces, interfaces))
        kernel = stack.enter_context(contextlib.closing(LinuxKernel(pin_dir=pins)))
        with kernel.expedite():
            made.attach_foreign(programs)
        before = made.attached()
        ours = world(kernel, made, SecureMode.AUDIT, limit)
        passes = [ours.one_pass("audit, first", made.state), ours.one_pass("audit, nothing to do", made.state)]
        occupied = without(ours, made)
        with kernel.expedite():
            teardown = ours.one_pass("teardown", None)
        after = made.attached()
        ours.secure = world(kernel, made, SecureMode.ENFORCE, limit).secure
        while passes[-1].made.steps or len(passes) == 2:
            passes.append(ours.one_pass("enforce", made.state))
        left = {program for found in made.attached().values() for program in found} & made.foreign
        missing = without(ours, made)
        with kernel.expedite():
            ours.one_pass("everything taken off", desired())
        return Story(made.foreign, passes, teardown, occupied, before, after, missing, left)


def without(ours: World, made: Host) -> set[tuple[str, str, str]]:
    """Where the kernel runs no program of ours though it should, whatever the inventory says."""
    mine = {program.identity.id for loaded in ours.inventory.generations for program in loaded.programs}
    found = made.attached()
    return {place for place in made.wanted if not mine & {*found[place]}}


if __name__ == "__main__":
    spaces, devices, strangers = [int(word) for word in sys.argv[1:]] or [200, 1000, 2000]
    with support.pin_directory() as folder:
        story(folder / "rc", spaces, devices, strangers, max(strangers // 4, 1))
