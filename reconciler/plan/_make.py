# SPDX-License-Identifier: Apache-2.0
"""Puts a plan together; see the package's docstring for the order and the guarantees."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from reconciler import policy
from reconciler.config import SecureMode
from reconciler.errors import KernelError, PlanError
from reconciler.model import (
    Attach,
    AttachKind,
    Attachment,
    Change,
    ChangeKind,
    ChangeMode,
    CheckHealth,
    DesiredState,
    Drain,
    Drift,
    DriftKind,
    Evict,
    Guard,
    HookPoint,
    Inventory,
    Load,
    OwnedAttachment,
    Plan,
    PointOfNoReturn,
    Repin,
    Snapshot,
    Step,
    Switch,
    Unload,
    Unpin,
)
from reconciler.plan._changes import changes_of
from reconciler.plan._hooks import HookPlanner
from reconciler.plan._observed import Observed, observe
from reconciler.plan._occupants import Occupants
from reconciler.plan._targets import Targets, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reconciler.config import Guardrail, SecureConfig
    from reconciler.model import Package
    from reconciler.policy import Stranger


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInput:
    """Everything that a plan depends on.

    Attributes:
        packages: by digest; every package that `desired` names.
        applied_digest: state digest of what was applied last, None at first: tells a change from a repair.
        earlier: another snapshot of the same pass; foreign objects must be in both to be evicted.
        detach_revoked: chains with a revoked package leave their hooks.
        source_answers: the source answered before the switch, so it must answer after it.
        unproven: keys of hooks that a pass took and did not live to judge (`state.unproven`).
    """

    desired: DesiredState
    packages: Mapping[str, Package]
    snapshot: Snapshot
    inventory: Inventory
    secure: SecureConfig
    guardrail: Guardrail
    state_digest: str
    applied_digest: str | None = None
    earlier: Snapshot | None = None
    detach_revoked: bool = False
    source_answers: bool = True
    unproven: frozenset[str] = frozenset()


def required_namespaces(desired: DesiredState, secure: SecureConfig, inventory: Inventory) -> tuple[str, ...]:
    """Names of the namespaces that a snapshot must look at."""
    names = {chain.hook.netns for chain in desired.chains}
    names |= {owned.point.netns for owned in inventory.attachments}
    if secure.mode is not SecureMode.OFF:
        names |= set(secure.namespaces)
    return tuple(sorted(names))


@dataclass(slots=True)
class _Draft:
    """A plan in the making, in the phases in which it is executed."""

    repair: list[Step] = field(default_factory=list)
    loads: list[Step] = field(default_factory=list)
    hooks: list[Step] = field(default_factory=list)
    detaches: list[Step] = field(default_factory=list)
    unloads: list[Step] = field(default_factory=list)
    evictions: list[Step] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    pending: list[Drift] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make(given: PlanInput) -> Plan:
    """The plan from `given.snapshot` to `given.desired`.

    Raises:
        PlanError: the desired state cannot be honoured on this host; all findings at once.
        KernelError: not everything could be read, so nothing new is adopted: neither the guardrail nor a health check
            sees a hook that the snapshot lacks. What was applied before is still planned.
    """
    targets = resolve(given.desired, given.packages, given.snapshot, detach_revoked=given.detach_revoked)
    if targets.findings:
        raise PlanError(targets.findings)
    changed = given.state_digest != given.applied_digest
    if changed and not given.snapshot.complete:
        raise KernelError("snapshot", 0, "not all interfaces and hooks could be read; nothing new is adopted meanwhile")
    observed = observe(given.snapshot, given.inventory)
    ours = {point: current.attachment for point, current in observed.current.items()}
    strangers = (
        policy.classify(given.snapshot, ours, given.secure, frozenset(targets.by_point))
        if given.secure.mode is not SecureMode.OFF
        else ()
    )
    draft = _Draft(pending=list(targets.pending), drift=list(targets.drift), notes=[])
    planner = HookPlanner(
        targets=targets,
        observed=observed,
        snapshot=given.snapshot,
        inventory=given.inventory,
        occupants=Occupants(given.secure, strangers, _confirmed_strangers(given, strangers, observed, targets)),
        changed=changed,
        unproven=given.unproven,
    )
    planner.run()
    draft.repair += planner.repair
    draft.loads += planner.loads
    draft.hooks += planner.hooks
    draft.detaches += planner.detaches
    draft.drift += planner.drift
    draft.pending += planner.pending
    draft.notes += planner.notes
    _clean_up(draft, given, targets, observed, planner)
    _evict(draft, given, strangers, planner)
    guard = _guard(given, targets, observed)
    changes = changes_of(targets, observed, planner, given.inventory, draft.evictions)
    return Plan(
        state_digest=given.state_digest,
        steps=_order(draft, given, planner, changed=changed),
        changes=changes,
        drift=tuple(sorted(draft.drift, key=lambda drift: (drift.where, drift.kind, drift.message))),
        pending=tuple(sorted(draft.pending, key=lambda drift: (drift.where, drift.kind, drift.message))),
        notes=tuple(draft.notes),
        guard=guard,
        inventory=_adopted(given, observed, planner),
        changed=changed,
    )


def make_teardown(snapshot: Snapshot, inventory: Inventory, guardrail: Guardrail, secure: SecureConfig) -> Plan:
    """Take everything of ours off this host; foreign programs are left alone."""
    nothing = DesiredState(repository="", chains=(), allow_empty=True)
    given = PlanInput(
        desired=nothing,
        packages={},
        snapshot=snapshot,
        inventory=inventory,
        secure=replace(secure, mode=SecureMode.OFF),
        guardrail=replace(guardrail, count=None, share=1.0),
        state_digest="teardown",
        applied_digest="teardown",
    )
    return make(given)


def _order(draft: _Draft, given: PlanInput, planner: HookPlanner, *, changed: bool) -> tuple[Step, ...]:
    """The phases, joined; `Drain`, `CheckHealth` and `PointOfNoReturn` only where they mean something."""
    steps: list[Step] = [*draft.repair, *draft.loads, *draft.hooks]
    superseding = [step for step in draft.hooks if _supersedes(step)]
    if superseding:
        steps.append(Drain())
    judged = [*planner.switched, *planner.proving]
    if changed and (draft.hooks or judged):
        names = {chain.name for target in judged for chain in target.chains}
        checks = {chain.name: chain.health for chain in given.desired.chains if chain.name in names}
        steps.append(
            CheckHealth(
                generations={target.point.key: planner.names[target.content.digest] for target in judged},
                checks=checks,
                source=given.source_answers and any(health.source for health in checks.values()),
            )
        )
    later: list[Step] = list(draft.detaches)
    unloads = any(isinstance(step, Unload) for step in draft.unloads)
    if unloads and (draft.detaches or not superseding):
        later.append(Drain(reason="packets in flight leave what is unloaded"))
    later += draft.unloads
    later += draft.evictions
    if steps or later:
        steps.append(PointOfNoReturn())
    return (*steps, *later)


def _supersedes(step: Step) -> bool:
    return isinstance(step, Switch | ChangeMode) or (isinstance(step, Attach) and step.displace is not None)


# --- what nothing needs any more ---------------------------------------------------------------------------


def _clean_up(draft: _Draft, given: PlanInput, targets: Targets, observed: Observed, planner: HookPlanner) -> None:
    """Unload generations and unpin state that neither a hook (after this plan) nor the desired state needs."""
    if not given.snapshot.complete:
        return  # what was not seen is not left over
    keep = set(planner.names.values()) | planner.held
    for name, instance in observed.instances.items():
        if name in keep:
            continue
        carried = {entry.pin for entry in instance.loaded.maps if entry.key} if instance.loaded else set()
        pins = tuple(sorted(set(instance.pins) - carried))
        reason = "superseded" if instance.whole else "; ".join(instance.problems)
        draft.unloads.append(Unload(generation=name, pins=pins, reason=reason))
    state_pins = {path for path in observed.map_pins if path.startswith("state/")}
    kept = [loaded for name in keep if name in observed.instances and (loaded := observed.instances[name].loaded)]
    used = targets.state_pins | {entry.pin for loaded in kept for entry in loaded.maps}
    used |= {program.pin for loaded in kept for program in loaded.programs} | planner.held_pins
    if unused := tuple(sorted(state_pins - used)):
        draft.unloads.append(Unpin(pins=unused, reason="no declared member keeps this state"))
    attached = set(observed.elsewhere) - planner.held_pins - planner.freed_pins
    if attached:
        draft.detaches.append(
            Unpin(pins=tuple(sorted(attached)), reason="attached where no chain is declared any more")
        )
    known = {path for instance in observed.instances.values() for path in instance.pins}
    known |= state_pins | {current.pin for current in observed.current.values() if current.pin} | set(observed.defunct)
    orphans = {pin.path for pin in given.snapshot.pins} - known
    if given.snapshot.folders:
        made = [pin for step in (*draft.repair, *draft.loads, *draft.hooks) for pin in _made(step)]
        orphans |= {
            folder for folder in given.snapshot.folders if not any(pin.startswith(f"{folder}/") for pin in made)
        }
    orphans |= set(given.inventory.leftovers) & {pin.path for pin in given.snapshot.pins} - used
    defunct = set(observed.defunct) - planner.freed_pins - planner.held_pins - attached
    if stray := tuple(sorted((orphans | defunct) - {pin for step in draft.unloads for pin in _pins(step)})):
        draft.unloads.append(Unpin(pins=stray, reason="left over: nothing is attached through it"))


def _made(step: Step) -> Iterator[str]:
    """Pins that a step makes: the folders above them are not left over."""
    match step:
        case Repin(path=path):
            yield path
        case Attach(pin=str() as pin):
            yield pin
        case Load(generation=generation):
            for member in generation.members:
                yield from (member.pin, *(entry.pin for entry in member.maps))
        case _:
            pass


def _pins(step: Step) -> tuple[str, ...]:
    return step.pins if isinstance(step, Unload | Unpin) else ()


def _adopted(given: PlanInput, observed: Observed, planner: HookPlanner) -> Inventory:
    """What is owned before any step: the records that the kernel confirms."""
    before = {owned.point: owned for owned in given.inventory.attachments}
    pins = {pin.path for pin in given.snapshot.pins}
    attachments = [
        owned
        for owned in given.inventory.attachments
        if owned.pin in planner.held_pins or not (given.snapshot.complete or owned.point in given.snapshot.hooks)
    ]
    # No generation runs there; what counts is who made the qdisc.
    attachments += [replace(owned, generation="") for owned in observed.emptied.values() if owned not in attachments]
    for point in sorted(observed.current):
        current = observed.current[point]
        recorded = before.get(point)
        attachments.append(
            OwnedAttachment(
                point=current.point,
                kind=current.attachment.kind,
                generation=current.generation or "",
                pin=current.pin or (recorded.pin if recorded else None),
                link_id=current.attachment.link_id,
                filter=current.attachment.filter,
                mode=current.attachment.mode,
                made_qdisc=current.made_qdisc,
            )
        )
    return Inventory(
        boot_id=given.snapshot.boot_id,
        generations=tuple(
            instance.loaded for _, instance in sorted(observed.instances.items()) if instance.loaded is not None
        ),
        attachments=tuple(sorted(attachments, key=lambda owned: owned.point)),
        leftovers=tuple(path for path in given.inventory.leftovers if path in pins),
        bpffs_id=given.snapshot.bpffs_id,
    )


# --- strangers ---------------------------------------------------------------------------------------------


def _confirmed_strangers(
    given: PlanInput, strangers: tuple[Stranger, ...], observed: Observed, targets: Targets
) -> dict[HookPoint, tuple[Stranger, ...]]:
    """Foreign and untolerated, on settled hooks, in both snapshots of this pass; only in enforce mode."""
    if given.secure.mode is not SecureMode.ENFORCE or given.earlier is None:
        return {}
    if not (given.snapshot.complete and given.earlier.complete):
        return {}
    ours = {point: current.attachment for point, current in observed.current.items()}
    before = {
        stranger.identity
        for stranger in policy.classify(given.earlier, ours, given.secure, frozenset(targets.by_point))
    }
    confirmed: dict[HookPoint, tuple[Stranger, ...]] = {}
    for stranger in strangers:
        state = given.snapshot.hooks[stranger.point]
        if stranger.tolerated_by is None and stranger.identity in before and state.settled:
            confirmed[stranger.point] = (*confirmed.get(stranger.point, ()), stranger)
    return confirmed


def _evict(draft: _Draft, given: PlanInput, strangers: tuple[Stranger, ...], planner: HookPlanner) -> None:
    """Foreign programs go last, at most so many a pass; each that stays is said."""
    confirmed = {stranger.identity for found in planner.occupants.confirmed.values() for stranger in found}
    displaced = {point: step.displace for point, step in planner.displacing.items()}
    left = given.secure.max_evictions - len(displaced)
    for stranger in strangers:
        if stranger.tolerated_by is not None or displaced.get(stranger.point) == stranger.attachment:
            continue
        name = stranger.program_name or "unnamed"
        what = f'foreign program {stranger.program.id} "{name}" ({stranger.attachment.kind})'
        draft.drift.append(Drift(kind=DriftKind.FOREIGN, where=str(stranger.point), message=what))
        if stranger.identity not in confirmed or left <= 0:
            continue
        left -= 1
        draft.evictions.append(
            Evict(
                point=stranger.point,
                attachment=stranger.attachment,
                program=stranger.program,
                method=stranger.method,
                reason=f"{what}: nobody declared it and no toleration names it",
                revision=given.snapshot.hooks[stranger.point].revision
                if stranger.attachment.kind is AttachKind.TCX_PROG
                else None,
            )
        )


# --- guardrail ---------------------------------------------------------------------------------------------


def _guard(given: PlanInput, targets: Targets, observed: Observed) -> Guard:
    """How many of the (hook, member) pairs that run now would not run afterwards, on hooks that still exist."""
    wanted = {
        (point, member.chain, member.member)
        for point, target in targets.by_point.items()
        for member in target.content.members
    }
    running = {
        (point, program.chain, program.member)
        for point, current in observed.current.items()
        if current.generation and (loaded := observed.instances[current.generation].loaded) is not None
        for program in loaded.programs
    }
    removed, owned = len(running - wanted), len(running)
    limit, share = given.guardrail.count, given.guardrail.share
    exceeded = removed > 0 and ((limit is not None and removed > limit) or removed > share * owned)
    return Guard(removed=removed, owned=owned, count_limit=limit, share_limit=share, exceeded=exceeded)


__all__ = ["Attachment", "Change", "ChangeKind", "PlanInput", "Repin", "make", "make_teardown", "required_namespaces"]
