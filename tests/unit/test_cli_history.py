# SPDX-License-Identifier: Apache-2.0
"""`history --reviewed`: which of the states that a host applied were reviewed, and what of the newest one differs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import review
from reconciler.model import encode_json
from reconciler.status import Status
from tests.command import Ran, reconciler
from tests.unit.test_review_host import POLICY, REVIEW, STATE

if TYPE_CHECKING:
    from pathlib import Path

TIME = "2026-06-01T00:00:00+00:00"
OLD = {"time": TIME, "event": "applied", "commit": "d" * 40, "signer": "alice", "subject": "before", "state": "e" * 64}
"""As versions wrote it that did not say the policy."""
NEW = {**OLD, "commit": "c" * 40, "subject": "after", "state": STATE, "policy": POLICY, "chains": 2}
REPAIRED = {"time": TIME, "event": "repaired", "drift": ["eth0 xdp: gone"]}


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A folder with the configuration of a host, its state, and a review."""
    (tmp_path / "state").mkdir()
    status = Status(
        host="edge-1",
        at=TIME,
        reason="InSync",
        exit_code=0,
        message="fine",
        policy=POLICY,
        state_digest=STATE,
        chains=2,
    )
    (tmp_path / "state" / "status.json").write_bytes(encode_json(status))
    (tmp_path / "config.yaml").write_text(
        "apiVersion: reconciler/v1alpha1\nkind: Config\nspec:\n  labels: {role: edge}\n"
        f"  source: {{url: 'file:///none', allowFile: true}}\n  paths: {{state: {tmp_path / 'state'}}}\n"
    )
    (tmp_path / "review.json").write_text(review.to_json(REVIEW))
    return tmp_path


def history(host: Path, *records: dict[str, Any], output: str = "json", limit: int = 20) -> Ran:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (host / "state" / "history.jsonl").write_text(lines)
    arguments = ("-c", host / "config.yaml", "-o", output, "history", "--reviewed", host / "review.json", "-n", limit)
    return reconciler(*arguments)


def test_the_newest_state_was_reviewed(host: Path) -> None:
    ran = history(host, OLD, NEW, REPAIRED)
    assert ran.code == 0
    assert [record.get("reviewed") for record in ran.json] == [False, True, None]
    assert ran.json[1]["differences"] == []
    assert "the review is of commit cccccccccccc, here dddddddddddd is applied" in ran.json[0]["differences"]
    assert ran.json[2] == REPAIRED


def test_the_table_says_so_of_each_state_and_of_the_newest_in_words(host: Path) -> None:
    ran = history(host, OLD, NEW, REPAIRED, output="table")
    lines = ran.out.splitlines()
    assert lines[0].split() == ["TIME", "EVENT", "COMMIT", "STATE", "REVIEWED", "WHAT"]
    assert "eeeeeeeeeeee  no        before; signed by alice" in lines[1]
    assert "aaaaaaaaaaaa  yes       after; signed by alice" in lines[2]
    assert lines[3].split() == ["2026-06-01T00:00:00Z", "repaired", "drift", "eth0", "xdp:", "gone"]
    assert lines[4:] == ["applied state aaaaaaaaaaaa, as reviewed for edge"]


def test_another_state_was_applied_last(host: Path) -> None:
    back = {**OLD, "policy": "6" * 64, "chains": 3}
    ran = history(host, NEW, back, output="table")
    assert ran.code == 2
    assert ran.out.splitlines()[3:] == [
        "applied state eeeeeeeeeeee, which was not reviewed",
        "the review is of commit cccccccccccc, here dddddddddddd is applied",
        "for edge state aaaaaaaaaaaa was reviewed, with 2 chains; here are 3",
        "edge was reviewed for policy 555555555555, here is 666666666666",
    ]


def test_the_newest_state_counts_when_it_is_not_among_the_records_that_are_shown(host: Path) -> None:
    ran = history(host, NEW, *[REPAIRED] * 3, limit=2)
    assert (ran.code, ran.json) == (0, [REPAIRED, REPAIRED])
    assert history(host, OLD, *[REPAIRED] * 3, limit=2).code == 2


def test_nothing_was_applied(host: Path) -> None:
    ran = history(host, REPAIRED, output="table")
    assert ran.code == 2
    assert ran.out.splitlines()[-1] == "expected a commit that was applied on this host, got none"


def test_before_the_first_pass_there_is_nothing_to_compare(host: Path) -> None:
    (host / "state" / "status.json").unlink()
    ran = history(host)
    assert ran.code == 1
    assert "expected a pass on this host before it is compared, got none" in ran.err


def test_what_is_no_review_is_refused(host: Path) -> None:
    (host / "review.json").write_text("{}")
    ran = history(host, NEW)
    assert ran.code == 1
    assert "expected a review" in ran.err


def test_without_a_review_the_table_is_as_it_was(host: Path) -> None:
    (host / "state" / "history.jsonl").write_text(json.dumps(NEW) + "\n")
    ran = reconciler("-c", host / "config.yaml", "history")
    assert ran.code == 0
    assert ran.out.splitlines()[0].split() == ["TIME", "EVENT", "COMMIT", "STATE", "WHAT"]
    assert ran.out.splitlines()[1].endswith("aaaaaaaaaaaa  after; signed by alice")
