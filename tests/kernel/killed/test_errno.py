# SPDX-License-Identifier: Apache-2.0
"""Every call that changes anything fails, with any errno: one reason, everything undone or everything done, then sync.

`make test` takes a point of every kind with one errno, `make torture` every point with three, so that every kind meets
every errno.
"""

from __future__ import annotations

import errno
import functools
import itertools
import math
import os
import resource
import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from reconciler import _points, reconcile
from reconciler.errors import ReconcilerError
from tests.kernel.killed.process import Fail, forked
from tests.kernel.killed.rounds import WAYS, alternating, chunked, kind_of, sample, say
from tests.unit.test_docs import documented_reasons

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.kernel.killed.host import Host
    from tests.kernel.killed.process import Ended
    from tests.kernel.killed.rounds import Place, Rounds

    Hooks = Mapping[str, tuple[tuple[str, str | None, str], ...]]

ERRNOS = (
    errno.ENOSPC,
    errno.EIO,
    errno.EROFS,
    errno.ENOMEM,
    errno.EMFILE,
    errno.EINTR,
    errno.EBUSY,
    errno.EPERM,
    errno.ENODEV,
)
EACH = 3
"""Errnos at every call in `make torture`."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A pass in which something failed, and the hooks right after it; None when it could not even begin."""

    reason: str
    message: str
    hooks: Hooks | None = None


def failing(host: Host, descriptors: int | None = None) -> Failed:
    """One pass, in a child in which a point fails, or that may open only so many descriptors more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors is not None:
        used = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208  # names, no paths
        free = (number for number in itertools.count() if number not in used)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, descriptors, None)), limits[1]))
    try:
        with host.opened() as parts:
            status = reconcile.Pass(parts, reconcile.Request()).run().status
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            _points.hook = None
            return Failed(reason=status.reason, message=status.message, hooks=host.look(parts).hooks)
    except ReconcilerError as error:  # the command prints it and ends
        return Failed(reason=error.reason, message=str(error))


def fail_at(rounds: Rounds, place: Place, number: int, *, onwards: bool = False) -> str:
    """The pass fails there; its reason."""
    host = rounds.host
    while rounds.other() != place.side:
        rounds.peace()
    host.push(place.side)
    strike = Fail(place.number, number, place.name, onwards=onwards)
    ended = forked(lambda: failing(host), strike)
    return judged(rounds, (place, errno.errorcode[number]), ended)


def judged(rounds: Rounds, what: object, ended: Ended) -> str:
    """One documented reason, one of both states, and the next pass converges; the reason."""
    found: Failed = ended.value
    try:
        assert found.reason in documented_reasons(), "expected a documented reason"
        assert found.reason != "InternalError"
        if found.hooks is not None:
            one_of_both(found.hooks, rounds.seen[rounds.at].hooks, rounds.seen[rounds.other()].hooks)
    except AssertionError as error:
        message = f"{what}: {found}: {error}"
        raise AssertionError(message) from error
    rounds.recovered(what, ended)
    return found.reason


def one_of_both(hooks: Hooks, before: Hooks, after: Hooks) -> None:
    """Everything was undone, or everything is switched; what is only to be removed may still be there."""
    wanted = {point: attached for point, attached in hooks.items() if point in after}
    left = {point: attached for point, attached in hooks.items() if point not in after}
    switched = wanted == after and left.items() <= before.items()
    assert hooks == before or switched, f"expected one of both states, got {hooks}; before {before}; after {after}"


def rotated(places: Iterable[Place]) -> Iterator[tuple[Place, int]]:
    """Each place with one errno, another one for the next of its kind."""
    for place in places:
        start = zlib.crc32(kind_of(place.name).encode())
        yield place, ERRNOS[(start + place.number) % len(ERRNOS)]


def spread(places: list[Place]) -> Iterator[tuple[Place, int]]:
    """Each place with `EACH` errnos at least, each kind of call with all of them; the sides take turns."""
    by_kind: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        by_kind[kind_of(place.name)].append(place)
    errnos: dict[Place, list[int]] = {}
    for found in by_kind.values():
        each = max(EACH, math.ceil(len(ERRNOS) / len(found)))
        for index, place in enumerate(found):
            errnos[place] = [ERRNOS[(index * each + turn) % len(ERRNOS)] for turn in range(each)]
    for turn in range(len(ERRNOS)):
        for place in alternating(place for place in places if len(errnos[place]) > turn):
            yield place, errnos[place][turn]


def run(rounds: Rounds, pairs: list[tuple[Place, int]]) -> None:
    reasons: dict[str, int] = {}
    for chunk in chunked(pairs):
        with rounds.host.scene.traffic() as received:
            for place, number in chunk:
                reason = fail_at(rounds, place, number)
                reasons[reason] = reasons.get(reason, 0) + 1
        assert [got.dropped for got in received] == [0, 0], [got.escaped[:3] for got in received]
    say(f"{rounds.host.way}: {len(pairs)} failed calls, passes ended with {reasons}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", WAYS, indirect=True)
def test_a_failure_of_every_kind_of_call(rounds: Rounds) -> None:
    places = rounds.places(("before",))
    if rounds.host.way == "clsact":  # the rest of the kinds is the same code with links
        places = [place for place in places if place.name.startswith("netlink ")]
    run(rounds, list(rotated(sample(places))))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", ["tcx"], indirect=True)
def test_a_process_that_may_open_only_a_few_descriptors(rounds: Rounds) -> None:
    reasons = {}
    for descriptors in (2, 5, 8, 11, 14, 17, 20, 24, 28, 40):
        rounds.host.push(rounds.other())
        ended = forked(functools.partial(failing, rounds.host, descriptors))
        reasons[descriptors] = judged(rounds, descriptors, ended)
    say(f"with so many descriptors: {reasons}")
    assert reasons[2] not in {"Applied", "InSync"}


@pytest.mark.torture
@pytest.mark.parametrize("rounds", WAYS, indirect=True)
def test_a_failure_of_every_call(rounds: Rounds) -> None:
    pairs = list(spread(rounds.places(("before",))))
    say(f"{rounds.host.way}: {len(pairs)} failures, {EACH} errnos at least for every call, all for every kind of call")
    run(rounds, pairs)
