# SPDX-License-Identifier: Apache-2.0
"""What the kernel runs: hooks, attachments, programs, links, pins, and one coherent snapshot of them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from reconciler.model._desired import HOST_NETNS, HookKind


class AttachKind(enum.StrEnum):
    """How a program is attached; decides how it is replaced and removed."""

    __hash__ = str.__hash__  # an enum's own is written in Python, and hooks are keys everywhere

    XDP_LINK = "xdp-link"
    XDP_NETLINK = "xdp-netlink"
    TCX_LINK = "tcx-link"
    TCX_PROG = "tcx-prog"
    CLSACT_FILTER = "clsact-filter"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class HookPoint:
    """One concrete hook. Identity is (kind, netns_inode, ifindex); names are for people and follow renames.

    Attributes:
        netns: name under which the namespace was found ("host", or the file name in /run/netns).
        netns_inode: inode of the namespace, 64 bit.
        interface: the interface's name when it was observed.
    """

    kind: HookKind
    netns_inode: int
    ifindex: int
    netns: str = field(compare=False)
    interface: str = field(compare=False)

    def __str__(self) -> str:
        where = self.interface if self.netns == HOST_NETNS else f"{self.netns}/{self.interface}"
        return f"{where} {self.kind}"

    @property
    def key(self) -> str:
        """A name for pins and journal records: ASCII, no dots, stable under renames."""
        return f"{self.kind}_{self.netns_inode}_{self.ifindex}"

    @property
    def device(self) -> tuple[int, int]:
        """The interface, whatever it is called now: (namespace inode, ifindex)."""
        return (self.netns_inode, self.ifindex)

    @property
    def scope(self) -> str:
        """What `stateScope: interface` keeps apart: by names, so that a reboot or an interface made anew finds it."""
        return f"{self.netns}/{self.interface}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FilterId:
    """A cls_bpf filter; (netns inode, ifindex) come from the hook point.

    Attributes:
        parent: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or _EGRESS), or an ordinary parent.
        protocol: host byte order, ETH_P_ALL is 3.
    """

    parent: int
    prio: int
    handle: int
    protocol: int = 3
    chain: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One program on one hook, as observed, in the order in which the kernel runs them.

    Attributes:
        link_id: for links only.
        filter: for clsact filters only.
        mode: "native", "generic" or "offload", XDP only.
        name: filter name (TCA_BPF_NAME), clsact only.
        direct_action: clsact only.
    """

    kind: AttachKind
    program_id: int
    link_id: int | None = None
    filter: FilterId | None = None
    mode: str | None = None
    name: str | None = None
    direct_action: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HookState:
    """All attachments of one hook.

    Attributes:
        revision: tcx mprog revision, None where there is none.
        settled: two reads agreed; steps are only planned on settled hooks.
        clsact: the interface has a clsact qdisc; "ingress" when a foreign ingress qdisc occupies its place.
    """

    point: HookPoint
    attachments: tuple[Attachment, ...] = ()
    revision: int | None = None
    settled: bool = True
    clsact: Literal["none", "clsact", "ingress"] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface as observed."""

    netns: str
    netns_inode: int
    ifindex: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Identity:
    """Identity of a kernel object within one boot: ids come back after they wrapped around.

    Attributes:
        load_time: ns since boot for programs, 0 for maps and links (they carry none).
    """

    id: int
    load_time: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program in the kernel.

    Attributes:
        type: "xdp", "tc" (sched_cls), or the kernel's number as text for others.
        tag: hex; identifies instructions, not a program.
        load_time: ns since boot.
    """

    id: int
    type: str
    name: str
    tag: str
    load_time: int
    map_ids: tuple[int, ...] = ()
    uid: int = 0

    @property
    def identity(self) -> Identity:
        """What tells this program from a later one with the same id."""
        return Identity(id=self.id, load_time=self.load_time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A bpf_link. `ifindex` 0 means defunct: its interface or namespace is gone, or it was detached."""

    id: int
    type: str
    program_id: int
    ifindex: int = 0


class PinKind(enum.StrEnum):
    """What is behind a pin."""

    PROGRAM = "program"
    MAP = "map"
    LINK = "link"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Pin:
    """An object pinned under our directory. `path` is relative to it."""

    path: str
    kind: PinKind
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedMap:
    """A map of ours as observed.

    Attributes:
        frozen: user space can no longer change it.
        slot: program id in slot 0, PROG_ARRAY only.
        content: sha256 hex over the sorted (key, value) pairs, maps below gen/ of role config only.
    """

    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    frozen: bool
    slot: int | None = None
    content: str | None = None


class Support(enum.StrEnum):
    """A probed feature. "No" and "could not tell" are different answers."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What this kernel can do, by probes.

    Attributes:
        expedite: rcu_expedited can be written and may be (no isolated CPUs, not real-time).
        drain: ways of waiting for a grace period that work here, best first: "membarrier", "map-in-map".
    """

    xdp_link: Support = Support.UNKNOWN
    tcx: Support = Support.UNKNOWN
    clsact: Support = Support.UNKNOWN
    btf: Support = Support.UNKNOWN
    expedite: Support = Support.UNKNOWN
    drain: tuple[str, ...] = ()

    def get(self, name: str) -> Support:
        """Support of a feature that a package requires by name; unknown names are not supported."""
        value = getattr(self, name.replace("-", "_"), Support.NO)
        return value if isinstance(value, Support) else Support.NO


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One coherent look at the kernel.

    Attributes:
        complete: every walk finished; nothing foreign is evicted and nothing is called orphaned otherwise.
        namespaces: name to inode of the namespaces that were looked at.
        missing: names of wanted namespaces that do not exist (now).
        pins: everything under our directory, sorted by path.
        folders: those under it that hold nothing; a process died before it removed them, or before it pinned there.
        maps: our pinned maps by id.
        bpffs_id: device number of the bpffs our pins are on, to notice a remount.
    """

    boot_id: str
    features: Features
    interfaces: tuple[Interface, ...] = ()
    hooks: Mapping[HookPoint, HookState] = field(default_factory=dict)
    programs: Mapping[int, Program] = field(default_factory=dict)
    links: Mapping[int, Link] = field(default_factory=dict)
    pins: tuple[Pin, ...] = ()
    folders: tuple[str, ...] = ()
    maps: Mapping[int, ObservedMap] = field(default_factory=dict)
    namespaces: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    complete: bool = True
    bpffs_id: int = 0
