# SPDX-License-Identifier: Apache-2.0
"""Steps of the kernel protocol for tests, one call each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from reconciler.kernel import Scope
from reconciler.kernel._netlink import MIN_EGRESS, MIN_INGRESS
from reconciler.model import (
    Attach,
    AttachKind,
    Attachment,
    Detach,
    FilterId,
    HookKind,
    HookPoint,
    Identity,
    LoadedGeneration,
    MemberLoad,
    OwnedAttachment,
    Switch,
    XdpMode,
)
from tests.kernel import generations
from tests.single import attach_one, detach_one, switch_one

if TYPE_CHECKING:
    from reconciler.kernel.linux import LinuxKernel
    from tests.kernel.generations import MemberDef
    from tests.kernel.support import Netns

PARENTS = {HookKind.TC_INGRESS: MIN_INGRESS, HookKind.TC_EGRESS: MIN_EGRESS}


def first(loaded: LoadedGeneration) -> Identity:
    return loaded.programs[0].identity


def pins_of(loaded: LoadedGeneration) -> tuple[str, ...]:
    return (*(item.pin for item in loaded.programs), *(item.pin for item in loaded.maps))


@dataclass(slots=True, kw_only=True)
class Rig:
    """A kernel, and one way of attaching: `kind` None means the best for the hook."""

    kernel: LinuxKernel
    hook: HookKind
    kind: AttachKind
    number: int = 0
    loaded: list[LoadedGeneration] = field(default_factory=list)

    def point(self, space: Netns, interface: str) -> HookPoint:
        return HookPoint(
            kind=self.hook,
            netns_inode=space.inode,
            ifindex=space.ifindex(interface),
            netns=space.name,
            interface=interface,
        )

    def load(self, *members: MemberDef, chain: str = "chain", define: str | None = None) -> LoadedGeneration:
        """Load; state that is there already is carried over."""
        wanted, packages = generations.generation(self.hook, members, number=self.number, chain=chain, define=define)
        self.number += 1
        wanted = replace(wanted, members=tuple(self._carrying(member) for member in wanted.members))
        self.loaded.append(self.kernel.load(wanted, packages))
        return self.loaded[-1]

    def _carrying(self, member: MemberLoad) -> MemberLoad:
        pins = self.kernel._pins
        maps = (replace(use, reuse=use.pin.startswith("state/") and pins.exists(use.pin)) for use in member.maps)
        return replace(member, maps=tuple(maps))

    def attach(
        self,
        point: HookPoint,
        loaded: LoadedGeneration,
        *,
        mode: XdpMode = XdpMode.AUTO,
        displace: Attachment | None = None,
        prio: int = 10,
    ) -> OwnedAttachment:
        state = self.kernel.read_hook(point)
        filtered = self.kind is AttachKind.CLSACT_FILTER
        step = Attach(
            point=point,
            generation=loaded.name,
            kind=self.kind,
            reason="test",
            pin=None if filtered else f"links/{point.key}",
            filter=FilterId(parent=PARENTS[point.kind], prio=prio, handle=7) if filtered else None,
            revision=state.revision,
            mode=mode,
            make_qdisc=state.clsact == "none",
            displace=displace,
        )
        return attach_one(self.kernel, step, first(loaded))

    def switch(self, owned: OwnedAttachment, old: LoadedGeneration, new: LoadedGeneration) -> OwnedAttachment:
        step = Switch(
            point=owned.point,
            generation=new.name,
            old=old.name,
            program=first(old),
            kind=owned.kind,
            reason="test",
            pin=owned.pin,
            link_id=owned.link_id,
            filter=owned.filter,
        )
        return switch_one(self.kernel, step, first(new))

    def detach(self, owned: OwnedAttachment) -> None:
        detach_one(self.kernel, self.detaching(owned))

    def detaching(self, owned: OwnedAttachment) -> Detach:
        return Detach(
            point=owned.point,
            kind=owned.kind,
            generation=owned.generation,
            reason="test",
            pin=owned.pin,
            link_id=owned.link_id,
            filter=owned.filter,
            remove_qdisc=owned.made_qdisc,
        )

    def programs_on(self, point: HookPoint) -> list[int]:
        return [item.program_id for item in self.kernel.read_hook(point).attachments]

    def scope(self, *spaces: Netns) -> Scope:
        return Scope(namespaces=tuple(space.name for space in spaces))
