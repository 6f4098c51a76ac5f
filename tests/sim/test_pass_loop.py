# SPDX-License-Identifier: Apache-2.0
"""The agent's loop over a whole host: when it passes, when it retries, what it answers, what ends it."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import reconcile
from reconciler.errors import KernelError, SourceError, StaleError, StateError
from reconciler.reconcile import _converge, _decide, _loop
from reconciler.sensor import Command, Wake
from reconciler.state import State
from tests.sim.host import Host, chain, member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

STOP = Wake(stop=True)


class Middle:
    """Randomness without any: always the middle, so that pauses are what they are on average."""

    def uniform(self, low: float, high: float) -> float:
        return (low + high) / 2


@dataclass
class Script:
    """A sensor that wakes as it is told: each entry is a wake, or a callable that makes one after the sleep."""

    host: Host
    wakes: Iterator[Any]
    slept: list[float] = field(default_factory=list)
    watched: list[list[object]] = field(default_factory=list)

    def wait(self, seconds: float) -> Wake:
        self.slept.append(seconds)
        wake = next(self.wakes, STOP)
        if wake is None:
            self.host.clock.seconds += seconds
            return Wake()
        found: Wake = wake() if callable(wake) else wake
        return found

    def watch(self, watches: Iterable[object]) -> None:
        self.watched.append(list(watches))


@dataclass
class Run:
    """One run of the agent: every pass and every sleep in order."""

    results: list[reconcile.PassResult]
    sensor: Script
    agent: reconcile.Agent

    @property
    def reasons(self) -> list[str]:
        return [result.status.reason for result in self.results]


def run(host: Host, *wakes: Any) -> Run:
    """The agent until the script ends. None sleeps as long as the agent asked for."""
    results: list[reconcile.PassResult] = []
    sensor = Script(host, iter(wakes))
    agent = reconcile.Agent(
        host.parts(),
        sensor,  # type: ignore[arg-type]  # what it uses of a Sensor
        random=Middle(),
        machine="a" * 32,
        open_watches=list,  # type: ignore[arg-type]
        report=results.append,
    )
    agent.run()
    return Run(results, sensor, agent)


class Client:
    """The other end of a control connection."""

    def __init__(self, verb: str, uid: int = 0, **arguments: Any) -> None:
        self.end, ours = socket.socketpair()
        self.command = Command(verb=verb, arguments=arguments, uid=uid, pid=1, connection=ours)

    @property
    def wake(self) -> Wake:
        return Wake(commands=(self.command,))

    def answer(self) -> dict[str, Any]:
        with self.end:
            self.end.settimeout(10)
            data = b""
            while chunk := self.end.recv(1 << 16):
                data += chunk
        answer: dict[str, Any] = json.loads(data)
        return answer


def asked(host: Host, verb: str, uid: int = 0, **arguments: Any) -> dict[str, Any]:
    """The answer of a running agent."""
    client = Client(verb, uid, **arguments)
    run(host, client.wake)
    return client.answer()


# --- when it passes ----------------------------------------------------------------------------------------


def test_the_first_pass_is_at_once_and_polls_are_further_apart_than_looks_at_the_kernel(edge: Host) -> None:
    done = run(edge, *[None] * 12)
    assert done.reasons == ["InSync"] * 13
    drift = edge.config.source.drift_interval
    assert max(done.sensor.slept) <= drift
    contacts = {result.status.contact for result in done.results}
    assert len(contacts) <= 3
    phase = reconcile.phase_of("a" * 32, edge.config.source.interval)
    assert 1 <= phase < edge.config.source.interval


def test_drift_is_mended_between_two_polls(edge: Host) -> None:
    def detach() -> Wake:
        edge.detach()
        edge.clock.seconds += edge.config.source.drift_interval
        return Wake()

    contact = edge.apply().status.contact
    done = run(edge, detach)
    assert done.reasons == ["InSync", "Applied"]
    assert edge.runs() == ["ratelimit"]
    assert done.results[1].status.contact == contact


def test_an_event_of_the_kernel_is_followed_at_once_but_a_flood_costs_no_whole_cpu(edge: Host) -> None:
    edge.origin.commit(chain("edge", member(), hook={"type": "xdp", "interfaces": ["eth*"]}))

    def appear() -> Wake:
        edge.clock.seconds += 1
        edge.kernel.add_interface("eth9")
        return Wake(changed=True)

    again = [Wake(changed=True)] * _loop.EVENT_BURST
    done = run(edge, appear, *again, None)
    assert edge.runs("eth9") == ["ratelimit"]
    assert done.reasons == ["Applied", "Applied", *["InSync"] * (_loop.EVENT_BURST - 1)]
    interval = edge.config.source.drift_interval * (1 - _loop.JITTER)
    waited = [each for each in done.sensor.slept if each < interval]  # for what an event asked for
    assert waited
    assert all(0 < each <= _loop.EVENT_BURST * _loop.EVENT_PAUSE for each in waited)


def test_a_signal_asks_the_source_at_once(edge: Host) -> None:
    def push() -> Wake:
        edge.origin.commit(chain("edge", member(params={"rate": 3})))
        return Wake(poll=True)

    done = run(edge, push)
    assert done.reasons == ["InSync", "Applied"]


def test_it_ends_when_told_and_leaves_everything_as_it_is(edge: Host) -> None:
    before = edge.fingerprint()
    done = run(edge, STOP)
    assert len(done.results) == 1
    assert edge.fingerprint() == before


def test_it_watches_the_namespaces_that_the_chains_name(edge: Host) -> None:
    edge.kernel.add_namespace("blue")
    there = {"type": "xdp", "interfaces": ["*"], "netns": "blue"}

    def push() -> Wake:
        edge.origin.commit(chain(), chain("blue", member(), hook=there))
        return Wake(poll=True)

    done = run(edge, push, Wake(poll=True))
    assert done.sensor.watched == [["host"], ["blue", "host"]]


# --- retries -----------------------------------------------------------------------------------------------


def test_a_lost_race_is_tried_again_at_once_but_not_for_ever(edge: Host) -> None:
    for _ in range((_converge.MAX_RACES + 1) * (_loop.MAX_RETRIES + 1)):
        edge.kernel.fail_on("link-update", StaleError("BPF_LINK_UPDATE", 1, "expected another program"))
    edge.origin.commit(chain("edge", member(params={"rate": 3})))
    done = run(edge, *[None] * (_loop.MAX_RETRIES + 1))
    assert done.reasons == ["HookContested"] * (_loop.MAX_RETRIES + 1) + ["Applied"]
    assert done.sensor.slept[: _loop.MAX_RETRIES] == [0.0] * _loop.MAX_RETRIES
    assert done.sensor.slept[_loop.MAX_RETRIES] > 0


def test_a_source_that_does_not_answer_is_asked_with_growing_pauses(edge: Host) -> None:
    edge.origin.vanish()
    done = run(edge, *[None] * 30)
    polls = [result for result in done.results if result.transient]
    assert 4 <= len(polls) < 20
    schedule = done.agent.schedule
    assert schedule.failures == len(polls)
    edge.origin.return_()
    schedule.passed(0.0, polled=True)
    assert schedule.failures == 0


def test_a_source_that_asks_for_time_gets_it_and_repairs_go_on(edge: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def throttled() -> str:
        error = SourceError("too many requests", reason="SourceThrottled")
        error.retry_after = 1800.0
        raise error

    monkeypatch.setattr(edge.parts().source, "resolve", throttled)
    edge.detach()
    done = run(edge, *[None] * 4)
    assert done.reasons == ["SourceThrottled"] * 5
    assert [result.transient for result in done.results] == [True, False, False, False, False]
    assert edge.runs() == ["ratelimit"]
    assert done.agent.schedule.next_poll - edge.clock.monotonic() > 1000


def test_a_refused_commit_is_not_asked_for_more_often(edge: Host) -> None:
    edge.origin.commit(chain("edge", member(params={"rate": 3})), key=None)
    done = run(edge)
    assert done.reasons == ["Unsigned"]
    assert done.agent.schedule.failures == 0
    assert done.agent.schedule.next_poll - edge.clock.monotonic() >= 1


def test_a_defect_in_a_pass_does_not_end_the_agent(edge: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("unexpected")

    with monkeypatch.context() as patch:
        patch.setattr(_decide, "judge", broken)
        head = edge.origin.commit(chain("edge", member(params={"rate": 3})))
        edge.detach()
        done = run(edge, *[None] * 8)
        assert done.reasons[0] == "InternalError"
        assert "Applied" in done.reasons
        assert "RuntimeError: unexpected" in done.results[0].status.message
        assert edge.runs() == ["ratelimit"]  # passes that do not poll go on
        assert "Traceback" in edge.emitted("defect")[0]["trace"] or "broken" in edge.emitted("defect")[0]["trace"]
    assert edge.apply().status.reason == "Applied"
    assert edge.applied == head


def test_a_defect_in_apply_is_recovered_from_like_a_crash(edge: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("unexpected")

    edge.origin.commit(chain("edge", member(params={"rate": 3})))
    with monkeypatch.context() as patch:
        patch.setattr(edge.kernel, "switch", broken)
        assert edge.apply().status.reason == "InternalError"
    assert edge.apply().status.reason == "Applied"
    assert edge.apply().plan.steps == ()  # type: ignore[union-attr]


def test_maintenance_that_fails_is_a_warning(edge: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise SourceError("no space")

    monkeypatch.setattr(edge.parts().source, "maintain", fail)
    run(edge)
    assert edge.emitted("warning")


# --- the control socket ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(_loop.ROOT_VERBS))
def test_what_changes_decisions_needs_uid_0(edge: Host, verb: str) -> None:
    before, files = edge.fingerprint(), sorted(edge.directory.iterdir())
    answer = asked(edge, verb, uid=1000, commit="x", reason="x", seconds=1, digest="x")
    assert (answer["reason"], answer["exitCode"]) == ("Forbidden", 1)
    assert edge.fingerprint() == before
    assert edge.history() == ["applied"]
    assert len(sorted(edge.directory.iterdir())) >= len(files)


def test_anybody_who_may_connect_may_plan_and_ask_for_a_pass(edge: Host) -> None:
    edge.origin.commit(chain("edge", member(params={"rate": 3})))
    client = Client("plan", uid=1000)

    def push() -> Wake:
        edge.origin.commit(chain("edge", member(params={"rate": 4})))
        return client.wake

    run(edge, push)
    answer = client.answer()
    assert answer["exitCode"] == 2
    assert answer["plan"]["steps"][0]["step"] == "load"
    assert len(answer["plan"]["digest"]) == 64
    answer = asked(edge, "apply", uid=1000)
    assert answer["exitCode"] == 0
    assert edge.runs() == ["ratelimit"]


def test_suspend_resume_and_teardown_over_the_socket(edge: Host) -> None:
    answer = asked(edge, "suspend", seconds=60, reason="INC-1")
    assert answer["exitCode"] == 5
    assert answer["status"]["suspension"]["by"] == "uid 0"
    assert asked(edge, "resume")["exitCode"] == 0
    assert asked(edge, "teardown")["exitCode"] == 0
    assert edge.kernel.pins == {}
    assert asked(edge, "resume")["exitCode"] == 0
    assert edge.runs() == ["ratelimit"]


def test_a_teardown_that_leaves_something_is_no_success(edge: Host) -> None:
    edge.kernel.fail_on("link-detach", KernelError("BPF_LINK_DETACH", 5, "input/output error"))
    answer = asked(edge, "teardown")
    assert answer["exitCode"] == 1
    assert answer["outcome"]["survivors"]
    assert edge.runs() == ["ratelimit"]
    assert "left attachments of ours on 1 hooks" in edge.repair().status.message
    answer = asked(edge, "teardown")
    assert (answer["exitCode"], edge.runs()) == (0, [])
    assert len(answer["plan"]["digest"]) == 64
    assert "everything was taken off" in edge.repair().status.message


def test_a_disk_that_takes_no_record_is_an_answer_and_ends_no_agent(
    edge: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object, record: object) -> None:
        raise StateError(f"cannot write {record}: No space left on device")

    monkeypatch.setattr(State, "save_control", refuse)
    clients = [Client(verb, seconds=60, reason="INC-1") for verb in ("suspend", "resume", "teardown")]
    run(edge, *[client.wake for client in clients])
    assert ["No space left" in client.answer()["error"] for client in clients] == [True] * 3


def test_accept_and_confirm_over_the_socket(edge: Host) -> None:
    first = edge.applied
    edge.origin.commit(chain("edge", member("firewall", program="firewall_xdp")))
    assert edge.apply().status.exit_code == 4
    answer = asked(edge, "plan")
    assert answer["exitCode"] == 4
    answer = asked(edge, "confirm", digest=answer["plan"]["digest"])
    assert answer["exitCode"] == 0
    assert edge.runs() == ["firewall"]
    assert first is not None
    assert asked(edge, "accept", commit=first, reason="x")["reason"] == "NotAdvertised"
    edge.origin.push(first)
    answer = asked(edge, "accept", commit=first, reason="back")
    assert answer["exitCode"] == 4  # against history, but not against the guardrail
    assert edge.runs() == ["firewall"]


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("nonsense", {}),
        ("accept", {}),
        ("confirm", {}),
        ("suspend", {"seconds": "soon", "reason": "x"}),
        ("suspend", {"seconds": None, "reason": "x"}),
        ("suspend", {"seconds": float("nan"), "reason": "x"}),
        ("suspend", {"seconds": 1e300, "reason": "x"}),
        ("suspend", {"seconds": -1, "reason": "x"}),
        ("suspend", {"seconds": 0, "reason": "x"}),
        ("suspend", {"seconds": 5}),
    ],
)
def test_wrong_requests_are_answered_and_change_nothing(edge: Host, verb: str, arguments: dict[str, Any]) -> None:
    answer = asked(edge, verb, **arguments)
    assert (answer["reason"], answer["exitCode"]) == ("Usage", 64)
    assert edge.history() == ["applied"]


def test_a_client_that_hung_up_is_no_error(edge: Host) -> None:
    client = Client("apply")
    client.end.close()
    assert run(edge, client.wake, None).reasons[0] == "InSync"


def test_requests_that_come_with_the_signal_to_end_are_answered(edge: Host) -> None:
    client = Client("plan")
    run(edge, Wake(stop=True, commands=(client.command,)))
    assert client.answer()["exitCode"] == 0


def test_a_host_that_never_applied_anything_can_be_asked(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.origin.commit(chain())
    assert asked(host, "plan")["exitCode"] == 4
    assert asked(host, "teardown")["exitCode"] == 0


def test_after_a_boot_the_first_pass_asks_nobody_and_the_second_one_follows_at_once(edge: Host) -> None:
    contact = edge.apply().status.contact
    edge.reboot()
    edge.clock.seconds += 3600
    done = run(edge, None, None)
    first, second = done.results[:2]
    assert (first.status.reason, first.status.contact) == ("Applied", contact)
    assert edge.runs() == ["ratelimit"]
    assert len(done.results) - len(done.sensor.slept) == 1  # no sleep between the two
    assert second.status.contact != contact
    assert run(edge).results[0].status.contact != contact  # no boot, so the source is asked at once
