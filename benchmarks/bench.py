# SPDX-License-Identifier: Apache-2.0
"""Comparisons side by side: each in one run, interleaved, medians, and a ratio; no absolute promises.

`python -m benchmarks.bench [--interfaces N] [--rounds N]` prints a table and writes build/benchmarks.json, a list of
{name, ours, baseline, unit, ratio, target, holds}. Everything happens in a namespace and a pin directory of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.config import SecureConfig, SecureMode
from reconciler.kernel import _bpf
from reconciler.kernel.linux import LinuxKernel
from reconciler.model import Inventory
from tests.kernel import support
from tests.sim.world import World, desired, member, shipped, tc_chain, xdp_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reconciler.model import DesiredState

ROOT = Path(__file__).parents[1]
INTERPRETER = str(ROOT / ".venv" / "bin" / "python")
COMMAND = str(ROOT / ".venv" / "bin" / "reconciler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Medians of one comparison; `target` is the largest ratio that is acceptable."""

    name: str
    ours: float
    baseline: float
    unit: str
    target: float

    @property
    def ratio(self) -> float:
        return self.ours / self.baseline

    @property
    def holds(self) -> bool:
        return self.ratio <= self.target


def seconds(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def interleaved(ours: Callable[[], float], baseline: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Medians in milliseconds of two measurements taken in turn, after one round that does not count."""
    pairs = [(ours(), baseline()) for _ in range(rounds + 1)][1:]
    return 1000 * statistics.median(a for a, _ in pairs), 1000 * statistics.median(b for _, b in pairs)


def quiet(*command: str, netns: str | None = None) -> None:
    """Run a command and throw away what it prints."""
    inside = ("nsenter", f"--net=/run/netns/{netns}") if netns else ()
    subprocess.run([*inside, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def interfaces(count: int) -> Iterator[str]:
    """A namespace with `count` interfaces b0, b1, …; their peers lie in another."""
    with support.netns() as near, support.netns() as far:
        batch = "".join(f"link add b{n} up type veth peer name b{n} netns {far.name}\n" for n in range(count))
        subprocess.run(["ip", "-n", near.name, "-batch", "-"], input=batch.encode(), check=True)
        yield near.name


def host(kernel: LinuxKernel, netns: str) -> World:
    """A world around the real kernel that watches one namespace."""
    secure = SecureConfig(mode=SecureMode.AUDIT, namespaces=(netns,))
    return World(kernel=kernel, inventory=Inventory(boot_id=kernel.boot_id()), secure=secure)


def xdp_state(netns: str, rate: int = 100) -> DesiredState:
    """One XDP chain of two on every interface."""
    chain = xdp_chain(
        "edge", member("ratelimit", params={"rate": rate}), member("firewall"), interfaces=("b*",), netns=netns
    )
    return desired(chain)


def bare_attach(netns: str, program: Path, indexes: list[int]) -> float:
    """LINK_CREATE of one loaded program on every interface, and nothing else."""
    fd = _bpf.obj_get(str(program))
    links: list[int] = []
    try:
        work = lambda: links.extend(_bpf.link_create_xdp(fd, index, 0) for index in indexes)  # noqa: E731
        return support.in_netns(netns, lambda: seconds(work))
    finally:
        for link in [*links, fd]:
            os.close(link)


def first_attach(netns: str, count: int, rounds: int) -> Comparison:
    """Load and attach one XDP chain of two to every interface, against a bare loop of LINK_CREATE."""
    state = xdp_state(netns)

    def ours() -> float:
        with support.pin_directory() as pins, contextlib.closing(LinuxKernel(pin_dir=pins / "rc")) as kernel:
            world = host(kernel, netns)
            spent = seconds(lambda: world.converge(state))
            world.converge(desired())
            return spent

    def baseline() -> float:
        with support.pin_directory() as pins, contextlib.closing(LinuxKernel(pin_dir=pins / "rc")) as kernel:
            world = host(kernel, netns)
            world.converge(state)
            indexes = [owned.point.ifindex for owned in world.inventory.attachments]
            program = pins / "rc" / world.inventory.generations[0].programs[0].pin
            copy = pins / "copy"
            fd = _bpf.obj_get(str(program))
            _bpf.obj_pin(fd, str(copy))
            os.close(fd)
            world.converge(desired())
            return bare_attach(netns, copy, indexes)

    mine, bare = interleaved(ours, baseline, rounds)
    return Comparison(name=f"first attach, {count} interfaces × XDP", ours=mine, baseline=bare, unit="ms", target=2.5)


def idle_pass(netns: str, count: int, rounds: int) -> Comparison:
    """A pass without changes over XDP and tc in and out, against bpftool net, prog and link."""
    state = desired(
        *xdp_state(netns).chains,
        tc_chain("in", member("flowcount"), direction="ingress", interfaces=("b*",), netns=netns),
        tc_chain("out", member("flowcount"), direction="egress", interfaces=("b*",), netns=netns),
    )
    with support.pin_directory() as pins, contextlib.closing(LinuxKernel(pin_dir=pins / "rc")) as kernel:
        world = host(kernel, netns)
        world.converge(state)
        try:

            def ours() -> float:
                return seconds(lambda: world.plan(state))

            def baseline() -> float:
                spent = seconds(lambda: quiet("bpftool", "-j", "net", netns=netns))
                spent += seconds(lambda: quiet("bpftool", "-j", "prog"))
                return spent + seconds(lambda: quiet("bpftool", "-j", "link"))

            mine, others = interleaved(ours, baseline, rounds)
        finally:
            world.converge(desired())
    name = f"pass without changes, {count} interfaces × 3 hooks"
    return Comparison(name=name, ours=mine, baseline=others, unit="ms", target=1.5)


def status_start(rounds: int) -> Comparison:
    """`reconciler status` against the start of a bare interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        source = f"source: {{url: 'file://{folder}/none', allowFile: true}}"
        config.write_text(
            f"apiVersion: reconciler/v1alpha1\nkind: Config\nspec:\n  {source}\n  paths: {{state: {folder}/state}}\n"
        )

        def ours() -> float:
            run = [COMMAND, "-c", str(config), "status"]
            return seconds(lambda: subprocess.run(run, check=False, stdout=subprocess.DEVNULL))

        mine, bare = interleaved(ours, lambda: seconds(lambda: quiet(INTERPRETER, "-S", "-c", "")), rounds)
    return Comparison(
        name="reconciler status against a bare interpreter", ours=mine, baseline=bare, unit="ms", target=25
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interfaces", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    support.mount_bpffs()
    shipped()
    results = []
    with interfaces(options.interfaces) as netns:
        for measure in (first_attach, idle_pass):
            print(f"measuring {measure.__name__} …", file=sys.stderr)
            results.append(measure(netns, options.interfaces, options.rounds))
    results.append(status_start(options.rounds))
    print(f"{'':52}{'ours':>10}{'baseline':>10}{'ratio':>8}{'target':>8}")
    for result in results:
        mark = "" if result.holds else "  missed"
        numbers = f"{result.ours:10.2f}{result.baseline:10.2f}{result.ratio:8.2f}{result.target:8.2f}"
        print(f"{result.name:52}{numbers}{mark}")
    output = ROOT / "build" / "benchmarks.json"
    output.parent.mkdir(exist_ok=True)
    rows = [{**asdict(result), "ratio": result.ratio, "holds": result.holds} for result in results]
    output.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
