# SPDX-License-Identifier: Apache-2.0
"""Hook by hook: keep, switch, attach, change mode, detach, or leave pending; and which generations that needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from reconciler.errors import Diagnostic, PlanError
from reconciler.model import (
    Attach,
    AttachKind,
    ChangeMode,
    Detach,
    Drift,
    DriftKind,
    Features,
    HookKind,
    HookPoint,
    HookState,
    Identity,
    Inventory,
    Load,
    MapRole,
    OwnedAttachment,
    PinKind,
    Repin,
    Snapshot,
    Step,
    Support,
    Switch,
    Unpin,
    XdpMode,
)
from reconciler.plan._generations import NAME_DIGITS, instantiate
from reconciler.plan._observed import Current, Instance, Observed, our_filter

if TYPE_CHECKING:
    from reconciler.plan._occupants import Occupants
    from reconciler.plan._targets import Target, Targets


@dataclass(slots=True)
class HookPlanner:
    """Fills its lists by `run`.

    Attributes:
        occupants: what is not ours on wanted hooks.
        names: content digest to the name of the generation that serves it.
        held: generations that stay because a hook that cannot be touched runs them.
        held_pins: link pins that stay because their namespace has no name now and a chain wants it.
        freed_pins: defunct link pins that are unpinned before a hook is attached again.
        switched: targets whose hook gets a step.
        unproven: keys of hooks that an interrupted pass took: what runs there was never found healthy.
        proving: targets that such a hook runs already: they get no step, but are judged with this change.
    """

    targets: Targets
    observed: Observed
    snapshot: Snapshot
    inventory: Inventory
    occupants: Occupants
    changed: bool
    unproven: frozenset[str] = frozenset()
    repair: list[Step] = field(default_factory=list)
    loads: list[Step] = field(default_factory=list)
    hooks: list[Step] = field(default_factory=list)
    detaches: list[Step] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    pending: list[Drift] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    held_pins: set[str] = field(default_factory=set)
    freed_pins: set[str] = field(default_factory=set)
    switched: list[Target] = field(default_factory=list)
    displacing: dict[HookPoint, Attach] = field(default_factory=dict)
    proving: list[Target] = field(default_factory=list)
    _recorded: dict[HookPoint, str] = field(init=False)
    _lost_state: frozenset[str] | None = None

    def __post_init__(self) -> None:
        self._recorded = {owned.point: owned.generation for owned in self.inventory.attachments}

    def run(self) -> None:
        """Plan every target, then every hook of ours that is no target any more."""
        self._check_state_loss()
        for point in sorted(self.targets.by_point):
            self._target(self.targets.by_point[point])
        for point in sorted(self.observed.current):
            if point not in self.targets.by_point:
                self._leave(self.observed.current[point])
        for point in sorted(self.observed.emptied):
            if point not in self.targets.by_point and self.snapshot.hooks[point].settled:
                self._take_qdisc(self.observed.emptied[point])
        self._hold_nameless()

    def _hold_nameless(self) -> None:
        """A namespace that lost its name is out of reach, not gone: what runs in it goes on while a chain wants it."""
        wanted = self.targets.namespaces & set(self.snapshot.missing)
        for owned in self.inventory.attachments:
            if owned.pin is not None and owned.pin in self.observed.elsewhere and owned.point.netns in wanted:
                self.held_pins.add(owned.pin)
                self.held.add(owned.generation)

    # --- generations -------------------------------------------------------------------------------------

    def _generation(self, target: Target) -> str:
        """Name of a whole generation with the target's content; planned to be loaded if there is none."""
        digest = target.content.digest
        if digest in self.names:
            return self.names[digest]
        prefix = f"{digest[:NAME_DIGITS]}_"
        taken = [instance for name, instance in self.observed.instances.items() if name.startswith(prefix)]
        running = {current.generation for current in self.observed.current.values()}
        whole = next(
            iter(
                sorted(
                    (instance for instance in taken if instance.whole and instance.digest == digest),
                    key=lambda instance: (instance.name not in running, instance.name),
                )
            ),
            None,
        )
        if whole is not None:
            self.names[digest] = whole.name
            self._repin(whole)
            return whole.name
        for instance in taken:
            for problem in instance.problems:
                self.drift.append(
                    Drift(kind=DriftKind.ALTERED, where=f"generation {instance.name[:12]}", message=problem)
                )
        names = {instance.name for instance in taken}
        number = next(n for n in range(len(names) + 1) if f"{prefix}{n}" not in names)
        if self._lost_state is None:
            self._lost_state = self._reuse_lost_state()
        existing = frozenset(self.observed.map_pins) | self._lost_state
        planned = {
            use.pin for step in self.loads if isinstance(step, Load) for m in step.generation.members for use in m.maps
        }
        generation = instantiate(target.content, number, existing | planned)
        self.names[digest] = generation.name
        reason = "new content" if self.changed else "the loaded one is gone or altered"
        self.loads.append(Load(generation=generation, reason=reason))
        return generation.name

    def _repin(self, instance: Instance) -> None:
        for step in instance.repins:
            if self._pins_first(step):
                self.drift.append(Drift(kind=DriftKind.UNPINNED, where=step.path, message=step.reason))

    def _pins_first(self, step: Repin) -> bool:
        """Whether nothing planned so far pins this path; then this step does. State may be missed more than once."""
        if any(isinstance(other, Repin) and other.path == step.path for other in self.repair):
            return False
        self.repair.append(step)
        return True

    def _reuse_lost_state(self) -> frozenset[str]:
        """State whose pin somebody removed but which a live program still holds is pinned again first."""
        alive = {map_id for program in self.snapshot.programs.values() for map_id in program.map_ids}
        known = {
            entry.pin: entry.id
            for instance in self.observed.instances.values()
            if instance.loaded is not None
            for entry in instance.loaded.maps
            if entry.role in (MapRole.STATE, MapRole.STATS)
        }
        lost = set()
        for path, map_id in sorted(known.items()):
            if path not in self.observed.map_pins and map_id in alive and path in self.targets.state_pins:
                step = Repin(
                    path=path,
                    kind=PinKind.MAP,
                    identity=Identity(id=map_id),
                    reason="somebody removed the pin of state",
                )
                lost.add(path)
                self._pins_first(step)
        return frozenset(lost)

    def _check_state_loss(self) -> None:
        """A state map that would get another layout is lost; the manifest must allow it by name."""
        recorded = {
            entry.key: entry
            for instance in self.observed.instances.values()
            if instance.loaded is not None
            for entry in instance.loaded.maps
            if entry.role is MapRole.STATE and entry.pin in self.observed.map_pins
        }
        findings: dict[Diagnostic, None] = {}
        for target in self.targets.by_point.values():
            allowed = {
                (chain.name, member.name): member.allow_state_loss
                for chain in target.chains
                for member in chain.members
            }
            for member in target.content.members:
                for use in member.maps:
                    before = recorded.get(use.key) if use.role is MapRole.STATE else None
                    if before is None or before.layout == use.layout:
                        continue
                    text = (
                        f"map {use.name} of {member.chain}/{member.member}: layout {before.layout[:12]} becomes "
                        f"{use.layout[:12]}, so what it counted is lost"
                    )
                    if allowed[member.chain, member.member]:
                        if text not in self.notes:
                            self.notes.append(text)
                        continue
                    chain = next(chain for chain in target.chains if chain.name == member.chain)
                    message = f"{text}; set allowStateLoss: true on the member if that is meant"
                    findings[Diagnostic(message=message, file=chain.file or None)] = None
        if findings:
            raise PlanError(tuple(findings), reason="StateLoss")

    # --- one hook ----------------------------------------------------------------------------------------

    def _target(self, target: Target) -> None:
        point = target.point
        state = self.snapshot.hooks.get(point)
        if state is None:  # not the same as empty: what is attached there may be ours
            self._pend(DriftKind.CONTESTED, point, "could not be read; left as it is")
            self._hold_unseen(point)
            return
        current = self.observed.current.get(point)
        if not state.settled:
            self._pend(
                DriftKind.CONTESTED, point, "somebody changes this hook all the time; left as it is until it settles"
            )
            self._hold(current)
            return
        if current is None:
            self._attach(target, state)
            return
        self._keep_pin(target, current)
        if current.attachment.kind is AttachKind.XDP_LINK and self._wrong_mode(target, current):
            self._change_mode(target, current)
            return
        name = self._generation(target)
        if current.generation == name:
            if self.changed and point.key in self.unproven:
                self.proving.append(target)
            return
        self._note_drift(target, current)
        self.switched.append(target)
        self.hooks.append(
            Switch(
                point=point,
                generation=name,
                old=current.generation or "",
                program=current.program,
                kind=current.attachment.kind,
                reason=self._reason(target),
                pin=current.pin or self._link_pin(current),
                link_id=current.attachment.link_id,
                filter=current.attachment.filter,
            )
        )

    def _keep_pin(self, target: Target, current: Current) -> None:
        """Whatever the hook runs: the pin of its link may have to come back first."""
        if current.attachment.link_id is None or current.pin is not None:
            return
        path = f"links/{target.point.key}"
        identity = Identity(id=current.attachment.link_id)
        reason = f"somebody removed the pin of the link on {target.point}"
        self.repair.append(Repin(path=path, kind=PinKind.LINK, identity=identity, reason=reason))
        self.drift.append(Drift(kind=DriftKind.UNPINNED, where=str(target.point), message=reason))

    def _link_pin(self, current: Current) -> str | None:
        return f"links/{current.point.key}" if current.attachment.link_id is not None else None

    def _attach(self, target: Target, state: HookState) -> None:
        point = target.point
        kind = self._attach_kind(point.kind, self.snapshot.features)
        if kind is None:
            self._pend(DriftKind.ABSENT, point, f"this kernel supports no way of attaching to {point.kind}")
            return
        displace = self.occupants.displaceable(state)
        if displace is None and (refusal := self.occupants.refusal(kind, state)) is not None:
            self._pend(refusal[0], point, refusal[1])
            return
        name = self._generation(target)
        pin = None if kind is AttachKind.CLSACT_FILTER else f"links/{point.key}"
        if pin in self.observed.defunct:
            self.repair.append(Unpin(pins=(pin,), reason="its link is detached or its interface is gone"))
            self.freed_pins.add(pin)
        step = Attach(
            point=point,
            generation=name,
            kind=kind,
            reason=self._reason(target),
            pin=pin,
            filter=our_filter(point.kind) if kind is AttachKind.CLSACT_FILTER else None,
            revision=state.revision if kind is AttachKind.TCX_LINK else None,
            mode=target.mode,
            make_qdisc=kind is AttachKind.CLSACT_FILTER and state.clsact == "none",
            displace=displace,
        )
        if displace is not None:
            self.displacing[point] = step
            self.notes.append(f"{point}: the foreign program {displace.program_id} is displaced by the switch itself")
        if self._ran_before(point):
            message = "our program was detached by somebody"
            self.drift.append(Drift(kind=DriftKind.DETACHED, where=str(point), message=message))
        elif self._made_anew(point):
            self.notes.append(
                f"{point}: the interface was made anew; until this attach its packets pass without the chain"
            )
        self.switched.append(target)
        self.hooks.append(step)

    def _ran_before(self, point: HookPoint) -> bool:
        return point in self._recorded

    def _made_anew(self, point: HookPoint) -> bool:
        """Whether we ran on an interface of this name that is not this one."""
        return any((former.kind, former.scope) == (point.kind, point.scope) for former in self._recorded)

    @staticmethod
    def _attach_kind(kind: HookKind, features: Features) -> AttachKind | None:
        """The best way of attaching to this kind of hook here, None if there is none."""
        match kind:
            case HookKind.XDP:
                return AttachKind.XDP_LINK if features.xdp_link is not Support.NO else None
            case HookKind.TC_INGRESS | HookKind.TC_EGRESS if features.tcx is Support.YES:
                return AttachKind.TCX_LINK
            case HookKind.TC_INGRESS | HookKind.TC_EGRESS:
                return AttachKind.CLSACT_FILTER if features.clsact is not Support.NO else None
            case _:
                assert_never(kind)

    def _wrong_mode(self, target: Target, current: Current) -> bool:
        return target.mode is not XdpMode.AUTO and current.attachment.mode != target.mode.value

    def _change_mode(self, target: Target, current: Current) -> None:
        name = self._generation(target)
        self.notes.append(
            f"{target.point}: {current.attachment.mode} becomes {target.mode}; "
            "the kernel forces a gap of some milliseconds"
        )
        self.switched.append(target)
        self.hooks.append(
            ChangeMode(
                point=target.point,
                generation=name,
                old=current.generation or "",
                pin=current.pin or f"links/{target.point.key}",
                link_id=current.attachment.link_id or 0,
                mode=target.mode,
                old_mode=XdpMode(current.attachment.mode or XdpMode.AUTO),
                reason=self._reason(target),
            )
        )

    def _leave(self, current: Current) -> None:
        """A hook of ours that nothing declares any more."""
        state = self.snapshot.hooks[current.point]
        if not state.settled:
            self._pend(
                DriftKind.CONTESTED, current.point, "to be detached, but somebody changes this hook all the time"
            )
            self._hold(current)
            return
        self.detaches.append(
            Detach(
                point=current.point,
                kind=current.attachment.kind,
                generation=current.generation or "",
                reason="no chain declares this hook any more",
                pin=current.pin,
                link_id=current.attachment.link_id,
                filter=current.attachment.filter,
                remove_qdisc=current.made_qdisc,
            )
        )

    def _take_qdisc(self, owned: OwnedAttachment) -> None:
        """The filter went without its qdisc: a pass ended in between, or somebody removed it."""
        self.detaches.append(
            Detach(
                point=owned.point,
                kind=owned.kind,
                generation=owned.generation,
                reason="nothing of ours is left on the clsact qdisc that we made",
                filter=owned.filter,
                remove_qdisc=True,
            )
        )

    # --- words -------------------------------------------------------------------------------------------

    def _hold(self, current: Current | None) -> None:
        if current is not None and current.generation is not None:
            self.held.add(current.generation)

    def _hold_unseen(self, point: HookPoint) -> None:
        pin = f"links/{point.key}"
        self.held_pins.add(pin)
        self.held.update(
            generation for generation in (self._recorded.get(point), self.observed.elsewhere.get(pin)) if generation
        )

    def _pend(self, kind: DriftKind, point: HookPoint, message: str) -> None:
        self.pending.append(Drift(kind=kind, where=str(point), message=message))

    def _recorded_digest(self, point: HookPoint) -> str | None:
        """Content that this hook was given last, as the inventory says."""
        instance = self.observed.instances.get(self._recorded.get(point, ""))
        return instance.digest if instance else None

    def _reason(self, target: Target) -> str:
        if self._recorded_digest(target.point) == target.content.digest:
            return "restore what is declared"
        return "the declared chain changed" if self._ran_before(target.point) else "declared, and not there yet"

    def _note_drift(self, target: Target, current: Current) -> None:
        running = self.observed.instances[current.generation] if current.generation is not None else None
        if self._recorded_digest(target.point) != target.content.digest:
            return
        if running is not None and running.digest == target.content.digest:
            return  # it was altered, which is said of the generation
        what = "a foreign program" if current.generation is None else "another generation"
        message = f"{what} ({current.program.id}) runs in place of the declared chain"
        self.drift.append(Drift(kind=DriftKind.REPLACED, where=str(target.point), message=message))
