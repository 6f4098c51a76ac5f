# SPDX-License-Identifier: Apache-2.0
"""A source that takes its time: what runs is repaired meanwhile, and whoever asks gets what was there when he asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reconciler import reconcile
from reconciler.errors import SourceError
from reconciler.reconcile import Answer
from reconciler.reconcile._loop import MAX_WAITING
from reconciler.reconcile._poller import ask
from reconciler.sensor import Wake
from tests.sim.host import Host, chain, member
from tests.sim.test_pass_loop import STOP, Client, Middle, Script

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.errors import ReconcilerError


LOOK = Wake()
"""What a sensor gives that only looked, because something else is due at once."""


@dataclass
class SlowPoller:
    """Answers what the source said when it was asked, and only when the test lets it."""

    host: Host
    asked: int = 0
    expected: list[bool] = field(default_factory=list)
    under_way: Answer | None = None
    ready: Answer | None = None
    maintaining: bool = False
    maintained: int = 0
    closed: bool = False
    problems: list[ReconcilerError] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        return self.under_way is not None or self.ready is not None or self.maintaining

    def ask(self, *, expecting: bool) -> None:
        assert not self.busy
        self.asked += 1
        self.expected.append(expecting)
        self.under_way = ask(self.host.parts().source, expecting=expecting)

    def take(self) -> Answer | None:
        ready, self.ready = self.ready, None
        return ready

    def maintain(self) -> None:
        assert not self.busy
        self.maintained += 1

    def failure(self) -> ReconcilerError | None:
        return self.problems.pop() if self.problems else None

    def close(self) -> None:
        self.closed = True

    # --- what a test does ---

    def arrive(self) -> Wake:
        self.ready, self.under_way = self.under_way, None
        assert self.ready is not None
        return Wake()


@dataclass
class Story:
    """One run of the agent over a slow source."""

    host: Host
    poller: SlowPoller
    results: list[reconcile.PassResult] = field(default_factory=list)

    def run(self, *wakes: Any) -> Story:
        agent = reconcile.Agent(
            self.host.parts(),
            Script(self.host, iter(wakes)),  # type: ignore[arg-type]  # what it uses of a Sensor
            random=Middle(),
            machine="a" * 32,
            open_watches=list,  # type: ignore[arg-type]
            report=self.results.append,
            poller=self.poller,
        )
        agent.run()
        return self

    @property
    def reasons(self) -> list[str]:
        return [result.status.reason for result in self.results]


def story(host: Host) -> Story:
    return Story(host, SlowPoller(host))


def later(host: Host, do: Callable[[], object]) -> Callable[[], Wake]:
    """A wake at the next look at the kernel, after something was done."""

    def wake() -> Wake:
        do()
        host.clock.seconds += host.config.source.drift_interval * 1.2
        return Wake()

    return wake


def faster(rate: int) -> Any:
    return chain("edge", member(params={"rate": rate}))


def test_what_runs_is_repaired_while_the_source_is_silent(edge: Host) -> None:
    head = edge.origin.commit(faster(3))
    one = story(edge)
    done = one.run(later(edge, edge.detach), later(edge, edge.detach), one.poller.arrive)
    # Two put the program back, the last takes the commit.
    assert done.reasons == ["Applied", "Applied", "Applied"]
    assert (done.poller.asked, done.poller.maintained) == (1, 1)
    assert edge.applied == head
    assert edge.runs() == ["ratelimit"]
    assert done.poller.closed


def test_after_a_reboot_the_last_good_state_does_not_wait_for_the_source(edge: Host) -> None:
    edge.reboot()
    done = story(edge).run()
    assert done.reasons == ["Applied"]
    assert edge.runs() == ["ratelimit"]


def test_a_host_that_never_applied_anything_waits_for_its_first_answer(host: Host) -> None:
    host.set_source(minimum_commit=host.origin.commit(chain()))
    one = story(host)
    assert one.run(one.poller.arrive).reasons == ["Applied"]


def test_a_request_is_answered_with_what_the_source_said_after_it_came(edge: Host) -> None:
    one, early, late = story(edge), Client("apply"), Client("apply")
    heads: list[str] = []

    def push_and_ask() -> Wake:
        heads.append(edge.origin.commit(faster(5)))
        return late.wake

    # A scheduled question is under way when `early` comes; that is not answered by it, nor `late` by the next one.
    def push_and_ask_early() -> Wake:
        heads.append(edge.origin.commit(faster(4)))
        return early.wake

    done = one.run(
        push_and_ask_early, one.poller.arrive, LOOK, push_and_ask, one.poller.arrive, LOOK, one.poller.arrive
    )
    assert early.answer()["status"]["applied"]["id"] == heads[0]
    assert late.answer()["status"]["applied"]["id"] == heads[1]
    assert done.poller.asked == 3


def test_a_signal_during_a_question_asks_again(edge: Host) -> None:
    one = story(edge)
    head: list[str] = []

    def push() -> Wake:
        head.append(edge.origin.commit(faster(6)))
        return Wake(poll=True)

    done = one.run(push, one.poller.arrive, LOOK, one.poller.arrive)
    assert done.poller.expected == [False, True]
    assert edge.applied == head[0]


def test_a_plan_a_confirmation_and_an_acceptance_use_the_answer_that_was_waited_for(edge: Host) -> None:
    before = edge.applied
    assert before is not None
    edge.origin.commit(faster(7))
    one, plan = story(edge), Client("plan")
    one.run(one.poller.arrive, plan.wake, one.poller.arrive)
    assert plan.answer()["exitCode"] == 0  # the scheduled pass applied it
    other = edge.origin.commit(faster(8), parents=())
    two, accept = story(edge), Client("accept", commit=other, reason="meant")
    two.run(two.poller.arrive, accept.wake, two.poller.arrive)
    assert accept.answer()["status"]["reason"] == "Applied"
    assert edge.applied == other


def test_requests_that_wait_for_a_silent_source_are_few_and_root_is_always_heard(edge: Host) -> None:
    many = [Client("plan", uid=1000) for _ in range(3 * MAX_WAITING)]
    root = Client("plan")
    one = story(edge)
    one.run(*[client.wake for client in (*many, root)], one.poller.arrive, LOOK, one.poller.arrive)
    answers = [client.answer() for client in many]
    assert [answer.get("reason") for answer in answers] == [None] * MAX_WAITING + ["Busy"] * 2 * MAX_WAITING
    assert root.answer()["exitCode"] == 0


def test_a_source_that_failed_is_an_answer_too(edge: Host) -> None:
    one, apply = story(edge), Client("apply")

    def fail() -> Wake:
        one.poller.under_way = Answer(error=SourceError("expected an end within 30 s", reason="SourceTimeout"))
        return one.poller.arrive()

    def defect() -> Wake:
        one.poller.under_way = Answer(error=RuntimeError("unexpected"))
        edge.detach()
        return one.poller.arrive()

    done = one.run(fail, apply.wake, defect)
    assert done.reasons == ["SourceTimeout", "InternalError"]
    assert apply.answer()["status"]["reason"] == "InternalError"
    assert edge.runs() == ["ratelimit"]  # repaired all the same
    assert done.poller.maintained == 0


def test_a_suspended_host_asks_nobody(edge: Host) -> None:
    reconcile.suspend(edge.parts(), seconds=3600, reason="work", by="root")
    apply, resume = Client("apply"), Client("resume")
    one = story(edge)
    done = one.run(apply.wake, resume.wake, one.poller.arrive)
    assert apply.answer()["status"]["reason"] == "Suspended"
    assert resume.answer()["status"]["reason"] == "InSync"
    assert done.poller.expected == [True]


def test_a_suspension_that_ended_by_itself_stops_no_question(edge: Host) -> None:
    reconcile.suspend(edge.parts(), seconds=5, reason="work", by="root")
    edge.clock.seconds += 6
    one = story(edge)
    assert one.run(one.poller.arrive).poller.asked == 1


def test_who_waits_when_the_agent_ends_is_told(edge: Host) -> None:
    first, second = Client("apply"), Client("plan")
    one = story(edge)
    one.run(first.wake, second.wake, STOP)
    for client in (first, second):
        assert client.answer()["reason"] == "Cancelled"
    assert one.poller.closed


def test_maintenance_under_way_delays_questions_and_no_repair(edge: Host) -> None:
    one, apply = story(edge), Client("apply")

    def begin() -> Wake:
        one.poller.maintaining = True
        edge.detach()
        edge.clock.seconds += edge.config.source.drift_interval * 1.2
        return apply.wake

    def end() -> Wake:
        one.poller.maintaining = False
        one.poller.problems.append(SourceError("no space", reason="DiskFull"))
        return Wake()

    done = one.run(one.poller.arrive, begin, end, one.poller.arrive)
    assert done.reasons == ["InSync", "Applied", "InSync"]
    assert apply.answer()["exitCode"] == 0
    assert "maintenance: no space" in str(edge.emitted("warning")[0]["message"])


def test_records_that_cannot_be_read_ask_nobody_and_are_said(edge: Host) -> None:
    (edge.directory / "control.json").write_text("{")
    one = story(edge)
    assert one.run().poller.asked == 0
    assert len(one.results) == 1
    assert one.results[0].status.exit_code != 0
