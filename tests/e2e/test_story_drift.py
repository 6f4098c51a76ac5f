# SPDX-License-Identifier: Apache-2.0
"""What others do to a host: detach, replace, unpin, rewrite what is declared, and attach what is not."""

from __future__ import annotations

import errno
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.intruder import Intruder
from tests.e2e.lab import WITHOUT_TCX, Lab, chain
from tests.kernel import support
from tests.support_probe import DROP_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("xdp", "tc-ingress")


@pytest.fixture
def intruder(lab: Lab) -> Iterator[Intruder]:
    with support.pin_directory() as pins, Intruder(lab.near, lab.wire.interface, pins) as made:
        yield made


def walls(lab: Lab) -> list[dict[str, Any]]:
    return [chain(kind, lab.wall(kind=kind), hook=lab.hook(kind)) for kind in KINDS]


def our_links(lab: Lab) -> dict[str, int]:
    """Link ids by kind of hook, as bpftool sees them at our pins."""
    found = {}
    for path in (lab.pins / "links").iterdir():
        link = json.loads(support.run("bpftool", "-j", "link", "show", "pinned", str(path)))
        found["xdp" if link["type"] == "xdp" else "tc-ingress"] = link["id"]
    return found


def test_what_is_declared_comes_back_in_every_mode(lab: Lab, intruder: Intruder) -> None:
    lab.applied(*walls(lab))

    # ip(8) cannot take a link's program off; LINK_DETACH can.
    with pytest.raises(RuntimeError):
        lab.near.ip("link", "set", "dev", lab.wire.interface, "xdp", "off")
    for link in our_links(lab).values():
        intruder.detach(link)
    assert lab.xdp_id() is None
    assert lab.reaches(DROP_PORT)
    plan = lab.reconciler("plan").expect(2)
    assert sorted(drift["kind"] for drift in plan.json["drift"]) == ["detached", "detached"]
    lab.apply().expect(0, "Applied")
    assert not lab.reaches(DROP_PORT)
    assert {each["hook"] for each in lab.attached()} == set(KINDS)

    lab.config["secureMode"]["mode"] = "enforce"
    for kind, link in our_links(lab).items():
        intruder.replace(link, kind)
    assert lab.reaches(DROP_PORT)
    plan = lab.reconciler("plan").expect(2)
    assert sorted(drift["kind"] for drift in plan.json["drift"]) == ["replaced", "replaced"]
    lab.apply().expect(0, "Applied")
    assert not lab.reaches(DROP_PORT)

    # Pins of a link, a program and the state, and then all of them. A link goes with its last pin.
    lab.config["secureMode"]["mode"] = "off"
    next((lab.pins / "links").iterdir()).unlink()
    next(path for path in lab.pins.rglob("p00")).unlink()
    shutil.rmtree(lab.pins / "state")
    lab.apply().expect(0, "Applied")
    assert not lab.reaches(DROP_PORT)
    shutil.rmtree(lab.pins)
    lab.apply().expect(0, "Applied")
    assert not lab.reaches(DROP_PORT)
    assert {each["hook"] for each in lab.attached()} == set(KINDS)
    assert lab.apply().expect(0, "InSync").steps == []
    repaired = [record for record in lab.reconciler("history").json if record["event"] == "repaired"]
    assert len(repaired) >= 4


def test_nobody_rewrites_declared_entries_or_the_order_of_members(lab: Lab, intruder: Intruder) -> None:
    lab.applied(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    frozen = [path for path in lab.pinned() if path.startswith("gen/") and "/p" not in path]
    assert {path.rpartition("/")[2][0] for path in frozen} == {"c", "n"}
    answers = {path: intruder.write(lab.pins / path) for path in frozen}
    assert set(answers.values()) == {errno.EPERM}, answers
    assert not lab.reaches(DROP_PORT)


def test_audit_reports_and_leaves_alone(lab: Lab, intruder: Intruder) -> None:
    lab.applied(chain("edge", lab.wall(), hook=lab.hook()))
    ids = {intruder.tcx_link(), intruder.tcx_program("tc-egress"), intruder.filter()}
    seen = lab.attached(whose="foreign")
    assert {each["program_id"] for each in seen} == ids
    assert {each["removal"] for each in seen} == {"link-detach", "prog-detach", "filter-delete"}
    reported = lab.apply().expect(2, "ForeignPrograms")
    assert reported.steps == []
    assert len(reported.json["status"]["drift"]) == len(ids)
    assert {each["program_id"] for each in lab.attached(whose="foreign")} == ids
    assert "foreign    3 programs" in lab.reconciler("status", output="table").expect(2).out


@pytest.mark.parametrize("tcx", [True, False], ids=["tcx", "clsact"])
def test_enforce_evicts_what_nobody_declared_and_nothing_else(tcx: bool, lab: Lab, intruder: Intruder) -> None:
    lab.command = lab.command if tcx else WITHOUT_TCX
    tolerated = {
        "name": "monitoring",
        "why": "counts packets",
        "owner": "the test",
        "filterName": "intruder*",
        "hooks": ["tc-egress"],
    }
    lab.config["secureMode"] |= {"mode": "enforce", "tolerate": [tolerated]}
    # What is there before the first apply is displaced where the hook has one slot, and evicted elsewhere.
    occupant = intruder.xdp_netlink()
    kept = intruder.filter("egress")
    filters = {intruder.filter("ingress", prio) for prio in (1, 60000)}
    foreign = filters | ({intruder.tcx_link(), intruder.tcx_program("tc-egress")} if tcx else set())
    lab.commit(*walls(lab))
    plan = lab.reconciler("plan").expect(2)
    assert plan.steps.count("evict") == len(foreign)
    applied = lab.apply().expect(0, "Applied")
    assert applied.steps == plan.steps
    assert lab.attached(whose="foreign") == []
    assert [each["program_id"] for each in lab.attached(whose="tolerated")] == [kept]
    assert lab.xdp_id() not in (None, occupant)
    assert not lab.reaches(DROP_PORT)
    evicted = [record for record in lab.reconciler("history").json if record["event"] == "evicted"]
    assert {record["program"] for record in evicted} == foreign

    # And what comes later, also where nothing is declared.
    support.add_veth(lab.near, "spare0", lab.far, "spare1")
    support.add_veth(lab.near, "spare2", lab.far, "spare3")
    again = {intruder.filter("ingress", 2)} | ({intruder.tcx_link("tc-egress")} if tcx else set())
    intruder.interface = "spare0"
    again |= {intruder.xdp_netlink(), intruder.filter("ingress")}
    intruder.interface = "spare2"
    again.add(intruder.xdp_link())
    with lab.traffic() as traffic:
        assert lab.apply().expect(0, "Applied").steps.count("evict") == len(again)
    traffic.assert_filtered()
    assert lab.apply().expect(0, "InSync").steps == []
    assert [each["program_id"] for each in lab.attached(whose="tolerated")] == [kept]


def test_no_more_evictions_in_a_pass_than_the_host_allows(lab: Lab, intruder: Intruder) -> None:
    lab.config["secureMode"] |= {"mode": "enforce", "maxEvictions": 2}
    lab.commit()
    for prio in range(1, 6):
        intruder.filter("ingress", prio)
    left = []
    for code in (2, 2, 0):
        lab.apply().expect(code)
        left.append(len(lab.attached(whose="foreign")))
    assert left == [3, 1, 0]


def test_a_hook_that_is_occupied_stays_pending_in_audit_and_is_taken_in_enforce(lab: Lab, intruder: Intruder) -> None:
    occupant = intruder.xdp_link()
    lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
    pending = lab.apply().expect(2)
    assert set(pending.findings) == {"ForeignPrograms", "HookOccupied"}
    assert lab.xdp_id() == occupant
    assert [item["kind"] for item in pending.json["status"]["pending"]] == ["hook-occupied"]
    lab.config["secureMode"]["mode"] = "enforce"
    lab.apply().expect(0, "Applied")
    assert lab.xdp_id() not in (None, occupant)
    assert not lab.reaches(DROP_PORT)


def test_filters_come_back_with_their_qdisc_and_others_stay(lab: Lab, intruder: Intruder) -> None:
    lab.command = WITHOUT_TCX
    kinds = ("tc-ingress", "tc-egress")
    foreign = intruder.filter("ingress", 7)
    lab.commit(*[chain(kind, lab.wall(kind=kind), hook=lab.hook(kind)) for kind in kinds])
    lab.apply().expect(2, "ForeignPrograms")
    theirs = lab.near.tc("filter", "show", "dev", lab.wire.interface, "ingress", "prio", "7")
    assert not lab.reaches(DROP_PORT)
    interface = ("dev", lab.wire.interface)
    (ours,) = [each for each in filters(lab, "ingress") if each["pref"] != 7]
    lab.near.tc("filter", "del", *interface, "ingress", "pref", str(ours["pref"]))
    assert lab.reaches(DROP_PORT)
    lab.apply().expect(2, "ForeignPrograms")
    assert not lab.reaches(DROP_PORT)
    assert lab.near.tc("filter", "show", *interface, "ingress", "prio", "7") == theirs
    assert [each["program_id"] for each in lab.attached(whose="foreign")] == [foreign]

    lab.near.tc("qdisc", "del", *interface, "clsact")
    assert lab.reaches(DROP_PORT)
    restored = lab.apply().expect(0, "Applied")
    assert restored.steps.count("attach") == 2
    assert not lab.reaches(DROP_PORT)
    lab.reconciler("teardown", "--yes").expect(0)
    # The qdisc was not ours at first, but the one that is there now was made here.
    assert filters(lab, "ingress") == filters(lab, "egress") == []


def filters(lab: Lab, direction: str) -> list[dict[str, Any]]:
    text = lab.near.tc("-j", "filter", "show", "dev", lab.wire.interface, direction, check=False) or "[]"
    return [each for each in json.loads(text) if "options" in each]
