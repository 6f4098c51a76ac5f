# SPDX-License-Identifier: Apache-2.0
"""The nouns: what Git wants, what the kernel runs, what we own, and the steps between them.

Everything here is a frozen value without behaviour that needs a kernel, a clock or a disk. Two rules hold
throughout: steps and inventory name *pin paths* (relative to the pin directory) and stable identities, never
file descriptors; and whatever is written to disk or printed is one of these values, encoded by `encode_json`.

JSON values inside the model (`Json`) are plain dicts and lists; they are never changed after construction.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_CHAIN_MEMBERS = 33
"""The kernel's MAX_TAIL_CALL_CNT (include/linux/bpf.h): 33 tail calls after the first program."""


# === what Git wants ========================================================================================


class HookKind(enum.StrEnum):
    """A kind of place in the kernel at which one chain (or several, joined) runs."""

    XDP = "xdp"
    TC_INGRESS = "tc-ingress"
    TC_EGRESS = "tc-egress"


class XdpMode(enum.StrEnum):
    """Where XDP runs: in the driver (native), in the stack (generic), or native if possible (auto)."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"


class TcEnd(enum.StrEnum):
    """What a packet gets that every member let through: the next tc program (default), or past all of them."""

    NEXT = "next"
    PASS = "pass"


class OnBroken(enum.StrEnum):
    """What a packet gets when a tail call fails although a successor exists."""

    DROP = "drop"
    PASS = "pass"


class StateScope(enum.StrEnum):
    """Whether the state maps of a chain are one per chain, or one per chain and interface."""

    CHAIN = "chain"
    INTERFACE = "interface"


HOST_NETNS = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class XdpHook:
    """XDP on every interface of `netns` whose name matches one of `interfaces` (names or globs)."""

    interfaces: tuple[str, ...]
    netns: str = HOST_NETNS
    mode: XdpMode = XdpMode.AUTO
    type: Literal["xdp"] = "xdp"

    @property
    def kind(self) -> HookKind:
        """The kind of hook."""
        return HookKind.XDP


@dataclass(frozen=True, slots=True, kw_only=True)
class TcHook:
    """tc on every interface of `netns` whose name matches one of `interfaces` (names or globs)."""

    direction: Literal["ingress", "egress"]
    interfaces: tuple[str, ...]
    netns: str = HOST_NETNS
    end: TcEnd = TcEnd.NEXT
    type: Literal["tc"] = "tc"

    @property
    def kind(self) -> HookKind:
        """The kind of hook."""
        return HookKind.TC_INGRESS if self.direction == "ingress" else HookKind.TC_EGRESS


Hook: TypeAlias = XdpHook | TcHook


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSelector:
    """Which hosts a chain is for: all given conditions must hold; nothing given means every host.

    Attributes:
        match_labels: every label must be there with exactly this value.
        names: at least one must match the host name (names or globs, case-insensitive); empty: any name.
    """

    match_labels: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Who this host is; an argument of the core, never read inside it.

    Attributes:
        name: the host's name (FQDN or short, as configured or as the kernel says).
        labels: from the host's own configuration.
    """

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PackageRef:
    """One exact package: the manifest pins the digest, so a repository can only be unavailable, never lie.

    Attributes:
        repository: a name defined in the host's configuration; "git" is `packages/` of the same commit.
        digest: "sha256:" and 64 lower-case hex digits, of the archive's bytes.
    """

    name: str
    version: str
    digest: str
    repository: str = "git"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapEntry:
    """One declared entry of a `config` map, as the manifest spells it."""

    key: Json
    value: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One place in a chain.

    Attributes:
        proceed_on: verdict names after which the next member runs; None means the package's default.
        params: parameter name to value, in the manifest's spelling.
        maps: map name to its declared entries, in the manifest's order.
    """

    name: str
    package: PackageRef
    program: str
    proceed_on: tuple[str, ...] | None = None
    params: Mapping[str, Json] = field(default_factory=dict)
    maps: Mapping[str, tuple[MapEntry, ...]] = field(default_factory=dict)
    allow_state_loss: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpCheck:
    """A TCP connection from this host must be established.

    Attributes:
        connect: "ADDRESS:PORT", IPv6 addresses in brackets.
        within: seconds.
    """

    connect: str
    within: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsCheck:
    """The share of a member's packets that a counter counts must stay below a limit.

    Attributes:
        counter: one of STATS_COUNTERS except "seen".
        below: share of the packets seen, 0..1.
        over: seconds that are watched.
    """

    member: str
    counter: str
    below: float
    over: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What must hold between the switch and the point of no return.

    Attributes:
        source: the Git source still answers on a new connection (commit-confirm).
    """

    source: bool = True
    tcp: tuple[TcpCheck, ...] = ()
    stats: tuple[StatsCheck, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """One chain manifest.

    Attributes:
        priority: chains on the same hook run lower first; equal is an error.
        file: path in the repository, for messages; no part of the state digest.
    """

    name: str
    hook: Hook
    priority: int
    members: tuple[Member, ...]
    hosts: HostSelector = field(default_factory=HostSelector)
    on_broken: OnBroken = OnBroken.DROP
    state_scope: StateScope = StateScope.CHAIN
    health: Health = field(default_factory=Health)
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredState:
    """What one commit wants on one host: its chains, sorted by (hook kind, priority, name).

    Attributes:
        repository: the name in `reconciler.yaml`.
        allow_empty: whether no chain at all is acceptable.
    """

    repository: str
    chains: tuple[Chain, ...]
    allow_empty: bool = False


# === packages ==============================================================================================


class MapRole(enum.StrEnum):
    """What a map is for; decides what happens to it when a generation is replaced (reference: docs/packages.md)."""

    CONFIG = "config"
    STATE = "state"
    STATS = "stats"
    NEXT = "next"


STATS_COUNTERS = ("seen", "passed", "dropped", "redirected", "aborted", "broken")
"""Indexes of every `stats` map, in order; each value is {u64 packets, u64 bytes} per CPU."""

XDP_VERDICTS: Mapping[str, int] = {"aborted": 0, "drop": 1, "pass": 2, "tx": 3, "redirect": 4}
"""enum xdp_action (include/uapi/linux/bpf.h)."""

TC_VERDICTS: Mapping[str, int] = {
    "next": -1,
    "ok": 0,
    "reclassify": 1,
    "shot": 2,
    "pipe": 3,
    "stolen": 4,
    "queued": 5,
    "repeat": 6,
    "redirect": 7,
    "trap": 8,
}
"""TC_ACT_* (include/uapi/linux/pkt_cls.h); -1 is TCX_NEXT and TC_ACT_UNSPEC."""

TC_ALIASES: Mapping[str, str] = {"pass": "ok", "drop": "shot", "unspec": "next"}
"""Spellings accepted on tc, so that one manifest style fits both hooks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec:
    """One program of a package.

    Attributes:
        name: function symbol in the object.
        type: "xdp" or "tc".
        object: file name of the object in the archive.
        hooks: hook kinds on which it may be used.
        proceed_on: the verdicts after which it goes on by default.
        contract: whether it honours the globals chain_proceed, chain_last, chain_end, chain_broken and has `next`.
    """

    name: str
    type: Literal["xdp", "tc"]
    object: str
    hooks: tuple[HookKind, ...]
    proceed_on: tuple[str, ...]
    contract: bool = True
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSpec:
    """One map of a package.

    Attributes:
        state_version: raised by the author when the meaning (not the layout) of a state map changes.
        key_format: hint for `elf.encode` ("cidr", "port-be", ...), or None to infer from BTF.
        value_format: likewise.
        meaning: what entries mean for a reviewer, e.g. "deny"; free of effect here.
    """

    name: str
    role: MapRole
    state_version: int = 1
    key_format: str | None = None
    value_format: str | None = None
    meaning: str | None = None
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamSpec:
    """One parameter: a `const volatile` global of the object.

    Attributes:
        format: hint for `elf.encode`, or None.
        default: None means that the object's own initial value stands.
        weakens: which direction lets more packets through, None when neither.
    """

    name: str
    description: str
    unit: str | None = None
    format: str | None = None
    default: Json = None
    minimum: int | None = None
    maximum: int | None = None
    weakens: Literal["higher", "lower"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageManifest:
    """`package.yaml`."""

    name: str
    version: str
    license: str
    programs: tuple[ProgramSpec, ...]
    maps: tuple[MapSpec, ...] = ()
    params: tuple[ParamSpec, ...] = ()
    features: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Signer:
    """Who signed, as verified.

    Attributes:
        name: the policy entry that matched.
        identity: certificate identity, key fingerprint ("SHA256:...") or principal.
        issuer: OIDC issuer for certificates, "key" for keys, "ssh" for commits.
        not_after: the end of the validity that applies (RFC 3339), if any.
    """

    name: str
    identity: str
    issuer: str
    not_after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package whose digest, signature, archive and objects were checked; objects may reach libbpf.

    Attributes:
        objects: file name in the archive to the object's bytes.
        revoked: why what already runs may stay but nothing new may start, None normally.
    """

    ref: PackageRef
    manifest: PackageManifest
    objects: Mapping[str, bytes]
    signer: Signer
    revoked: str | None = None


# === what the kernel runs ==================================================================================


class AttachKind(enum.StrEnum):
    """How a program is attached; decides how it is replaced and removed."""

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
    """A network interface as observed.

    Attributes:
        native_xdp: whether a native XDP program can be attached; None means not known until tried.
    """

    netns: str
    netns_inode: int
    ifindex: int
    name: str
    native_xdp: bool | None = None


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
    maps: Mapping[int, ObservedMap] = field(default_factory=dict)
    namespaces: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    complete: bool = True
    bpffs_id: int = 0


# === generations ===========================================================================================


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalValue:
    """Bytes of one read-only global, written into its section before load.

    Attributes:
        offset: bytes from the start of the section.
    """

    name: str
    section: str
    offset: int
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MapUse:
    """One map of one member of a generation.

    Attributes:
        pin: path relative to the pin directory.
        reuse: an existing pinned map is used (state and stats carried over); else it is created.
        entries: (key, value) bytes in kernel layout, config maps only.
        lock_program: BPF_F_RDONLY_PROG where the type allows it, config maps only.
        key: for state and stats: "chain/member/map[@netns/interface]", the identity across layouts.
        layout: digest of the layout and stateVersion, state and stats only.
    """

    name: str
    role: MapRole
    pin: str
    reuse: bool = False
    entries: tuple[tuple[bytes, bytes], ...] = ()
    key: str = ""
    layout: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLoad:
    """One program of a generation, with everything that its load depends on.

    Attributes:
        package: digest of the package, "sha256:...".
        object: file name of the object in the package.
        pin: path of the program's pin.
        settings: what the manifest says, in words, for plans and history; no part of the content's digest.
    """

    chain: str
    member: str
    package: str
    object: str
    program: str
    type: Literal["xdp", "tc"]
    pin: str
    globals: tuple[GlobalValue, ...]
    maps: tuple[MapUse, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A fresh load of all members of all chains of one hook, joined by tail calls.

    Attributes:
        name: "<digest>_<n>": 32 hex digits of `digest`, and a number that tells reloads of the same content apart.
        digest: sha256 hex over the content (packages, programs, globals, entries, map identities).
    """

    name: str
    digest: str
    kind: HookKind
    members: tuple[MemberLoad, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedProgram:
    """A program of a loaded generation; `settings` as in MemberLoad."""

    pin: str
    identity: Identity
    chain: str
    member: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedMap:
    """A map of a loaded generation; `content` as in ObservedMap, config maps only."""

    pin: str
    id: int
    role: MapRole
    chain: str
    member: str
    name: str
    key: str = ""
    layout: str = ""
    content: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedGeneration:
    """What loading a generation left in the kernel; goes into the inventory."""

    name: str
    digest: str
    kind: HookKind
    programs: tuple[LoadedProgram, ...]
    maps: tuple[LoadedMap, ...]


# === what we own ===========================================================================================


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedAttachment:
    """An attachment of ours.

    Attributes:
        generation: name of the generation whose first program is attached.
        pin: the link's pin, None for filters.
        link_id: the link's id, None for filters.
        filter: for clsact only.
        mode: for XDP: the mode in which it was attached.
        made_qdisc: we created the clsact qdisc and may remove it when nothing else uses it.
        gap: seconds without any program while a foreign occupant was displaced; for the report, not part of identity.
    """

    point: HookPoint
    kind: AttachKind
    generation: str
    pin: str | None = None
    link_id: int | None = None
    filter: FilterId | None = None
    mode: str | None = None
    made_qdisc: bool = False
    gap: float | None = field(default=None, compare=False)


INVENTORY_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What we own in this boot; the one record that says which pins, links and filters are ours."""

    boot_id: str
    version: int = INVENTORY_VERSION
    generations: tuple[LoadedGeneration, ...] = ()
    attachments: tuple[OwnedAttachment, ...] = ()
    leftovers: tuple[str, ...] = ()
    """Pin paths that an undo could not remove; removed by the next pass."""
    bpffs_id: int = 0

    @property
    def empty(self) -> bool:
        """Whether nothing is owned."""
        return not (self.generations or self.attachments or self.leftovers)


# === steps =================================================================================================


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load a generation and pin it; nothing is attached."""

    generation: Generation
    reason: str
    step: Literal["load"] = "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Attach a generation to a hook that holds nothing of ours.

    Attributes:
        pin: link pin to create, None for clsact filters.
        filter: filter to create, clsact only.
        revision: expected tcx revision.
        mode: requested XDP mode.
        make_qdisc: a clsact qdisc must be created first.
        displace: the foreign occupant (XDP, enforce) that the switch itself removes.
    """

    point: HookPoint
    generation: str
    kind: AttachKind
    reason: str
    pin: str | None = None
    filter: FilterId | None = None
    revision: int | None = None
    mode: XdpMode = XdpMode.AUTO
    make_qdisc: bool = False
    displace: Attachment | None = None
    step: Literal["attach"] = "attach"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Replace one generation by another on a hook, in one atomic step.

    Attributes:
        old: name of the generation that is attached now.
        program: identity of its first program: the comparison of the compare-and-swap.
    """

    point: HookPoint
    generation: str
    old: str
    program: Identity
    kind: AttachKind
    reason: str
    pin: str | None = None
    link_id: int | None = None
    filter: FilterId | None = None
    step: Literal["switch"] = "switch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMode:
    """Detach and attach again in another XDP mode: a declared gap that the kernel forces."""

    point: HookPoint
    generation: str
    old: str
    pin: str
    link_id: int
    mode: XdpMode
    old_mode: XdpMode
    reason: str
    step: Literal["change-mode"] = "change-mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Wait until no packet can be inside a superseded generation; one grace period for the whole batch."""

    reason: str = "packets in flight leave the old generation"
    step: Literal["drain"] = "drain"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckHealth:
    """Everything in `checks` must hold; only for changed desired state, never for repairs.

    Attributes:
        attachments: hooks whose links must be alive with the planned generation.
        checks: the chains' own checks, by chain name.
    """

    generations: Mapping[str, str]
    """Hook key to the generation that must run there."""
    checks: Mapping[str, Health]
    source: bool
    step: Literal["check-health"] = "check-health"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointOfNoReturn:
    """From here on nothing is undone."""

    step: Literal["point-of-no-return"] = "point-of-no-return"


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    """Take our attachment off a hook: detach, then unlink the pin (never the other way round)."""

    point: HookPoint
    kind: AttachKind
    generation: str
    reason: str
    pin: str | None = None
    link_id: int | None = None
    filter: FilterId | None = None
    remove_qdisc: bool = False
    step: Literal["detach"] = "detach"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repin:
    """Pin an object of ours again whose pin somebody removed."""

    path: str
    kind: PinKind
    identity: Identity
    reason: str
    step: Literal["repin"] = "repin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unload:
    """Unpin a generation that nothing uses any more."""

    generation: str
    pins: tuple[str, ...]
    reason: str
    step: Literal["unload"] = "unload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpin:
    """Unpin single paths: state nobody declares any more, defunct links, orphans of a crash."""

    pins: tuple[str, ...]
    reason: str
    step: Literal["unpin"] = "unpin"


class RemovalMethod(enum.StrEnum):
    """How a foreign attachment can be removed."""

    LINK_DETACH = "link-detach"
    NETLINK = "netlink"
    PROG_DETACH = "prog-detach"
    FILTER_DELETE = "filter-delete"
    NOT_POSSIBLE = "not-possible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evict:
    """Remove a foreign attachment from a watched hook."""

    point: HookPoint
    attachment: Attachment
    program: Identity
    method: RemovalMethod
    reason: str
    revision: int | None = None
    step: Literal["evict"] = "evict"


Step: TypeAlias = (
    Load
    | Attach
    | Switch
    | ChangeMode
    | Drain
    | CheckHealth
    | PointOfNoReturn
    | Detach
    | Repin
    | Unload
    | Unpin
    | Evict
)


class DriftKind(enum.StrEnum):
    """What differs from the desired state without a new commit asking for it."""

    DETACHED = "detached"
    REPLACED = "replaced"
    UNPINNED = "unpinned"
    ALTERED = "altered"
    FOREIGN = "foreign"
    NOT_REMOVABLE = "not-removable"
    OCCUPIED = "hook-occupied"
    CONTESTED = "contested"
    ABSENT = "absent"
    REVOKED = "revoked"
    ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One difference between the kernel and the *last applied* desired state, or something that keeps pending.

    Attributes:
        critical: operators must look: it will not go away by itself.
    """

    kind: DriftKind
    where: str
    message: str
    critical: bool = False


class ChangeKind(enum.StrEnum):
    """What happens to a member."""

    ADD = "add"
    REPLACE = "replace"
    REMOVE = "remove"
    REPAIR = "repair"
    EVICT = "evict"
    KEEP = "keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line for a reviewer: what happens to one member (or one foreign program) on one hook."""

    kind: ChangeKind
    where: str
    chain: str
    member: str
    detail: str
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """How much of what we own the plan removes, against the host's limits."""

    removed: int = 0
    owned: int = 0
    count_limit: int | None = None
    share_limit: float | None = None
    exceeded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Ordered steps from the snapshot to the desired state; empty `steps` means in sync.

    Attributes:
        state_digest: of the host's canonical DesiredState.
        inventory: what is owned already when nothing is executed (adopted objects); apply starts from it.
        pending: hooks that cannot be served now (absent, occupied, contested): drift, not failure.
        notes: what the kernel forces (gaps, state that is lost), one sentence each.
    """

    state_digest: str
    steps: tuple[Step, ...] = ()
    changes: tuple[Change, ...] = ()
    drift: tuple[Drift, ...] = ()
    pending: tuple[Drift, ...] = ()
    notes: tuple[str, ...] = ()
    guard: Guard = field(default_factory=Guard)
    inventory: Inventory = field(default_factory=lambda: Inventory(boot_id=""))

    @property
    def digest(self) -> str:
        """What `apply --confirm` takes: sha256 hex over the steps, independent of when the plan was made."""
        return digest_of({"state": self.state_digest, "steps": self.steps})


# === outcomes ==============================================================================================


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailure:
    """A step that did not take effect, and why."""

    step: Step
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What executing a plan did.

    Attributes:
        done: steps that took effect and stand.
        undone: steps that took effect and were taken back.
        failed: the first error; later ones are in `undo_failures`.
        survivors: what should be gone and is not: foreign programs that resisted, pins that stayed.
        inventory: what is owned now, also after a failure.
        stale_hooks: hooks on which a compare-and-swap lost; observe again.
        gaps: hook to seconds without any program, where the kernel forces one.
        expedited: grace periods were expedited.
    """

    inventory: Inventory
    done: tuple[Step, ...] = ()
    undone: tuple[Step, ...] = ()
    failed: StepFailure | None = None
    undo_failures: tuple[StepFailure, ...] = ()
    survivors: tuple[Drift, ...] = ()
    stale_hooks: tuple[str, ...] = ()
    gaps: Mapping[str, float] = field(default_factory=dict)
    expedited: bool = False
    committed: bool = False


# === encoding ==============================================================================================


def to_builtins(value: object) -> Any:  # noqa: ANN401  # any JSON value, as its callers know
    """`value` as dicts, lists, strings, numbers; bytes become hex text, mapping keys become text."""
    match value:
        case bytes():
            return value.hex()
        case enum.Enum():
            return value.value
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {_key_text(key): to_builtins(item) for key, item in value.items()}
        case list() | tuple():
            return [to_builtins(item) for item in value]
        case _:
            names = value.__dataclass_fields__  # type: ignore[attr-defined]  # all other model values are dataclasses
            return {name: to_builtins(getattr(value, name)) for name in names}


def _key_text(key: object) -> str:
    return key.key if isinstance(key, HookPoint) else str(key)


def encode_json(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8; equal values give equal bytes."""
    return msgspec.json.encode(to_builtins(value), order="sorted")


def digest_of(value: object) -> str:
    """sha256 hex over `encode_json(value)`."""
    return hashlib.sha256(encode_json(value)).hexdigest()


def content_digest(entries: tuple[tuple[bytes, bytes], ...]) -> str:
    """sha256 hex over the sorted entries of a map, each length-prefixed: equal content, equal digest."""
    hasher = hashlib.sha256()
    for key, value in sorted(entries):
        for part in (key, value):
            hasher.update(len(part).to_bytes(4, "little"))
            hasher.update(part)
    return hasher.hexdigest()


# === what the host remembers ===============================================================================

STATE_VERSION = 1
"""Version of source.json and control.json; a newer one is refused, an older one is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """A commit as this host verified it.

    Attributes:
        at: RFC 3339, when this host recorded it.
        author_time: seconds since the epoch, as the committer claims; for display only.
    """

    id: str
    signer: str = ""
    subject: str = ""
    author_time: int = 0
    at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a commit that the source advertises is not adopted.

    Attributes:
        final: judging the same commit again under the same policy would end the same way.
    """

    commit: str
    reason: str
    message: str
    at: str
    exit_code: int = 1
    final: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFailure:
    """Why the source could not be asked at the last try; gone with the next answer."""

    reason: str
    message: str
    at: str
    exit_code: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """What this host knows of its source; `applied` is the watermark.

    Attributes:
        applied: the watermark, the last commit applied or that changed nothing here: only its descendants are taken.
        state_digest: of the DesiredState that `applied` gave on this host.
        context: digest of policy, labels and configuration under which `seen` was last judged.
        contact: RFC 3339, when the source last answered.
    """

    version: int = STATE_VERSION
    applied: CommitRecord | None = None
    state_digest: str | None = None
    seen: str | None = None
    context: str = ""
    refusal: Refusal | None = None
    failure: SourceFailure | None = None
    contact: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspension:
    """No new commits until `until` (RFC 3339); repair goes on."""

    until: str
    reason: str
    by: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Somebody with root takes one advertised head against history, once."""

    commit: str
    reason: str
    by: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """A state that was taken back here; not tried again under the same policy and kernel release."""

    state_digest: str
    policy: str
    kernel: str
    commit: str
    message: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRecord:
    """What operators decided on this host.

    Attributes:
        confirmed: digest of the one plan that may exceed the guardrail.
        torn_down: everything was taken off; nothing is attached until `resume`.
    """

    version: int = STATE_VERSION
    suspension: Suspension | None = None
    acceptance: Acceptance | None = None
    quarantine: tuple[Quarantine, ...] = ()
    confirmed: str | None = None
    torn_down: bool = False
