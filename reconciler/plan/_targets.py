# SPDX-License-Identifier: Apache-2.0
"""Which content each concrete hook should run: chains × interfaces of the snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from reconciler import manifest
from reconciler.model import (
    Chain,
    DesiredState,
    Drift,
    DriftKind,
    Hook,
    HookPoint,
    MapRole,
    Package,
    Snapshot,
    StateScope,
    TcHook,
    XdpHook,
    XdpMode,
)
from reconciler.plan._generations import Content, compile_chains

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.errors import Diagnostic


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one hook should run."""

    point: HookPoint
    chains: tuple[Chain, ...]
    content: Content

    @property
    def mode(self) -> XdpMode:
        hook = self.chains[0].hook
        return hook.mode if isinstance(hook, XdpHook) else XdpMode.AUTO


@dataclass(slots=True)
class Targets:
    """All targets of a host.

    Attributes:
        findings: why the desired state cannot be honoured; then nothing else counts.
        state_pins: paths of carried maps that declared members keep, also while their interface is away.
        namespaces: names of the namespaces in which chains are declared.
    """

    by_point: dict[HookPoint, Target] = field(default_factory=dict)
    pending: list[Drift] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    findings: tuple[Diagnostic, ...] = ()
    state_pins: set[str] = field(default_factory=set)
    namespaces: frozenset[str] = frozenset()


def resolve(
    desired: DesiredState, packages: Mapping[str, Package], snapshot: Snapshot, *, detach_revoked: bool
) -> Targets:
    """Expand globs and join the chains of each hook in order of priority."""
    targets = Targets()
    findings: dict[Diagnostic, None] = {}
    chains = _without_revoked(desired.chains, packages, targets, detach=detach_revoked)
    targets.namespaces = frozenset(chain.hook.netns for chain in chains)
    by_point = _expand(chains, snapshot, targets)
    compiled: dict[tuple[object, ...], Content | None] = {}
    for point in sorted(by_point):
        group = tuple(sorted(by_point[point], key=lambda chain: (chain.priority, chain.name)))
        seen = snapshot.hooks.get(point)
        real = seen.point if seen is not None else point
        scoped = any(chain.state_scope is StateScope.INTERFACE for chain in group)
        key = (point.kind, tuple(chain.name for chain in group), real.scope if scoped else None)
        if key not in compiled:
            content, problems = compile_chains(group, real, packages, snapshot.features)
            findings.update(dict.fromkeys(problems))
            compiled[key] = content
        content = compiled[key]
        if content is not None:
            targets.by_point[point] = Target(point=real, chains=group, content=content)
    findings.update(dict.fromkeys(_compile_absent(chains, by_point, packages, snapshot, targets)))
    targets.findings = tuple(findings)
    for content in compiled.values():
        targets.state_pins |= _carried(content)
    return targets


def _carried(content: Content | None) -> set[str]:
    if content is None:
        return set()
    return {use.pin for member in content.members for use in member.maps if use.role in (MapRole.STATE, MapRole.STATS)}


def _without_revoked(
    chains: tuple[Chain, ...], packages: Mapping[str, Package], targets: Targets, *, detach: bool
) -> tuple[Chain, ...]:
    kept = []
    for chain in chains:
        used = [packages[member.package.digest] for member in chain.members]
        leaves = detach and any(package.revoked is not None for package in used)
        action = "its chain leaves its hooks" if leaves else "it runs on until a commit replaces it"
        for text in sorted({_distrust(package) for package in used} - {""}):
            message = f"{text}; {action}"
            targets.drift.append(
                Drift(kind=DriftKind.REVOKED, where=f"chain {chain.name}", message=message, critical=True)
            )
        if not leaves:
            kept.append(chain)
    return tuple(kept)


def _distrust(package: Package) -> str:
    reason = package.revoked or package.untrusted
    return f"package {package.ref.name} {package.ref.version}: {reason}" if reason else ""


def _expand(chains: tuple[Chain, ...], snapshot: Snapshot, targets: Targets) -> dict[HookPoint, list[Chain]]:
    by_point: dict[HookPoint, list[Chain]] = {}
    for chain in chains:
        points, absent = _points(chain.hook, snapshot)
        for point in points:
            by_point.setdefault(point, []).append(chain)
        for message in absent:
            targets.pending.append(Drift(kind=DriftKind.ABSENT, where=f"chain {chain.name}", message=message))
    return by_point


def _points(hook: Hook, snapshot: Snapshot) -> tuple[tuple[HookPoint, ...], tuple[str, ...]]:
    """The concrete hooks that a chain's hook means on this host now, and what of it is not there."""
    match hook:
        case XdpHook() | TcHook():
            return _on_interfaces(hook, snapshot)
        case _:
            assert_never(hook)


def _on_interfaces(hook: XdpHook | TcHook, snapshot: Snapshot) -> tuple[tuple[HookPoint, ...], tuple[str, ...]]:
    if hook.netns in snapshot.missing:
        return (), (f"network namespace {hook.netns} does not exist; applied as soon as it appears",)
    seen = [
        interface
        for interface in snapshot.interfaces
        if interface.netns == hook.netns and manifest.interface_matches(hook.interfaces, interface.name)
    ]
    absent = tuple(
        f"no interface {pattern} in network namespace {hook.netns}; applied as soon as one appears"
        for pattern in hook.interfaces
        if not any(manifest.interface_matches((pattern,), interface.name) for interface in seen)
    )
    points = tuple(
        HookPoint(
            kind=hook.kind,
            netns=interface.netns,
            netns_inode=interface.netns_inode,
            ifindex=interface.ifindex,
            interface=interface.name,
        )
        for interface in seen
    )
    return points, absent


def _compile_absent(
    chains: tuple[Chain, ...],
    by_point: Mapping[HookPoint, list[Chain]],
    packages: Mapping[str, Package],
    snapshot: Snapshot,
    targets: Targets,
) -> tuple[Diagnostic, ...]:
    """Chains without any interface are compiled too: their errors are found now, and their state is kept."""
    present = {chain.name for group in by_point.values() for chain in group}
    problems: list[Diagnostic] = []
    for chain in chains:
        if chain.name in present:
            continue
        nowhere = HookPoint(kind=chain.hook.kind, netns=chain.hook.netns, netns_inode=0, ifindex=0, interface="")
        content, findings = compile_chains((chain,), nowhere, packages, snapshot.features)
        problems += findings
        targets.state_pins |= _carried(content)
    return tuple(problems)
