# SPDX-License-Identifier: Apache-2.0
"""What operators decide on a host, and what a host does when its state is gone."""

from __future__ import annotations

import json
import shutil

from tests.e2e.intruder import Intruder
from tests.e2e.lab import Lab, chain
from tests.kernel import support
from tests.support_probe import DROP_PORT


def detach(lab: Lab) -> None:
    (pin,) = (lab.pins / "links").iterdir()
    link = json.loads(support.run("bpftool", "-j", "link", "show", "pinned", str(pin)))
    with Intruder(lab.near, lab.wire.interface, lab.pins) as intruder:
        intruder.detach(link["id"])


def test_a_suspension_stops_commits_and_never_repair(lab: Lab) -> None:
    old = lab.applied(chain("edge", lab.wall(), hook=lab.hook()))
    assert lab.reconciler("suspend", "--reason", "no time").code == 64
    assert lab.reconciler("suspend", "--reason", "maintenance", "--for", "1h").code == 0
    new = lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    detach(lab)
    held = lab.apply().expect(5, "Suspended")
    assert not lab.reaches(DROP_PORT)
    assert held.json["status"]["applied"]["id"] == old
    status = lab.reconciler("status").expect(5).json
    assert status["suspension"]["reason"] == "maintenance"
    resumed = lab.reconciler("resume").expect(0, "Applied")
    assert resumed.json["status"]["applied"]["id"] == new
    events = [record["event"] for record in lab.reconciler("history").json]
    assert events == ["applied", "suspended", "repaired", "resumed", "applied"]


def test_a_suspension_ends_by_itself(lab: Lab) -> None:
    lab.applied(chain("edge", lab.wall(), hook=lab.hook()))
    lab.reconciler("suspend", "--reason", "a moment", "--for", "1ms").expect(0)
    new = lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    assert lab.apply().expect(0, "Applied").json["status"]["applied"]["id"] == new


def test_a_teardown_lasts_until_resume(lab: Lab) -> None:
    kinds = ("xdp", "tc-ingress", "tc-egress")
    commit = lab.applied(*[chain(kind, lab.wall(kind=kind), hook=lab.hook(kind)) for kind in kinds])
    assert lab.reconciler("teardown").code == 1  # nobody said yes
    assert len(lab.attached()) == 3
    lab.reconciler("teardown", "--yes").expect(0)
    assert lab.attached() == []
    assert lab.pinned() == []
    assert not lab.pins.exists()
    lab.apply().expect(5, "TornDown")
    assert lab.attached() == []
    assert lab.reconciler("resume").expect(0, "Applied").json["status"]["applied"]["id"] == commit
    assert len(lab.attached()) == 3


def test_lost_state_is_tampering_until_somebody_accepts(lab: Lab) -> None:
    lab.config["secureMode"]["mode"] = "enforce"
    head = lab.applied(chain("edge", lab.wall(), hook=lab.hook()))
    program, pins = lab.xdp_id(), lab.pinned()
    shutil.rmtree(lab.state)
    with Intruder(lab.near, lab.wire.interface, lab.pins) as intruder:
        foreign = intruder.filter()
        for _ in range(2):
            lost = lab.apply().expect(4, "StateLost")
            assert lost.steps == []
        # Nothing was attached, detached or evicted.
        assert (lab.xdp_id(), lab.pinned()) == (program, pins)
        assert [each["program_id"] for each in lab.attached(whose="foreign") if each["hook"] == "tc-ingress"] == [
            foreign
        ]
        with lab.traffic() as traffic:
            accepted = lab.reconciler("accept", head, "--reason", "the disk was replaced").expect(0, "Applied")
        traffic.assert_filtered()
    assert accepted.json["status"]["applied"]["id"] == head
    assert lab.attached(whose="foreign") == []
    assert not lab.reaches(DROP_PORT)
    assert lab.apply().expect(0, "InSync").steps == []


def test_a_newer_agent_s_state_is_left_alone(lab: Lab) -> None:
    lab.applied(chain("edge", lab.wall(), hook=lab.hook()))
    program = lab.xdp_id()
    path = lab.state / "inventory.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"version": raw["version"] + 1}))
    before = path.read_text()
    lab.commit()
    assert lab.apply().expect(1, "StateTooNew").steps == []
    assert lab.reconciler("teardown", "--yes").code == 1
    assert (lab.xdp_id(), path.read_text()) == (program, before)
