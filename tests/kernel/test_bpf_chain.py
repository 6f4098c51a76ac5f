# SPDX-License-Identifier: Apache-2.0
"""The contract of chain.h, tried on every program that ships: who decides what a packet gets, and what is counted."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests import packets
from tests.kernel.progtest import TC_ACT_OK, TC_ACT_SHOT, TCX_NEXT, XDP_ABORTED, XDP_DROP, XDP_PASS, Program

if TYPE_CHECKING:
    from collections.abc import Iterator

SYN = packets.tcp4(443)
OTHER = packets.udp4(9)
BROKEN_XDP, END_XDP = XDP_ABORTED, 3  # verdicts that no member below gives, so that they can be told apart
NEXT_BIT = 1 << 31


def limiter(**chain: int) -> Program:
    """Passes all but TCP to port 443, of which one connection passes."""
    params = {"rate": 1, "burst_ms": 1000, "drop_malformed": True}
    return Program("ratelimit", params=params, maps={"ports": [(443, 0)]}, chain=chain)


def wall(**chain: int) -> Program:
    """Denies the client's network, allows the rest."""
    maps = {"deny_v4": [(f"{packets.CLIENT}/32", 0)]}
    return Program("firewall", "firewall_xdp", params={"default_verdict": "ALLOW"}, maps=maps, chain=chain)


@pytest.fixture
def pair() -> Iterator[tuple[Program, Program]]:
    """limiter → wall, joined; what the limiter passes goes on, and the end of the chain has a verdict of its own."""
    with (
        limiter(proceed=1 << XDP_PASS, last=0, broken=BROKEN_XDP) as first,
        wall(proceed=1 << XDP_PASS, last=1, end=END_XDP) as second,
    ):
        first.join(second)
        yield first, second


def test_what_the_first_member_passes_is_decided_by_the_second(pair: tuple[Program, Program]) -> None:
    first, second = pair
    assert first.verdict(OTHER) == XDP_DROP
    assert first.verdict(packets.udp6(9)) == END_XDP
    assert first.stats() == {"seen": (2, len(OTHER) + 62), "passed": (2, len(OTHER) + 62)}
    assert second.stats() == {"seen": (2, len(OTHER) + 62), "dropped": (1, len(OTHER)), "passed": (1, 62)}


def test_what_the_first_member_drops_never_reaches_the_second(pair: tuple[Program, Program]) -> None:
    first, second = pair
    first.verdict(SYN)
    before = second.stats()
    assert first.verdict(SYN) == XDP_DROP
    assert second.stats() == before
    assert first.stats()["dropped"] == (1, len(SYN))


def test_a_slot_that_was_emptied_gives_the_broken_verdict_and_is_counted(pair: tuple[Program, Program]) -> None:
    first, second = pair
    first.cut()
    assert first.verdict(OTHER) == BROKEN_XDP
    assert first.stats() == {name: (1, len(OTHER)) for name in ("seen", "passed", "broken")}
    assert second.stats() == {}


def test_verdicts_outside_the_mask_are_final() -> None:
    with limiter(proceed=1 << XDP_DROP, last=0, broken=BROKEN_XDP) as first, wall() as second:
        first.join(second)
        assert first.verdict(OTHER) == XDP_PASS
        assert second.stats() == {}


def test_a_mask_can_send_dropped_packets_on() -> None:
    with limiter(proceed=1 << XDP_DROP, last=0) as first, wall() as second:
        first.join(second)
        assert first.verdict(packets.tcp6(443)) == XDP_PASS
        assert first.verdict(packets.tcp6(443)) == XDP_PASS, "the wall passes what the limiter dropped"
        assert first.stats()["dropped"] == (1, len(packets.tcp6(443)))
        assert second.stats()["seen"][0] == 1


def test_alone_as_compiled_the_own_verdict_is_returned() -> None:
    with limiter() as alone:
        assert [alone.verdict(SYN), alone.verdict(SYN), alone.verdict(OTHER)] == [XDP_PASS, XDP_DROP, XDP_PASS]
        assert "broken" not in alone.stats()


def test_the_last_member_ignores_its_slot() -> None:
    with wall(proceed=1 << XDP_PASS, last=1, end=END_XDP) as last, wall() as never:
        last.join(never)
        assert last.verdict(packets.udp6(9)) == END_XDP
        assert never.stats() == {}


def test_bit_31_is_the_verdict_next_of_tc() -> None:
    deny = {"deny_v4": [("192.0.2.0/24", 0)]}
    allow = {"default_verdict": "ALLOW"}
    with (
        Program("flowcount", chain={"proceed": NEXT_BIT, "last": 0, "broken": TC_ACT_SHOT}) as first,
        Program(
            "firewall",
            "firewall_ingress",
            params=allow,
            maps=deny,
            chain={"proceed": NEXT_BIT, "last": 1, "end": TC_ACT_OK},
        ) as second,
    ):
        first.join(second)
        assert first.verdict(packets.udp6(9)) == TC_ACT_OK
        assert first.verdict(OTHER) == TC_ACT_SHOT
        assert second.stats()["dropped"] == (1, len(OTHER))
        first.cut()
        assert first.verdict(packets.udp6(9)) == TC_ACT_SHOT
        assert first.stats()["broken"][0] == 1


def test_without_bit_31_next_is_final_on_tc() -> None:
    with Program("flowcount", chain={"proceed": NEXT_BIT - 1, "last": 0}) as first, Program("flowcount") as second:
        first.join(second)
        assert first.verdict(OTHER) == TCX_NEXT
        assert second.stats() == {}


def test_thirty_three_members_are_walked_to_the_end() -> None:
    with ExitStack() as stack:
        members = [
            stack.enter_context(wall(proceed=1 << XDP_PASS, last=int(place == 33), end=END_XDP, broken=BROKEN_XDP))
            for place in range(1, 34)
        ]
        for one, following in pairwise(members):
            one.join(following)
        assert members[0].verdict(packets.udp6(9)) == END_XDP
        assert all(each.stats()["passed"][0] == 1 for each in members)
