# SPDX-License-Identifier: Apache-2.0
"""A chain under a flood: each member has packets of its own that it must drop, and what escapes is laid to an event.

    with Story(lab, WAYS["tcx"], another_version(folder)) as story:
        story.first()
        story.upgrade("b")
        story.apply("b upgraded")
        story.end()

One stream runs through the whole story, whatever happens to the chain and to the agent. The verdict is about packets
alone. None escaped a member from its first complete switch to the beginning of its removal. A member that comes or goes
does so once (one window, no flapping). The first attach is the whole chain or nothing. Every packet of every kind is
somewhere: received, counted as dropped by its member's carried counters, or lost by a full queue. How long anything
takes is not asked.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import sysconfig
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Self

from reconciler import packages
from reconciler.kernel import _bpf
from tests import support_probe
from tests.e2e.lab import COMMAND, ROOT, WAIT_SECONDS, WITHOUT_TCX, Archive, chain, entries, member
from tests.e2e.servers import files_https, git_https
from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from tests.e2e.lab import Agent, Document, Lab
    from tests.e2e.servers import Fault, Handler, HttpsServer

MEMBERS = ("a", "b", "c")
GUEST = "x"
"""The member that comes and goes."""

PORTS = dict(zip((*MEMBERS, GUEST), range(support_probe.DROP_PORT, support_probe.DROP_PORT + 4), strict=True))
KINDS = {name: number for number, name in enumerate(PORTS, 1)}
DROP_EVERY = 2
STRIDE = DROP_EVERY * len(PORTS)
"""Packets from one of a kind to the next."""

FIRST = "first attach"
VANISHED = 100
"""Packets that may get lost where a clsact qdisc is added: two milliseconds of them."""

ENOUGH = 800
"""Packets that are sent during each event, at least: a hundred of each kind."""

FLOOD_SECONDS = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way of being attached.

    Attributes:
        kind: of hook, as `Lab.hook` wants it.
        attached: what `observe` calls it.
        mode: of XDP.
        tcx: whether the kernel says that it knows tcx.
    """

    kind: str
    attached: str
    mode: str | None = None
    tcx: bool = True


WAYS = {
    "xdp-native": Way(kind="xdp", attached="xdp-link", mode="native"),
    "xdp-generic": Way(kind="xdp", attached="xdp-link", mode="generic"),
    "tcx": Way(kind="tc-ingress", attached="tcx-link"),
    "clsact": Way(kind="tc-ingress", attached="clsact-filter", tcx=False),
    "tcx-egress": Way(kind="tc-egress", attached="tcx-link"),
    "clsact-egress": Way(kind="tc-egress", attached="clsact-filter", tcx=False),
}


# --- the stream --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, from one packet of the stream to another."""

    what: str
    begin: int
    end: int


@dataclass(slots=True)
class Duty:
    """Packets of one member that had to be dropped: from a number on, until another."""

    kind: int
    begin: int
    end: int | None = None

    def broken_by(self, window: support_probe.Window) -> bool:
        late = self.end is None or window.first < self.end
        return window.kind == self.kind and window.last >= self.begin and late


class Flood:
    """The stream, and who had to drop what of it."""

    def __init__(self, sender: support_probe.Sender, receiver: support_probe.Receiver) -> None:
        self._sender, self._receiver = sender, receiver
        self.events: list[Event] = []
        self.duties: list[Duty] = []
        self.sent: support_probe.Sent
        self.received: support_probe.Received

    @contextlib.contextmanager
    def event(self, what: str, then: Iterable[str]) -> Iterator[None]:
        """Something happens in this block; afterwards these members have to drop their packets.

        Those that had to before, and still have to, have to all the time.
        """
        kinds = {KINDS[name] for name in then}
        running = {duty.kind: duty for duty in self.duties if duty.end is None}
        begin = self._sender.mark().sequence
        for kind in running.keys() - kinds:
            running[kind].end = begin
        yield
        end = self._after(begin + ENOUGH)
        self.duties += [Duty(kind=kind, begin=end) for kind in sorted(kinds - running.keys())]
        self.events.append(Event(what=what, begin=begin, end=end))

    @contextlib.contextmanager
    def gap(self, what: str) -> Iterator[None]:
        """What happens in this block lets packets through, once: no duties meanwhile, the same ones afterwards."""
        kinds = {duty.kind for duty in self.duties if duty.end is None}
        names = [name for name, kind in KINDS.items() if kind in kinds]
        with self.event(what, ()):
            yield
        with self.event(f"after: {what}", names):
            pass

    def more(self, packets: int = ENOUGH) -> None:
        """So many more packets are sent."""
        self._after(self._sender.mark().sequence + packets)

    def _after(self, sequence: int) -> int:
        deadline = time.monotonic() + WAIT_SECONDS
        while (now := self._sender.mark().sequence) < sequence:
            assert time.monotonic() < deadline, f"waited for packet {sequence}, got to {now}"
            time.sleep(0.005)
        return now

    def finish(self) -> None:
        self.sent = self._sender.finish()
        self.received = self._receiver.finish()

    # --- the verdict -------------------------------------------------------------------------------------

    def escapes(self) -> list[str]:
        """One line for each window of packets that a member had to drop and did not."""
        return [
            self._told(window)
            for window in self.received.escaped
            if any(duty.broken_by(window) for duty in self.duties)
        ]

    def _told(self, window: support_probe.Window) -> str:
        names = {kind: name for name, kind in KINDS.items()}
        during = [each.what for each in self.events if each.begin <= window.last and window.first <= each.end]
        return (
            f"{window.count} packets ({window.first} to {window.last}, {window.seconds * 1e3:.2f} ms) escaped member "
            f"{names[window.kind]} while: {', '.join(during) or 'nothing happened'}"
        )

    def passed_in(self, what: str) -> list[tuple[int, float]]:
        """Of each such gap: packets that passed though a member is declared to drop them, and for how many ms."""
        found, kinds = [], {duty.kind for duty in self.duties}
        escaped = [window for window in self.received.escaped if window.kind in kinds]
        for event in self.events:
            windows = [each for each in escaped if event.begin <= each.last and each.first < event.end]
            if event.what == what and windows:
                begin, end = min(each.first_sent_ns for each in windows), max(each.last_sent_ns for each in windows)
                found.append((sum(each.count for each in windows), (end - begin) / 1e6))
        return found

    def assert_once(self) -> None:
        """Members come and go in one switch each: packets pass before or after, and never again in between."""
        disturbed = self.sent.refused + self.received.reordered
        for kind in {duty.kind for duty in self.duties}:
            windows = [window for window in self.received.escaped if window.kind == kind]
            absences = 1 + sum(duty.end is not None for duty in self.duties if duty.kind == kind)
            assert len(windows) <= absences + disturbed, f"kind {kind}: {windows}"

    def assert_first_was_whole(self, names: Iterable[str]) -> None:
        """Up to some packet all of these members' packets passed, and from it on none."""
        first = next(event for event in self.events if event.what == FIRST)
        escaped = [window for window in self.received.escaped if window.first < first.end]
        lasts = [max(window.last for window in escaped if window.kind == KINDS[name]) for name in names]
        assert max(lasts) - min(lasts) < STRIDE + self.received.reordered, lasts


# --- packages ----------------------------------------------------------------------------------------------


def _package(way: Way, version: str) -> Archive:
    """The test member for one kind of hook, as a package of this version."""
    tc = way.kind != "xdp"
    data = support.compile_program(support.PROGS / "member.bpf.c", "HOOK_TC" if tc else "HOOK_XDP")
    text = "a member of tests"
    program: Document = {
        "type": "tc" if tc else "xdp",
        "object": "member.bpf.o",
        "hooks": ["tc-ingress", "tc-egress"] if tc else ["xdp"],
        "proceedOn": ["next"] if tc else ["pass"],
        "description": text,
    }
    maps = [{"name": name, "role": "config", "description": text} for name in ("deny", "table")]
    maps += [{"name": "nets", "role": "config", "keyFormat": "cidr", "description": text}]
    maps += [{"name": name, "role": name, "description": text} for name in ("next", "stats")]
    spec = {
        "description": text,
        "license": "GPL-2.0-only OR BSD-2-Clause",
        "programs": [{"name": name} | program for name in ("member", "broken")],
        "maps": [*maps, {"name": "hits", "role": "state", "stateVersion": 1, "description": text}],
        "params": [
            {"name": "verdict", "description": text, "default": -1 if tc else 2},
            {"name": "mark_offset", "description": text, "default": 65535},
            {"name": "mark", "description": text, "default": 0},
        ],
        "features": [],
    }
    head = {"apiVersion": "reconciler/v1alpha1", "kind": "Package", "metadata": {"name": "member", "version": version}}
    document = json.dumps(head | {"spec": spec}).encode()
    return Archive("member", version, packages.build_archive(document, {"member.bpf.o": data}))


class Mirror:
    """A web server with packages that the commits lack; it can be told to be slow, or to break off."""

    def __init__(self, folder: Path, server: HttpsServer) -> None:
        self._folder, self._server = folder, server
        self.config = {"url": server.url("").rstrip("/"), "caFile": str(server.ca_file)}
        self._halfway, self._go = threading.Event(), threading.Event()

    def hold(self, archive: Archive, bundle: bytes) -> None:
        (self._folder / archive.file).write_bytes(archive.data)
        (self._folder / f"{archive.file}.sigstore.json").write_bytes(bundle)

    @contextlib.contextmanager
    def slow(self, fault: Fault | None = None) -> Iterator[None]:
        """Archives stop halfway until `go_on`, or break as `fault` does."""
        self._halfway.clear()
        self._go.clear()
        self._server.fault = fault or self._stop_halfway
        try:
            yield
        finally:
            self._server.fault = None
            self._go.set()

    def wait_halfway(self) -> None:
        assert self._halfway.wait(WAIT_SECONDS)

    def go_on(self) -> None:
        self._go.set()

    def _stop_halfway(self, handler: Handler) -> bool:
        if not handler.path.endswith(".tar.gz"):
            return False
        data = (self._folder / handler.path.lstrip("/")).read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.wfile.flush()
        self._halfway.set()
        self._go.wait(WAIT_SECONDS)
        handler.wfile.write(data[len(data) // 2 :])
        return True


# --- another version of the command ------------------------------------------------------------------------


def another_version(folder: Path, version: str = "99.9.9") -> Path:
    """This checkout as an installation that needs nothing of it, under a version of its own; its Python."""
    support.run("/usr/bin/python3", "-m", "venv", "--without-pip", str(folder))
    (site,) = folder.glob("lib/python3*/site-packages")
    shutil.copytree(ROOT / "reconciler", site / "reconciler", ignore=shutil.ignore_patterns("__pycache__"))
    for kind, source in {"schema": "schema", "policies": "policies", "packages": "build/packages"}.items():
        shutil.copytree(ROOT / source, site / "reconciler" / "_data" / kind)
    info = site / f"ebpf_reconciler-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: ebpf-reconciler\nVersion: {version}\n")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


# --- the story ---------------------------------------------------------------------------------------------


@dataclass
class Story:
    """One host, one chain of `MEMBERS` on one hook, one agent, one stream.

    Attributes:
        python: that of an installation under another version.
        other: the command that does not run now.
        order: of the members.
        package: which archive each member has, from which repository.
        params: of each member.
    """

    lab: Lab
    way: Way
    python: Path
    rate: int = 10_000
    order: tuple[str, ...] = MEMBERS
    package: dict[str, Document] = field(default_factory=dict)
    params: dict[str, Document] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _fetched: int = 0

    def __enter__(self) -> Self:
        lab = self.lab
        lab.command = COMMAND if self.way.tcx else WITHOUT_TCX
        self.other: Sequence[str] = (str(self.python), *(("-m", "reconciler") if self.way.tcx else WITHOUT_TCX[1:]))
        with self._stack:
            self.server = self._stack.enter_context(git_https(lab.repository.path.parent, lab.folder / "git"))
            lab.config["source"] |= {"url": self.server.url("policy.git"), "auth": {"caFile": str(self.server.ca_file)}}
            folder = lab.folder / "mirror"
            folder.mkdir()
            self.mirror = Mirror(folder, self._stack.enter_context(files_https(folder, lab.folder / "https")))
            lab.config["repositories"] = [{"name": "mirror", "https": self.mirror.config}]
            self.package = dict.fromkeys(PORTS, self.archives[0].ref)
            self.flood = self._stack.enter_context(self._flood())
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _flood(self) -> Iterator[Flood]:
        egress = self.way.kind == "tc-egress"
        ports, seconds = tuple(PORTS.values()), FLOOD_SECONDS
        with self.lab.probes(egress=egress, udp=not egress, rate=self.rate, drop_ports=ports, seconds=seconds) as ends:
            yield Flood(*ends)

    # --- what is declared --------------------------------------------------------------------------------

    @cached_property
    def archives(self) -> tuple[Archive, Archive]:
        return _package(self.way, "0.1.0"), _package(self.way, "0.1.1")

    def member(self, name: str) -> Document:
        made = member(
            name,
            self.archives[0],
            "member",
            proceed=("pass",) if self.way.kind == "xdp" else ("next",),
            maps={"deny": entries((PORTS[name], 1))},
            params=self.params.get(name, {}),
        )
        return made | {"package": self.package[name]}

    def chain(self, *names: str, called: str = "edge", priority: int = 100) -> Document:
        mode = {"mode": self.way.mode} if self.way.mode else {}
        hook = self.lab.hook(self.way.kind, **mode)
        return chain(called, *map(self.member, names), hook=hook, priority=priority)

    def commit(self, *chains: Document) -> str:
        return self.lab.commit(*(chains or (self.chain(*self.order),)), archives=self.archives)

    def upgrade(self, name: str) -> None:
        """The other one of two versions that differ in nothing else."""
        self.package[name] = next(each.ref for each in self.archives if each.ref != self.package[name])

    def change_parameter(self, name: str) -> None:
        self.params[name] = {"mark": self.params.get(name, {"mark": 0})["mark"] + 1}

    def version(self) -> str:
        return support.run(*self.lab.command, "--version")

    # --- what happens ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the agent, and wait until it has looked."""
        self.agent: Agent = self.lab.agent()
        self.agent.wait("pass")

    def first(self) -> None:
        """The first attach, in the middle of the stream."""
        with self.flood.event(FIRST, MEMBERS):
            self.flood.more()
            self.commit()
            self.start()
            assert self.agent.count("pass", reason="Applied") == 1
        assert self.attached() == (self.way.attached, self.way.mode)
        self.hits = self.counted()

    def attached(self) -> tuple[str, str | None]:
        """How, and in which mode of XDP."""
        (seen,) = self.lab.attached()
        return seen["attached"], seen["mode"]

    @contextlib.contextmanager
    def event(self, what: str, then: Sequence[str] = MEMBERS) -> Iterator[None]:
        """As in Flood; and what the members that stay have counted is still there afterwards."""
        with self.flood.event(what, then):
            yield
        before, self.hits = self.hits, self.counted()
        kept = {name: (before[name], self.hits[name]) for name in MEMBERS}
        assert all(old < new for old, new in kept.values()), f"{what}: counts were lost: {kept}"

    def apply(self, what: str, *chains: Document) -> None:
        """A commit, by default the chain as it is now, reaches the hook through the agent that runs."""
        documents = chains or (self.chain(*self.order),)
        names = [each["name"] for document in documents for each in document["spec"]["members"]]
        with self.event(what, names):
            commit = self.commit(*documents)
            self.poll(commit)

    def poll(self, commit: str) -> None:
        """Other passes may follow: somebody's namespaces wake the agent too."""
        passes = self.agent.count("pass", reason="Applied")
        self.agent.hup()
        self.agent.wait("applied", commit=commit)
        self.agent.wait("pass", more_than=passes, reason="Applied")

    def poll_until(self, reason: str) -> None:
        """A poll that changes nothing, for this reason."""
        passes = self.agent.count("pass", reason=reason)
        self.agent.hup()
        self.agent.wait("pass", more_than=passes, reason=reason)

    def only_on_mirror(self) -> Document:
        """A new version of the package that only the web server has."""
        self._fetched += 1
        archive = _package(self.way, f"0.2.{self._fetched}")
        self.mirror.hold(archive, self.lab.kit.release.sign(archive.data))
        return archive.ref | {"repository": "mirror"}

    def end(self) -> None:
        """Stop the stream, and judge it."""
        assert self.agent.stop() == 0
        assert self.agent.errors == ""
        self.flood.finish()
        assert self.flood.received.lost == 0
        assert self.flood.escapes() == []
        self.flood.assert_once()
        self.flood.assert_first_was_whole(MEMBERS)

    def account(self) -> None:
        """After the end: no packet is missing, and no count was forgotten."""
        sent, received = self.flood.sent, self.flood.received
        counters, hits = self.lab.counters(), self.counted()
        lost = sent.passed - received.passed - sent.refused_kinds[0]
        for name in MEMBERS:
            kind = KINDS[name]
            # What a tc egress program drops is refused to the sender.
            elsewhere = 0 if self.way.kind == "tc-egress" else sent.refused_kinds[kind]
            missing = sent.kinds[kind] - received.kinds[kind] - counters[name]["dropped"] - elsewhere
            assert missing >= 0, name
            lost += missing
            assert counters[name]["seen"] == hits[name]
            assert counters[name]["broken"] == 0
        # Adding a clsact qdisc takes the device's own out for a moment (qdisc_graft in net/sched/sch_api.c).
        assert 0 <= lost <= (VANISHED if self.way is WAYS["clsact-egress"] else 0)

    def counted(self) -> dict[str, int]:
        """The state map `hits` of each member that runs: packets that it saw, ever."""
        inventory = json.loads((self.lab.state / "inventory.json").read_text())
        running = {each["generation"] for each in inventory["attachments"]}
        found = {}
        for generation in inventory["generations"]:
            if generation["name"] in running:
                for each in generation["maps"]:
                    if each["name"] == "hits":
                        with _bpf.closing(_bpf.obj_get(str(self.lab.pins / each["pin"]))) as descriptor:
                            (found[each["member"]],) = struct.unpack("=Q", _bpf.map_lookup(descriptor, bytes(4), 8))
        return found
