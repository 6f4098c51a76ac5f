# SPDX-License-Identifier: Apache-2.0
"""What orchestration computes by itself: when to pass next, what ends soon, what a step's failure means."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import Disposition
from reconciler.manifest import state_digest
from reconciler.model import Drain, StepFailure
from reconciler.reconcile import Schedule, package_refs, phase_of
from reconciler.reconcile import _loop as loop
from reconciler.reconcile._candidate import failure_error
from tests.sim.world import desired, member, xdp_chain


class Fixed:
    """Chance that always falls the same way: 0 is the lowest, 1 the highest."""

    def __init__(self, share: float) -> None:
        self.share = share

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.share


def schedule(share: float = 0.5) -> Schedule:
    made = Schedule(interval=300.0, drift_interval=30.0, random=Fixed(share))
    made.start(1000.0, phase=120.0)
    return made


def test_the_first_pass_is_at_once_and_the_next_poll_in_the_hosts_own_phase() -> None:
    made = schedule()
    assert made.wait(1000.0) == 0
    made.passed(1000.0, polled=True)
    assert (made.next_poll, made.next_drift) == (1120.0, 1030.0)
    made.passed(1120.0, polled=True)
    assert made.next_poll == 1420.0
    assert made.wait(1125.0) == 25.0
    assert made.wait(2000.0) == 0


@given(st.floats(0, 1), st.floats(1, 86400))
def test_no_interval_makes_it_spin_or_sleep_for_ever(share: float, interval: float) -> None:
    made = Schedule(interval=interval, drift_interval=interval, random=Fixed(share))
    made.start(0.0, phase=phase_of("host", interval))
    for transient in (False, True, True, False):
        made.passed(0.0, polled=True, transient=transient)
        assert made.next_poll >= 1.0
        assert made.next_poll <= max(interval, loop.FIRST_BACKOFF) * (1 + loop.JITTER) + 1


def test_pauses_grow_with_failures_up_to_a_limit_and_start_again() -> None:
    made = schedule(1.0)
    made.interval = 100_000.0
    pauses = []
    for _ in range(20):
        made.passed(0.0, polled=True, transient=True)
        pauses.append(made.next_poll)
    assert pauses[:4] == [5.0, 10.0, 20.0, 40.0]
    assert pauses[-1] == loop.MAX_BACKOFF
    made.passed(0.0, polled=True)
    made.passed(0.0, polled=True, transient=True)
    assert made.next_poll == 5.0


def test_a_source_that_says_when_to_come_back_is_not_asked_before_and_not_by_all_at_once() -> None:
    first, last = schedule(0.0), schedule(1.0)
    for made in (first, last):
        made.passed(0.0, polled=True, transient=True, retry_after=120.0)
        assert made.next_drift < 60  # what runs is looked at all the same
    assert (first.next_poll, last.next_poll) == (121.0, 125.0)
    made = last
    made.woken(10.0, changed=False, poll=True)  # an operator may
    assert made.next_poll == 10.0


def test_a_pass_that_did_not_poll_changes_nothing_about_polls() -> None:
    made = schedule()
    made.passed(1000.0, polled=True)
    made.passed(1030.0, polled=False, transient=True)
    assert (made.next_poll, made.next_drift, made.failures) == (1120.0, 1060.0, 0)


@pytest.mark.parametrize("polled", [True, False])
def test_a_lost_race_is_tried_again_at_once_a_few_times(polled: bool) -> None:
    made = schedule()
    made.next_poll = 5000.0
    for _ in range(loop.MAX_RETRIES):
        made.passed(1000.0, polled=polled, retry=True)
        assert made.wait(1000.0) == 0
        assert (made.next_poll == 1000.0) == polled
    made.passed(1000.0, polled=polled, retry=True)
    assert made.wait(1000.0) > 0
    made.passed(1000.0, polled=polled, retry=True)
    assert made.wait(1000.0) == 0


def test_events_come_at_once_but_on_average_not_more_often_than_twice_a_second() -> None:
    made = schedule()
    for count in range(1, loop.EVENT_BURST):
        made.passed(1000.0, polled=True)
        made.woken(1000.1, changed=True, poll=False)
        assert made.next_drift == 1000.1, count
    made.passed(1000.2, polled=True)
    made.woken(1000.3, changed=True, poll=False)
    assert made.next_drift == 1000.0 + loop.EVENT_BURST * loop.EVENT_PAUSE
    made.woken(1010.0, changed=True, poll=False)
    assert made.next_drift == 1000.0 + loop.EVENT_BURST * loop.EVENT_PAUSE
    made.passed(1010.0, polled=False)
    made.woken(1020.0, changed=True, poll=True)
    assert (made.next_drift, made.next_poll) == (1020.0, 1020.0)
    made.woken(1021.0, changed=False, poll=False)
    assert made.next_drift == 1020.0


def test_hosts_are_spread_over_the_interval_and_each_keeps_its_phase() -> None:
    phases = [phase_of(f"host-{number}", 300.0) for number in range(500)]
    assert phases == [phase_of(f"host-{number}", 300.0) for number in range(500)]
    assert all(1.0 <= phase < 300.0 for phase in phases)
    assert 120 < mean(phases) < 180


@pytest.mark.parametrize("disposition", list(Disposition))
def test_a_failure_is_tried_again_as_its_error_would_be(disposition: Disposition) -> None:
    failure = StepFailure(step=Drain(), reason="Odd", message="why", disposition=disposition.value)
    error = failure_error(failure)
    assert (error.reason, str(error), error.disposition) == ("Odd", "why", disposition)


def test_a_state_is_the_same_wherever_its_files_lie() -> None:
    one = desired(xdp_chain("edge", member("ratelimit"), file="chains/a.yaml"))
    two = desired(xdp_chain("edge", member("ratelimit"), file="chains/b.yaml"))
    other = desired(xdp_chain("edge", member("ratelimit"), interfaces=("eth*",)))
    assert state_digest(one) == state_digest(two)
    assert state_digest(one) != state_digest(other)
    assert state_digest(one) != state_digest(replace(one, allow_empty=False))


def test_each_package_is_named_once() -> None:
    chains = desired(
        xdp_chain("a", member("ratelimit"), member("firewall")), xdp_chain("b", member("ratelimit"), priority=200)
    )
    refs = package_refs(chains)
    assert [ref.name for ref in refs] == ["firewall", "ratelimit"]
