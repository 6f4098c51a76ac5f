# SPDX-License-Identifier: Apache-2.0
"""A case of `plan`, read from YAML: what is applied, what happens then, what is wanted, and what the plan must say.

given:
  interfaces: names, "NETNS/NAME" for other namespaces; default [eth0]
  features: fields of Features that differ from what a current kernel has
  generic-only: interfaces whose driver has no native XDP
  applied: chains that are applied first
  then: what happens after that, in order; one key each, see `Happening`
secure: mode, tolerate (names of programs), max-evictions
guardrail: count, share
detach-revoked: true or false
wanted: chains; default: those of `applied`
expect: steps, changes, drift, pending, notes, error, guard; what is not given must be empty (not changes, not notes)
  runs: after applying: hook to the members that a packet sees
  again: steps of the second plan, which is empty unless said

A chain is {name, hook: xdp | tc-ingress | tc-egress, interfaces, members, ...}; a member is the name of a shipped
package or {package, ...}; other keys are fields of `Chain`, of its hook and of `Member`, as the model spells them.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import yaml

from reconciler.config import Guardrail, SecureConfig, SecureMode, Toleration
from reconciler.model import (
    Attach,
    ChangeMode,
    Detach,
    Evict,
    Features,
    HookKind,
    Inventory,
    Load,
    MapEntry,
    OnBroken,
    PinKind,
    Repin,
    StateScope,
    Step,
    Support,
    Switch,
    TcEnd,
    Unload,
    Unpin,
    XdpMode,
)
from tests.sim.fake_kernel import ALL_FEATURES
from tests.sim.world import World, desired, fake_world, member, tc_chain, xdp_chain

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.model import Chain, DesiredState, Drift, HookPoint, Member, Plan

TC_PROGRAMS = {"tc-ingress": "firewall_ingress", "tc-egress": "firewall_egress"}


@dataclass
class Case:
    """One file."""

    data: dict[str, Any]
    world: World = field(init=False)

    def __post_init__(self) -> None:
        given = self.data.get("given", {})
        self.world = _world(given)
        if "applied" in given:
            self.world.settle(self.state(given["applied"]))
        self._secure()
        for deed in given.get("then", []):
            ((verb, argument),) = deed.items()
            Happening(self.world).do(verb, argument)

    @staticmethod
    def read(path: Path) -> Case:
        return Case(yaml.safe_load(path.read_text(encoding="utf-8")))

    def _secure(self) -> None:
        secure, rail = self.data.get("secure", {}), self.data.get("guardrail", {})
        rules = tuple(
            Toleration(name=name, why="test", owner="test", program_name=name) for name in secure.get("tolerate", [])
        )
        self.world.secure = SecureConfig(
            mode=SecureMode(secure.get("mode", "audit")),
            tolerations=rules,
            max_evictions=secure.get("max-evictions", 10),
            namespaces=tuple(self.world.fake.namespaces),
        )
        self.world.guardrail = Guardrail(count=rail.get("count"), share=rail.get("share", 1.0))

    @staticmethod
    def state(chains: list[dict[str, Any]]) -> DesiredState:
        return desired(*(_chain(dict(given)) for given in chains))

    @property
    def wanted(self) -> DesiredState:
        return self.state(self.data.get("wanted", self.data.get("given", {}).get("applied", [])))

    def plan(self) -> Plan:
        return self.world.plan(self.wanted, detach_revoked=self.data.get("detach-revoked", False))


def _world(given: dict[str, Any]) -> World:
    names = given.get("interfaces", ["eth0"])
    found: dict[str, Any] = {name: Support(value) for name, value in given.get("features", {}).items()}
    features: Features = replace(ALL_FEATURES, **found)
    world = fake_world(*(name for name in names if "/" not in name), features=features)
    for name in names:
        netns, slash, interface = name.partition("/")
        if slash:
            if netns not in world.fake.namespaces:
                world.fake.add_namespace(netns)
            world.fake.add_interface(interface, netns=netns)
    for name in given.get("generic-only", []):
        world.fake.device(name).native = False
    return world


def _chain(given: dict[str, Any]) -> Chain:
    hook = given.pop("hook", "xdp")
    members = [_member(each, hook) for each in given.pop("members", ["ratelimit" if hook == "xdp" else "flowcount"])]
    fields: dict[str, Any] = {"interfaces": tuple(given.pop("interfaces", ["eth0"]))}
    kinds: dict[str, Any] = {"mode": XdpMode, "end": TcEnd, "on_broken": OnBroken, "state_scope": StateScope}
    fields |= {key: kinds[key](given.pop(key)) for key in kinds if key in given}
    fields |= {key: given.pop(key) for key in ("priority", "netns", "file") if key in given}
    name = given.pop("name", "edge")
    assert not given, f"unknown keys of a chain: {given}"
    if hook == "xdp":
        return xdp_chain(name, *members, **fields)
    return tc_chain(name, *members, direction=hook.removeprefix("tc-"), **fields)


def _member(given: str | dict[str, Any], hook: str) -> Member:
    fields: dict[str, Any] = {"package": given} if isinstance(given, str) else dict(given)
    package = fields.pop("package")
    if package == "firewall" and hook in TC_PROGRAMS:
        fields.setdefault("program", TC_PROGRAMS[hook])
    if "proceed_on" in fields:
        fields["proceed_on"] = tuple(fields["proceed_on"])
    if "maps" in fields:
        fields["maps"] = {
            name: tuple(MapEntry(key=key, value=value) for key, value in entries)
            for name, entries in fields["maps"].items()
        }
    return member(package, **fields)


# --- what happens ------------------------------------------------------------------------------------------


@dataclass
class Happening:
    """What somebody else, or the machine, does between two passes. Hooks are spelled "eth0 xdp"."""

    world: World

    def do(self, verb: str, argument: Any) -> None:
        getattr(self, verb.replace("-", "_"))(argument)

    def point(self, text: str) -> HookPoint:
        where, kind = text.split(" ")
        netns, _, interface = where.rpartition("/")
        return self.world.fake.point(interface, HookKind(kind), netns=netns or "host")

    def _pin(self, pattern: str) -> str:
        return min(path for path in self.world.fake.pins if fnmatch.fnmatchcase(path, pattern))

    def _ours(self, where: str) -> Any:
        point = self.point(where)
        owned = next(owned for owned in self.world.inventory.attachments if owned.point == point)
        return next(
            each
            for each in self.world.fake.attachments(point)
            if (each.link_id, each.filter) == (owned.link_id, owned.filter)
        )

    def detach(self, where: str) -> None:
        """Our attachment is taken off."""
        self.world.fake.remove(self.point(where), self._ours(where))

    def replace(self, where: str) -> None:
        """Another program is put in its place."""
        self.world.fake.replace(self.point(where), self._ours(where), name="foe")

    def unpin(self, pattern: str) -> None:
        """A pin of ours is removed."""
        self.world.fake.unpin(self._pin(pattern))

    def unpin_held(self, pattern: str) -> None:
        """The same, while a descriptor keeps the object."""
        path = self._pin(pattern)
        self.world.fake.foreign_descriptors.add(self.world.fake.pins[path])
        self.world.fake.unpin(path)

    def steal(self, pattern: str) -> None:
        """Another object is put behind a pin of ours."""
        self.world.fake.steal(self._pin(pattern))

    def pin(self, path: str) -> None:
        """Somebody pins a program of theirs in our directory."""
        self.world.fake.pins[path] = (PinKind.PROGRAM, self.world.fake.load_foreign_program().id)

    def folder(self, path: str) -> None:
        """One in our directory that a process died before it removed."""
        self.world.fake.folders.add(path)

    def alter(self, pattern: str) -> None:
        """A frozen map does not hold what it held; only a kernel or our own defect could do that."""
        found = self.world.fake.maps[self.world.fake.pins[self._pin(pattern)][1]]
        if found.slot is None:
            found.entries[b"abcd"] = b"efgh"
        found.slot = None
        self.world.fake.exit_foreign_processes()

    def thaw(self, pattern: str) -> None:
        """A map is not frozen."""
        self.world.fake.maps[self.world.fake.pins[self._pin(pattern)][1]].frozen = False

    def foreign(self, given: dict[str, Any]) -> None:
        """Somebody attaches a program: at, via, name, mode, position."""
        point, name = self.point(given["at"]), given.get("name", "foe")
        via = given.get("via", "link")
        if via == "filter":
            more = {key: given[key] for key in ("prio", "handle") if key in given}
            self.world.fake.add_foreign_filter(point, name=name, **more)
        elif point.kind is HookKind.XDP:
            self.world.fake.attach_foreign_xdp(point, name=name, via=via, mode=given.get("mode", "generic"))
        else:
            self.world.fake.attach_foreign_tcx(point, name=name, via=via, position=given.get("position", "tail"))

    def qdisc(self, given: dict[str, Any]) -> None:
        self.world.fake.add_foreign_qdisc(self.point(given["at"]), given["kind"])

    def remove_qdisc(self, where: str) -> None:
        self.world.fake.remove_qdisc(self.point(where))

    def unsettled(self, where: str) -> None:
        self.world.fake.unsettled.add(self.point(where))

    def incomplete(self, _: object) -> None:
        self.world.fake.incomplete = True

    def unseen_programs(self, _: object) -> None:
        """The walk over programs did not finish: those that are attached nowhere were not seen."""
        self.world.fake.incomplete = True
        real = self.world.fake.snapshot

        def snapshot(scope: Any) -> Any:
            seen = real(scope)
            attached = {each.program_id for state in seen.hooks.values() for each in state.attachments}
            return replace(seen, programs={n: p for n, p in seen.programs.items() if n in attached})

        self.world.fake.snapshot = snapshot  # type: ignore[method-assign]

    def add_interface(self, name: str) -> None:
        netns, _, interface = name.rpartition("/")
        self.world.fake.add_interface(interface, netns=netns or "host")

    def remove_interface(self, name: str) -> None:
        self.world.fake.remove_interface(name)

    def recreate_interface(self, name: str) -> None:
        self.world.fake.recreate_interface(name)

    def rename_interface(self, names: list[str]) -> None:
        self.world.fake.rename_interface(*names)

    def add_namespace(self, name: str) -> None:
        self.world.fake.add_namespace(name)

    def unname_namespace(self, name: str) -> None:
        del self.world.fake.namespaces[name]

    def reboot(self, _: object) -> None:
        self.world.fake.reboot()
        self.world.restart()

    def forget(self, _: object) -> None:
        """The inventory is lost, and an operator accepted that."""
        self.world.inventory = Inventory(boot_id=self.world.kernel.boot_id())

    def leftover(self, pattern: str) -> None:
        """An undo could not remove this pin."""
        path = self._pin(pattern)
        self.world.inventory = replace(self.world.inventory, leftovers=(path,))

    def revoke(self, name: str) -> None:
        for digest, package in self.world.packages.items():
            if package.ref.name == name:
                self.world.packages[digest] = replace(package, revoked="digest revoked")

    def relayout(self, given: dict[str, Any]) -> None:
        """The package is another one from now on: its state map has another stateVersion."""
        for digest, package in self.world.packages.items():
            if package.ref.name == given["package"]:
                maps = tuple(
                    replace(spec, state_version=given["version"]) if spec.name == given["map"] else spec
                    for spec in package.manifest.maps
                )
                self.world.packages[digest] = replace(package, manifest=replace(package.manifest, maps=maps))

    def contractless(self, name: str) -> None:
        """The package's programs do not follow the chain contract."""
        for digest, package in self.world.packages.items():
            if package.ref.name == name:
                programs = tuple(replace(spec, contract=False) for spec in package.manifest.programs)
                self.world.packages[digest] = replace(package, manifest=replace(package.manifest, programs=programs))

    def needs(self, given: dict[str, Any]) -> None:
        """The package needs kernel features."""
        for digest, package in self.world.packages.items():
            if package.ref.name == given["package"]:
                manifest = replace(package.manifest, features=tuple(given["features"]))
                self.world.packages[digest] = replace(package, manifest=manifest)


# --- what the plan says ------------------------------------------------------------------------------------


def summary(step: Step) -> str:
    """A step in a few words, without ids."""
    match step:
        case Load():
            return "load " + " ".join(f"{each.chain}/{each.member}" for each in step.generation.members)
        case Attach():
            words = f"attach {step.point} {step.kind}"
            return f"{words}, displacing" if step.displace is not None else words
        case Switch() | Detach():
            return f"{step.step} {step.point}"
        case ChangeMode():
            return f"change-mode {step.point} {step.mode}"
        case Repin():
            return f"repin {_place(step.path)}"
        case Unload():
            return f"unload {len(step.pins)} pins" if step.pins else "forget a generation"
        case Unpin():
            return "unpin " + " ".join(sorted({_place(path) for path in step.pins}))
        case Evict():
            return f"evict {step.point} {step.attachment.kind}"
        case _:
            return str(step.step)


def drifted(drift: Drift) -> str:
    """A drift in a few words, without names that a digest made."""
    where = drift.where
    if where.startswith("generation "):
        where = "generation"
    elif "/" in where and " " not in where:
        where = f"pin {_place(where)}"
    return f"{where}: {drift.kind}"


def _place(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder.split('/')[0]}/{name[0]}" if folder.startswith("gen") else folder
