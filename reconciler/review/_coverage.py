# SPDX-License-Identifier: Apache-2.0
"""Sets of addresses, ports and protocols: what is covered before and after, in words.

All three are sets of integers, held as sorted ranges that neither touch nor overlap. Prefixes of IPv4 and IPv6 are two
spaces that never meet. The work grows with the number of entries (times its logarithm), whatever they say.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reconciler.model import Json, KeyKind

Range: TypeAlias = tuple[int, int]
"""First and last, both included."""

SHOWN: Final = 8
"""Parts of a set that are spelled out; the rest is counted."""

MAX_PORT: Final = 65535
MAX_PROTOCOL: Final = 255

PROTOCOLS: Final = {1: "ICMP", 6: "TCP", 17: "UDP", 47: "GRE", 50: "ESP", 58: "ICMPv6", 132: "SCTP"}
"""IANA protocol numbers that people know by name."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """A set of keys of one kind; `ranges` by space: 4 and 6 for prefixes, 0 for everything else."""

    kind: KeyKind
    ranges: dict[int, tuple[Range, ...]]

    @property
    def empty(self) -> bool:
        return not any(self.ranges.values())

    def minus(self, other: Coverage) -> Coverage:
        """What is here and not there."""
        spaces = {space: _minus(ranges, other.ranges.get(space, ())) for space, ranges in self.ranges.items()}
        return Coverage(self.kind, {space: ranges for space, ranges in spaces.items() if ranges})

    def words(self) -> str:
        """The set in words, such as "10.0.0.0/9, 10.128.0.0/10" or "ports 80, 443–445"."""
        parts = [part for space in sorted(self.ranges) for part in self._parts(space)]
        more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
        text = ", ".join(parts[:SHOWN]) + more
        if self.kind == "cidr":
            return text
        name = "port" if self.kind == "port" else "protocol"
        single = len(parts) == 1 and "–" not in text
        return f"{name} {text}" if single else f"{name}s {text}"

    def _parts(self, space: int) -> Iterator[str]:
        for first, last in self.ranges[space]:
            if self.kind == "cidr":
                yield from _prefixes(space, first, last)
            elif first == last:
                yield _named(self.kind, first)
            else:
                yield f"{_named(self.kind, first)}–{_named(self.kind, last)}"


def coverage_of(kind: KeyKind, keys: Iterable[Json]) -> Coverage | None:
    """The set that `keys` spell, None if one of them is not of this kind."""
    spaces: dict[int, list[Range]] = {}
    for key in keys:
        found = range_of(kind, key)
        if found is None:
            return None
        spaces.setdefault(found[0], []).append(found[1])
    return Coverage(kind, {space: _merge(ranges) for space, ranges in spaces.items()})


def range_of(kind: KeyKind, key: Json) -> tuple[int, Range] | None:
    """Space and range of one key, None if it is not of this kind."""
    if kind == "cidr":
        return _network(key)
    limit = MAX_PORT if kind == "port" else MAX_PROTOCOL
    if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key <= limit:
        return None
    return 0, (key, key)


def _network(key: Json) -> tuple[int, Range] | None:
    if not isinstance(key, str):
        return None
    try:
        network = ipaddress.ip_network(key, strict=False)
    except ValueError:
        return None
    return network.version, (int(network.network_address), int(network.broadcast_address))


def _merge(ranges: list[Range]) -> tuple[Range, ...]:
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def _minus(ones: tuple[Range, ...], others: tuple[Range, ...]) -> tuple[Range, ...]:
    left: list[Range] = []
    at = 0
    for first, last in ones:
        start = first
        while at < len(others) and others[at][1] < start:
            at += 1
        index = at
        while index < len(others) and others[index][0] <= last and start <= last:
            if others[index][0] > start:
                left.append((start, others[index][0] - 1))
            start = others[index][1] + 1
            index += 1
        if start <= last:
            left.append((start, last))
    return tuple(left)


def _prefixes(version: int, first: int, last: int) -> Iterator[str]:
    make = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address  # noqa: PLR2004 - the version itself
    for network in ipaddress.summarize_address_range(make(first), make(last)):
        yield str(network)


def _named(kind: KeyKind, number: int) -> str:
    return PROTOCOLS.get(number, str(number)) if kind == "protocol" else str(number)
