# SPDX-License-Identifier: Apache-2.0
"""What a review says is what a host does: records, plans made elsewhere, and the digest of the state."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.intruder import Intruder
from tests.e2e.lab import chain
from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.lab import Document, Lab, Result


def record(lab: Lab, path: Path) -> Any:
    """The host as it is now, written to `path`."""
    lab.reconciler("observe", "--record", str(path), "--netns", lab.near.name).expect_code(0)
    return json.loads(path.read_bytes())


def offline(lab: Lab, path: Path, *more: str) -> Result:
    """The plan of the recorded host, made without its configuration, state or kernel."""
    where = ("--snapshot", str(path), "--repository", str(lab.repository.path), "--commit", "main")
    return lab.reconciler("plan", *where, *more)


CHANGES: dict[str, Callable[[Lab], list[Document]]] = {
    "nothing": lambda lab: [chain("edge", lab.limit(5), lab.wall(), hook=lab.hook())],
    "a parameter": lambda lab: [chain("edge", lab.limit(9), lab.wall(), hook=lab.hook())],
    "a member is removed": lambda lab: [chain("edge", lab.wall(), hook=lab.hook())],
    "members in another order": lambda lab: [chain("edge", lab.wall(), lab.limit(5), hook=lab.hook())],
    "a chain is removed": lambda lab: [],
    "a chain is added": lambda lab: [
        chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()),
        chain("more", lab.wall(), hook=lab.hook(), priority=200),
    ],
}


@pytest.mark.kernel
def test_the_plan_of_a_record_is_the_plan_that_the_host_makes(lab: Lab, tmp_path: Path) -> None:
    lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    lab.apply().expect(0, "Applied")
    file = tmp_path / "lab.json"
    record(lab, file)
    for change, chains in CHANGES.items():
        lab.commit(*chains(lab))
        online = lab.reconciler("plan")
        made = offline(lab, file)
        assert (made.code, made.json["steps"]) == (online.code, online.json["steps"]), change
        assert made.json["changes"] == online.json["changes"], change
        assert made.json["digest"] == online.json["digest"], change


@pytest.mark.kernel
def test_a_record_holds_nothing_secret_and_an_older_reconciler_refuses_it(lab: Lab, tmp_path: Path) -> None:
    lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    lab.apply().expect(0, "Applied")
    file = tmp_path / "lab.json"
    held = record(lab, file)
    assert held["version"] == 1
    assert held["policy"] == lab.reconciler("status").json["policy"]
    text = file.read_text()
    addresses = subprocess.run(["ip", "-n", lab.near.name, "-j", "address"], check=True, capture_output=True, text=True)
    known = [entry["address"] for entry in json.loads(addresses.stdout)]
    known += [info["local"] for entry in json.loads(addresses.stdout) for info in entry["addr_info"]]
    # All zeros stand for anything, and the loopback address for nobody.
    assert [each for each in known if each in text and each not in ("00:00:00:00:00:00", "127.0.0.1", "::1")] == []
    assert "BEGIN" not in text
    held["version"] = 2
    file.write_text(json.dumps(held))
    refused = offline(lab, file)
    assert refused.code == 1
    assert "expected a record of at most format 1, got format 2" in refused.err
    file.write_text("{}")
    assert "got JSON without a version" in offline(lab, file).err


@pytest.mark.kernel
@pytest.mark.parametrize("mode", ["audit", "enforce"])
def test_a_review_says_of_a_hook_that_others_hold_what_the_host_then_does(mode: str, lab: Lab, tmp_path: Path) -> None:
    lab.config["secureMode"] |= {"mode": mode}
    before = lab.commit()
    snapshots = tmp_path / "hosts"
    snapshots.mkdir()
    with support.pin_directory() as pins, Intruder(lab.near, lab.wire.interface, pins) as intruder:
        intruder.xdp_netlink()
        record(lab, snapshots / "lab.json")
        lab.commit(chain("edge", lab.wall(), hook=lab.hook()))
        folders = ("--repository", str(lab.repository.path), "--snapshots", str(snapshots))
        review = lab.reconciler("review", before, "main", *folders).expect_code(0)
        assert review.json["hosts"][0]["secureMode"] == mode
        (found,) = (each["message"] for each in review.json["findings"] if each["id"] == "RV038")
        pending = {each["kind"] for each in lab.apply().json["status"]["pending"]}
        stays = mode == "audit"
        assert ("displaced" in found, "so the chain stays pending (hook-occupied)" in found) == (not stays, stays)
        assert pending == ({"hook-occupied"} if stays else set())


@pytest.mark.kernel
def test_the_state_that_was_reviewed_is_the_state_that_runs(lab: Lab, tmp_path: Path) -> None:
    before = lab.commit(chain("edge", lab.limit(5), lab.wall(), hook=lab.hook()))
    lab.apply().expect(0, "Applied")
    snapshots = tmp_path / "hosts"
    snapshots.mkdir()
    record(lab, snapshots / "lab.json")
    lab.commit(chain("edge", lab.limit(9), lab.wall(), hook=lab.hook()))
    review = lab.reconciler(
        "review", before, "main", "--repository", str(lab.repository.path), "--snapshots", str(snapshots)
    ).expect_code(0)
    (host,) = review.json["hosts"]
    assert (host["name"], host["changed"]) == ("lab", True)
    told = {(change["kind"], change["member"]) for hook in host["hooks"] for change in hook["changes"]}
    plan = lab.reconciler("plan")
    assert told == {(each["kind"], f"{each['chain']}/{each['member']}") for each in plan.json["changes"]}
    assert plan.json["state_digest"] == host["digest"]
    lab.apply().expect(0, "Applied")
    assert lab.reconciler("status").json["state_digest"] == host["digest"]
    shown = host["digest"][:12]
    assert f"state {shown}" in lab.reconciler("status", output="table").out
    assert shown in lab.reconciler("history", output="table").out
    document = tmp_path / "review.json"
    document.write_text(review.out)
    planned = lab.reconciler("plan", "--reviewed", str(document)).expect_code(0).json
    assert (planned["reviewed"], planned["differences"]) == (True, [])
    assert lab.reconciler("status", "--reviewed", str(document)).expect_code(0).json["reviewed"] is True
    past = lab.reconciler("history", "--reviewed", str(document)).expect_code(0).json
    assert [each["reviewed"] for each in past if each["event"] == "applied"] == [False, True]
    lab.commit(chain("edge", lab.limit(3), lab.wall(), hook=lab.hook()))
    ahead = lab.reconciler("plan", "--reviewed", str(document)).expect_code(2).json
    assert not ahead["reviewed"]
    assert any(sentence.endswith("is planned") for sentence in ahead["differences"])
    assert "which was not reviewed" in lab.reconciler("plan", "--reviewed", str(document), output="table").out
    lab.apply().expect(0, "Applied")
    other = lab.reconciler("status", "--reviewed", str(document)).expect_code(2).json
    assert any("the review is of commit" in sentence for sentence in other["differences"])
    past = lab.reconciler("history", "--reviewed", str(document)).expect_code(2).json
    assert [each["reviewed"] for each in past if each["event"] == "applied"] == [False, True, False]
    assert past[-1]["differences"] == other["differences"]
