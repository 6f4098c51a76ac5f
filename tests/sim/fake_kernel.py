# SPDX-License-Identifier: Apache-2.0
"""`FakeKernel`: the `Kernel` protocol on a machine in memory, for tests of plan, apply, reconcile and of whole runs.

What it is good for beyond passing the conformance suite: every state-changing primitive can fail or be the last one of
a killed process (`fail_at`, `fail_on`, `crash_at`), `on_change` is called after each of them, `run_packet` shows what
a packet sees at that moment, `violations` lists what must never happen (half a chain on a hook, an array flushed while
packets may be inside), and others act on the same machine (tests/sim/_foreign.py). What it does not do: run
instructions, read ELF, race with anybody.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from reconciler.errors import DrainError, KernelError, NotSupportedError, OccupiedError, StaleError
from reconciler.kernel import Progress, in_order
from reconciler.model import (
    Attach,
    AttachKind,
    Attachment,
    ChangeMode,
    Detach,
    Evict,
    Features,
    Generation,
    HookPoint,
    Identity,
    LoadedGeneration,
    OwnedAttachment,
    Package,
    PinKind,
    RemovalMethod,
    Support,
    Switch,
    XdpMode,
)
from tests.sim._load import Loader
from tests.sim._objects import Crash, Device, FakeFilter, FakeLink, FakeProgram, Trace
from tests.sim._observed import Observed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Result = TypeVar("Result")

ALL_FEATURES = Features(
    xdp_link=Support.YES,
    tcx=Support.YES,
    clsact=Support.YES,
    btf=Support.YES,
    expedite=Support.YES,
    drain=("membarrier", "map-in-map"),
)
"""What a current kernel has."""

GAP = 0.008
"""Seconds without any program that a change of mode and displacing take here; about what was measured on 6.18."""


class FakeKernel(Observed):
    """One machine, one process of ours on it.

    Args:
        features: what the probes shall find.
        id_limit: ids of programs, maps and links wrap after this many; small numbers make them come back soon.
        on_change: called after every primitive of ours that took effect.
    """

    def __init__(
        self,
        *,
        features: Features = ALL_FEATURES,
        id_limit: int = 2**31 - 1,
        on_change: Callable[[FakeKernel], None] | None = None,
    ) -> None:
        super().__init__(features=features, id_limit=id_limit)
        self.on_change = on_change
        self.on_evict: Callable[[Evict], None] | None = None
        self.drains = 0
        self.rcu_expedited = 0
        self.stays_expedited = False
        self.add_namespace("host")

    # --- control of the fake -----------------------------------------------------------------------------

    @property
    def mutations(self) -> int:
        """State-changing primitives that were tried so far."""
        return self.faults.count

    def fail_at(self, n: int, error: KernelError, *, onwards: bool = False) -> None:
        """The `n`-th primitive from now (1 is the next) raises `error`; with `onwards` all later ones, too."""
        self.faults.fail_at(n, error, onwards=onwards)

    def fail_on(self, what: str, error: KernelError) -> None:
        """The next primitive of that name (see `faults.log`) raises `error`."""
        self.faults.fail_on(what, error)

    def crash_at(self, n: int, *, when: Literal["before", "after"] = "after") -> None:
        """The process is killed right before or right after the `n`-th primitive from now."""
        self.faults.crash_at(n, when=when)

    def restart(self) -> None:
        """The process ends (if it was not killed already), its descriptors close, and a new one starts."""
        self.faults.clear()
        self.faults.dead = False
        self.descriptors.clear()
        self._settle_down()

    def _do(self, what: str, action: Callable[[], Result]) -> Result:
        try:
            return self.faults.run(what, action, self._after)
        except Crash:
            self.descriptors.clear()
            self._settle_down()
            raise

    def _after(self, what: str) -> None:
        self._judge(what)
        if self.on_change is not None:
            self.on_change(self)

    # --- life ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        self.descriptors.clear()
        self._settle_down()

    # --- loading -----------------------------------------------------------------------------------------

    def load(self, generation: Generation, packages: Mapping[str, Package]) -> LoadedGeneration:
        self.faults.alive()
        return Loader(self, self._do, generation, packages).load()

    def unload(self, pins: tuple[str, ...]) -> None:
        self.faults.alive()
        for path in pins:
            if path in self.pins:
                self._unlink(path)
            elif path in self.folders:
                self._do("unpin", partial(self.folders.discard, path))

    def repin(self, path: str, kind: PinKind, identity: Identity) -> None:
        key = (kind, identity.id)
        self.faults.alive()
        if not self._exists(key) or (kind is PinKind.PROGRAM and not self._runs(identity)):
            raise StaleError(f"pinning {path}", errno.ENOENT, f"{kind} {identity.id} is gone")
        if self.pins.get(path) != key:
            self._do("pin", lambda: self._pin(path, key))

    def _unlink(self, path: str) -> None:
        def action() -> None:
            key = self.pins.pop(path)
            if key not in self.pins.values():
                self.descriptors.discard(key)

        self._do("unpin", action)

    # --- attaching ---------------------------------------------------------------------------------------

    def attach(self, steps: Sequence[Attach], first: Mapping[str, Identity]) -> Progress[OwnedAttachment]:
        return in_order(lambda step: self._attach(step, first[step.generation]), steps)

    def _attach(self, step: Attach, first: Identity) -> OwnedAttachment:
        self.faults.alive()
        program = self._first(step.generation, first)
        device = self._planned_device(step.point)
        match step.kind:
            case AttachKind.XDP_LINK:
                return self._attach_xdp(step, device, program)
            case AttachKind.TCX_LINK:
                return self._attach_tcx(step, device, program)
            case AttachKind.CLSACT_FILTER:
                return self._attach_filter(step, device, program)
            case _:
                raise NotSupportedError(f"attaching {step.kind}", errno.EOPNOTSUPP, "we attach links and filters")

    def _planned_device(self, point: HookPoint) -> Device:
        try:
            return self._device_at(point)
        except KernelError as error:
            raise StaleError(error.call, error.errno, "the interface is gone") from error

    def _first(self, generation: str, first: Identity) -> FakeProgram:
        program = self._pinned_program(generation)
        if (program.id, program.load_time) != (first.id, first.load_time):
            raise StaleError(f"gen/{generation}/p00", errno.ESTALE, f"expected {first}, got program {program.id}")
        return program

    def _attach_xdp(self, step: Attach, device: Device, program: FakeProgram) -> OwnedAttachment:
        mode = self._mode(device, step.mode)
        if step.displace is not None:
            self._displace(step.point, device, step.displace)
        if device.xdp is not None:
            raise OccupiedError(f"XDP on {step.point}", errno.EBUSY, f"program {device.xdp.program_id} is attached")
        assert step.pin is not None
        link = self._pinned_link(step.pin, lambda: self._install_xdp(device, program, mode, link=True))
        gap = None if step.displace is None else GAP
        return _owned(step, link_id=link.id, pin=step.pin, mode=mode, gap=gap)

    @staticmethod
    def _mode(device: Device, wanted: XdpMode) -> str:
        if wanted is XdpMode.AUTO:
            return "native" if device.native else "generic"
        if wanted is XdpMode.NATIVE and not device.native:
            raise NotSupportedError(f"native XDP on {device.name}", errno.EOPNOTSUPP, "the driver has none")
        return wanted.value

    def _displace(self, point: HookPoint, device: Device, occupant: Attachment) -> None:
        if self.attachments(point) != (occupant,):
            raise StaleError(f"XDP on {point}", errno.EEXIST, f"expected {occupant}, got {self.attachments(point)}")
        if occupant.link_id is not None:
            link = self.links[occupant.link_id]
            self._do("link-detach", lambda: self._detach_link(link))
        else:
            self._do("xdp-netlink", lambda: setattr(device, "xdp", None))

    def _attach_tcx(self, step: Attach, device: Device, program: FakeProgram) -> OwnedAttachment:
        if not self._tcx:
            raise NotSupportedError(f"tcx on {step.point}", errno.EINVAL, "this kernel has no tcx")
        current = device.tcx[step.point.kind].revision
        if step.revision is not None and step.revision != current:
            raise StaleError(f"tcx on {step.point}", errno.ESTALE, f"expected revision {step.revision}, got {current}")
        assert step.pin is not None
        link = self._pinned_link(
            step.pin, lambda: self._insert_tcx(device, step.point.kind, program, head=True, link=True)
        )
        return _owned(step, link_id=link.id, pin=step.pin)

    def _pinned_link(self, path: str, create: Callable[[], FakeLink | None]) -> FakeLink:
        def action() -> FakeLink:
            link = create()
            assert link is not None
            self.descriptors.add((PinKind.LINK, link.id))
            return link

        if path in self.pins:
            raise KernelError(f"BPF_OBJ_PIN {path}", errno.EEXIST, "the path exists")
        link = self._do("link-create", action)
        key = (PinKind.LINK, link.id)
        try:
            self._do("pin", lambda: self._pin(path, key))
        except KernelError:
            self._do("link-detach", lambda: self._detach_link(link))
            raise
        finally:
            self.descriptors.discard(key)
            self._collect()
        return link

    def _attach_filter(self, step: Attach, device: Device, program: FakeProgram) -> OwnedAttachment:
        if self.forced_features.clsact is not Support.YES:
            raise NotSupportedError(f"clsact on {step.point}", errno.EOPNOTSUPP, "this kernel has no clsact")
        if device.qdisc == "ingress":
            raise OccupiedError(f"clsact on {step.point}", errno.EEXIST, "a foreign ingress qdisc takes its place")
        assert step.filter is not None
        where = step.filter
        made = step.make_qdisc and device.qdisc == "none"
        if made:
            self._do("qdisc-add", lambda: self._add_qdisc(device, "clsact"))
        filter_ = FakeFilter(program_id=program.id, name=program.name)
        try:
            if where in device.filters[step.point.kind]:
                raise OccupiedError(f"filter on {step.point}", errno.EEXIST, f"{where} is taken")
            self._do("filter-add", lambda: self._add_filter(device, step.point.kind, where, filter_))
        except KernelError:
            if made:
                self._remove_our_qdisc(device)
            raise
        return _owned(step, filter=where, made_qdisc=made)

    def _remove_our_qdisc(self, device: Device) -> None:
        if not any(device.filters.values()) and device.qdisc == "clsact":
            self._do("qdisc-del", lambda: setattr(device, "qdisc", "none"))

    # --- switching and detaching -------------------------------------------------------------------------

    def switch(self, steps: Sequence[Switch], first: Mapping[str, Identity]) -> Progress[OwnedAttachment]:
        return in_order(lambda step: self._switch(step, first[step.generation]), steps)

    def _switch(self, step: Switch, first: Identity) -> OwnedAttachment:
        self.faults.alive()
        program = self._first(step.generation, first)
        device = self._planned_device(step.point)
        seen = self._ours(step)
        self._planned_pin(step)
        if seen is None or seen.program_id != step.program.id or not self._runs(step.program):
            raise StaleError(f"switching {step.point}", errno.EPERM, f"expected {step.program}, got {seen}")

        def action() -> None:
            if step.filter is not None:
                self._set_filter(device, step.point.kind, step.filter, program.id)
            else:
                assert step.link_id is not None
                self._update_link(self.links[step.link_id], program.id, step.program.id)

        self._do("filter-replace" if step.filter is not None else "link-update", action)
        return _owned(step, link_id=step.link_id, pin=step.pin, filter=step.filter, mode=seen.mode)

    def _planned_pin(self, step: Switch | Detach) -> None:
        key = (PinKind.LINK, step.link_id or 0)
        if step.link_id is not None and step.pin is not None and self.pins.get(step.pin, key) != key:
            raise StaleError(f"opening {step.pin}", errno.ESTALE, f"expected link {step.link_id}, got another object")

    def _ours(self, step: Switch | Detach) -> Attachment | None:
        for seen in self.attachments(step.point):
            if (seen.kind, seen.link_id, seen.filter) == (step.kind, step.link_id, step.filter):
                return seen
        return None

    def change_mode(self, step: ChangeMode, first: Identity) -> tuple[OwnedAttachment, float]:
        self.faults.alive()
        program = self._first(step.generation, first)
        device = self._planned_device(step.point)
        link = self.links.get(step.link_id)
        if link is None or link.device is not device or self.pins.get(step.pin) != (PinKind.LINK, link.id):
            raise StaleError(f"changing the mode of {step.point}", errno.ENOLINK, f"link {step.link_id} is gone")
        mode = self._mode(device, step.mode)
        old_program, old_mode = self.programs[link.program_id], self.attachments(step.point)[0].mode
        self._do("link-detach", lambda: self._detach_link(link))
        self._unlink(step.pin)
        try:
            made = self._pinned_link(step.pin, lambda: self._install_xdp(device, program, mode, link=True))
        except KernelError:
            assert old_mode is not None
            self._pinned_link(step.pin, lambda: self._install_xdp(device, old_program, old_mode, link=True))
            raise
        return _owned(step, link_id=made.id, pin=step.pin, mode=mode), GAP

    def detach(self, steps: Sequence[Detach]) -> Progress[None]:
        return in_order(self._detach, steps)

    def _detach(self, step: Detach) -> None:
        self.faults.alive()
        if step.kind is AttachKind.CLSACT_FILTER:
            self._detach_filter(step)
            return
        self._planned_pin(step)
        link = self.links.get(step.link_id or 0)
        if link is not None and link.device is not None:
            self._do("link-detach", lambda: self._detach_link(link))
        if step.pin is not None and step.pin in self.pins:
            self._unlink(step.pin)

    def _detach_filter(self, step: Detach) -> None:
        device = self.devices.get((step.point.netns_inode, step.point.ifindex))
        if device is None:
            return
        seen = self._ours(step)
        if seen is not None:
            if self.programs[seen.program_id].generation != step.generation:
                raise StaleError(f"filter on {step.point}", errno.ESTALE, f"got foreign program {seen.program_id}")
            assert step.filter is not None
            where = step.filter
            self._do("filter-del", lambda: self._delete_filter(device, step.point.kind, where))
        if step.remove_qdisc:
            self._remove_our_qdisc(device)

    def evict(self, step: Evict) -> None:
        self.faults.alive()
        device = self._planned_device(step.point)
        found = next((seen for seen in self.attachments(step.point) if seen == step.attachment), None)
        if found is None or not self._runs(step.program) or found.program_id != step.program.id:
            raise StaleError(f"evicting from {step.point}", errno.ESTALE, "the attachment is not the planned one")
        match step.method:
            case RemovalMethod.LINK_DETACH:
                link = self.links[found.link_id or 0]
                self._do("link-detach", lambda: self._detach_link(link))
            case RemovalMethod.NETLINK:
                self._do("xdp-netlink", lambda: setattr(device, "xdp", None))
            case RemovalMethod.PROG_DETACH:
                self._detach_program(step, device)
            case RemovalMethod.FILTER_DELETE:
                where = found.filter
                assert where is not None
                self._do("filter-del", lambda: self._delete_filter(device, step.point.kind, where))
            case RemovalMethod.NOT_POSSIBLE:
                raise NotSupportedError(f"evicting from {step.point}", errno.EOPNOTSUPP, "it cannot be removed")
        if self.on_evict is not None:
            self.on_evict(step)

    def _detach_program(self, step: Evict, device: Device) -> None:
        hook = device.tcx[step.point.kind]
        if step.revision is not None and step.revision != hook.revision:
            raise StaleError(f"PROG_DETACH on {step.point}", errno.ESTALE, f"got revision {hook.revision}")

        def action() -> None:
            hook.entries = [entry for entry in hook.entries if entry.program_id != step.program.id]
            hook.bump()

        self._do("prog-detach", action)

    # --- grace periods -----------------------------------------------------------------------------------

    def drain(self) -> str:
        self.faults.alive()
        if not self.forced_features.drain:
            raise DrainError("waiting for a grace period", errno.EOPNOTSUPP, "no way of waiting works here")

        def action() -> None:
            self.pending.clear()
            self.drains += 1

        self._do("drain", action)
        return self.forced_features.drain[0]

    @contextmanager
    def expedite(self) -> Iterator[bool]:
        self.faults.alive()
        if self.grace_setting() != 0:
            yield False
            return
        self.rcu_expedited = 1
        try:
            yield True
        finally:
            if not self.faults.dead and not self.stays_expedited:
                self.rcu_expedited = 0

    def grace_setting(self) -> int | None:
        self.faults.alive()
        return self.rcu_expedited if self.forced_features.expedite is Support.YES else None

    def restore_grace(self, value: int) -> None:
        self.faults.alive()
        if self.rcu_expedited == 1:
            self.rcu_expedited = value


def _owned(step: Attach | Switch | ChangeMode, **fields: object) -> OwnedAttachment:
    kind = AttachKind.XDP_LINK if isinstance(step, ChangeMode) else step.kind
    owned = OwnedAttachment(point=step.point, kind=kind, generation=step.generation)
    return replace(owned, **fields)  # type: ignore[arg-type]  # by the callers


__all__ = ["ALL_FEATURES", "Crash", "FakeKernel", "Trace"]
