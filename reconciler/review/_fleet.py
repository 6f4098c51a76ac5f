# SPDX-License-Identifier: Apache-2.0
"""The hosts of a review: groups on paper, or selectors where there are none; and which chains each of them selects.

A cohort is the set of hosts of one group that select the same chains on both sides, so its size is the number of
ways in which hosts differ and not the number of hosts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from reconciler import manifest, plan
from reconciler._documents import parse_glob
from reconciler.model import HostFacts, HostGroup, PaperPolicy, Support
from reconciler.review._words import few, selector_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reconciler.model import Chain, Hook, HostSelector
    from reconciler.plan import HostRecord

MAX_COHORTS: Final = 64
"""Cohorts of one group; hosts that differ in more ways are taken for one that selects whatever any of them does."""

MAX_EXCEPT: Final = 4
"""Patterns that are named behind one that they are a part of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """A cohort before it is compared.

    Attributes:
        group: None where a selector stands for hosts.
        before: the chains of BASE that these hosts select.
        after: those of HEAD.
        certain: False when it cannot be told which chains with names in their selector they select.
        labels: of the selector, where there is no group.
    """

    name: str
    group: HostGroup | None
    count: int | None
    names: tuple[str, ...]
    before: tuple[Chain, ...]
    after: tuple[Chain, ...]
    certain: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)

    def interfaces(self, netns: str) -> tuple[str, ...] | None:
        """Names of the interfaces in a namespace, None when nobody says."""
        if self.group is None or not self.group.interfaces:
            return None
        return self.group.interfaces.get(netns, ())


@dataclass(frozen=True, slots=True)
class Fleet:
    """What both sides say about hosts; a group that they disagree about is there twice."""

    groups: tuple[HostGroup, ...] = ()
    _labels: dict[tuple[str, str], bool] = field(default_factory=dict, compare=False, repr=False)

    # --- what a changed selector or hook means -------------------------------------------------------------

    def hosts(self, before: HostSelector, after: HostSelector) -> tuple[list[str], list[str]]:
        """Hosts that a selector loses and gains, in words."""
        if not any(may_select(before, group) for group in self.groups):
            lost = (
                [] if selector_covers(after, before) else [f"{selector_words(before)} unless {selector_words(after)}"]
            )
            gained = [] if selector_covers(before, after) else [selector_words(after)]
            return lost, gained
        lost, gained = [], []
        for group in self.groups:
            was, now = _selected(before, group), _selected(after, group)
            lost += _words(group, was, now, unsure=before.names != after.names)
            gained += _words(group, now, was, unsure=False)
        return lost, gained

    def interfaces(self, before: Chain, after: Chain) -> tuple[list[str], list[str], bool]:
        """Interfaces that a hook loses and gains, and whether groups say that both are nothing."""
        old, new = before.hook, after.hook
        elsewhere = (old.kind, old.netns) != (new.kind, new.netns)
        groups = [group for group in self.groups if may_select(before.hosts, group)]
        if not groups or any(not group.interfaces for group in groups):
            lost = [*old.interfaces] if elsewhere else _uncovered(old.interfaces, new.interfaces)
            gained = [*new.interfaces] if elsewhere else _uncovered(new.interfaces, old.interfaces)
            return lost, gained, not (lost or gained)
        was = {name for group in groups for name in _matching(old, group)}
        now = {name for group in groups for name in _matching(new, group)}
        if elsewhere:
            return sorted(was) or [*old.interfaces], sorted(now) or [*new.interfaces], False
        lost, gained = sorted(was - now), sorted(now - was)
        return lost, gained, not (lost or gained)


def _matching(hook: Hook, group: HostGroup) -> Iterable[str]:
    names = group.interfaces.get(hook.netns, ())
    return (name for name in names if manifest.interface_matches(hook.interfaces, name))


def _uncovered(patterns: tuple[str, ...], others: tuple[str, ...]) -> list[str]:
    return [f"{pattern}{except_words(pattern, others)}" for pattern in patterns if not covers(others, pattern)]


def except_words(pattern: str, others: Iterable[str]) -> str:
    """Such as " (except eth0)" for those of `others` that mean a part of what `pattern` means; "" for none."""
    parts = [other for other in dict.fromkeys(others) if other != pattern and covers((pattern,), other)]
    return f" (except {few(parts, MAX_EXCEPT)})" if parts else ""


@functools.lru_cache(maxsize=1 << 14)
def covers(patterns: tuple[str, ...], pattern: str) -> bool:
    """Whether every interface that `pattern` means is meant by one of `patterns`."""
    if pattern in patterns:
        return True
    return parse_glob(pattern).covered_by(parse_glob(each) for each in patterns)


def selector_covers(wide: HostSelector, narrow: HostSelector) -> bool:
    """Whether every host that `narrow` selects is selected by `wide` as well."""
    if any(narrow.match_labels.get(label) != value for label, value in wide.match_labels.items()):
        return False
    if not wide.names:
        return True
    names = tuple(name.lower() for name in wide.names)
    return bool(narrow.names) and all(covers(names, name.lower()) for name in narrow.names)


def may_select(selector: HostSelector, group: HostGroup) -> bool:
    """Whether some host of the group can be meant."""
    if any(group.labels.get(label) != value for label, value in selector.match_labels.items()):
        return False
    return not selector.names or not group.names or any(_named(selector, name) for name in group.names)


def _named(selector: HostSelector, name: str) -> bool:
    return manifest.selects(selector, HostFacts(name=name, labels=selector.match_labels))


def _selected(selector: HostSelector, group: HostGroup) -> frozenset[str] | None:
    """Names of the hosts that are selected; None: all of a group without names, or those that cannot be told."""
    if any(group.labels.get(label) != value for label, value in selector.match_labels.items()):
        return frozenset()
    if not group.names:
        return None
    return frozenset(group.names) if not selector.names else frozenset(n for n in group.names if _named(selector, n))


def _words(group: HostGroup, here: frozenset[str] | None, there: frozenset[str] | None, *, unsure: bool) -> list[str]:
    if here is None:
        if there is not None:
            return [f"{group.name} ({hosts_words(group.count)})"]
        return [f"some hosts of {group.name}, perhaps: it gives no names"] if unsure else []
    gone = sorted(here - (there or frozenset()))
    if not gone:
        return []
    if len(gone) == len(group.names):
        return [f"{group.name} ({hosts_words(group.count)})"]
    return [f"{few(gone, 4)} ({len(gone)} of {group.count} of {group.name})"]


def hosts_words(count: int | None) -> str:
    """Such as "1 host"; "hosts" if nobody knows how many."""
    return "hosts" if count is None else "1 host" if count == 1 else f"{count} hosts"


def group_of(record: HostRecord) -> HostGroup:
    """A recorded host as a group of one."""
    interfaces: dict[str, set[str]] = {}
    for each in record.snapshot.interfaces:
        interfaces.setdefault(each.netns, set()).add(each.name)
    known = {name: getattr(record.snapshot.features, name) for name in ("xdp_link", "tcx", "clsact", "btf", "expedite")}
    return HostGroup(
        name=record.facts.name,
        labels=dict(record.facts.labels),
        names=(record.facts.name,),
        interfaces={netns: tuple(sorted(names)) for netns, names in sorted(interfaces.items())},
        features={
            name.replace("_", "-"): value is Support.YES
            for name, value in known.items()
            if value is not Support.UNKNOWN
        },
        secure_mode=record.secure.mode.value,
        policy=PaperPolicy(id=record.policy, tolerations=tuple(rule.name for rule in record.secure.tolerations)),
        guardrail_count=record.guardrail.count,
        guardrail_share=record.guardrail.share,
        occupants=plan.occupants(record),
    )


# --- cohorts -----------------------------------------------------------------------------------------------


def cohorts(
    fleet: Fleet, before: Mapping[str, Chain], after: Mapping[str, Chain], changed: frozenset[str]
) -> tuple[Hosts, ...]:
    """Every cohort of every group, then the selectors of changed chains that no group knows.

    Args:
        fleet: the groups of both sides.
        before: chains of BASE by name.
        after: chains of HEAD by name.
        changed: names of the chains that differ.
    """
    found: list[Hosts] = []
    for group in fleet.groups:
        found += _of_group(group, before, after)
    strays: dict[str, HostSelector] = {}
    for side in (before, after):
        for name in sorted(changed & side.keys()):
            selector = side[name].hosts
            if not any(may_select(selector, group) for group in fleet.groups):
                strays[selector_words(selector)] = selector
    for words, selector in sorted(strays.items()):
        found.append(
            Hosts(
                name=words,
                group=None,
                count=None,
                names=(),
                before=_like(selector, before),
                after=_like(selector, after),
                certain=not selector.names,
                labels=dict(selector.match_labels),
            )
        )
    return tuple(found)


def _like(selector: HostSelector, chains: Mapping[str, Chain]) -> tuple[Chain, ...]:
    """The chains of a host that has exactly the labels of a selector, and a name that it means."""
    return tuple(chain for chain in chains.values() if selector_covers(chain.hosts, selector))


def _of_group(group: HostGroup, before: Mapping[str, Chain], after: Mapping[str, Chain]) -> list[Hosts]:
    old, new = (_labelled(group, chains) for chains in (before, after))
    named = [chain for chain in (*old, *new) if chain.hosts.names]
    if not named:
        return [_hosts(group, group.count, group.names, old, new)]
    if not group.names:
        return [_hosts(group, group.count, (), old, new, certain=False)]
    selectors = {chain.hosts.names: chain.hosts for chain in named}
    ways: dict[frozenset[tuple[str, ...]], list[str]] = {}
    for name in group.names:
        chosen = frozenset(names for names, selector in selectors.items() if _named(selector, name))
        ways.setdefault(chosen, []).append(name)
    if len(ways) > MAX_COHORTS:
        return [_hosts(group, group.count, group.names, old, new, certain=False)]

    def of(chains: tuple[Chain, ...], chosen: frozenset[tuple[str, ...]]) -> tuple[Chain, ...]:
        return tuple(chain for chain in chains if not chain.hosts.names or chain.hosts.names in chosen)

    return [_hosts(group, len(names), tuple(names), of(old, chosen), of(new, chosen)) for chosen, names in ways.items()]


def _labelled(group: HostGroup, chains: Mapping[str, Chain]) -> tuple[Chain, ...]:
    labels = group.labels.items()
    return tuple(chain for chain in chains.values() if chain.hosts.match_labels.items() <= labels)


def _hosts(
    group: HostGroup,
    count: int,
    names: tuple[str, ...],
    old: tuple[Chain, ...],
    new: tuple[Chain, ...],
    *,
    certain: bool = True,
) -> Hosts:
    name = group.name if count == group.count else f"{group.name}: {few(names, 3)}"
    return Hosts(name=name, group=group, count=count, names=names, before=old, after=new, certain=certain)
