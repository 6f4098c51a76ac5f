# SPDX-License-Identifier: Apache-2.0
"""One host for one test: two namespaces and a veth, a signed Git repository, packages, a configuration, the command.

    with Lab(tmp_path, kit) as lab:
        lab.commit(chain("edge", lab.wall(), lab=lab))
        assert lab.reconciler("apply").code == 0
        with lab.traffic() as traffic:
            ...
        assert traffic.received.escaped == ()

`near` is where chains are attached, `far` the rest of the world. The command is the installed one, in a process of its
own; `inside=True` starts it in `near`, which is then what it calls the host. Everything is removed at the end:
processes, pins, namespaces, files.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from reconciler import packages, trust
from tests import support_probe
from tests.e2e.servers import LOOPBACK, GitRepository, allowed_signers, ssh_key
from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

ROOT = Path(__file__).parents[2]
COMMAND = (str(Path(sys.executable).with_name("reconciler")),)
WITHOUT_TCX = (sys.executable, str(Path(__file__).with_name("without_tcx.py")))
"""The same command on a kernel that says it knows no tcx."""

MAIN = "refs/heads/main"
COMMAND_SECONDS = 120
WAIT_SECONDS = 30.0
"""A bound on waiting for what must happen; nothing is measured with it."""


# --- keys and packages, once for the session ---------------------------------------------------------------


@dataclass(frozen=True)
class Archive:
    """A package as its repository holds it."""

    name: str
    version: str
    data: bytes

    @property
    def file(self) -> str:
        return f"{self.name}-{self.version}.tar.gz"

    @functools.cached_property
    def digest(self) -> str:
        return packages.digest_of(self.data)

    @property
    def ref(self) -> dict[str, str]:
        """How a manifest names it."""
        return {"name": self.name, "version": self.version, "digest": self.digest}


@dataclass(frozen=True)
class PackageKey:
    """A key that signs packages: both halves as PEM."""

    private: bytes
    public: bytes

    @staticmethod
    def make() -> PackageKey:
        key = ec.generate_private_key(ec.SECP256R1())
        return PackageKey(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        )

    @functools.cache  # noqa: B019  # a kit lives as long as the session
    def sign(self, data: bytes) -> bytes:
        return trust.sign(data, self.private)


class Kit:
    """What the tests of a session share: keys of persons, keys of packages, the packages of bpf/."""

    def __init__(self, folder: Path) -> None:
        self.alice = ssh_key(folder / "alice", comment="alice")
        self.mallory = ssh_key(folder / "mallory", comment="mallory")
        self.release, self.other = PackageKey.make(), PackageKey.make()
        made = subprocess.run(["make", "-s", "-C", ROOT / "bpf"], check=False, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        self.firewall, self.ratelimit, self.flowcount = map(self._archive, ("firewall", "ratelimit", "flowcount"))
        self.firewall_next = self._archive("firewall", "1.0.1")

    @staticmethod
    def _archive(name: str, version: str = "1.0.0") -> Archive:
        text = (ROOT / "bpf" / name / "package.yaml").read_text().replace("version: 1.0.0", f"version: {version}")
        objects = {f"{name}.bpf.o": (ROOT / "build" / "bpf" / name / f"{name}.bpf.o").read_bytes()}
        return Archive(name, version, packages.build_archive(text.encode(), objects))


# --- manifests ---------------------------------------------------------------------------------------------

Document = dict[str, Any]


def chain(
    name: str,
    *members: Document,
    hook: Document,
    priority: int = 100,
    **rest: object,
) -> Document:
    """A chain; `rest` are further fields of its spec."""
    return {
        "apiVersion": "reconciler/v1alpha1",
        "kind": "Chain",
        "metadata": {"name": name},
        "spec": {"priority": priority, "hook": hook, "members": list(members), **rest},
    }


def member(
    name: str, archive: Archive, program: str, *, proceed: Sequence[str] = ("pass",), **rest: object
) -> Document:
    """A member; `rest` are further fields, `params` and `maps` above all."""
    return {"name": name, "package": archive.ref, "program": program, "proceedOn": list(proceed), **rest}


def entries(*pairs: tuple[object, object]) -> Document:
    """The declared content of a map."""
    return {"entries": [{"key": key, "value": value} for key, value in pairs]}


def rule(port: int, verdict: str, *, protocol: int = 17) -> tuple[object, object]:
    """A rule of the firewall for everybody (zone 0)."""
    return {"zone": 0, "protocol": protocol, "port": port}, verdict


# --- the command -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """One run of the command."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def steps(self) -> list[str]:
        """What an apply did, or what a plan would do, by kind of step."""
        answer = self.json
        done = answer["steps"] if "steps" in answer else ((answer["outcome"] or {}).get("done") or [])
        return [step["step"] for step in done]

    @property
    def reason(self) -> str:
        reason: str = self.json["status"]["reason"]
        return reason

    @property
    def findings(self) -> list[str]:
        return [finding["reason"] for finding in self.json["status"]["findings"]]

    def expect(self, code: int, reason: str | None = None) -> Self:
        """This run, if it ended like that; else a failure that shows all of it."""
        if self.code != code or (reason is not None and self.reason != reason):
            pytest.fail(f"{' '.join(self.arguments)}: expected exit {code} {reason or ''}, got {self}")
        return self

    def expect_code(self, code: int) -> Self:
        """This run, if it ended with this code; for verbs that make no pass."""
        assert self.code == code, f"{' '.join(self.arguments)}: expected exit {code}, got {self.code}: {self.err}"
        return self

    def __str__(self) -> str:
        text = self.out
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = f"{self.reason}: {self.json['status']['message']}\n{self.json['status']['findings']}"
        return f"exit {self.code} {text}\n{self.err}"


class Agent:
    """`reconciler run` in the background; its events are read while it runs."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._output, self._errors = log.open("wb"), log.with_suffix(".err").open("wb")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
            env=dict(environment),
            start_new_session=True,
        )

    @property
    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    @property
    def events(self) -> list[Document]:
        """Every event so far; a line that is being written is left out."""
        whole = self._log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    @property
    def errors(self) -> str:
        return self._log.with_suffix(".err").read_text()

    def count(self, kind: str, **fields: object) -> int:
        return sum(event["event"] == kind and event.items() >= fields.items() for event in self.events)

    def wait(self, kind: str, *, more_than: int = 0, **fields: object) -> Document:
        """The newest event of a kind with these fields, as soon as there are more than so many of them."""

        def came() -> bool:
            return self.count(kind, **fields) > more_than

        self.wait_until(came, f"event {kind} {fields}")
        return [each for each in self.events if each["event"] == kind and each.items() >= fields.items()][-1]

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not holds():
            assert self.process.poll() is None, f"the agent ended: {self.process.returncode}\n{self.errors}"
            tail = "\n".join(self.lines[-20:])
            assert time.monotonic() < deadline, f"waited for {what}, got\n{tail}\n{self.errors}"
            time.sleep(0.02)

    def hup(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.end()

    def kill(self) -> None:
        """SIGKILL, to it and to what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.end()

    def end(self) -> int:
        code = self.process.wait(WAIT_SECONDS)
        self._output.close()
        self._errors.close()
        return code


# --- packets -----------------------------------------------------------------------------------------------


class Traffic:
    """A paced stream from one end of the wire to the other; `sent` and `received` are there after its block."""

    def __init__(self, sender: support_probe.Sender, receiver: support_probe.Receiver) -> None:
        self._sender, self._receiver = sender, receiver
        self.sent: support_probe.Sent
        self.received: support_probe.Received

    def finish(self) -> None:
        self.sent = self._sender.finish()
        self.received = self._receiver.finish()

    def assert_filtered(self) -> None:
        """Every packet that the chain must drop was dropped, every other one arrived, and there were many of both."""
        sent, received = self.sent, self.received
        assert received.lost == 0
        assert sent.dropped > 1000
        assert received.escaped == ()
        assert received.passed == sent.passed


# --- the host ----------------------------------------------------------------------------------------------


@dataclass
class Lab:
    """See the module. Fields may be changed before the first command; `config` at any time.

    Attributes:
        command: what is started, before the arguments.
        inside: start it in `near`, whose interfaces are then those of the host.
        config: `spec` of the host's configuration, written before each command.
    """

    folder: Path
    kit: Kit
    command: Sequence[str] = COMMAND
    inside: bool = False
    config: Document = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        with self._stack:
            self.pins = self._stack.enter_context(support.pin_directory())
            self.wire = self._stack.enter_context(support.wire())
            self.near, self.far = self.wire.near, self.wire.far
            self.repository = GitRepository(self.folder / "repos" / "policy.git")
            self.host = self.folder / "host"
            self.host.mkdir(mode=0o755)
            self.state, self.run = self.host / "state", self.folder / "run"
            (self.host / "allowed_signers").write_bytes(allowed_signers(alice=self.kit.alice))
            (self.host / "release.pub").write_bytes(self.kit.release.public)
            (self.host / "other.pub").write_bytes(self.kit.other.public)
            self.config = self._default_config() | self.config
            self._agents: list[Agent] = []
            self._stack.callback(self._end_agents)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _end_agents(self) -> None:
        for agent in self._agents:
            if agent.process.returncode is None:
                agent.kill()

    # --- configuration -----------------------------------------------------------------------------------

    @property
    def netns(self) -> str:
        """How chains name the namespace of the hooks."""
        return "host" if self.inside else self.near.name

    def _default_config(self) -> Document:
        return {
            "host": {"name": "lab"},
            "source": {
                "url": f"file://{self.repository.path}",
                "allowFile": True,
                "interval": "1h",
                "driftInterval": "1h",
                "confirmTimeout": "20s",
            },
            "trust": {
                "commits": {"allowedSigners": "allowed_signers"},
                "signers": [
                    {"name": "release", "packages": ["*"], "key": {"file": "release.pub"}},
                    {"name": "other", "packages": ["flowcount"], "key": {"file": "other.pub"}},
                ],
            },
            "secureMode": {"mode": "audit", "namespaces": [self.netns]},
            "guardrail": {"share": "100%"},
            "paths": {"state": str(self.state), "pins": str(self.pins), "run": str(self.run)},
        }

    @property
    def config_file(self) -> Path:
        """The configuration as a file, written now."""
        path = self.host / "config.yaml"
        document = {"apiVersion": "reconciler/v1alpha1", "kind": "Config", "spec": self.config}
        path.write_text(json.dumps(document, indent=1))
        return path

    # --- the repository ----------------------------------------------------------------------------------

    def commit(
        self,
        *chains: Document,
        key: Path | None = None,
        signed: bool = True,
        archives: Sequence[Archive] | None = None,
        bundles: Mapping[str, bytes | None] | None = None,
        parents: tuple[str, ...] | None = None,
        message: str = "change",
    ) -> str:
        """A new head; the first one becomes source.minimumCommit.

        Args:
            key: who signs, alice unless given.
            archives: all packages unless given.
            bundles: signature by archive's name, None to leave it out; the release key's unless given.
        """
        repository = {
            "apiVersion": "reconciler/v1alpha1",
            "kind": "Repository",
            "metadata": {"name": "lab"},
            "spec": {"allowEmpty": True},
        }
        files: dict[str, bytes | tuple[str, str]] = {"reconciler.yaml": json.dumps(repository).encode()}
        for each in chains:
            files[f"chains/{each['metadata']['name']}.yaml"] = json.dumps(each, indent=1).encode()
        kit = self.kit
        for archive in archives or (kit.firewall, kit.firewall_next, kit.ratelimit, kit.flowcount):
            bundle = (bundles or {}).get(archive.name, b"") if bundles and archive.name in bundles else b""
            files[f"packages/{archive.file}"] = archive.data
            if bundle is not None:
                files[f"packages/{archive.file}.sigstore.json"] = bundle or kit.release.sign(archive.data)
        made = self.repository.commit(
            files, key=(key or kit.alice) if signed else None, parents=parents, message=message
        )
        self.config["source"].setdefault("minimumCommit", made)
        return made

    # --- manifests ---------------------------------------------------------------------------------------

    def hook(self, kind: str = "xdp", **rest: object) -> Document:
        """The near end of the wire; `kind` is xdp, tc-ingress or tc-egress."""
        name, _, direction = kind.partition("-")
        way = {"direction": direction} if direction else {}
        return {"type": name, **way, "interfaces": [self.wire.interface], "netns": self.netns, **rest}

    def wall(
        self,
        *rules: tuple[object, object],
        name: str = "wall",
        kind: str = "xdp",
        default: str = "ALLOW",
        archive: Archive | None = None,
        **params: object,
    ) -> Document:
        """A member that denies the probe's drop port, and what else `rules` say."""
        denied = entries(rule(support_probe.DROP_PORT, "DENY"), *rules)
        return member(
            name,
            archive or self.kit.firewall,
            f"firewall_{kind.removeprefix('tc-')}",
            proceed=("pass",) if kind == "xdp" else ("next",),
            params={"default_verdict": default, **params},
            maps={"rules": denied},
        )

    def limit(self, rate: int, *, port: int = 443, name: str = "limit", **params: object) -> Document:
        """A member for XDP that limits new TCP connections to a port."""
        return member(
            name,
            self.kit.ratelimit,
            "ratelimit",
            params={"rate": rate, **params},
            maps={"ports": entries((port, 0))},
        )

    def count(self, *, name: str = "count", **params: object) -> Document:
        """A member for tc that counts flows."""
        return member(name, self.kit.flowcount, "flowcount", proceed=("next",), params=params)

    # --- the command -------------------------------------------------------------------------------------

    def line(self, *arguments: str) -> list[str]:
        enter = ["nsenter", f"--net=/run/netns/{self.near.name}"] if self.inside else []
        return [*enter, *self.command, "-c", str(self.config_file), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("RECONCILER_")}

    def reconciler(self, *arguments: str, output: str = "json") -> Result:
        """Run the command to its end."""
        done = subprocess.run(
            self.line("-o", output, *arguments),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
            env=self.environment,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Result(arguments, done.returncode, done.stdout, done.stderr)

    def apply(self, *arguments: str) -> Result:
        return self.reconciler("apply", *arguments)

    def applied(self, *chains: Document) -> str:
        """Commit and apply what must be fine."""
        commit = self.commit(*chains)
        self.apply().expect(0, "Applied")
        return commit

    def agent(self, *arguments: str) -> Agent:
        """Start the agent; it is not waited for."""
        made = Agent(self.line("run", *arguments), self.environment, self.folder / f"agent{len(self._agents)}.jsonl")
        self._agents.append(made)
        return made

    # --- the kernel --------------------------------------------------------------------------------------

    def attached(self, *, whose: str = "owned") -> list[Document]:
        """What `observe` finds in the namespace of the hooks."""
        answer = self.reconciler("observe", "--netns", self.netns).expect(0).json
        return [each for each in answer["attachments"] if each["whose"] == whose]

    def counters(self) -> dict[str, dict[str, int]]:
        """Packets by member and verdict."""
        found = self.reconciler("observe", "--netns", self.netns).expect(0).json["members"]
        return {each["member"]: {name: packets for name, (packets, _) in each["counters"].items()} for each in found}

    def xdp_id(self) -> int | None:
        """The program on the near end's XDP hook, as ip(8) says."""
        (link,) = json.loads(self.near.ip("-j", "-d", "link", "show", "dev", self.wire.interface))
        program = link.get("xdp", {}).get("prog", {}).get("id")
        assert program is None or isinstance(program, int)
        return program

    def pinned(self) -> list[str]:
        """Paths below the pin directory that are no folders."""
        return sorted(
            str(path.relative_to(self.pins))
            for path in self.pins.rglob("*")
            if self.pins.exists() and not path.is_dir()
        )

    # --- packets -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def probes(
        self, *, egress: bool = False, udp: bool = False, rate: int = 20_000, **both: Any
    ) -> Iterator[tuple[support_probe.Sender, support_probe.Receiver]]:
        """A stream over the wire and its receiver while the block runs; `both` is for both of them.

        Args:
            egress: from near to far instead.
            udp: receive behind tc ingress (on UDP sockets), not right behind XDP.
        """
        wire, near, far = self.wire, self.near, self.far
        ends = [(far, wire.far_interface), (near, wire.interface)]
        addresses = [wire.far_address, wire.near_address]
        if egress:
            ends.reverse()
            addresses.reverse()
        (source, out), (target, into) = ends
        to = support_probe.Target(mac=wire.mac(target, into).hex(":"), address=addresses[1], source=addresses[0])
        with (
            support_probe.Receiver(target.name, interface=None if udp else into, **both) as receiver,
            support_probe.Sender(source.name, out, to=to, rate=rate, **both) as sender,
        ):
            yield sender, receiver

    @contextlib.contextmanager
    def traffic(self, *, egress: bool = False, udp: bool = False, rate: int = 20_000) -> Iterator[Traffic]:
        """Packets of both kinds over the wire while the block runs; see `probes`."""
        with self.probes(egress=egress, udp=udp, rate=rate) as (sender, receiver):
            running = Traffic(sender, receiver)
            yield running
            running.finish()

    def send(self, *frames: bytes) -> None:
        """Frames from far to near, as they are."""
        with self.far.packet_socket(self.wire.far_interface) as sender:
            for frame in frames:
                sender.send(frame)

    def reaches(self, port: int) -> bool:
        """Whether a UDP packet from far to this port of near arrives behind all hooks."""
        with self.near.socket(socket.AF_INET, socket.SOCK_DGRAM, timeout=0.3) as receiver:
            receiver.bind((self.wire.near_address, port))
            self.send(self.wire.frame(dport=port))
            with contextlib.suppress(TimeoutError):
                return bool(receiver.recv(100))
            return False

    # --- the Git server on the other side ----------------------------------------------------------------

    @contextlib.contextmanager
    def relay(self, port: int) -> Iterator[int]:
        """A port of far that leads to a port of loopback, so that a server of servers.py is behind the wire."""

        def listen() -> socket.socket:
            made = socket.create_server((self.wire.far_address, 0))
            made.settimeout(0.05)
            return made

        listener, ending = self.far.run(listen), threading.Event()
        threads: list[threading.Thread] = []

        def accept() -> None:
            while not ending.is_set():
                with contextlib.suppress(TimeoutError, OSError):
                    connection, _ = listener.accept()
                    threads.append(threading.Thread(target=_join, args=(connection, port, ending)))
                    threads[-1].start()

        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield listener.getsockname()[1]
        finally:
            ending.set()
            for thread in threads:
                thread.join()
            listener.close()


def _join(client: socket.socket, port: int, ending: threading.Event) -> None:
    """Carry bytes both ways until one end hangs up or the relay ends."""
    with client, socket.create_connection((LOOPBACK, port)) as server, contextlib.suppress(OSError):
        other = {client: server, server: client}
        while not ending.is_set():
            for ready in select.select([client, server], [], [], 0.05)[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                other[ready].sendall(data)
