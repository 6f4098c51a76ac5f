# SPDX-License-Identifier: Apache-2.0
"""Read hooks: what one interface runs, and what that is as model values.

A hook is read twice with everything else in between; two equal reads are one coherent state (docs/architecture.md).
Reads happen in the hook's namespace: the functions that take a `Route` expect to be called there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from reconciler.kernel import _bpf
from reconciler.kernel._netlink import CLSACT_HANDLE, MIN_EGRESS, MIN_INGRESS, BpfFilter, Device, Route
from reconciler.model import AttachKind, Attachment, FilterId, HookKind, HookPoint, HookState

Qdisc = Literal["none", "clsact", "ingress"]

TCX_TYPES = {HookKind.TC_INGRESS: _bpf.BPF_TCX_INGRESS, HookKind.TC_EGRESS: _bpf.BPF_TCX_EGRESS}
TC_PARENTS = {HookKind.TC_INGRESS: MIN_INGRESS, HookKind.TC_EGRESS: MIN_EGRESS}
XDP_FLAGS = {
    "native": _bpf.XDP_FLAGS_DRV_MODE,
    "generic": _bpf.XDP_FLAGS_SKB_MODE,
    "offload": _bpf.XDP_FLAGS_HW_MODE,
}


class Raw(NamedTuple):
    """One hook as the kernel says it: comparing two of these is what "settled" means.

    Attributes:
        xdp: (mode, program id).
        tcx: None where there is no tcx, and on XDP hooks.
        filters: of this direction, in order.
    """

    xdp: tuple[tuple[str, int], ...] = ()
    tcx: _bpf.Mprog | None = None
    filters: tuple[BpfFilter, ...] = ()
    qdisc: Qdisc = "none"

    @property
    def empty(self) -> bool:
        """Whether nothing runs there: most hooks of most hosts."""
        return not (self.xdp or self.filters or (self.tcx is not None and self.tcx.entries))

    def programs(self) -> Iterable[int]:
        """Ids of all programs on the hook."""
        yield from (program for _, program in self.xdp)
        if self.tcx is not None:
            yield from (program for program, _ in self.tcx.entries)
        yield from (item.program_id for item in self.filters)


RawInterface = Mapping[HookKind, Raw]


_KINDS = tuple(HookKind)


def read_interface(route: Route, device: Device, qdisc: str | None, tcx: _bpf.TcxQuery | None) -> RawInterface:
    """All three hooks of one interface. Raises OSError ENODEV when it has gone."""
    return {kind: read_raw(route, device, qdisc, kind, tcx) for kind in _KINDS}


def read_raw(route: Route, device: Device, qdisc: str | None, kind: HookKind, tcx: _bpf.TcxQuery | None) -> Raw:
    """One hook of one interface; `tcx` is None where the kernel has none. Raises OSError ENODEV when it has gone."""
    if kind is HookKind.XDP:
        return Raw(xdp=device.xdp)
    filters: tuple[BpfFilter, ...] = ()
    state: Qdisc = "none"
    if qdisc == "clsact":
        filters, state = route.filters(device.ifindex, TC_PARENTS[kind]), "clsact"
    elif qdisc == "ingress":
        state = "ingress"
        filters = route.filters(device.ifindex, CLSACT_HANDLE) if kind is HookKind.TC_INGRESS else ()
    entries = tcx(device.ifindex, TCX_TYPES[kind]) if tcx is not None else None
    return Raw(tcx=entries, filters=filters, qdisc=state)


def read_again(ifindex: int, kind: HookKind, *, tcx: bool) -> tuple[Device, Raw]:
    """One hook, in the calling thread's namespace. Raises OSError ENODEV."""
    with Route() as route:
        device = route.device(ifindex)
        qdisc = None if kind is HookKind.XDP else route.clsact(ifindex).get(ifindex)
        return device, read_raw(route, device, qdisc, kind, _bpf.TcxQuery() if tcx else None)


@dataclass(frozen=True, slots=True)
class RawNamespace:
    """All interfaces of a namespace, and the hooks of those that are looked at, by ifindex."""

    devices: Mapping[int, Device]
    hooks: Mapping[int, RawInterface]

    @property
    def empty(self) -> bool:
        """Whether nothing runs on any of these hooks."""
        return all(raw.empty for kinds in self.hooks.values() for raw in kinds.values())


def read_namespace(
    wanted: Callable[[Device], bool], ours: frozenset[int], before: Mapping[int, Device] | None, *, tcx: bool
) -> RawNamespace:
    """Everything in the calling thread's namespace.

    Args:
        before: its interfaces as they were at an earlier read.
        wanted: whether an interface's hooks are read in any case.
        ours: ids of programs of ours; a hook that runs one is read, whatever `wanted` says.
        tcx: whether the kernel has it.

    Raises:
        OSError: a dump could not be finished.
    """
    with Route() as route:
        devices = route.devices(before)
        qdiscs = route.clsact()
        query = _bpf.TcxQuery() if tcx else None
        hooks: dict[int, RawInterface] = {}
        for device in devices.values():
            asked = wanted(device)
            # Without a wish only filters and XDP can show something of ours here: a link's interface is asked for.
            if not asked and device.ifindex not in qdiscs and not device.xdp:
                continue
            try:
                state = read_interface(route, device, qdiscs.get(device.ifindex), query)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                continue  # the interface vanished after the dump
            if asked or any(program in ours for raw in state.values() for program in raw.programs()):
                hooks[device.ifindex] = state
    return RawNamespace(devices, hooks)


# === links of XDP ==========================================================================================


class XdpLinks:
    """Which link, if any, holds an XDP hook: the kernel says the link's ifindex, but not its namespace.

    A link of ours is pinned under the hook's key, which settles it. For others: if no link of the same program and
    ifindex exists, it is netlink; else the kernel is asked with a change that it must refuse (`probe`).
    """

    def __init__(self, links: Iterable[_bpf.LinkFacts], pinned: Mapping[int, str]) -> None:
        self._pinned = pinned
        self._by_place: dict[tuple[int, int], list[int]] = {}
        for link in links:
            if link.type == _bpf.LinkType.XDP and link.ifindex:
                self._by_place.setdefault((link.ifindex, link.prog_id), []).append(link.id)
        self._given: set[int] = set()

    def find(self, point: HookPoint, program: int, probe: Callable[[], bool]) -> int | None:
        """The link's id, None for netlink XDP. `probe` says whether the hook is held by a link, in its namespace."""
        candidates = self._by_place.get((point.ifindex, program), [])
        own = f"links/{point.key}"
        for link in candidates:
            if self._pinned.get(link) == own:
                return link
        free = [link for link in candidates if link not in self._given]
        if not free or not probe():
            return None
        # Ours that are pinned for another hook come last: right only when the interface moved to another namespace.
        found = min(free, key=lambda link: (link in self._pinned, link))
        self._given.add(found)
        return found


def held_by_link(ifindex: int, mode: str, other: int) -> bool:
    """Whether a link holds the XDP hook: ask the kernel for a change that cannot succeed.

    `other` is a descriptor of a program that is attached nowhere: naming it as the expected one makes the kernel refuse
    with EEXIST, but a link is refused before that, with EBUSY (dev_xdp_attach in net/core/dev.c, 5.9 and newer).
    """
    with Route() as route:
        try:
            route.set_xdp(ifindex, -1, other, XDP_FLAGS[mode])
        except OSError as error:
            return error.errno == errno.EBUSY
    return False


# === as model values =======================================================================================


def to_state(
    point: HookPoint, raw: Raw, *, settled: bool, xdp_link: Callable[[HookPoint, str, int], int | None]
) -> HookState:
    """The hook's state, attachments in the order in which the kernel runs them."""
    revision = raw.tcx.revision if raw.tcx is not None else None
    if raw.empty:
        return HookState(point=point, revision=revision, settled=settled, clsact=raw.qdisc)
    attachments: list[Attachment] = []
    for mode, program in raw.xdp:
        link = xdp_link(point, mode, program)
        kind = AttachKind.XDP_NETLINK if link is None else AttachKind.XDP_LINK
        attachments.append(Attachment(kind=kind, program_id=program, link_id=link, mode=mode))
    for program, link in raw.tcx.entries if raw.tcx is not None else ():
        kind = AttachKind.TCX_LINK if link else AttachKind.TCX_PROG
        attachments.append(Attachment(kind=kind, program_id=program, link_id=link or None))
    attachments.extend(filter_attachment(item) for item in raw.filters)
    return HookState(
        point=point,
        attachments=tuple(attachments),
        revision=revision,
        settled=settled,
        clsact=raw.qdisc,
    )


def filter_attachment(item: BpfFilter) -> Attachment:
    """A cls_bpf filter as an attachment."""
    return Attachment(
        kind=AttachKind.CLSACT_FILTER,
        program_id=item.program_id,
        filter=FilterId(
            parent=item.parent, prio=item.prio, handle=item.handle, protocol=item.protocol, chain=item.chain
        ),
        name=item.name,
        direct_action=item.direct_action,
    )
