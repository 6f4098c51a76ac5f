# SPDX-License-Identifier: Apache-2.0
"""A host in memory: the fake kernel, the packages that ship (compiled for real), and plan + apply around them."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler import apply, manifest, plan
from reconciler.config import Guardrail, SecureConfig, SecureMode
from reconciler.kernel import Scope
from reconciler.manifest import state_digest
from reconciler.model import (
    Chain,
    DesiredState,
    HookKind,
    Inventory,
    Member,
    Outcome,
    Package,
    PackageRef,
    Plan,
    Signer,
    TcHook,
    XdpHook,
)
from reconciler.state import recover
from tests.sim.fake_kernel import FakeKernel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.kernel import Kernel
    from reconciler.model import CheckHealth

ROOT = Path(__file__).parents[2]
NAMES = ("ratelimit", "firewall", "flowcount")


@functools.cache
def shipped() -> Mapping[str, Package]:
    """The packages below bpf/, compiled from source, unsigned, by name."""
    subprocess.run(["make", "-s", "-C", str(ROOT / "bpf"), "objects"], check=True, capture_output=True)
    found = {}
    for name in NAMES:
        text = (ROOT / "bpf" / name / "package.yaml").read_bytes()
        parsed = manifest.parse_package(text, file=f"bpf/{name}/package.yaml")
        objects = {spec.object: (ROOT / "build" / "bpf" / name / spec.object).read_bytes() for spec in parsed.programs}
        digest = hashlib.sha256(text + b"".join(objects[key] for key in sorted(objects))).hexdigest()
        found[name] = Package(
            ref=PackageRef(name=name, version=parsed.version, digest=f"sha256:{digest}"),
            manifest=parsed,
            objects=objects,
            signer=Signer(name="test", identity="test", issuer="key"),
        )
    return found


def member(package: str, *, name: str | None = None, program: str | None = None, **fields: Any) -> Member:
    """A member that uses a shipped package."""
    used = shipped()[package]
    return Member(name=name or package, package=used.ref, program=program or used.manifest.programs[0].name, **fields)


def xdp_chain(
    name: str, *members: Member, interfaces: tuple[str, ...] = ("eth0",), priority: int = 100, **fields: Any
) -> Chain:
    """A chain on XDP."""
    hook = XdpHook(interfaces=interfaces, **{key: fields.pop(key) for key in ("mode", "netns") if key in fields})
    return Chain(name=name, hook=hook, priority=priority, members=members, **fields)


def tc_chain(
    name: str, *members: Member, interfaces: tuple[str, ...] = ("eth0",), priority: int = 100, **fields: Any
) -> Chain:
    """A chain on tc ingress unless `direction` says otherwise."""
    keys = ("direction", "end", "netns")
    hook = TcHook(interfaces=interfaces, **{"direction": "ingress", **{k: fields.pop(k) for k in keys if k in fields}})
    return Chain(name=name, hook=hook, priority=priority, members=members, **fields)


def desired(*chains: Chain) -> DesiredState:
    """Chains of one host, in the core's order."""
    ordered = sorted(chains, key=lambda chain: (chain.hook.kind, chain.priority, chain.name))
    return DesiredState(repository="test", chains=tuple(ordered), allow_empty=True)


@dataclass
class NullJournal:
    """Remembers records in memory; `recover` reads them after a crash."""

    records: list[dict[str, Any]] = field(default_factory=list)

    def journal(self, boot_id: str, event: str, *, force: bool = True, **fields: object) -> None:
        from reconciler.model import to_builtins  # noqa: PLC0415

        self.records.append(to_builtins({"boot": boot_id, "event": event, **fields}))


@dataclass
class Healthy:
    """Health that is as told."""

    error: Exception | None = None

    def check(self, step: CheckHealth, inventory: Inventory) -> None:
        if self.error is not None:
            raise self.error


@dataclass
class World:
    """One host: a kernel, what is owned, and what was applied."""

    kernel: Kernel
    inventory: Inventory
    secure: SecureConfig = field(default_factory=lambda: SecureConfig(mode=SecureMode.OFF))
    guardrail: Guardrail = field(default_factory=lambda: Guardrail(count=None, share=1.0))
    applied: str | None = None
    journal: NullJournal = field(default_factory=NullJournal)
    health: Healthy = field(default_factory=Healthy)
    packages: dict[str, Package] = field(default_factory=lambda: {p.ref.digest: p for p in shipped().values()})

    def plan(self, state: DesiredState, **changes: Any) -> Plan:
        """What would be done now."""
        scope = Scope(namespaces=plan.required_namespaces(state, self.secure, self.inventory))
        earlier = self.kernel.snapshot(scope) if self.secure.mode is SecureMode.ENFORCE else None
        given = plan.PlanInput(
            desired=state,
            packages=self.packages,
            snapshot=self.kernel.snapshot(scope),
            inventory=self.inventory,
            secure=self.secure,
            guardrail=self.guardrail,
            state_digest=state_digest(state),
            applied_digest=self.applied,
            earlier=earlier,
        )
        return plan.make(replace(given, **changes))

    def execute(self, made: Plan) -> Outcome:
        """Carry a plan out and remember what is owned."""
        outcome = apply.execute(
            made, kernel=self.kernel, packages=self.packages, journal=self.journal, checks=self.health
        )
        self.inventory = outcome.inventory
        self.journal.records.clear()
        if outcome.failed is None:
            self.applied = made.state_digest
        return outcome

    def converge(self, state: DesiredState) -> Outcome:
        """Plan and apply once."""
        return self.execute(self.plan(state))

    def settle(self, state: DesiredState, *, passes: int = 6) -> None:
        """Passes until nothing is left to do; more than a few are a defect."""
        for _ in range(passes):
            made = self.plan(state)
            if not made.steps:
                return
            outcome = self.execute(made)
            assert outcome.failed is None, outcome.failed
        raise AssertionError([step.step for step in self.plan(state).steps])

    def restart(self) -> None:
        """After a crash: a new process, which knows what was saved and what the journal says."""
        self.fake.restart()
        if self.inventory.boot_id != self.kernel.boot_id():
            self.inventory = Inventory(boot_id=self.kernel.boot_id())
        self.inventory = recover(self.inventory, tuple(self.journal.records))

    @property
    def fake(self) -> FakeKernel:
        """The kernel, for what only a fake can do."""
        assert isinstance(self.kernel, FakeKernel)
        return self.kernel


def fake_world(*interfaces: str, **options: Any) -> World:
    """A host with a fake kernel and `interfaces` in its own namespace."""
    kernel = FakeKernel(**options)
    for name in interfaces or ("eth0",):
        kernel.add_interface(name)
    return World(kernel=kernel, inventory=Inventory(boot_id=kernel.boot_id()))


__all__ = ["HookKind", "World", "desired", "fake_world", "member", "shipped", "tc_chain", "xdp_chain"]
