# SPDX-License-Identifier: Apache-2.0
"""A whole host in a test: passes over a fake kernel, with everything else real.

Real are: a bare Git repository whose commits ssh-keygen signs, the agent's own repository and state directory, package
archives with key signatures, and the compiled packages that ship. The clock belongs to the test. What a test says of
the repository it says in manifests; what it expects it reads from the kernel, from the status and from the files.
"""

from __future__ import annotations

import atexit
import copy
import functools
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler import packages, reconcile, trust
from reconciler.cli._compose import ConfiguredPackages
from reconciler.config import (
    CommitTrust,
    Config,
    KeyRule,
    Paths,
    SecureConfig,
    SecureMode,
    SourceConfig,
    Trust,
)
from reconciler.model import HookKind, HostFacts, Inventory
from reconciler.source import Source, SourceSettings, open_source
from reconciler.state import State, open_state, read_history
from tests import manifests
from tests.e2e.servers import GitRepository, allowed_signers, ssh_key
from tests.signed_packages import Key
from tests.sim.fake_kernel import Crash, FakeKernel
from tests.sim.world import ROOT, shipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.model import Attachment

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
RELEASE = "6.18.0-test"


@functools.cache
def keys() -> Mapping[str, Path]:
    """SSH keys for commits: alice is allowed, mallory is not."""
    folder = Path(tempfile.mkdtemp(prefix="reconciler-test-keys-"))
    atexit.register(shutil.rmtree, folder)
    return {name: ssh_key(folder / name) for name in ("alice", "mallory")}


@functools.cache
def package_keys() -> Mapping[str, Key]:
    """Keys for packages: "release" is allowed, "other" is not."""
    return {"release": Key.make(), "other": Key.make("ed25519")}


@functools.cache
def archive(name: str, version: str | None = None) -> bytes:
    """The archive of a shipped package, under another version if one is given."""
    used = shipped()[name]
    text = (ROOT / "bpf" / name / "package.yaml").read_bytes()
    if version is not None:
        text = text.replace(f"version: {used.manifest.version}".encode(), f"version: {version}".encode(), 1)
    return packages.build_archive(text, dict(used.objects))


@functools.cache
def bundle(name: str, version: str | None = None, key: str = "release") -> bytes:
    """Its signature."""
    return trust.sign(archive(name, version), package_keys()[key].private)


def ref(name: str, version: str | None = None, **fields: str) -> dict[str, str]:
    """A package as a manifest names it."""
    digest = packages.digest_of(archive(name, version))
    return {"name": name, "version": version or shipped()[name].manifest.version, "digest": digest, **fields}


def member(package: str = "ratelimit", *, name: str | None = None, version: str | None = None, **fields: Any) -> Any:
    """A member of a shipped package, as JSON; its first program unless told otherwise."""
    program = shipped()[package].manifest.programs[0].name
    used = {"name": name or package, "package": ref(package, version), "program": program}
    return {**used, **fields}


def chain(name: str = "edge", *members: Any, **spec: Any) -> dict[str, Any]:
    """A chain on XDP of eth0, as JSON; for every host unless told otherwise."""
    fields: dict[str, Any] = {
        "hosts": None,
        "hook": {"type": "xdp", "interfaces": ["eth0"]},
        "members": list(members) or [member()],
        **spec,
    }
    return manifests.chain(name, **fields)


def tree(*documents: Any, signed: Mapping[str, str] | None = None, **more: bytes) -> dict[str, bytes]:
    """The files of a commit: the chains, and the archives and bundles of the packages that they name.

    Args:
        signed: package to the key that signs it; the release key by default, "" for no bundle.
    """
    files = manifests.files(*documents, **more)
    for document in documents:
        for used in document["spec"]["members"]:
            name, version = used["package"]["name"], used["package"]["version"]
            shipped_version = shipped()[name].manifest.version
            asked = None if version == shipped_version else version
            path = f"packages/{name}-{version}.tar.gz"
            files[path] = archive(name, asked)
            key = (signed or {}).get(name, "release")
            if key:
                files[f"{path}{packages.BUNDLE_SUFFIX}"] = bundle(name, asked, key)
    return files


@dataclass
class FakeClock:
    """Time that passes when a test says so."""

    seconds: float = 0.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return 1000.0 + self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


class Origin:
    """The Git server's repository, and who pushes to it."""

    def __init__(self, path: Path) -> None:
        self.repository = GitRepository(path)
        self.path = path

    def commit(self, *documents: Any, key: str | None = "alice", **more: Any) -> str:
        """A commit with these chains on main; `files` replaces what they make."""
        files: Any = more.pop("files", None)
        if files is None:
            files = tree(*documents, signed=more.pop("signed", None))
        return self.repository.commit(files, key=None if key is None else keys()[key], **more)

    def push(self, commit: str) -> None:
        """Force main to a commit that exists."""
        self.repository.git("update-ref", "refs/heads/main", commit)

    def vanish(self) -> None:
        """The server does not answer any more."""
        self.path.rename(self.path.with_suffix(".gone"))

    def return_(self) -> None:
        """It does again."""
        self.path.with_suffix(".gone").rename(self.path)


class Host:
    """One host; `close` it. `restart` is a new process, `reboot` a new kernel."""

    def __init__(self, folder: Path, *interfaces: str, minimum: str | None = None, **options: Any) -> None:
        self.folder = folder
        self.origin = Origin(folder / "repos" / "policy.git")
        self.kernel = FakeKernel(**options)
        for name in interfaces or ("eth0",):
            self.kernel.add_interface(name)
        self.clock = FakeClock()
        self.events: list[Mapping[str, Any]] = []
        self.release = RELEASE
        self.unsafe_first_use = False
        self.config = Config(
            source=SourceConfig(url=f"file://{self.origin.path}", allow_file=True, minimum_commit=minimum),
            host_name="edge-1",
            labels={"role": "edge"},
            trust=Trust(
                commits=CommitTrust(allowed_signers=allowed_signers(alice=keys()["alice"])),
                signers=(KeyRule(name="release", packages=("*",), key_pem=package_keys()["release"].public),),
            ),
            secure=SecureConfig(mode=SecureMode.AUDIT),
            paths=Paths(state=str(folder / "state")),
        )
        self.state: State | None = None
        self.source: Source | None = None
        self._packages: ConfiguredPackages | None = None

    def close(self) -> None:
        """End the process."""
        if self.state is not None:
            self.state.close()
        if self.source is not None:
            self.source.close()
        self.state = self.source = self._packages = None

    def copy(self, folder: Path) -> Host:
        """The same host somewhere else: its server, its kernel, its state. No process may be running."""
        assert self.state is None
        twin = copy.copy(self)
        shutil.copytree(self.folder, folder, symlinks=True)
        twin.folder, twin.kernel, twin.clock = folder, copy.deepcopy(self.kernel), FakeClock(self.clock.seconds)
        twin.origin = copy.copy(self.origin)
        twin.origin.path = folder / self.origin.path.relative_to(self.folder)
        twin.origin.repository = copy.copy(self.origin.repository)
        twin.origin.repository.path = twin.origin.path
        twin.events = list(self.events)
        twin.config = replace(
            self.config,
            source=replace(self.config.source, url=f"file://{twin.origin.path}"),
            paths=Paths(state=str(folder / "state")),
        )
        return twin

    # --- the process -------------------------------------------------------------------------------------

    def configure(self, **changes: Any) -> None:
        """Another configuration; it takes effect with a restart."""
        self.config = replace(self.config, **changes)
        self.restart()

    def trust(self, **changes: Any) -> None:
        """Another `trust` section."""
        self.configure(trust=replace(self.config.trust, **changes))

    def secure(self, mode: SecureMode, **changes: Any) -> None:
        """Another secure mode."""
        self.configure(secure=replace(self.config.secure, mode=mode, **changes))

    def set_source(self, **changes: Any) -> None:
        """Another `source` section."""
        self.configure(source=replace(self.config.source, **changes))

    def restart(self) -> None:
        """The process ends, however, and a new one starts."""
        self.close()
        self.kernel.restart()

    def reboot(self) -> None:
        """The machine starts again."""
        self.close()
        self.kernel.reboot()
        self.kernel.restart()

    def parts(self) -> reconcile.Parts:
        """The real objects of the running process, made when there is none."""
        if self.state is None:
            self.state = open_state(self.directory)
        if self.source is None:
            settings = SourceSettings(url=self.config.source.url, ref=self.config.source.ref, allow_file=True)
            self.source = open_source(settings, self.directory / "git")
        if self._packages is None:
            store = packages.Store(self.directory / "packages")
            self._packages = ConfiguredPackages(config=self.config, cache=packages.Cache(store))
        return reconcile.Parts(
            config=self.config,
            facts=HostFacts(name=self.config.host_name or "", labels=self.config.labels),
            kernel=self.kernel,
            state=self.state,
            source=self.source,
            packages=self._packages,
            clock=self.clock,
            kernel_release=self.release,
            emit=self.events.append,
            unsafe_first_use=self.unsafe_first_use,
        )

    def apply(self, **request: Any) -> reconcile.PassResult:
        """One pass that asks the source."""
        return reconcile.Pass(self.parts(), reconcile.Request(**request)).run()

    def repair(self) -> reconcile.PassResult:
        """One pass that only looks at the kernel."""
        return self.apply(poll=False)

    def plan(self) -> reconcile.PassResult:
        """What would be done."""
        return self.apply(dry_run=True)

    def accept(self, commit: str, reason: str = "test") -> reconcile.PassResult:
        """`reconciler accept`."""
        return reconcile.accept(self.parts(), commit, reason=reason, by="uid 0")

    def crash(self, n: int, *, when: Any = "after") -> bool:
        """A pass that is killed at its n-th primitive, and the next process; False if it ended before."""
        self.kernel.crash_at(n, when=when)
        died = False
        try:
            self.apply()
        except Crash:
            died = True
        self.restart()
        return died

    # --- what is to be seen ------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """The state directory."""
        return self.folder / "state"

    def runs(self, interface: str = "eth0", kind: HookKind = HookKind.XDP, netns: str = "host") -> list[str]:
        """Names of the members that a packet sees."""
        trace = self.kernel.run_packet(self.kernel.point(interface, kind, netns=netns))
        assert not trace.broken
        return [name for _, name in trace.members]

    def attachment(self, interface: str = "eth0", kind: HookKind = HookKind.XDP) -> Attachment:
        """The one attachment of a hook."""
        (found,) = self.kernel.attachments(self.kernel.point(interface, kind))
        return found

    def detach(self, interface: str = "eth0", kind: HookKind = HookKind.XDP) -> None:
        """Somebody takes the program off."""
        self.kernel.remove(self.kernel.point(interface, kind), self.attachment(interface, kind))

    def fingerprint(self) -> object:
        """Everything of ours in the kernel: equal means that nothing was touched."""
        kernel = self.kernel
        hooks = [
            (str(kernel.point_of(device, kind)), kernel.attachments(kernel.point_of(device, kind)))
            for device in kernel.devices.values()
            for kind in HookKind
        ]
        return hooks, dict(kernel.pins)

    def file(self, name: str) -> Path:
        """A file of the state directory."""
        return self.directory / name

    def history(self) -> list[str]:
        """The events on record."""
        return [str(record["event"]) for record in read_history(self.directory)]

    def emitted(self, kind: str) -> list[Mapping[str, Any]]:
        """Events of one kind."""
        return [record for record in self.events if record["event"] == kind]

    @property
    def applied(self) -> str | None:
        """The watermark, as it is on disk."""
        record = self.parts().state.source().applied
        return record.id if record else None

    def inventory(self) -> Inventory:
        """What is owned, as it is on disk."""
        saved = self.parts().state.inventory()
        assert saved is not None
        return saved


def orphans(host: Host) -> list[str]:
    """Pins that the inventory does not name."""
    inventory = host.inventory()
    known = {owned.pin for owned in inventory.attachments} | set(inventory.leftovers)
    for generation in inventory.generations:
        known |= {program.pin for program in generation.programs} | {entry.pin for entry in generation.maps}
    return sorted(set(host.kernel.pins) - known)
