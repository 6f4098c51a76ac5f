# SPDX-License-Identifier: Apache-2.0
"""Several processes at once, one of them killed; and clocks that jump by years."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from reconciler.errors import LockedError
from reconciler.reconcile import suspend
from tests.kernel import support
from tests.kernel.killed.process import Kill, ended, forked, started

if TYPE_CHECKING:
    from tests.kernel.killed.host import Report
    from tests.kernel.killed.rounds import Rounds

YEARS = timedelta(days=3653)


def test_of_several_at_once_one_works_and_the_others_say_that_they_may_not(rounds: Rounds) -> None:
    host = rounds.host

    def attempt() -> str:
        try:
            return host.one_pass().status.reason
        except LockedError as error:
            return error.reason

    with host.scene.traffic() as received:
        for _ in range(3):
            host.push(rounds.other())
            reasons = sorted(ended(*each).value for each in [started(attempt) for _ in range(4)])
            assert reasons.count("Applied") == 1
            assert set(reasons) <= {"Applied", "InSync", "Locked"}  # who comes late finds nothing to do
            rounds.recovered(reasons)
        # The lock of one that is killed is free at once.
        host.push(rounds.other())
        killed = started(lambda: host.one_pass().status, Kill(1, "after", "bpf LINK_UPDATE"))
        assert ended(*killed).killed
        assert ended(*started(attempt)).value == "Applied"
        rounds.recovered("killed beside another one")
    assert [got.dropped for got in received] == [0, 0]


def test_a_clock_that_jumps_by_years_changes_nothing_that_runs(rounds: Rounds) -> None:
    host = rounds.host

    def at_rest(reason: str | None, **request: bool) -> None:
        report: Report = forked(lambda: host.settle(**request)).value
        assert report.seen == rounds.seen[rounds.at]
        assert report.again == 0
        if reason is not None:
            assert (report.status.reason, report.steps) == (reason, 0)

    for jump in (YEARS, -YEARS):
        host.clock.offset = jump
        at_rest("InSync")
        at_rest("InSync", poll=False)
        rounds.peace()  # a new commit is taken under this clock, and another one when it is right again
        host.clock.offset = timedelta()
        rounds.peace()
    # Without the source: what runs goes on, and what somebody removes comes back, whatever the clock says.
    host.origin.vanish()
    for jump, reason in ((YEARS, "SourceStale"), (timedelta(), "NotARepository"), (-YEARS, "SourceStale")):
        host.clock.offset = jump
        support.remove_pins(host.pins / "links")
        at_rest(None)
        at_rest(reason)
    host.origin.return_()
    host.clock.offset = timedelta()
    at_rest("InSync")


def test_a_suspension_ends_by_the_clock_that_is_read(rounds: Rounds) -> None:
    host = rounds.host

    def hold() -> None:
        with host.opened() as parts:
            suspend(parts, seconds=3600, reason="test", by="uid 0")

    forked(hold)
    host.push(rounds.other())
    expected = {timedelta(): "Suspended", -YEARS: "Suspended", YEARS: "Applied"}
    for offset, reason in expected.items():
        host.clock.offset = offset
        report: Report = forked(host.settle).value
        assert report.status.reason == reason
        assert report.seen.hooks == rounds.seen[rounds.other() if reason == "Applied" else rounds.at].hooks
