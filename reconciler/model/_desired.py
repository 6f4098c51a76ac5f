# SPDX-License-Identifier: Apache-2.0
"""What Git wants: chains, hooks, members, and the desired state of one host."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from reconciler.model._fleet import Acknowledgement

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_CHAIN_MEMBERS = 33
"""The kernel's MAX_TAIL_CALL_CNT (include/linux/bpf.h): 33 tail calls after the first program."""


class HookKind(enum.StrEnum):
    """A kind of place in the kernel at which one chain (or several, joined) runs."""

    __hash__ = str.__hash__  # an enum's own is written in Python, and hooks are keys everywhere

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
    def shared(self) -> Mapping[str, str]:
        """What the hook has only once, so that chains which share it must agree in it; by field of the manifest."""
        return {"mode": self.mode}

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
    def shared(self) -> Mapping[str, str]:
        """What the hook has only once, so that chains which share it must agree in it; by field of the manifest."""
        return {"end": self.end}

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
        acknowledge: findings of a review that somebody accepts; no part of the state digest either.
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
    acknowledge: tuple[Acknowledgement, ...] = ()


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
