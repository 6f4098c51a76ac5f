# SPDX-License-Identifier: Apache-2.0
"""One host whose agent dies or fails at any point: the running kernel, a signed repository, two states to go between.

Everything is the product's own, in children of this process (`process.forked`): state directory, local repository,
package store, `LinuxKernel`, `Pass`. Every change between the two states adds, replaces, reorders and removes chains on
several hooks of two network namespaces, upgrades a package and changes an XDP mode. On two of the hooks a member drops
what the packet probe sends to its drop port in *both* states, so nothing of that may ever come through.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import shutil
import time
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from reconciler import packages, reconcile, trust
from reconciler.cli._compose import ConfiguredPackages
from reconciler.config import (
    CommitTrust,
    Config,
    Guardrail,
    KeyRule,
    Paths,
    SecureConfig,
    SecureMode,
    SourceConfig,
    Trust,
)
from reconciler.kernel import Scope, _bpf, _grace
from reconciler.kernel.linux import LinuxKernel
from reconciler.model import HostFacts, Inventory, Support
from reconciler.source import SourceSettings, open_source
from reconciler.state import open_state, read_history
from tests import manifests, support_probe
from tests.e2e.servers import allowed_signers
from tests.kernel import support
from tests.kernel.killed.process import Ended, Record, Strike, forked
from tests.sim.host import Origin, keys, package_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reconciler.status import Status

Side = Literal["a", "b"]
Document = dict[str, Any]

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
FREED_SECONDS = 20.0
"""How long the kernel may take to free what nobody holds; a bound on waiting, nothing that is measured."""

FEATURES = dict.fromkeys(("xdp_link", "tcx", "clsact", "btf", "expedite", "membarrier", "map-in-map"), Support.YES)
"""What a kernel that runs these tests can do; passes that nothing strikes need not find out."""


@functools.cache
def archive(version: str) -> bytes:
    """The test member as a package."""
    text = Path(__file__).with_name("package.yaml").read_text(encoding="utf-8").replace("1.0.0", version)
    objects = {
        f"wall_{kind}.bpf.o": support.compile_program(
            support.PROGS / "member.bpf.c", f"HOOK_{kind.upper()}", f"member=wall_{kind}", "WITHOUT_BROKEN"
        )
        for kind in ("xdp", "tc")
    }
    return packages.build_archive(text.encode(), objects)


@functools.cache
def bundle(version: str) -> bytes:
    """Its signature."""
    return trust.sign(archive(version), package_keys()["release"].private)


class Clock:
    """Wall-clock time that a test may turn; the rest is the system's."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is to be seen of a host at rest; equal to that of another time exactly if nothing is left over or missing.

    Attributes:
        hooks: "namespace interface hook" to what is attached: kind, mode, content of the generation.
        qdiscs: "namespace ifindex" of what sits in the place of clsact.
        pins: kinds of pinned objects, counted.
        unknown: pins that the inventory does not name, names of it that are not pinned, and empty folders.
        files: names in the state directory, but for objects of git and what is named by a digest.
        rubbish: temporary files, locks and half packs in the state directory, the package store and the repository.
        expedited: the value of rcu_expedited.
        torn: lines of the history that are no records.
    """

    hooks: Mapping[str, tuple[tuple[str, str | None, str], ...]]
    qdiscs: tuple[str, ...]
    pins: Mapping[str, int]
    unknown: tuple[str, ...]
    files: tuple[str, ...]
    rubbish: tuple[str, ...]
    expedited: str
    torn: int = field(compare=False)
    objects: int = field(compare=False)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one pass, and a look after it, found."""

    status: Status
    steps: int
    again: int
    seen: Seen
    events: tuple[str, ...] = ()


class Scene:
    """Two namespaces with chains, one of the world; two paced streams of packets. `with`."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            self.one, self.two = (
                stack.enter_context(support.wire("w0", "f0")),
                stack.enter_context(support.wire("w1", "f1")),
            )
            for wire in (self.one, self.two):
                for index in range(3):
                    support.add_veth(wire.near, f"x{index}", wire.far, f"y{index}")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> tuple[str, str]:
        return self.one.near.name, self.two.near.name

    @contextlib.contextmanager
    def traffic(self, *, rate: int = 2000) -> Iterator[list[support_probe.Received]]:
        """Packets to both probed hooks for the length of the block; afterwards, what arrived."""
        received: list[support_probe.Received] = []
        with contextlib.ExitStack() as stack:
            receivers, senders = [], []
            # XDP is looked at where a packet socket sits, tc ingress behind everything.
            for wire, interface in ((self.one, self.one.interface), (self.two, None)):
                receiver = support_probe.Receiver(wire.near.name, interface=interface, seconds=600)
                receivers.append(stack.enter_context(receiver))
                to = support_probe.Target(
                    mac=wire.mac(wire.near, wire.interface).hex(":"),
                    address=wire.near_address,
                    source=wire.far_address,
                )
                sender = support_probe.Sender(wire.far.name, wire.far_interface, to=to, rate=rate, seconds=590)
                senders.append(stack.enter_context(sender))
            yield received
            sent = [sender.finish() for sender in senders]
            received += [receiver.finish() for receiver in receivers]
        for each, got in zip(sent, received, strict=True):
            assert got.lost == 0
            assert got.passed > 0, "the probe's other packets do not arrive, so it proves nothing"
            assert each.dropped > 0


class Host:
    """The agent's host, with `way` to attach on tc; `close` takes everything off again."""

    def __init__(self, folder: Path, scene: Scene, way: Literal["tcx", "clsact"], pins: Path) -> None:
        self.folder, self.scene, self.way, self.pins = folder, scene, way, pins
        self.clock = Clock()
        self.mark = f"k{secrets.token_hex(2)}"
        self.origin = Origin(folder / "repos" / "policy.git")
        self._trees = {side: self.origin.repository.tree(_files(self.chains(side))) for side in ("a", "b")}
        # The real one is shared by everybody on this machine: here nobody else may write it.
        self.expedited = folder / "rcu_expedited"
        self.expedited.write_text("0\n", encoding="ascii")
        first = self.push("a")
        self.config = Config(
            source=SourceConfig(url=f"file://{self.origin.path}", allow_file=True, minimum_commit=first),
            host_name="edge-1",
            trust=Trust(
                commits=CommitTrust(allowed_signers=allowed_signers(alice=keys()["alice"])),
                signers=(KeyRule(name="release", packages=("*",), key_pem=package_keys()["release"].public),),
            ),
            secure=SecureConfig(mode=SecureMode.AUDIT),
            guardrail=Guardrail(count=None, share=1.0),
            paths=Paths(state=str(folder / "state")),
        )

    # --- what is declared --------------------------------------------------------------------------------

    def push(self, side: Side) -> str:
        """A new head that wants this state."""
        return self.origin.repository.commit(tree=self._trees[side], key=keys()["alice"], message=f"state {side}")

    def chains(self, side: Side) -> list[Document]:
        """The manifests of a state."""
        return {"tcx": self._with_links, "clsact": self._with_filters}[self.way](side == "a")

    def _with_links(self, a: bool) -> list[Document]:
        one, two = self.scene.names
        newer = "1.0.0" if a else "1.0.1"
        edge = [self._wall("xdp", "p", mark=1 if a else 2, version=newer), self._wall("xdp", "q")]
        ingress = [self._wall("tc", "p"), self._wall("tc", "q", mark=3)]
        mode = "native" if a else "generic"
        made = [
            _chain("edge", _xdp("w0", one), edge if a else edge[::-1]),
            _chain("in", _tc("ingress", "w1", two), ingress if a else [self._wall("tc", "r"), *ingress[::-1]]),
            _chain("mode", {**_xdp("x2", two), "mode": mode}, [self._wall("xdp", "p")]),
        ]
        if a:
            made.append(_chain("old", _xdp("x0", two), [self._wall("xdp", "p")]))
            made.append(_chain("out", _tc("egress", "x1", two), [self._wall("tc", "p")]))
        else:
            made.append(_chain("new", _xdp("x0", one), [self._wall("xdp", "p", mark=4)]))
            made.append(_chain("out", _tc("egress", "x1", one), [self._wall("tc", "p"), self._wall("tc", "q")]))
        return made

    def _with_filters(self, a: bool) -> list[Document]:
        one, two = self.scene.names
        ingress = [self._wall("tc", "p"), self._wall("tc", "q", mark=3)]
        place = ("x0", two) if a else ("x1", one)
        return [
            _chain("in", _tc("ingress", "w1", two), ingress if a else [self._wall("tc", "r"), *ingress[::-1]]),
            _chain("edge", _xdp("w0", one), [self._wall("xdp", "p")]),
            _chain("out", _tc("egress", *place), [self._wall("tc", "p")]),
        ]

    def _wall(self, kind: Literal["xdp", "tc"], suffix: str, *, mark: int = 0, version: str = "1.0.0") -> Document:
        return {
            # The kernel shows the first eight characters as the name of the map that holds .rodata (`marked`).
            "name": f"{self.mark}{suffix}",
            "package": {"name": "wall", "version": version, "digest": packages.digest_of(archive(version))},
            "program": f"wall_{kind}",
            "proceedOn": ["pass" if kind == "xdp" else "next"],
            "params": {"verdict": 2 if kind == "xdp" else -1, "mark": mark},
            "maps": {"deny": {"entries": [{"key": support_probe.DROP_PORT, "value": 1}]}},
        }

    # --- the process, in a child ---------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        return self.folder / "state"

    def kernel(self, *, probing: bool) -> LinuxKernel:
        known = FEATURES if not probing else {}
        tcx = {"tcx": Support.NO} if self.way == "clsact" else {}
        return LinuxKernel(pin_dir=self.pins, force={**known, **tcx})

    @contextlib.contextmanager
    def opened(self, *, probing: bool = True) -> Iterator[reconcile.Parts]:
        """The agent's objects, made anew as a new process makes them; only ever called in a child.

        Args:
            probing: the kernel's features are probed, which makes and removes two namespaces.
        """
        _grace.RCU_EXPEDITED = self.expedited
        with contextlib.ExitStack() as stack:
            state = open_state(self.directory)
            stack.callback(state.close)
            kernel = self.kernel(probing=probing)
            stack.callback(kernel.close)
            settings = SourceSettings(url=self.config.source.url, ref=self.config.source.ref, allow_file=True)
            source = open_source(settings, self.directory / "git")
            stack.callback(source.close)
            store = packages.Store(self.directory / "packages")
            yield reconcile.Parts(
                config=self.config,
                facts=HostFacts(name="edge-1", labels={}),
                kernel=kernel,
                state=state,
                source=source,
                packages=ConfiguredPackages(config=self.config, cache=packages.Cache(store)),
                clock=self.clock,
                kernel_release="test",
                emit=self._emit,
            )

    def _emit(self, record: Mapping[str, object]) -> None:
        self.events.append(record)

    @functools.cached_property
    def events(self) -> list[Mapping[str, object]]:
        return []

    def one_pass(self, **request: Any) -> reconcile.PassResult:
        """One pass of a process that lives no longer."""
        with self.opened() as parts:
            return reconcile.Pass(parts, reconcile.Request(**request)).run()

    def settle(self, **request: Any) -> Report:
        """One pass of a new process, a plan after it, and a look at everything."""
        with self.opened(probing=False) as parts:
            result = reconcile.Pass(parts, reconcile.Request(**request)).run()
            parts.source.maintain()
            plan = reconcile.Pass(parts, reconcile.Request(poll=False, dry_run=True)).run().plan
            return Report(
                status=result.status,
                steps=0 if result.plan is None else len(result.plan.steps),
                again=0 if plan is None else len(plan.steps),
                seen=self.look(parts),
                events=tuple(str(event["event"]) for event in self.events),
            )

    def look(self, parts: reconcile.Parts) -> Seen:
        """Everything that is to be seen."""
        inventory = parts.state.inventory() or Inventory(boot_id="none")
        snapshot = parts.kernel.snapshot(Scope(namespaces=("host", *self.scene.names)))
        # By its pin, since the inventory may be what could not be written; by that where no pin can be opened.
        contents = {g.programs[0].identity.id: g.name.split("_")[0] for g in inventory.generations}
        firsts = [pin for pin in snapshot.pins if pin.path.startswith("gen/") and pin.path.endswith("/p00")]
        contents |= {pin.id: pin.path.split("/")[1].split("_")[0] for pin in firsts}
        hooks = {
            f"{point.netns} {point.interface} {point.kind}": tuple(
                (str(each.kind), each.mode, contents.get(each.program_id, "?")) for each in state.attachments
            )
            for point, state in snapshot.hooks.items()
            if state.attachments and point.netns != "host"
        }
        named = {owned.pin for owned in inventory.attachments if owned.pin} | set(inventory.leftovers)
        for generation in inventory.generations:
            named |= {program.pin for program in generation.programs} | {entry.pin for entry in generation.maps}
        found = {pin.path for pin in snapshot.pins} | set(snapshot.folders)
        kinds: dict[str, int] = {}
        for pin in snapshot.pins:
            kinds[str(pin.kind)] = kinds.get(str(pin.kind), 0) + 1
        history = self.directory / "history.jsonl"
        lines = len([line for line in (history.read_bytes() if history.exists() else b"").split(b"\n") if line])
        return Seen(
            hooks=dict(sorted(hooks.items())),
            qdiscs=self.qdiscs(),
            pins=kinds,
            unknown=tuple(sorted(named ^ found)),
            files=self._files(),
            rubbish=self.rubbish(),
            expedited=self.expedited.read_text(encoding="ascii").strip(),
            torn=lines - len(read_history(self.directory)),
            objects=sum(len(g.programs) for g in inventory.generations),
        )

    def qdiscs(self) -> tuple[str, ...]:
        """What sits in the place of clsact in the namespaces of the scene."""
        from reconciler.kernel._netlink import Route  # noqa: PLC0415

        def ask() -> dict[int, str]:
            with Route() as route:
                return route.clsact()

        found = {name: support.in_netns(name, ask) for name in self.scene.names}
        return tuple(f"{name} {index} {kind}" for name, each in found.items() for index, kind in sorted(each.items()))

    def _files(self) -> tuple[str, ...]:
        top = sorted(path.name for path in self.directory.iterdir()) if self.directory.is_dir() else []
        return (*top, f"packages: {len(list((self.directory / 'packages').glob('*')))}")

    def rubbish(self) -> tuple[str, ...]:
        """What only a process that is at work may have in its directories."""
        found = []
        for path in self.directory.rglob("*"):
            name = path.name
            temporary = name.endswith((".new", ".old", ".temp", ".keep")) or name.startswith("tmp_")
            locked = name.endswith(".lock") and path != self.directory / "git.lock"
            half = name.endswith(".pack") and not path.with_suffix(".idx").exists()
            if temporary or locked or half:
                found.append(str(path.relative_to(self.directory)))
        return tuple(sorted(found))

    def marked(self) -> int:
        """Programs of this host in the kernel, by the maps of their constants; whoever holds them."""
        count = 0
        for number in _bpf.next_ids(_bpf.Cmd.MAP_GET_NEXT_ID):
            with contextlib.suppress(OSError), _bpf.closing(_bpf.map_by_id(number)) as descriptor:
                name = _bpf.map_info(descriptor).name
                count += name.startswith(self.mark) and name.endswith(".rodata")
        return count

    # --- rounds ----------------------------------------------------------------------------------------------

    def rest(self, side: Side) -> Report:
        """Pushed and reached without any strike."""
        self.push(side)
        report: Report = forked(self.settle).value
        self.at_rest(report)
        return report

    def points(self, side: Side) -> list[str]:
        """The names of all points of a pass to a state, which is then reached."""
        self.push(side)
        record = Record()

        def work() -> list[str]:
            assert self.one_pass().status.exit_code == 0
            return record.names

        names: list[str] = forked(work, record).value
        return names

    def struck(self, side: Side, strike: Strike) -> Ended:
        """A pass to a state that something happens to."""
        self.push(side)
        return forked(lambda: self.one_pass().status, strike)

    def at_rest(self, report: Report, like: Seen | None = None) -> None:
        """Nothing is left to do, nothing is left over, everything is there."""
        assert report.status.exit_code == 0, report.status
        assert report.again == 0, report.status
        assert report.seen.unknown == ()
        assert report.seen.rubbish == ()
        assert report.seen.expedited == "0"
        if like is not None:
            assert report.seen == like, _difference(report.seen, like)
        assert self.freed(report.seen.objects), (self.marked(), report.seen.objects)

    def freed(self, expected: int) -> bool:
        """Whether so many programs are left, as soon as the kernel has freed the others."""
        deadline, pause = time.monotonic() + FREED_SECONDS, 0.001
        while self.marked() != expected:
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        return True

    def close(self) -> None:
        """Take everything of this host off the kernel, whatever state it is in."""
        support.remove_pins(self.pins)
        for name in self.scene.names:
            for index in range(3):
                support.run("tc", "-n", name, "qdisc", "del", "dev", f"x{index}", "clsact", check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


def _difference(seen: Seen, like: Seen) -> str:
    pairs = [(each.name, getattr(seen, each.name), getattr(like, each.name)) for each in fields(seen) if each.compare]
    return "; ".join(f"{name}: got {got}, expected {expected}" for name, got, expected in pairs if got != expected)


def _files(chains: list[Document]) -> dict[str, bytes | tuple[str, str]]:
    """A commit's files: the chains, and the packages that they name."""
    found: dict[str, bytes | tuple[str, str]] = dict(manifests.files(*chains))
    for version in {member["package"]["version"] for chain in chains for member in chain["spec"]["members"]}:
        path = f"packages/wall-{version}.tar.gz"
        found |= {path: archive(version), f"{path}{packages.BUNDLE_SUFFIX}": bundle(version)}
    return found


def _chain(name: str, hook: Document, members: list[Document]) -> Document:
    return manifests.chain(name, hosts=None, hook=hook, members=members)


def _xdp(interface: str, netns: str) -> Document:
    return {"type": "xdp", "interfaces": [interface], "netns": netns}


def _tc(direction: str, interface: str, netns: str) -> Document:
    return {"type": "tc", "direction": direction, "interfaces": [interface], "netns": netns}


__all__ = ["Host", "Report", "Scene", "Seen", "Side", "replace"]
