# SPDX-License-Identifier: Apache-2.0
"""The mutable objects of the fake kernel: programs, maps, links, devices, and the ids that they get."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from reconciler.model import STATS_COUNTERS, AttachKind, FilterId, HookKind, PinKind

if TYPE_CHECKING:
    from collections.abc import Container

ObjectKey = tuple[PinKind, int]
"""What a pin or a descriptor refers to."""

MAP_HASH, MAP_PROG_ARRAY, MAP_PERCPU_ARRAY = 1, 3, 6
"""enum bpf_map_type (include/uapi/linux/bpf.h)."""

F_RDONLY_PROG = 1 << 7
"""BPF_F_RDONLY_PROG (include/uapi/linux/bpf.h)."""

MPROG_MAX = 64
"""BPF_MPROG_MAX (include/linux/bpf_mprog.h)."""

CLSACT_PARENTS = {HookKind.TC_INGRESS: 0xFFFFFFF2, HookKind.TC_EGRESS: 0xFFFFFFF3}
"""TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS / _EGRESS) (include/uapi/linux/pkt_sched.h)."""


class Crash(BaseException):
    """The process was killed (SIGKILL, power): no `except Exception` sees it, and nothing can be done after it."""


class Ids:
    """Ids as the kernel's idr_alloc_cyclic gives them: ever higher, then again from the lowest free one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._cursor = 0

    def allocate(self, used: Container[int]) -> int:
        """The next free id.

        Raises:
            OverflowError: all of them are taken; give the fake a larger id space.
        """
        for _ in range(self.limit):
            self._cursor = self._cursor % self.limit + 1
            if self._cursor not in used:
                return self._cursor
        raise OverflowError(f"all {self.limit} ids of the fake kernel are taken")


@dataclass(slots=True, kw_only=True)
class FakeProgram:
    """A loaded program; `generation` is empty for a foreign one.

    Attributes:
        last: `chain_last` of the contract.
        stops: `chain_end` is a verdict after which no other tc program runs.
        next_map: id of the one-slot PROG_ARRAY of this member.
    """

    id: int
    load_time: int
    type: str
    name: str
    tag: str
    map_ids: tuple[int, ...] = ()
    generation: str = ""
    chain: str = ""
    member: str = ""
    last: bool = True
    stops: bool = False
    next_map: int | None = None
    stats_map: int | None = None


@dataclass(slots=True, kw_only=True)
class FakeMap:
    """A map; `slot` only in a PROG_ARRAY, `counters` only in a stats map."""

    id: int
    type: int
    key_size: int = 4
    value_size: int = 4
    max_entries: int = 1
    flags: int = 0
    frozen: bool = False
    slot: int | None = None
    entries: dict[bytes, bytes] = field(default_factory=dict)
    counters: dict[str, list[int]] = field(default_factory=dict)

    def count(self, counter: str, size: int) -> None:
        packets = self.counters.setdefault(counter, [0, 0])
        packets[0] += 1
        packets[1] += size

    def totals(self) -> dict[str, tuple[int, int]]:
        totals = {name: self.counters.get(name, [0, 0]) for name in STATS_COUNTERS}
        return {name: (packets, size) for name, (packets, size) in totals.items()}


@dataclass(slots=True, kw_only=True)
class FakeFilter:
    program_id: int
    name: str
    direct_action: bool = True


@dataclass(slots=True, kw_only=True)
class FakeXdp:
    """What sits on the XDP hook of a device."""

    kind: AttachKind
    program_id: int
    mode: str
    link_id: int | None = None


@dataclass(slots=True, kw_only=True)
class TcxEntry:
    program_id: int
    link_id: int | None = None


@dataclass(slots=True, kw_only=True)
class Mprog:
    """One tcx hook: an ordered list whose revision starts again at 1 when it was emptied."""

    entries: list[TcxEntry] = field(default_factory=list)
    revision: int = 1

    def bump(self) -> None:
        """Count a change; an emptied list is freed, and with it the counter."""
        self.revision = self.revision + 1 if self.entries else 1


@dataclass(slots=True, kw_only=True, eq=False)
class Device:
    """A network interface with everything that is attached to it."""

    netns: int
    ifindex: int
    name: str
    native: bool
    xdp: FakeXdp | None = None
    tcx: dict[HookKind, Mprog] = field(
        default_factory=lambda: {HookKind.TC_INGRESS: Mprog(), HookKind.TC_EGRESS: Mprog()}
    )
    qdisc: Literal["none", "clsact", "ingress"] = "none"
    filters: dict[HookKind, dict[FilterId, FakeFilter]] = field(
        default_factory=lambda: {HookKind.TC_INGRESS: {}, HookKind.TC_EGRESS: {}}
    )


@dataclass(slots=True, kw_only=True)
class FakeLink:
    """A bpf_link; `device` None means defunct. It keeps its program until it is freed, as the kernel does."""

    id: int
    type: Literal["xdp", "tcx"]
    program_id: int
    hook: HookKind
    device: Device | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one packet saw.

    Attributes:
        members: (chain, member) in order of execution; a foreign program is ("", its name).
        broken: a tail call failed although a successor was meant to follow.
    """

    members: tuple[tuple[str, str], ...]
    broken: bool = False
