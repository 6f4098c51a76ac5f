# SPDX-License-Identifier: Apache-2.0
"""From a signed commit to packets that are limited and blocked, and changes that let none of them through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import packets
from tests.e2e.lab import WITHOUT_TCX, Lab, chain
from tests.support_probe import DROP_PORT, PASS_PORT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.lab import Document, Kit

SYNS = 200


def test_the_first_commit_is_planned_applied_and_seen(lab: Lab) -> None:
    commit = lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))

    status = lab.reconciler("status", output="table").expect(2)
    assert "no pass yet" in status.out
    plan = lab.reconciler("plan").expect(2)
    assert plan.steps[0] == "load"
    assert plan.steps[1] == "attach"
    assert [(change["kind"], change["member"]) for change in plan.json["changes"]] == [
        ("add", "limit"),
        ("add", "wall"),
    ]
    assert plan.json["drift"] == []
    assert lab.xdp_id() is None
    assert lab.pinned() == []

    applied = lab.apply().expect(0, "Applied")
    assert applied.steps == plan.steps
    assert applied.json["plan"]["digest"] == plan.json["digest"]
    (seen,) = lab.attached()
    assert (seen["hook"], seen["attached"], seen["mode"]) == ("xdp", "xdp-link", "native")
    assert (seen["interface"], seen["program_id"]) == (lab.wire.interface, lab.xdp_id())

    program = lab.xdp_id()
    again = lab.apply().expect(0, "InSync")
    assert again.steps == []
    assert again.json["plan"]["steps"] == []
    assert lab.xdp_id() == program
    assert lab.reconciler("plan").expect(0).steps == []

    status = lab.reconciler("status").expect(0)
    assert status.json["reason"] == "InSync"
    assert status.json["applied"]["id"] == commit
    assert status.json["applied"]["signer"] == "alice@example.com"
    assert (status.json["chains"], status.json["hooks"]) == (1, 1)
    shown = lab.reconciler("status", output="table").expect(0).out.splitlines()
    assert shown[0].startswith("IN SYNC  lab")
    assert len(shown) <= 12
    assert max(map(len, shown)) <= 80

    history = lab.reconciler("history").expect(0).json
    assert [(record["event"], record["commit"]) for record in history] == [("applied", commit)]

    # Blocked: UDP to the drop port. Limited: new connections beyond five a second, of which five were saved up.
    assert lab.reaches(PASS_PORT)
    assert not lab.reaches(DROP_PORT)
    lab.send(*[packets.tcp4(443, source="10.77.0.2", destination="10.77.0.1")] * SYNS)
    counted = lab.counters()
    assert counted["wall"]["dropped"] == 1
    limited = counted["limit"]
    assert limited["dropped"] >= SYNS - 20
    assert limited["passed"] >= 5 + 2
    assert limited["seen"] == limited["passed"] + limited["dropped"] == counted["wall"]["seen"] + limited["dropped"]

    gone = lab.reconciler("teardown", "--yes").expect(0)
    assert gone.json["outcome"]["survivors"] == []
    assert lab.xdp_id() is None
    assert lab.pinned() == []
    assert lab.reaches(DROP_PORT)


VERSIONS = {"xdp": range(7), "tc-ingress": (0, 2, 3, 5), "tc-egress": (0, 5, 6)}
"""Through which of the versions below a hook goes: the code that differs between hooks is that of the switch."""


def changes(lab: Lab, kind: str) -> list[tuple[str, list[Document]]]:
    """A chain in its versions; each of them drops what the probe wants dropped."""
    wall, following = lab.wall(kind=kind), lab.wall(kind=kind, archive=lab.kit.firewall_next)
    if kind == "xdp":
        little, much = lab.limit(5), lab.limit(500)
        other = lab.limit(9, name="other", port=80)
    else:
        little, much = lab.count(by_port=True), lab.count(by_port=False)
        other = lab.count(name="other")
    return [
        ("first", [little, wall]),
        ("a limit changed", [much, wall]),
        ("a member inserted", [much, other, wall]),
        ("members in another order", [wall, much, other]),
        ("a member removed", [wall, other]),
        ("a member upgraded", [following, other]),
        ("everything changed", [little, following, much | {"name": "last"}]),
    ]


@pytest.mark.parametrize(
    ("kind", "tcx"),
    [("xdp", True), ("tc-ingress", True), ("tc-egress", True), ("tc-ingress", False), ("tc-egress", False)],
    ids=["xdp", "tcx-ingress", "tcx-egress", "clsact-ingress", "clsact-egress"],
)
def test_no_packet_escapes_while_a_chain_changes(kind: str, tcx: bool, tmp_path: Path, kit: Kit) -> None:
    with Lab(tmp_path, kit) as lab:
        if not tcx:
            lab.command = WITHOUT_TCX
        versions = changes(lab, kind)
        versions = [versions[number] for number in VERSIONS[kind]]
        lab.applied(chain("edge", *versions[0][1], hook=lab.hook(kind)))
        (before,) = lab.attached()
        assert before["attached"] == ("xdp-link" if kind == "xdp" else "tcx-link" if tcx else "clsact-filter")

        dropped = 0
        for what, members in versions[1:]:
            lab.commit(chain("edge", *members, hook=lab.hook(kind)), message=what)
            with lab.traffic(egress=kind == "tc-egress", udp=kind == "tc-ingress") as traffic:
                applied = lab.apply().expect(0, "Applied")
            assert "switch" in applied.steps, what
            assert "attach" not in applied.steps, what
            traffic.assert_filtered()
            dropped += traffic.sent.dropped
        assert [each["program_id"] for each in lab.attached()] != [before["program_id"]]
        # Each of them was counted once, by whichever generation it met.
        assert lab.counters()["wall"]["dropped"] == dropped
        assert lab.apply().expect(0, "InSync").steps == []


def test_a_second_chain_joins_the_hook_and_leaves_it(lab: Lab) -> None:
    edge = chain("edge", lab.limit(5), lab.wall(), hook=lab.hook())
    early = chain("early", lab.wall(), hook=lab.hook(), priority=1)
    lab.applied(edge)
    for chains in ((edge, early), (edge,)):
        lab.commit(*chains)
        with lab.traffic() as traffic:
            lab.apply().expect(0, "Applied")
        traffic.assert_filtered()


def test_all_hooks_of_an_interface_at_once(lab: Lab) -> None:
    kinds = ("xdp", "tc-ingress", "tc-egress")
    lab.applied(*[chain(kind, lab.wall(kind=kind), hook=lab.hook(kind)) for kind in kinds])
    assert {each["hook"] for each in lab.attached()} == set(kinds)
    lab.commit(
        *[chain(kind, lab.wall(kind=kind, archive=lab.kit.firewall_next), hook=lab.hook(kind)) for kind in kinds]
    )
    with lab.traffic() as traffic:
        lab.apply().expect(0, "Applied")
    traffic.assert_filtered()

    # The last commit declares nothing: everything leaves.
    lab.commit()
    lab.apply().expect(0, "Applied")
    assert lab.attached() == []
    assert lab.pinned() == []


def test_a_change_of_the_xdp_mode_says_its_gap(lab: Lab) -> None:
    lab.applied(chain("edge", lab.wall(), hook=lab.hook()))
    lab.commit(chain("edge", lab.wall(), hook=lab.hook(mode="generic")))
    plan = lab.reconciler("plan").expect(2)
    assert "change-mode" in plan.steps
    assert [(change["kind"], change["detail"]) for change in plan.json["changes"]] == [
        ("replace", "mode native → generic")
    ]
    assert any("without" in note or "gap" in note for note in plan.json["notes"])
    applied = lab.apply().expect(0, "Applied")
    assert list(applied.json["outcome"]["gaps"].values()) != []
    assert [each["mode"] for each in lab.attached()] == ["generic"]
    assert not lab.reaches(DROP_PORT)
