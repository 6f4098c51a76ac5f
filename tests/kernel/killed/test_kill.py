# SPDX-License-Identifier: Apache-2.0
"""SIGKILL before and after every call that changes anything, in a change of many hooks in two namespaces.

After each: the next pass converges, a further plan is empty, nothing is orphaned (programs, maps, links, pins, filters,
qdiscs, temporary files in the state directory and in the repository), the history is readable, and no packet came
through that a member drops. `make test` runs one point of every kind and every moment; `make torture` all of them.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.kernel.killed.rounds import WAYS, alternating, chunked, drawn, kind_of, sample, say, under_traffic

if TYPE_CHECKING:
    from tests.kernel.killed.rounds import Rounds

SEED = 20261129
DOUBLE_KILLS = 1000


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", WAYS, indirect=True)
def test_a_kill_at_a_point_of_every_kind(rounds: Rounds) -> None:
    places = rounds.places()
    if rounds.host.way == "clsact":  # the rest of the kinds is the same code with links
        places = [place for place in places if place.name.startswith("netlink ")]
    chosen = sample(places)
    under_traffic(rounds, chosen)
    say(f"{rounds.host.way}: {len(chosen)} kills of {len(rounds.places())} (`make torture` runs all)")
    assert {(kind_of(name), when) for _, name, when in rounds.struck} == {
        (kind_of(place.name), place.when) for place in places
    }


@pytest.mark.parametrize("rounds", ["tcx"], indirect=True)
def test_a_kill_and_another_one_in_the_recovery(rounds: Rounds) -> None:
    dice = random.Random(SEED)
    with rounds.host.scene.traffic() as received:
        for _ in range(8):
            rounds.twice(*drawn(rounds, dice))
    assert [got.dropped for got in received] == [0, 0]


@pytest.mark.torture
@pytest.mark.parametrize("rounds", WAYS, indirect=True)
def test_a_kill_at_every_point(rounds: Rounds) -> None:
    places = rounds.places()
    under_traffic(rounds, alternating(places))
    say(f"{rounds.host.way}: {len(places)} kills, each point before and after, and each write in its middle")


@pytest.mark.torture
@pytest.mark.parametrize("rounds", WAYS, indirect=True)
def test_double_kills_at_random(rounds: Rounds) -> None:
    seed = random.SystemRandom().randrange(2**32)
    say(f"{rounds.host.way}: {DOUBLE_KILLS // len(WAYS)} double kills with seed {seed}")
    dice = random.Random(seed)
    for chunk in chunked(range(DOUBLE_KILLS // len(WAYS))):
        with rounds.host.scene.traffic() as received:
            for _ in chunk:
                rounds.twice(*drawn(rounds, dice))
        assert [got.dropped for got in received] == [0, 0], [got.escaped[:3] for got in received]
