# SPDX-License-Identifier: Apache-2.0
"""The verdict of a pass, and how it is shown: on a terminal, as metrics, as events."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler import status as shown
from reconciler.errors import ExitCode
from reconciler.model import CommitRecord, Drift, DriftKind, Refusal, Suspension
from reconciler.status import Expiry, Finding, Status, clean, metrics, render, render_metrics, verdict

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PRECEDENCE = [3, 4, 6, 1, 5, 7, 2, 0]


def at(**ago: float) -> str:
    return (NOW - timedelta(**ago)).isoformat()


def make(**fields: object) -> Status:
    basic = Status(host="edge-1", at=at(), reason="InSync", exit_code=0, message="everything is as declared")
    return replace(basic, **fields)  # type: ignore[arg-type]  # by the caller


def full(text: str = "x" * 300) -> Status:
    """Everything that a status can show, as long as it can be."""
    drift = tuple(Drift(kind=kind, where=text, message=text) for kind in DriftKind)
    return make(
        host=text,
        reason=text,
        exit_code=3,
        message=text,
        applied=CommitRecord(id="a" * 64, signer=text, subject=text, at=at(days=9)),
        seen="b" * 64,
        refusal=Refusal(commit="b" * 64, reason=text, message=text, at=at()),
        contact=at(hours=3),
        next_poll=shown.later(NOW, 300),
        suspension=Suspension(until=text, reason=text, by=text, at=text),
        chains=9,
        chains_pending=4,
        hooks=7,
        drift=drift,
        expiry=Expiry(what=text, at=text),
        policy="c" * 64,
        state_digest="d" * 64,
    )


# --- verdict -----------------------------------------------------------------------------------------------


def test_when_several_exit_codes_apply_the_documented_one_wins() -> None:
    findings = [Finding(reason=str(code), message="", exit_code=code) for code in PRECEDENCE]
    assert verdict([]) is None
    for first, second in combinations(findings, 2):
        for order in ([first, second], [second, first]):
            found = verdict(order)
            assert found is not None
            assert found.exit_code == min(first.exit_code, second.exit_code, key=PRECEDENCE.index)


def test_every_exit_code_but_usage_has_its_place() -> None:
    assert sorted(PRECEDENCE) == sorted(int(code) for code in ExitCode if code is not ExitCode.USAGE)
    assert [int(code) for code in shown.EXIT_PRECEDENCE] == PRECEDENCE


def test_of_equal_findings_the_first_is_the_verdict() -> None:
    findings = [Finding(reason=name, message="", exit_code=2) for name in ("a", "b")]
    assert verdict(findings) == findings[0]


# --- the terminal ------------------------------------------------------------------------------------------


def test_a_status_is_at_most_twelve_lines_of_eighty_columns() -> None:
    for each in (make(), full(), full("\x1b[31m\u202e日本" * 50)):
        lines = render(each, NOW).splitlines()
        assert len(lines) <= 12
        assert max(map(len, lines)) <= 80
    assert render(full(), NOW).splitlines()[-1].startswith("next")


def test_everything_that_matters_is_on_it() -> None:
    text = render(
        make(
            reason="HistoryRewritten",
            exit_code=4,
            message="the source was rewound",
            applied=CommitRecord(id="a" * 40, signer="alice", subject="limit more", at=at(minutes=5)),
            refusal=Refusal(commit="b" * 40, reason="HistoryRewritten", message="rewound", at=at()),
            contact=at(seconds=12),
            next_poll="2026-03-01T12:05:00+00:00",
            chains=3,
            chains_pending=1,
            drift=(Drift(kind=DriftKind.FOREIGN, where="eth0 xdp", message="foe"),),
            pending=(Drift(kind=DriftKind.NOT_REMOVABLE, where="eth1 xdp", message="foe"),),
            expiry=Expiry(what="key of release", at="2026-04-01"),
        ),
        NOW,
    )
    for part in (
        "ATTENTION  edge-1  HistoryRewritten: the source was rewound",
        "aaaaaaaaaaaa limit more",
        "signed by alice, applied 5m ago",
        "refused    bbbbbbbbbbbb HistoryRewritten: rewound",
        "answered 12s ago, next poll in 5m",
        "2 of 3 in sync",
        "2: eth0 xdp: foe",
        "1 programs, 1 not removable",
        "expires    key of release at 2026-04-01",
        "reconciler accept COMMIT --reason TEXT",
    ):
        assert part in text, part


def test_a_host_without_a_commit_says_so() -> None:
    text = render(make(reason="NothingApplied", exit_code=1), NOW)
    assert "nothing yet" in text
    assert "never answered" in text
    assert "reconciler history" in text


def test_the_first_word_is_the_verdict() -> None:
    assert render(make(), NOW).startswith("IN SYNC")
    assert render(make(exit_code=2), NOW).startswith("NOT IN SYNC")
    assert "nothing to do" in render(make(), NOW)
    assert "reconciler plan" in render(make(reason="Drift", exit_code=2), NOW)


@pytest.mark.parametrize("reason", sorted(shown.NEXT_STEPS))
def test_every_next_step_fits_its_line(reason: str) -> None:
    assert len(f"next       {shown.NEXT_STEPS[reason]}") <= 80
    assert shown.next_step(make(reason=reason)) == shown.NEXT_STEPS[reason]


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        ({"seconds": 0}, "0s"),
        ({"seconds": -90}, "0s"),
        ({"seconds": 119}, "119s"),
        ({"seconds": 120}, "2m"),
        ({"minutes": 119}, "119m"),
        ({"hours": 2}, "2h"),
        ({"days": 9}, "9d"),
    ],
)
def test_an_age_has_one_unit(ago: dict[str, float], text: str) -> None:
    assert shown.age(at(**ago), NOW) == text


def test_an_age_of_nonsense_is_unknown() -> None:
    assert shown.age("yesterday", NOW) == "?"


def test_a_report_of_an_agent_that_died_says_so() -> None:
    late = make(at=at(hours=2), next_poll=at(hours=2))
    text = render(late, NOW)
    assert text.startswith("WAS IN SYNC")
    assert "next poll was due 2h ago" in text
    assert "no pass for 2h: start the agent" in text
    assert render(replace(late, exit_code=2), NOW).startswith("NOT IN SYNC")
    assert render(replace(late, exit_code=3), NOW).startswith("ATTENTION")
    assert render(make(next_poll="soon"), NOW).startswith("IN SYNC")


# --- text from outside -------------------------------------------------------------------------------------


@given(st.text(max_size=200))
def test_clean_text_is_one_line_without_control_characters(text: str) -> None:
    found = clean(text, 100)
    assert len(found) <= 100
    assert not any(unicodedata.category(char).startswith("C") for char in found)
    assert len(found.splitlines()) <= 1
    assert clean(found, 100) == found


@pytest.mark.parametrize(
    "bad", ["\x1b]8;;http://x\x07", "a\u202eb", "\u2066", "\x9b31m", "a\x00b", "a\u2028b", "a\u0085b"]
)
def test_escapes_and_directions_are_taken_out(bad: str) -> None:
    found = clean(bad)
    assert not set(found) & {"\x1b", "\u202e", "\u2066", "\x9b", "\x00", "\u2028", "\u0085", "\x07"}


def test_events_are_cleaned_and_keep_what_is_no_text() -> None:
    record = shown.event("refused", NOW, commit="a\x1b[0m", count=3, found=["x"])
    assert record == {"time": NOW.isoformat(), "event": "refused", "commit": "a\ufffd[0m", "count": 3, "found": ["x"]}


# --- metrics -----------------------------------------------------------------------------------------------


def values(text: str) -> dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_metrics_say_what_the_status_says() -> None:
    each = make(
        contact=at(seconds=60),
        chains=3,
        chains_pending=1,
        hooks=5,
        seconds=0.25,
        drift=(Drift(kind=DriftKind.FOREIGN, where="a", message="b"),) * 2,
        suspension=Suspension(until="", reason="", by="", at=""),
        expedited=True,
    )
    counters = [("edge", "limit", {"seen": (10, 640), "dropped": (4, 256)})]
    found = values(render_metrics(metrics(each, counters)))
    assert found["reconciler_in_sync"] == "1"
    assert found['reconciler_pass_reason{reason="InSync"}'] == "1"
    assert found["reconciler_source_contact_timestamp_seconds"] == str(int(NOW.timestamp()) - 60)
    assert found["reconciler_pass_duration_seconds"] == "0.25"
    assert found['reconciler_drift{kind="foreign"}'] == "2"
    assert found['reconciler_drift{kind="absent"}'] == "0"
    assert found["reconciler_suspended"] == found["reconciler_expedited"] == "1"
    assert found['reconciler_packets_total{chain="edge",member="limit",verdict="dropped"}'] == "4"
    assert found['reconciler_bytes_total{chain="edge",member="limit",verdict="seen"}'] == "640"


def test_metrics_of_a_host_that_never_met_its_source() -> None:
    found = values(render_metrics(metrics(make(exit_code=1), [])))
    assert found["reconciler_source_contact_timestamp_seconds"] == "0"
    assert found["reconciler_in_sync"] == "0"
    assert not any(name.startswith("reconciler_packets_total") for name in found)


def test_labels_are_escaped_and_never_hold_a_commit() -> None:
    hostile = [('a"} 1\nfake{x="', "b\\", {"seen": (1, 1)})]
    text = render_metrics(metrics(full("y"), hostile))
    assert r'chain="a\"} 1 fake{x=\"",member="b\\"' in text
    assert all(line.startswith(("#", "reconciler_")) for line in text.splitlines())
    assert "a" * 40 not in text
    assert "b" * 40 not in text
