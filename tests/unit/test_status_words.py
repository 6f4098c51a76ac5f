# SPDX-License-Identifier: Apache-2.0
"""The words of `status`, as somebody reads them later than the pass that wrote them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from reconciler.errors import ExitCode
from reconciler.model import Refusal
from reconciler.status import STATUS_LINES, STATUS_WIDTH, Status, render

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def shown(seconds: float, *, code: ExitCode = ExitCode.OK, reason: str = "InSync") -> dict[str, str]:
    """The lines by their first word, read `seconds` after a pass that polls again after 30 s."""
    status = Status(
        host="edge1",
        at=AT.isoformat(),
        reason=reason,
        exit_code=code,
        message="everything is as declared",
        contact=AT.isoformat(),
        next_poll=(AT + timedelta(seconds=30)).isoformat(),
        chains=1,
        hooks=1,
        state_digest="ab" * 32,
    )
    text = render(status, AT + timedelta(seconds=seconds)).splitlines()
    assert len(text) <= STATUS_LINES
    assert all(len(line) <= STATUS_WIDTH for line in text)
    return {"verdict": text[0]} | {line.split()[0]: line for line in text[1:] if not line.startswith(" ")}


def test_a_fresh_report() -> None:
    lines = shown(2)
    assert lines["verdict"] == "IN SYNC  edge1  InSync: everything is as declared"
    assert lines["source"] == "source     last answered 2s ago, next poll in 28s"
    assert lines["chains"] == "chains     1 of 1 in sync on 1 hook, state abababababab"
    assert lines["next"] == "next       nothing to do"


def test_a_report_is_not_called_in_sync_long_after_the_next_poll_was_due() -> None:
    lines = shown(3600)
    assert lines["verdict"].startswith("WAS IN SYNC  edge1")
    assert lines["source"] == "source     last answered 60m ago, next poll was due 59m ago"
    assert lines["next"] == "next       no pass for 60m: start the agent, or `reconciler apply`"


def test_a_report_from_the_future_hides_no_agent_that_died() -> None:
    lines = shown(-3600)
    assert lines["verdict"].startswith("WAS IN SYNC  edge1")
    assert "ahead: start the agent" in lines["next"]
    assert shown(-30)["verdict"].startswith("IN SYNC  edge1")


def test_a_poll_that_is_only_a_little_late_alarms_nobody() -> None:
    lines = shown(45)
    assert lines["verdict"].startswith("IN SYNC")
    assert lines["source"] == "source     last answered 45s ago, next poll was due 15s ago"
    assert lines["next"] == "next       nothing to do"


def test_a_refusal_has_two_lines_and_names_its_commit_once() -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    message = (
        f"commit {commit}: expected a signature, got none; sign this very commit, since another on top does not help"
    )
    status = Status(
        host="edge1",
        at=AT.isoformat(),
        reason="Unsigned",
        exit_code=3,
        message=message,
        refusal=Refusal(commit=commit, reason="Unsigned", message=message, at=AT.isoformat()),
    )
    text = render(status, AT).splitlines()
    assert text[0] == "ATTENTION  edge1  Unsigned: commit 0123456789ab: expected a signature, got none…"
    assert text[2:4] == [
        "refused    0123456789ab Unsigned: expected a signature, got none; sign this very",
        "           commit, since another on top does not help",
    ]


@pytest.mark.parametrize(("code", "reason"), [(ExitCode.SIGNATURE, "Unsigned"), (ExitCode.SUSPENDED, "TornDown")])
def test_what_is_worse_keeps_its_own_next_step(code: ExitCode, reason: str) -> None:
    fresh, late = shown(2, code=code, reason=reason), shown(3600, code=code, reason=reason)
    assert fresh["verdict"].startswith("ATTENTION")
    assert fresh["next"] == late["next"]
    assert "start the agent" not in late["next"]
