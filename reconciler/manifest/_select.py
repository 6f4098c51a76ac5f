# SPDX-License-Identifier: Apache-2.0
"""Which hosts and which interfaces a manifest means.

Host names are compared without regard to case, and a pattern is held against the whole name and against its first
label: `edge-17` and `EDGE-*` both mean `edge-17.corp.example`, a pattern with a domain means only that domain.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler._documents import parse_glob

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reconciler._documents import Effort, Glob
    from reconciler.model import Hook, HostFacts, HostSelector

MAX_INTERFACE_NAME = 15
"""IFNAMSIZ - 1 (include/uapi/linux/if.h), bytes."""
MAX_HOST_NAME = 253
"""Characters of a host name (RFC 1035)."""


def selects(selector: HostSelector, host: HostFacts) -> bool:
    """Whether `selector` means `host`; an empty selector means every host.

    Raises:
        ValueError: a name is no glob; `parse` refuses such selectors.
    """
    if any(host.labels.get(label) != value for label, value in selector.match_labels.items()):
        return False
    name = host.name.lower()
    short = name.partition(".")[0]
    globs = [parse_glob(pattern.lower()) for pattern in selector.names]
    return not globs or any(glob.matches(name) or glob.matches(short) for glob in globs)


def interface_matches(patterns: Iterable[str], name: str) -> bool:
    """Whether one of `patterns` (names or globs) means the interface `name`; case matters.

    Raises:
        ValueError: a pattern is no glob.
    """
    return any(parse_glob(pattern).matches(name) for pattern in patterns)


def hosts_meet(one: HostSelector, other: HostSelector, effort: Effort | None = None) -> bool:
    """Whether some host can be meant by both.

    Never wrongly False; True also in a corner that cannot arise: a `*` that matches a dot *and* a first label.

    Raises:
        EffortError: to tell takes more work than `effort` grants.
    """
    labels = one.match_labels.keys() & other.match_labels.keys()
    if any(one.match_labels[label] != other.match_labels[label] for label in labels):
        return False
    if not one.names or not other.names:
        return True
    return _meet(_with_domain(one.names), _with_domain(other.names), MAX_HOST_NAME, effort)


def hooks_meet(one: Hook, other: Hook, effort: Effort | None = None) -> bool:
    """Whether some interface of one namespace can be meant by both, on the same kind of hook.

    Raises:
        EffortError: to tell takes more work than `effort` grants.
    """
    if one.kind is not other.kind or one.netns != other.netns:
        return False
    return _meet(one.interfaces, other.interfaces, MAX_INTERFACE_NAME, effort)


def _with_domain(names: Iterable[str]) -> list[str]:
    # A pattern also means names whose first label it matches: those that go on with a dot and anything.
    return [form for name in names for form in (name.lower(), f"{name.lower()}.*")]


def _meet(ones: Iterable[str], others: Iterable[str], longest: int, effort: Effort | None) -> bool:
    left, right = _sorted_out(tuple(ones), longest), _sorted_out(tuple(others), longest)
    # Most patterns are names, and comparing names is much cheaper than the general question.
    if not left.names.isdisjoint(right.names):
        return True
    if effort is not None:
        pairs = len(left.globs) * len(right.globs)
        effort.spend(pairs + left.characters * len(right.globs) + right.characters * len(left.globs))
    for names, globs in ((left.names, right.globs), (right.names, left.globs)):
        if any(glob.matches(name) for name in names for glob in globs):
            return True
    return any(one.intersects(other, longest=longest, effort=effort) for one in left.globs for other in right.globs)


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Names that are not too long, the characters of all of them, and globs."""

    names: frozenset[str]
    characters: int
    globs: tuple[Glob, ...]


@functools.lru_cache(maxsize=1 << 14)
def _sorted_out(patterns: tuple[str, ...], longest: int) -> _Patterns:
    globs = [parse_glob(pattern) for pattern in patterns]
    names = frozenset(glob.name for glob in globs if glob.literal and glob.shortest <= longest)
    others = tuple(glob for glob in globs if not glob.literal)
    return _Patterns(names=names, characters=sum(map(len, names)), globs=others)
