# SPDX-License-Identifier: Apache-2.0
"""Hook by hook: what each cohort runs before and after, in the words of a host's plan.

A hook is a kind, a namespace and an interface that a group names. Where interfaces are not known, the patterns of the
chains stand for themselves: a chain is on the hook `eth*` if its patterns cover all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from reconciler import manifest, plan
from reconciler.config import SecureMode
from reconciler.model import (
    HOST_NETNS,
    ChangeKind,
    DriftKind,
    Features,
    HookKind,
    HookPoint,
    Package,
    Signer,
    StateScope,
    Support,
    XdpHook,
    XdpMode,
)
from reconciler.review._effects import Note
from reconciler.review._fleet import Hosts, covers, except_words
from reconciler.review._values import HookChange, ReviewPackage
from reconciler.review._words import few

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reconciler.errors import Diagnostic
    from reconciler.model import Chain, Hook, HostGroup, Occupant
    from reconciler.review._values import Packages

LONG_CHAIN: Final = 26
"""Members of a hook above which a reviewer is told; the kernel's limit is 33."""

NOBODY: Final = Signer(name="nobody", identity="not verified", issuer="none")
"""Stands where a verified signer would: nothing that is compiled for a review is ever loaded."""

SHOWN_PLACES: Final = 8
WAITS: Final = f"the chain stays pending ({DriftKind.OCCUPIED.value})"
"""As plans and `status` name it."""

Place: TypeAlias = "tuple[HookKind, str, str]"
"""Kind, namespace, and interface or pattern."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainNote:
    """A note with the chain that it is about; "" for none in particular."""

    chain: str
    note: Note


@dataclass(slots=True)
class Compiler:
    """Compiles the chains of hooks, each combination once; one for each side."""

    packages: Packages
    _done: dict[tuple[object, ...], tuple[plan.Content | None, tuple[Diagnostic, ...]] | None] = field(
        default_factory=dict
    )

    def compile(
        self, chains: tuple[Chain, ...], place: Place
    ) -> tuple[plan.Content | None, tuple[Diagnostic, ...]] | None:
        """Content and findings, None when a package is not known here."""
        scope = place[1:] if any(chain.state_scope is StateScope.INTERFACE for chain in chains) else None
        key = (place[0], tuple(chain.name for chain in chains), scope)
        if key not in self._done:
            self._done[key] = self._compile(chains, place)
        return self._done[key]

    def _compile(
        self, chains: tuple[Chain, ...], place: Place
    ) -> tuple[plan.Content | None, tuple[Diagnostic, ...]] | None:
        packages: dict[str, Package] = {}
        for ref in {member.package for chain in chains for member in chain.members}:
            found = self.packages.get(ref)
            if not isinstance(found, ReviewPackage) or not found.objects:
                return None
            packages[ref.digest] = Package(ref=ref, manifest=found.manifest, objects=found.objects, signer=NOBODY)
        kind, netns, interface = place
        point = HookPoint(kind=kind, netns=netns, netns_inode=0, ifindex=0, interface=interface)
        return plan.compile_chains(chains, point, packages, Features())


def compare_hooks(
    hosts: Hosts, changed: frozenset[str], compilers: tuple[Compiler, Compiler]
) -> tuple[tuple[HookChange, ...], tuple[ChainNote, ...]]:
    """Every hook of a cohort on which a changed chain is, on either side.

    Args:
        hosts: the cohort.
        changed: names of the chains that differ.
        compilers: of BASE and of HEAD.
    """
    changes: list[HookChange] = []
    notes: dict[ChainNote, None] = {}
    emptied: list[str] = []
    fresh: list[Place] = []
    for place in _places(hosts, changed):
        before, after = (_on(place, chains, hosts) for chains in (hosts.before, hosts.after))
        old, new = _programs(before), _programs(after)
        if old and not new:
            emptied.append(f"{place_words(place)}{_rest(place, hosts, hosts.after)}")
        if new and not old and place[0] is HookKind.XDP:
            fresh.append(place)
        if len(new) > LONG_CHAIN and len(new) > len(old):
            message = f"{place_words(place)} has {len(new)} members of at most 33"
            notes[ChainNote(chain=after[-1].name, note=Note(id="RV032", message=message))] = None
        notes.update(dict.fromkeys(_order(place, before, after)))
        told, findings = _changes(place, before, after, compilers)
        notes.update(dict.fromkeys(findings))
        if told or old != new:
            changes.append(HookChange(hook=place_words(place), before=old, after=new, changes=told))
    if emptied:
        message = f"{few(emptied, SHOWN_PLACES)}: nothing of ours runs there any more"
        notes[ChainNote(chain="", note=Note(id="RV014", message=message))] = None
    notes.update(dict.fromkeys(_absent(hosts, changed)))
    notes.update(dict.fromkeys(_held(hosts, hosts.group, fresh) if hosts.group is not None and fresh else ()))
    return tuple(changes), tuple(notes)


def place_words(place: Place) -> str:
    """Such as "eth0 xdp" or "blue/eth0 tc-ingress", as plans name hooks."""
    kind, netns, interface = place
    return f"{interface if netns == HOST_NETNS else f'{netns}/{interface}'} {kind}"


def _places(hosts: Hosts, changed: frozenset[str]) -> list[Place]:
    """The hooks of changed chains, in order."""
    found: set[Place] = set()
    for chain in (*hosts.before, *hosts.after):
        if chain.name in changed:
            found |= {(chain.hook.kind, chain.hook.netns, name) for name in _names(chain.hook, hosts)}
    return sorted(found)


def _names(hook: Hook, hosts: Hosts) -> Iterable[str]:
    known = hosts.interfaces(hook.netns)
    if known is not None:
        return (name for name in known if manifest.interface_matches(hook.interfaces, name))
    return hook.interfaces


def _on(place: Place, chains: tuple[Chain, ...], hosts: Hosts) -> tuple[Chain, ...]:
    kind, netns, interface = place
    known = hosts.interfaces(netns) is not None
    found = [
        chain
        for chain in chains
        if chain.hook.kind is kind
        and chain.hook.netns == netns
        and (
            manifest.interface_matches(chain.hook.interfaces, interface)
            if known
            else covers(chain.hook.interfaces, interface)
        )
    ]
    return tuple(sorted(found, key=lambda chain: (chain.priority, chain.name)))


def _rest(place: Place, hosts: Hosts, chains: tuple[Chain, ...]) -> str:
    """What of a pattern one of `chains` is on: where interfaces are not known, it may be some that it means."""
    kind, netns, pattern = place
    if hosts.interfaces(netns) is not None:
        return ""
    hooks = [chain.hook for chain in chains if (chain.hook.kind, chain.hook.netns) == (kind, netns)]
    return except_words(pattern, (each for hook in hooks for each in hook.interfaces))


def _programs(chains: tuple[Chain, ...]) -> tuple[str, ...]:
    return tuple(f"{chain.name}/{member.name}" for chain in chains for member in chain.members)


def _order(place: Place, before: tuple[Chain, ...], after: tuple[Chain, ...]) -> Iterable[ChainNote]:
    old, new = [chain.name for chain in before], [chain.name for chain in after]
    was, now = [name for name in old if name in new], [name for name in new if name in old]
    if was != now:
        moved = next(name for name, other in zip(now, was, strict=True) if name != other)
        message = f"chains run as {', '.join(now)} on {place_words(place)}, before as {', '.join(was)}"
        yield ChainNote(chain=moved, note=Note(id="RV034", message=message, pointer="/spec/priority"))


def _absent(hosts: Hosts, changed: frozenset[str]) -> Iterable[ChainNote]:
    for chain in hosts.after:
        if chain.name not in changed or hosts.interfaces(chain.hook.netns) is None:
            continue
        known = hosts.interfaces(chain.hook.netns) or ()
        missing = [
            each for each in chain.hook.interfaces if not any(manifest.interface_matches((each,), n) for n in known)
        ]
        if missing:
            where = "" if chain.hook.netns == HOST_NETNS else f" in netns {chain.hook.netns}"
            message = f"no interface of these hosts is {few(missing, SHOWN_PLACES)}{where}"
            yield ChainNote(chain=chain.name, note=Note(id="RV033", message=message, pointer="/spec/hook/interfaces"))


def _held(hosts: Hosts, group: HostGroup, fresh: list[Place]) -> Iterable[ChainNote]:
    """What others may have, or have, on hooks that take one program and that HEAD covers for the first time."""
    mode, policy = group.secure_mode, group.policy
    if mode is None:
        return
    if group.occupants is None:
        where = few([f"{place_words(each)}{_rest(each, hosts, hosts.before)}" for each in fresh], SHOWN_PLACES)
        fate = f"stays, and {WAITS}, as secure mode is {mode}"
        if mode == SecureMode.ENFORCE:
            rules = "their tolerations" if policy.tolerations is None else few(policy.tolerations, SHOWN_PLACES)
            fate = f"is displaced, as secure mode is enforce, unless tolerated ({rules or 'nothing is'})"
        message = f"{where}: nothing of ours is there yet; a program of others there {fate}"
        yield ChainNote(chain="", note=Note(id="RV039", message=message))
        return
    held = {(each.netns, each.interface): each for each in group.occupants}
    told = [f"{place_words(place)} by {_fate(held[place[1:]], mode)}" for place in fresh if place[1:] in held]
    if told:
        yield ChainNote(chain="", note=Note(id="RV038", message=f"held: {few(told, SHOWN_PLACES)}"))


def _fate(occupant: Occupant, mode: str) -> str:
    who = occupant.program or "a program without a name"
    if occupant.tolerated_by is not None:
        return f"{who}, which the toleration {occupant.tolerated_by} lets be, so {WAITS}"
    if mode == SecureMode.ENFORCE:
        return f"{who}, which is displaced, as secure mode is enforce"
    return f"{who}, which stays, as secure mode is {mode}, so {WAITS}"


# --- in the words of a plan --------------------------------------------------------------------------------


def _changes(
    place: Place, before: tuple[Chain, ...], after: tuple[Chain, ...], compilers: tuple[Compiler, Compiler]
) -> tuple[tuple[tuple[str, str], ...], tuple[ChainNote, ...]]:
    """What a plan would say of each member, and why hosts would refuse to plan it."""
    old = compilers[0].compile(before, place) if before else (None, ())
    new = compilers[1].compile(after, place) if after else (None, ())
    if old is None or new is None:
        return (), ()
    notes = _refusals(after, new[1], frozenset(old[1]))
    if (before and old[0] is None) or (after and new[0] is None):
        return (), notes
    if old[0] is not None and new[0] is not None and old[0].digest == new[0].digest:
        if _mode(before) is not _mode(after):
            # The mode of XDP is no part of the content, but of the attachment.
            return tuple((ChangeKind.REPLACE.value, who) for who in _programs(after)), notes
        return (), notes
    was = {(load.chain, load.member): load.settings for load in (old[0].members if old[0] else ())}
    told = []
    for load in new[0].members if new[0] else ():
        settings = was.pop((load.chain, load.member), None)
        if settings is None:
            kind = ChangeKind.ADD
        else:
            kind = ChangeKind.KEEP if settings == load.settings else ChangeKind.REPLACE
        told.append((kind.value, f"{load.chain}/{load.member}"))
    told += [(ChangeKind.REMOVE.value, f"{chain}/{member}") for chain, member in was]
    return tuple(told), notes


def _mode(chains: tuple[Chain, ...]) -> XdpMode:
    hook = chains[0].hook
    return hook.mode if isinstance(hook, XdpHook) else XdpMode.AUTO


def _refusals(
    chains: tuple[Chain, ...], findings: tuple[Diagnostic, ...], known: frozenset[Diagnostic]
) -> tuple[ChainNote, ...]:
    by_file = {chain.name: chain for chain in chains}
    found = []
    for finding in findings:
        if finding in known:
            continue
        name, _, message = finding.message.removeprefix("chain ").partition(": ")
        note = Note(id="RV003", message=message, pointer=finding.pointer or "/spec")
        found.append(ChainNote(chain=name if name in by_file else chains[-1].name, note=note))
    return tuple(found)


# --- what a group adds -------------------------------------------------------------------------------------


def missing_features(hosts: Hosts, changed: frozenset[str], packages: Packages) -> Iterable[ChainNote]:
    """Features that a group lacks and a package of a changed chain needs."""
    group = hosts.group
    if group is None:
        return
    for chain in hosts.after:
        for index, member in enumerate(chain.members):
            found = packages.get(member.package)
            if chain.name not in changed or not isinstance(found, ReviewPackage):
                continue
            for feature in found.manifest.features:
                if group.features.get(feature) is False or Features().get(feature) is Support.NO:
                    message = f"package {found.manifest.name} needs {feature}"
                    note = Note(
                        id="RV005", message=message, member=member.name, pointer=f"/spec/members/{index}/package"
                    )
                    yield ChainNote(chain=chain.name, note=note)


def guardrail(hosts: Hosts, default_share: float) -> ChainNote | None:
    """Whether the hosts would stop because too much is removed at once."""
    group = hosts.group
    if group is None:
        return None
    before = _running(hosts.before, hosts, group)
    removed, owned = _removed(hosts, group, before), len(before)
    count = group.guardrail_count
    share = default_share if group.guardrail_share is None else group.guardrail_share
    if not removed or not ((count is not None and removed > count) or removed > share * owned):
        return None
    limit = f"{count} or {share:.0%}" if count is not None else f"{share:.0%}"
    message = f"removes {removed} of {owned} programs on hooks, more than {limit}: needs `apply --confirm` on each host"
    return ChainNote(chain="", note=Note(id="RV008", message=message))


def _removed(hosts: Hosts, group: HostGroup, before: set[tuple[Place, str, str]]) -> int:
    """How many of `before` do not run at HEAD; under a wider pattern they do."""
    gone = before - _running(hosts.after, hosts, group)
    if group.interfaces or not gone:
        return len(gone)
    later = {(chain.name, member.name): chain.hook for chain in hosts.after for member in chain.members}
    return sum(not _means(later.get((chain, member)), place) for place, chain, member in gone)


def _means(hook: Hook | None, place: Place) -> bool:
    return hook is not None and (hook.kind, hook.netns) == place[:2] and covers(hook.interfaces, place[2])


def _running(chains: tuple[Chain, ...], hosts: Hosts, group: HostGroup) -> set[tuple[Place, str, str]]:
    return {
        ((chain.hook.kind, chain.hook.netns, name), chain.name, member.name)
        for chain in chains
        for name in (_names(chain.hook, hosts) if group.interfaces else chain.hook.interfaces)
        for member in chain.members
    }
