# SPDX-License-Identifier: Apache-2.0
"""`Lab`: what the conformance suite needs besides a kernel, and the steps that it builds with it."""

from __future__ import annotations

import abc
import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from reconciler.kernel import Scope
from reconciler.model import (
    Attach,
    AttachKind,
    Attachment,
    Detach,
    Evict,
    FilterId,
    HookKind,
    HookPoint,
    Identity,
    LoadedGeneration,
    OwnedAttachment,
    RemovalMethod,
    Switch,
    XdpMode,
)
from tests.single import attach_one

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.kernel import Kernel
    from reconciler.model import Generation, Package, Snapshot

PARENTS = {HookKind.TC_INGRESS: 0xFFFFFFF2, HookKind.TC_EGRESS: 0xFFFFFFF3}
"""TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS / _EGRESS) (include/uapi/linux/pkt_sched.h)."""

OUR_PRIO, OUR_HANDLE = 7, 0x11


class Way(enum.StrEnum):
    """A kind of hook and a way of attaching to it: the suite runs once for each."""

    XDP_NATIVE = "xdp-native"
    XDP_GENERIC = "xdp-generic"
    TCX_INGRESS = "tcx-ingress"
    TCX_EGRESS = "tcx-egress"
    CLSACT_INGRESS = "clsact-ingress"
    CLSACT_EGRESS = "clsact-egress"

    @property
    def kind(self) -> HookKind:
        if self in {Way.XDP_NATIVE, Way.XDP_GENERIC}:
            return HookKind.XDP
        return HookKind.TC_INGRESS if self.endswith("ingress") else HookKind.TC_EGRESS

    @property
    def attach_kind(self) -> AttachKind:
        if self.kind is HookKind.XDP:
            return AttachKind.XDP_LINK
        return AttachKind.TCX_LINK if self.startswith("tcx") else AttachKind.CLSACT_FILTER

    @property
    def mode(self) -> XdpMode:
        return {Way.XDP_NATIVE: XdpMode.NATIVE, Way.XDP_GENERIC: XdpMode.GENERIC}.get(self, XdpMode.AUTO)


Tamper = Literal["detach", "replace"]


class Lab(abc.ABC):
    """A machine of this test's own. Everything in it is gone at the end.

    Attributes:
        kernel: the implementation under test.
        way: how this run of the suite attaches; for the clsact ways the probe of tcx was forced to "no".
    """

    kernel: Kernel
    way: Way

    # --- the machine -------------------------------------------------------------------------------------

    @abc.abstractmethod
    def namespace(self) -> str:
        """A new network namespace (with `lo`); its name."""

    @abc.abstractmethod
    def interface(self, netns: str, name: str) -> int:
        """A new interface that can do native XDP; its ifindex."""

    @abc.abstractmethod
    def rename(self, netns: str, old: str, new: str) -> None: ...

    @abc.abstractmethod
    def remove_interface(self, netns: str, name: str) -> None: ...

    @abc.abstractmethod
    def remove_namespace(self, netns: str) -> None: ...

    @abc.abstractmethod
    def send(self, point: HookPoint, count: int) -> None:
        """Send `count` packets through the hook."""

    @abc.abstractmethod
    def next_process(self) -> None:
        """`kernel` was closed; from now on it is the one of the next process."""

    # --- packages ----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def generation(
        self, members: int = 2, *, text: str = "a", number: int = 0, reuse: bool = False, broken: bool = False
    ) -> tuple[Generation, Mapping[str, Package]]:
        """A generation for this way, whose members let everything pass and count it; each has `next`, a config map, a
        state map and stats.

        Args:
            members: how many.
            text: part of the content: other text, other generation.
            number: what tells reloads of the same content apart.
            reuse: state and stats are carried over.
            broken: the verifier rejects the last member.
        """

    # --- others ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def foreign_xdp(self, point: HookPoint, via: Literal["link", "netlink"], mode: XdpMode) -> Attachment: ...

    @abc.abstractmethod
    def foreign_tcx(
        self, point: HookPoint, via: Literal["link", "prog"], position: Literal["head", "tail"] = "tail"
    ) -> Attachment: ...

    @abc.abstractmethod
    def foreign_filter(self, point: HookPoint, *, prio: int = 40000, handle: int = 1) -> Attachment: ...

    @abc.abstractmethod
    def foreign_ingress_qdisc(self, point: HookPoint) -> None: ...

    @abc.abstractmethod
    def tamper(self, how: Tamper, owned: OwnedAttachment) -> None:
        """Somebody detaches what is ours, or puts another program in its place."""

    @abc.abstractmethod
    def remove_foreign(self, point: HookPoint, attachment: Attachment) -> None:
        """Somebody takes their own program off again."""

    @abc.abstractmethod
    def unpin(self, path: str) -> None:
        """Somebody removes a pin of ours."""

    @abc.abstractmethod
    def steal(self, path: str) -> None:
        """Somebody puts a program of their own in the place of a pin of ours."""

    @abc.abstractmethod
    def write_to_map(self, path: str) -> int:
        """Somebody tries to change an entry of a pinned map of ours; the errno, 0 if it worked."""

    # --- shared ------------------------------------------------------------------------------------------

    def foreign(self, point: HookPoint) -> Attachment:
        """Somebody else's program on this way's hook."""
        match self.way.attach_kind:
            case AttachKind.XDP_LINK:
                return self.foreign_xdp(point, "link", self.way.mode)
            case AttachKind.TCX_LINK:
                return self.foreign_tcx(point, "link")
            case _:
                return self.foreign_filter(point)

    def point(self, netns: str, interface: str, kind: HookKind | None = None) -> HookPoint:
        """The hook point of an interface, as a snapshot names it."""
        seen = self.look(netns)
        wanted = kind or self.way.kind
        return next(point for point in seen.hooks if (point.interface, point.kind) == (interface, wanted))

    def place(self, name: str = "if0") -> HookPoint:
        """A fresh interface in a fresh namespace."""
        netns = self.namespace()
        self.interface(netns, name)
        return self.point(netns, name)

    def look(self, *namespaces: str) -> Snapshot:
        return self.kernel.snapshot(Scope(namespaces=namespaces))

    def pins(self) -> set[str]:
        return {pin.path for pin in self.look().pins}

    def load(self, members: int = 2, *, text: str = "a", number: int = 0, reuse: bool = False) -> LoadedGeneration:
        wanted, packages = self.generation(members, text=text, number=number, reuse=reuse)
        return self.kernel.load(wanted, packages)

    def attach(self, point: HookPoint, loaded: LoadedGeneration, **changes: object) -> OwnedAttachment:
        step = replace(self.attach_step(point, loaded), **changes)  # type: ignore[arg-type]  # fields of Attach
        return attach_one(self.kernel, step, first(loaded))

    def attach_step(self, point: HookPoint, loaded: LoadedGeneration) -> Attach:
        kind = self.way.attach_kind
        state = self.kernel.read_hook(point)
        step = Attach(point=point, generation=loaded.name, kind=kind, reason="test", mode=self.way.mode)
        if kind is AttachKind.CLSACT_FILTER:
            where = FilterId(parent=PARENTS[point.kind], prio=OUR_PRIO, handle=OUR_HANDLE)
            return replace(step, filter=where, make_qdisc=state.clsact == "none")
        return replace(step, pin=f"links/{point.key}", revision=state.revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A generation of ours on a hook."""

    point: HookPoint
    loaded: LoadedGeneration
    owned: OwnedAttachment

    @classmethod
    def make(cls, lab: Lab, *, text: str = "a", name: str = "if0") -> Scene:
        point = lab.place(name)
        loaded = lab.load(text=text)
        return cls(point=point, loaded=loaded, owned=lab.attach(point, loaded))


def first(loaded: LoadedGeneration) -> Identity:
    return loaded.programs[0].identity


def pins_of(loaded: LoadedGeneration) -> tuple[str, ...]:
    """Every path that a generation names."""
    return (*(program.pin for program in loaded.programs), *(map_.pin for map_ in loaded.maps))


def switch_step(owned: OwnedAttachment, old: LoadedGeneration, new: LoadedGeneration) -> Switch:
    return Switch(
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


def detach_step(owned: OwnedAttachment) -> Detach:
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


METHODS = {
    AttachKind.XDP_LINK: RemovalMethod.LINK_DETACH,
    AttachKind.TCX_LINK: RemovalMethod.LINK_DETACH,
    AttachKind.XDP_NETLINK: RemovalMethod.NETLINK,
    AttachKind.TCX_PROG: RemovalMethod.PROG_DETACH,
    AttachKind.CLSACT_FILTER: RemovalMethod.FILTER_DELETE,
}


def evict_step(seen: Snapshot, point: HookPoint, attachment: Attachment) -> Evict:
    return Evict(
        point=point,
        attachment=attachment,
        program=seen.programs[attachment.program_id].identity,
        method=METHODS[attachment.kind],
        reason="test",
        revision=seen.hooks[point].revision if attachment.kind is AttachKind.TCX_PROG else None,
    )
