# SPDX-License-Identifier: Apache-2.0
"""Globs: matching, and whether two of them can match the same text.

The grammar is small: `*` any text, `?` any one character, `[a-f_]` one of, `[!a-f_]` none of, everything else itself.
A glob is a line of items, so matching and intersection are walks over positions: both cost the product of two lengths
and cannot blow up, whatever is written. (`fnmatch` builds regular expressions, which can.)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_RANGE = 256
"""Characters that a range such as a-z may span."""
_MAX_WALK = 20_000
"""States of a walk that asks whether globs cover another; beyond, the answer is no, the careful one."""


class GlobError(ValueError):
    """The text is no glob."""


class EffortError(Exception):
    """Comparing globs takes more work than was granted."""


@dataclass(slots=True)
class Effort:
    """Work that comparisons may still take, in pairs of positions; each takes some microseconds."""

    left: int

    def spend(self, work: int) -> None:
        """Take `work` off.

        Raises:
            EffortError: there is not that much left.
        """
        self.left -= work
        if self.left < 0:
            raise EffortError


@dataclass(frozen=True, slots=True)
class _Item:
    """One item: a set of characters (or all but a set), once, or any number of any characters."""

    chars: frozenset[str] = frozenset()
    negated: bool = False
    star: bool = False

    def takes(self, char: str) -> bool:
        return self.star or (char in self.chars) != self.negated

    def meets(self, other: _Item) -> bool:
        if self.star or other.star:
            return True
        if self.negated and other.negated:
            return True
        if self.negated:
            return not other.chars <= self.chars
        return not self.chars <= other.chars if other.negated else not self.chars.isdisjoint(other.chars)


_STAR = _Item(star=True)


@dataclass(frozen=True)
class Glob:
    """A parsed glob. Compare and print `text`."""

    text: str
    items: tuple[_Item, ...]

    @functools.cached_property
    def shortest(self) -> int:
        """Characters of the shortest text that matches."""
        return sum(not item.star for item in self.items)

    @functools.cached_property
    def literal(self) -> bool:
        """Whether exactly one text matches: `name`."""
        return all(not item.star and not item.negated and len(item.chars) == 1 for item in self.items)

    @property
    def name(self) -> str:
        """The one text that a literal glob matches."""
        return "".join(char for item in self.items for char in item.chars)

    @functools.cached_property
    def _affixes(self) -> tuple[str, str] | None:
        """What stands before and after the one star of `eth*` or `*.edge`; None for every other shape."""
        stars = [at for at, item in enumerate(self.items) if item.star]
        plain = all(item.star or (not item.negated and len(item.chars) == 1) for item in self.items)
        if len(stars) != 1 or not plain:
            return None
        chars = ["".join(item.chars) for item in self.items]
        return "".join(chars[: stars[0]]), "".join(chars[stars[0] + 1 :])

    def matches(self, text: str) -> bool:
        """Whether the whole of `text` matches."""
        if self._affixes is not None:  # nearly all globs, asked for each interface of each pass
            begin, end = self._affixes
            return len(text) >= len(begin) + len(end) and text.startswith(begin) and text.endswith(end)
        if self.literal:
            return text == self.name
        states: Iterable[int] = self._closure({0})
        for char in text:
            states = self._step(states, char)
            if not states:
                return False
        return len(self.items) in states

    def intersects(self, other: Glob, *, longest: int, effort: Effort | None = None) -> bool:
        """Whether some text of at most `longest` characters matches both (any characters are possible).

        Raises:
            EffortError: it takes more work than `effort` grants.
        """
        # Most globs differ at their beginning or at their end already.
        if not (_begin_alike(self.items, other.items) and _begin_alike(self.items[::-1], other.items[::-1])):
            return False
        # Breadth first over pairs of positions; each round is one more character of a common text.
        goal = (len(self.items), len(other.items))
        states = {(a, b) for a in self._closure({0}) for b in other._closure({0})}
        seen = set(states)
        for _ in range(longest + 1):
            if goal in states:
                return True
            if effort is not None:
                effort.spend(len(states))
            step: set[tuple[int, int]] = set()
            for a, b in states:
                if a < goal[0] and b < goal[1] and self.items[a].meets(other.items[b]):
                    next_a = a if self.items[a].star else a + 1
                    next_b = b if other.items[b].star else b + 1
                    step |= {(x, y) for x in self._closure({next_a}) for y in other._closure({next_b})}
            states = step - seen
            seen |= states
            if not states:
                return False
        return False

    def covered_by(self, others: Iterable[Glob]) -> bool:
        """Whether every text that this glob matches is matched by one of `others`; never wrongly True."""
        others = tuple(others)
        if self.literal:
            return any(other.matches(self.name) for other in others)
        # One walk over pairs: a state of this glob, and all states in which the others then can be. Characters that
        # no glob names are alike, so one stands for all of them.
        named = {char for glob in (self, *others) for item in glob.items for char in item.chars}
        alphabet = [*named, next(chr(code) for code in range(0x10FFFF) if chr(code) not in named)]
        start = tuple(frozenset(other._closure({0})) for other in others)  # noqa: SLF001 - one of us
        pending = [(at, start) for at in self._closure({0})]
        seen = set(pending)
        while pending:
            at, states = pending.pop()
            if at == len(self.items):
                if not any(len(other.items) in state for other, state in zip(others, states, strict=True)):
                    return False
                continue
            for char in alphabet:
                if not self.items[at].takes(char):
                    continue
                pairs = zip(others, states, strict=True)
                step = tuple(other._step(state, char) for other, state in pairs)  # noqa: SLF001 - one of us
                for after in self._closure({at if self.items[at].star else at + 1}):
                    if (after, step) not in seen:
                        if len(seen) > _MAX_WALK:
                            return False
                        seen.add((after, step))
                        pending.append((after, step))
        return True

    def _step(self, states: Iterable[int], char: str) -> frozenset[int]:
        after = set()
        for at in states:
            if at < len(self.items) and self.items[at].takes(char):
                after.add(at if self.items[at].star else at + 1)
        return frozenset(self._closure(after))

    def _closure(self, states: set[int]) -> set[int]:
        # A star may also take nothing.
        found = set(states)
        for at in states:
            position = at
            while position < len(self.items) and self.items[position].star:
                position += 1
                found.add(position)
        return found


def _begin_alike(one: tuple[_Item, ...], other: tuple[_Item, ...]) -> bool:
    """Whether the items up to the first star can take the same text."""
    for a, b in zip(one, other, strict=False):
        if a.star or b.star:
            return True
        if not a.meets(b):
            return False
    return True


@functools.lru_cache(maxsize=4096)
def parse_glob(text: str) -> Glob:
    """The glob that `text` spells.

    Raises:
        GlobError: brackets that are not closed, are empty, or hold a range that runs backwards or too far.
    """
    items: list[_Item] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "[":
            item, at = _parse_class(text, at)
            items.append(item)
            continue
        at += 1
        if char != "*":
            items.append(_Item(negated=True) if char == "?" else _Item(chars=frozenset(char)))
        elif not items or not items[-1].star:
            items.append(_STAR)
    return Glob(text=text, items=tuple(items))


def _parse_class(text: str, start: int) -> tuple[_Item, int]:
    end = text.find("]", start + 1)
    if end < 0:
        message = f"expected a ']' after the '[' in {text!r}, got none"
        raise GlobError(message)
    body = text[start + 1 : end]
    negated = body.startswith("!")
    body = body.removeprefix("!")
    if not body:
        message = f"expected characters between '[' and ']' in {text!r}, got none"
        raise GlobError(message)
    chars: set[str] = set()
    at = 0
    while at < len(body):
        low = body[at]
        # A hyphen is a range only between two characters.
        is_range = body[at + 1 : at + 2] == "-" and at + 2 < len(body)
        high = body[at + 2] if is_range else low
        if not 0 <= ord(high) - ord(low) < _MAX_RANGE:
            message = f"expected a range that runs upwards in {text!r}, got {low}-{high}"
            raise GlobError(message)
        chars.update(map(chr, range(ord(low), ord(high) + 1)))
        at += 3 if is_range else 1
    return _Item(chars=frozenset(chars), negated=negated), end + 1
