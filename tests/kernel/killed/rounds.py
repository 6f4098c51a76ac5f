# SPDX-License-Identifier: Apache-2.0
"""Rounds: something strikes a change from one state to the other; the next pass must leave the host as if nothing."""

from __future__ import annotations

import itertools
import sys
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tests.kernel.killed.process import Kill, forked, warmed

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator

    from tests.kernel.killed.host import Host, Report, Seen, Side
    from tests.kernel.killed.process import Ended, When

T = TypeVar("T")

WAYS = ("tcx", "clsact")

CHUNK = 100
"""Rounds under one pair of packet streams, which end by themselves after ten minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The n-th point of a name (from 0) in the change to a side, and when to strike there."""

    side: Side
    name: str
    number: int
    when: When


@dataclass
class Rounds:
    """One host between its two states, and what was seen of it at rest.

    Attributes:
        names: the points of the change to a state, in order.
        seen: the state at rest, as it came to be without any strike.
        at: the state it is in.
    """

    host: Host
    names: dict[Side, list[str]] = field(default_factory=dict)
    seen: dict[Side, Seen] = field(default_factory=dict)
    at: Side = "a"
    struck: set[tuple[Side, str, When]] = field(default_factory=set)
    count: int = 0

    def start(self) -> None:
        """Both changes once in peace: their points, and what both states look like."""
        self.host.push("a")
        self.host.at_rest(warmed(self.host.settle))
        sides: tuple[Side, ...] = ("b", "a")
        for side in sides:
            self.names[side] = self.host.points(side)
            report: Report = forked(self.host.settle).value
            assert report.steps == 0
            self.host.at_rest(report)
            self.seen[side] = report.seen
        total = sum(len(names) for names in self.names.values())
        kinds = len({name for names in self.names.values() for name in names})
        say(f"{self.host.way}: {total} points ({len(self.names['b'])} + {len(self.names['a'])}) of {kinds} kinds")

    def places(self, whens: tuple[When, ...] = ("before", "after", "torn")) -> list[Place]:
        """Every point of both changes, before and after, and in the middle of every write."""
        return [
            Place(side=side, name=name, number=names[:index].count(name), when=when)
            for side, names in self.names.items()
            for index, name in enumerate(names)
            for when in whens
            if when != "torn" or name.startswith("write ")
        ]

    def other(self) -> Side:
        return "b" if self.at == "a" else "a"

    # --- kills -----------------------------------------------------------------------------------------------

    def kill_at(self, place: Place) -> None:
        """Killed exactly there."""
        while self.other() != place.side:
            self.peace()
        ended = self.host.struck(place.side, Kill(place.number, place.when, place.name))
        self.recovered(place, ended)
        assert ended.killed, f"{place}: this point did not come"
        self.struck.add((place.side, place.name, place.when))

    def twice(self, first: Place, second: int, when: When) -> None:
        """Killed there, and again in the recovery."""
        while self.other() != first.side:
            self.peace()
        ended = self.host.struck(first.side, Kill(first.number, first.when, first.name))
        again = forked(lambda: self.host.one_pass().status, Kill(second, when))
        self.recovered((first, second, when), ended, again)

    def peace(self) -> None:
        """A change that nothing strikes."""
        report = self.host.rest(self.other())
        self.at = self.other()
        assert report.seen == self.seen[self.at]

    def recovered(self, what: object, *ended: Ended) -> None:
        """The next pass left everything as if nothing had been."""
        report: Report = forked(self.host.settle).value
        self.count += 1
        self.at = self.other()
        try:
            self.host.at_rest(report, self.seen[self.at])
            assert report.seen.torn <= self.count
        except AssertionError as error:
            message = f"after {what} ({[each.struck for each in ended]}): {report.status.reason}: {error}"
            raise AssertionError(message) from error


def say(text: str) -> None:
    """Figures that a person wants to see, also when pytest captures."""
    print(text, file=sys.__stderr__, flush=True)


def under_traffic(rounds: Rounds, places: Iterable[Place]) -> None:
    """Every place once, and not one packet through that a member drops."""
    for chunk in chunked(places):
        with rounds.host.scene.traffic() as received:
            for place in chunk:
                rounds.kill_at(place)
        assert [got.dropped for got in received] == [0, 0], (chunk[0], chunk[-1], [got.escaped[:3] for got in received])


def chunked(places: Iterable[T]) -> Iterator[list[T]]:
    waiting, count = iter(places), 0
    while chunk := list(itertools.islice(waiting, CHUNK)):
        yield chunk
        count += len(chunk)
        if len(chunk) == CHUNK:
            say(f"  {count} so far")


def sample(places: Iterable[Place], *, each: int = 1) -> list[Place]:
    """The same few of them always: of every kind, and of every moment, `each`."""
    by_kind: dict[tuple[str, When], list[Place]] = defaultdict(list)
    for place in places:
        by_kind[kind_of(place.name), place.when].append(place)
    chosen = []
    for key, found in sorted(by_kind.items()):
        start = zlib.crc32(repr(key).encode())
        chosen += [found[(start + index) % len(found)] for index in range(min(each, len(found)))]
    return alternating(chosen)


def kind_of(name: str) -> str:
    """Points of one kind: the records in the state directory are written by the same lines."""
    verb, _, what = name.partition(" ")
    return f"{verb} record" if what.endswith(".json") else name


def alternating(places: Iterable[Place]) -> list[Place]:
    """In an order in which the sides take turns, as far as there are both."""
    sides: dict[Side, list[Place]] = {"b": [], "a": []}
    for place in places:
        sides[place.side].append(place)
    ordered = [each for pair in itertools.zip_longest(sides["b"], sides["a"]) for each in pair]
    return [each for each in ordered if each is not None]


def drawn(rounds: Rounds, dice: random.Random) -> tuple[Place, int, When]:
    """Two kills at random."""
    whens: list[When] = ["before", "after", "torn"]
    side = rounds.other()
    names = rounds.names[side]
    index = dice.randrange(len(names))
    first = Place(side=side, name=names[index], number=names[:index].count(names[index]), when=dice.choice(whens))
    return first, dice.randrange(len(names)), dice.choice(whens)
