# SPDX-License-Identifier: Apache-2.0
"""No packet escapes a declared member, whatever happens to its chain, its agent, its packages and its source.

One story for each way of being attached: one continuous stream, during which all of `CASES` happen. `make torture`
plays them several times, faster, in random order, on tc egress too.
"""

from __future__ import annotations

import random
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.e2e.flood import GUEST, WAYS, Story, another_version
from tests.e2e.servers import cut
from tests.kernel import support

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.lab import Kit, Lab

ROUNDS = 4
FAST = 50_000
"""Packets per second of the long version."""


# --- what happens: each case leaves the chain in a state from which every other one can begin --------------


def each_member_is_upgraded(story: Story) -> None:
    for name in story.order:
        story.upgrade(name)
        story.apply(f"{name} upgraded")


def a_member_comes_and_goes_at_each_position(story: Story) -> None:
    for position in range(len(story.order) + 1):
        names = [*story.order]
        names.insert(position, GUEST)
        story.apply(f"inserted at {position}", story.chain(*names))
        story.apply(f"removed at {position}")


def the_order_is_reversed(story: Story) -> None:
    story.order = story.order[::-1]
    story.apply(f"order {story.order}")


def a_limit_changes(story: Story) -> None:
    story.change_parameter("b")
    story.apply("a parameter changed")


def a_chain_joins_and_leaves_the_hook(story: Story) -> None:
    for priority in (50, 150):
        story.apply(
            f"a chain of priority {priority} joined",
            story.chain(GUEST, called="guest", priority=priority),
            story.chain(*story.order),
        )
        story.apply(f"a chain of priority {priority} left")


def a_package_comes_slowly(story: Story) -> None:
    story.package["b"] = story.only_on_mirror()
    with story.event("slow package"), story.mirror.slow():
        commit = story.commit()
        story.agent.hup()
        story.mirror.wait_halfway()
        story.flood.more()
        assert story.agent.count("applied", commit=commit) == 0
        story.mirror.go_on()
        story.agent.wait("applied", commit=commit)


def a_package_breaks_off(story: Story) -> None:
    story.package["a"] = story.only_on_mirror()
    with story.event("package breaks off"), story.mirror.slow(cut(b"half of it", "application/octet-stream")):
        commit = story.commit()
        story.poll_until("PackageUnavailable")
        assert story.agent.count("applied", commit=commit) == 0
    with story.event("package comes after all"):
        story.poll(commit)


def the_agent_is_killed(story: Story) -> None:
    with story.event("killed, started again"):
        story.agent.kill()
        story.flood.more()
        story.start()
        assert story.agent.count("pass") == story.agent.count("pass", reason="InSync")


def the_agent_is_killed_in_a_change(story: Story) -> None:
    story.change_parameter("c")
    with story.event("killed in a change, started again"):
        commit = story.commit()
        story.agent.hup()
        story.agent.wait("applying", commit=commit)
        story.agent.kill()
        story.start()
    assert story.lab.reconciler("status").expect(0).json["applied"]["id"] == commit


def the_agent_is_stopped_and_finds_a_commit(story: Story) -> None:
    story.order = (*story.order[1:], story.order[0])
    with story.event("SIGTERM, a commit, started again"):
        assert story.agent.stop() == 0
        commit = story.commit()
        story.flood.more()
        story.start()
        assert story.agent.count("applied", commit=commit) == 1


def another_version_takes_over(story: Story) -> None:
    with story.event("another version of the agent"):
        assert story.agent.stop() == 0
        before = story.version()
        story.lab.command, story.other = story.other, story.lab.command
        assert story.version() != before
        story.start()
        assert story.agent.count("pass") == story.agent.count("pass", reason="InSync")
    story.upgrade("b")
    story.apply("a change by the other version")


def the_git_server_is_gone(story: Story) -> None:
    with story.event("no Git server"):
        story.server.fault = lambda _: True  # hangs up
        story.poll_until("SourceUnavailable")
    with story.event("killed, started again without a Git server"):
        story.agent.kill()
        story.flood.more()
        story.start()
        story.poll_until("SourceUnavailable")
        assert not story.agent.count("applied")
    with story.event("the Git server is back"):
        story.server.fault = None
        story.poll_until("InSync")


CASES = (
    each_member_is_upgraded,
    a_member_comes_and_goes_at_each_position,
    the_order_is_reversed,
    a_limit_changes,
    a_chain_joins_and_leaves_the_hook,
    a_package_comes_slowly,
    a_package_breaks_off,
    the_agent_is_killed,
    the_agent_is_killed_in_a_change,
    the_agent_is_stopped_and_finds_a_commit,
    another_version_takes_over,
    the_git_server_is_gone,
)


# --- what the kernel forces: one gap, which is said --------------------------------------------------------


def change_mode(story: Story, mode: str) -> float | None:
    """Seconds without any program, as the agent says; None when a poll of its own (one, at its phase) came first."""
    story.way = WAYS[f"xdp-{mode}"]
    story.commit()
    notes = story.lab.reconciler("plan").expect(2).json["notes"]
    assert any("the kernel forces a gap" in note for note in notes)
    with story.flood.gap(f"mode becomes {mode}"):
        outcome = story.lab.apply().expect(0).json["outcome"]
    assert story.attached() == (story.way.attached, mode)
    if outcome is None:
        return None
    (gap,) = outcome["gaps"].values()
    return float(gap)


def make_interface_anew(story: Story) -> None:
    near, far, wire = story.lab.near, story.lab.far, story.lab.wire
    mac = wire.mac(near, wire.interface).hex(":")
    before = story.counted()
    passes = story.agent.count("pass", reason="Applied")
    with story.flood.gap("interface made anew"):
        near.ip("link", "del", "dev", wire.interface)
        support.add_veth(near, wire.interface, far, wire.far_interface, up=False)
        far.ip("link", "set", "dev", wire.far_interface, "up")
        near.ip("addr", "add", f"{wire.near_address}/24", "dev", wire.interface)
        near.ip("link", "set", "dev", wire.interface, "address", mac, "up")
        story.agent.wait("pass", more_than=passes, reason="Applied")
    assert story.attached() == (story.way.attached, story.way.mode)
    assert all(story.counted()[name] > count for name, count in before.items())


# --- the stories -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an installation under another version."""
    return another_version(tmp_path_factory.mktemp("other") / "venv")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["xdp-native", "xdp-generic", "tcx", "clsact"])
def test_nothing_escapes(name: str, lab: Lab, other: Path) -> None:
    with Story(lab, WAYS[name], other) as story:
        story.first()
        for case in CASES:
            case(story)
        story.end()
        story.account()


def test_a_change_of_mode_is_one_gap_that_is_told(lab: Lab, other: Path) -> None:
    with Story(lab, WAYS["xdp-native"], other) as story:
        story.first()
        gaps = [change_mode(story, mode) for mode in ("generic", "native")]
        assert len([gap for gap in gaps if gap is not None]) >= 1
        story.end()
        story.account()


def test_an_interface_that_is_made_anew_is_one_gap(lab: Lab, other: Path) -> None:
    with Story(lab, WAYS["xdp-native"], other) as story:
        story.first()
        make_interface_anew(story)
        story.end()


@pytest.mark.torture
@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("name", WAYS)
def test_nothing_escapes_for_a_long_time(number: int, name: str, lab: Lab, other: Path) -> None:
    seed = secrets.randbits(32)
    with Story(lab, WAYS[name], other, rate=FAST) as story:
        print(f"{name}, round {number}: seed {seed}")  # noqa: T201
        story.first()
        for case in random.Random(seed).sample(CASES * 2, len(CASES) * 2):
            case(story)
        story.end()
        story.account()
        sent = story.flood.sent
        print(f"  {sum(sent.kinds)} packets at {sent.rate:.0f}/s, {len(story.flood.events)} events: none escaped")  # noqa: T201


@pytest.mark.torture
def test_the_gaps_that_the_kernel_forces(lab: Lab, other: Path) -> None:
    with Story(lab, WAYS["xdp-native"], other, rate=FAST) as story:
        story.first()
        for _ in range(2 * ROUNDS):
            for mode in ("generic", "native"):
                change_mode(story, mode)
            make_interface_anew(story)
        story.end()
        for what in ("mode becomes generic", "mode becomes native", "interface made anew"):
            for packets, ms in story.flood.passed_in(what):
                print(f"{what}: {packets} packets in {ms:.2f} ms")  # noqa: T201
