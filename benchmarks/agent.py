# SPDX-License-Identifier: Apache-2.0
"""The agent and its command: from a push to a filtered packet, memory, starts, and what idling costs."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._compare import Comparison, Measure, Options, interleaved, quiet, seconds
from reconciler import reconcile
from reconciler.cli._compose import emit_nothing, open_parts
from reconciler.config import load_config
from reconciler.reconcile import _candidate
from tests.e2e.lab import Kit, Lab, chain
from tests.e2e.servers import git_https
from tests.private_sigstore import IDENTITY, ISSUER, PrivateSigstore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
BIN = ROOT / ".venv" / "bin"
PYTHON, COMMAND = str(BIN / "python"), str(BIN / "reconciler")
MIB = 1024
"""KiB."""
PORT = 7002
"""The port that the wall denies: that of the probe's packets that must not pass."""


@contextlib.contextmanager
def host(interfaces: int = 0) -> Iterator[Lab]:
    """A host with a signed repository; besides the wire, it has so many interfaces b0, b1, …"""
    with tempfile.TemporaryDirectory(prefix="rcb-") as name:
        folder = Path(name)
        (folder / "lab").mkdir()
        with Lab(folder / "lab", Kit(folder)) as lab:
            links = (f"link add b{n} type veth peer name b{n} netns {lab.far.name}\n" for n in range(interfaces))
            subprocess.run(["ip", "-n", lab.near.name, "-batch", "-"], input="".join(links).encode(), check=True)
            yield lab


def two_ways(lab: Lab) -> list[dict[str, Any]]:
    """Chains of two, tc in and out, on every interface b*."""

    def hook(direction: str) -> dict[str, Any]:
        return {"type": "tc", "direction": direction, "interfaces": ["b*"], "netns": lab.netns}

    return [
        chain("in", lab.wall(kind="tc-ingress"), lab.count(), hook=hook("ingress")),
        chain("out", lab.wall(kind="tc-egress"), lab.count(), hook=hook("egress")),
    ]


# --- (d) from a push to a filtered packet -------------------------------------------------------------------

PHASES = {
    "resolve and fetch, in one": ("pull",),
    "verify commits": ("ancestry", "new_commits", "read_commit", "verify_commit"),
    "verify packages": ("ensure",),
    "load": ("load",),
    "switch": ("attach", "switch", "drain"),
}


class Timed:
    """Another object, with the time that its methods take added up by name."""

    def __init__(self, inner: object, taken: dict[str, float]) -> None:
        self._inner, self._taken = inner, taken

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the other has
        found = getattr(self._inner, name)
        return timed(name, found, self._taken) if callable(found) else found


def timed(name: str, call: Callable[..., Any], taken: dict[str, float]) -> Callable[..., Any]:
    def measured(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401  # as `call` has them
        start = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            taken[name] = taken.get(name, 0.0) + time.perf_counter() - start

    return measured


def push_to_packet(options: Options) -> Iterator[Comparison]:
    """A push, a trigger (SIGHUP), and the first packet that is dropped; then the same pass by phase."""
    with host() as lab, git_https(lab.repository.path.parent, lab.folder / "https") as server:
        lab.config["source"] |= {
            "url": server.url("policy.git"),
            "allowFile": False,
            "auth": {"caFile": str(server.ca_file)},
        }
        lab.commit()
        lab.apply().expect(0)
        yield Comparison(
            name="push to first filtered packet, loopback https",
            ours=statistics.median(_until_filtered(lab, number) for number in range(options.rounds)),
            baseline=None,
            unit="ms",
            target=100,
        )
        yield from _by_phase(lab, options)


def _until_filtered(lab: Lab, number: int) -> float:
    """Milliseconds from the push to the last packet that came through."""
    lab.commit()
    lab.apply().expect(0)
    agent = lab.agent()
    try:
        agent.wait("pass")
        archive = lab.kit.firewall_next if number % 2 else lab.kit.firewall
        with lab.traffic(rate=5_000) as traffic:
            lab.commit(chain("edge", lab.wall(archive=archive), hook=lab.hook()), message=f"wall {number}")
            pushed = time.monotonic_ns()
            agent.hup()
            agent.wait("applied")
        last = max(window.last_sent_ns for window in traffic.received.escaped)
        return (last - pushed) / 1e6
    finally:
        agent.stop()


def _by_phase(lab: Lab, options: Options) -> Iterator[Comparison]:
    clone = lab.folder / "clone.git"
    quiet("git", "init", "--quiet", "--bare", str(clone))
    url = lab.config["source"]["url"]
    trust = ["-c", f"http.sslCAInfo={lab.config['source']['auth']['caFile']}"]
    # Without what this machine's environment says of proxies.
    bare_git = ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "HOME=/nonexistent", "git", *trust, f"--git-dir={clone}"]
    rows: dict[str, list[float]] = {name: [] for name in (*PHASES, "all", "resolve", "bare fetch", "bare ls-remote")}
    with open_parts(load_config(lab.config_file), emit=emit_nothing) as parts:
        verify = _candidate.trust.verify_commit
        for number in range(options.rounds + 1):
            lab.commit(chain("edge", lab.wall(name=f"w{number % 2}"), hook=lab.hook()), message=f"phase {number}")
            taken: dict[str, float] = {}
            watched = replace(
                parts,
                source=Timed(parts.source, taken),
                packages=Timed(parts.packages, taken),
                kernel=Timed(parts.kernel, taken),
            )
            _candidate.trust.verify_commit = timed("verify_commit", verify, taken)
            try:
                run = reconcile.Pass(watched, reconcile.Request())
                taken["all"] = seconds(run.run)
            finally:
                _candidate.trust.verify_commit = verify
            for name, parts_of in PHASES.items():
                rows[name].append(sum(taken.get(each, 0.0) for each in parts_of))
            rows["all"].append(taken["all"])
            rows["resolve"].append(seconds(parts.source.resolve))
            rows["bare ls-remote"].append(
                seconds(lambda: quiet(*bare_git, "ls-remote", "--heads", url, "refs/heads/main"))
            )
            fetch = [*bare_git, "fetch", "--quiet", "--no-tags", url, "+refs/heads/main:refs/heads/main"]
            rows["bare fetch"].append(seconds(lambda: quiet(*fetch)))  # noqa: B023  # called at once
    median = {name: 1000 * statistics.median(values[1:]) for name, values in rows.items()}
    for name in PHASES:
        bare = median["bare fetch"] if "fetch" in name else None
        yield Comparison(
            name=f"  of it: {name}", ours=median[name], baseline=bare, unit="ms", target=1.5 if bare else None
        )
    yield Comparison(name="  of it: the whole pass", ours=median["all"], baseline=None, unit="ms", target=None)
    yield Comparison(
        name="  beside it: a poll that finds nothing new",
        ours=median["resolve"],
        baseline=median["bare ls-remote"],
        unit="ms",
        target=None,
    )


# --- (e) memory ---------------------------------------------------------------------------------------------


def memory(options: Options) -> Iterator[Comparison]:
    """Resident memory of a running agent, and how it grows."""
    count, passes = options.some(50), options.some(100)
    with host(count) as lab:
        lab.commit(*two_ways(lab))
        agent = lab.agent()
        agent.wait("pass")
        for number in range(passes):
            agent.hup()
            agent.wait("pass", more_than=number + 1)
        rollup = Path(f"/proc/{agent.process.pid}/smaps_rollup").read_text("ascii")
        resident = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:"))
        agent.stop()
        name = f"agent after {passes} passes, {count} interfaces × 2, resident"
        yield Comparison(name=name, ours=resident / MIB, baseline=None, unit="MiB", target=48)
        many = options.some(10_000)
        found = passes_of(lab, many, "drift", every=max(1, many // 10))["memory"]
        # The first tenth fills what is bounded: caches, and the gaps between objects.
        yield Comparison(
            name=f"  growth over {many:,} passes, after a tenth of them",
            ours=max(0, found[-1] - found[1]) / MIB,
            baseline=None,
            unit="MiB",
            target=0.5,
        )


def passes_of(lab: Lab, count: int, kind: str, *, every: int | None = None) -> dict[str, Any]:
    """What `_passes` says of so many passes in one new process."""
    command = [PYTHON, "-m", "benchmarks._passes", str(lab.config_file), str(count), kind, str(every or count)]
    done = subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# --- (f) status, (g) start ----------------------------------------------------------------------------------


def status_start(options: Options) -> Iterator[Comparison]:
    """`reconciler status` with 400 links, against interpreters that do nothing."""
    count = options.some(200)
    with host(count) as lab:
        lab.commit(*two_ways(lab))
        lab.apply().expect(0)
        config = str(lab.config_file)
        path = os.pathsep.join(each for each in sys.path if each)
        alone = {**os.environ, "PYTHONPATH": path}
        code = "from reconciler.cli import main; main()"

        def run(*command: str, environment: dict[str, str] | None = None) -> Callable[[], float]:
            return lambda: seconds(
                lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            )

        rounds = 4 * options.rounds
        ours, bare, ours_alone, bare_alone = interleaved(
            run(COMMAND, "-c", config, "status"),
            run(PYTHON, "-c", ""),
            run(PYTHON, "-S", "-c", code, "-c", config, "status", environment=alone),
            run(PYTHON, "-S", "-c", "", environment=alone),
            rounds=rounds,
        )
    links = f"{2 * count} links"
    yield Comparison(name=f"status, {links}, against python", ours=ours, baseline=bare, unit="ms", target=6)
    yield Comparison(
        name=f"status, {links}, both without the machine's site",
        ours=ours_alone,
        baseline=bare_alone,
        unit="ms",
        target=6,
    )
    yield Comparison(
        name=f"status, {links}, with site against without", ours=ours, baseline=bare_alone, unit="ms", target=None
    )


def agent_start(options: Options) -> Iterator[Comparison]:
    """From the start of the process to its first finished pass, less a bare interpreter."""
    with host() as lab:
        members = [lab.wall(kind="tc-ingress"), lab.count()]
        chains = [
            chain("in", *members, hook=lab.hook("tc-ingress")),
            chain("limit", lab.limit(10), hook=lab.hook("xdp")),
        ]
        lab.commit(*chains)
        yield _started(lab, "agent to its first pass, 3 packages by key, over python", options)
        sigstore = PrivateSigstore()
        (lab.host / "root.json").write_bytes(sigstore.root())
        lab.config["trust"]["roots"] = [{"name": "private", "file": "root.json"}]
        certificate = {"identity": IDENTITY, "issuer": ISSUER, "root": "private"}
        lab.config["trust"]["signers"] = [{"name": "ci", "packages": ["*"], "certificate": certificate}]
        kit = lab.kit
        archives = (kit.firewall, kit.ratelimit, kit.flowcount)
        bundles = {each.name: json.dumps(sigstore.bundle(each.data)).encode() for each in archives}
        lab.commit(*chains, archives=archives, bundles=bundles)
        yield _started(lab, "agent to its first pass, 3 packages by certificate, over python", options)


def _started(lab: Lab, name: str, options: Options) -> Comparison:
    def start() -> float:
        begin = time.perf_counter()
        with subprocess.Popen(lab.line("run"), stdout=subprocess.PIPE, env=lab.environment) as process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "pass":
                    assert event["reason"] in ("Applied", "InSync"), event
                    break
            taken = time.perf_counter() - begin
            process.terminate()
            process.stdout.read()
        return taken

    bare = lambda: seconds(lambda: quiet(PYTHON, "-c", ""))  # noqa: E731
    ours, nothing = interleaved(start, bare, rounds=options.rounds)
    return Comparison(name=name, ours=ours - nothing, baseline=None, unit="ms", target=1000)


# --- (h) idling ---------------------------------------------------------------------------------------------


def idle(options: Options) -> Iterator[Comparison]:
    """CPU of drift passes and polls at the default intervals, children counted."""
    count, passes = options.some(50), options.some(200)
    with host(count) as lab:
        lab.commit(*two_ways(lab))
        lab.apply().expect(0)
        drift = passes_of(lab, passes, "drift")["cpu"]
        poll = passes_of(lab, passes, "poll")["cpu"]
        del lab.config["source"]["interval"], lab.config["source"]["driftInterval"]
        source = load_config(lab.config_file).source
    share = 100 * (drift / source.drift_interval + (poll - drift) / source.interval) / 1000
    name = f"idle agent at the default intervals, {count} interfaces × 2"
    yield Comparison(name=name, ours=share, baseline=None, unit="% of a core", target=0.1)
    yield Comparison(
        name="  of it: a pass that looks for drift, CPU", ours=drift, baseline=None, unit="ms", target=None
    )
    yield Comparison(name="  of it: a pass that polls, CPU", ours=poll, baseline=None, unit="ms", target=None)


MEASURES = (
    Measure(key="push", what="push to first filtered packet, by phase", run=push_to_packet),
    Measure(key="memory", what="resident memory of the agent, and its growth", run=memory),
    Measure(key="status", what="reconciler status against a bare interpreter", run=status_start),
    Measure(key="start", what="start of the agent to its first finished pass", run=agent_start),
    Measure(key="idle", what="CPU of an idle agent", run=idle),
)
"""(d) to (h)."""
