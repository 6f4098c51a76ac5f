# SPDX-License-Identifier: Apache-2.0
"""The agent: wake, pass, report, sleep. Retries are decided by disposition alone.

The source is asked by a `Poller`, and a pass that takes its answer begins when that is there; meanwhile what runs is
looked at and repaired as ever. Requests that want the source asked are answered by that pass.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from reconciler import plan
from reconciler.errors import ExitCode, ReconcilerError, StateError
from reconciler.model import encode_json, to_builtins
from reconciler.reconcile import _operations as operations
from reconciler.reconcile._parts import Request
from reconciler.reconcile._pass import Pass
from reconciler.reconcile._poller import InlinePoller
from reconciler.status import event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reconciler.model import Outcome, Plan
    from reconciler.reconcile._parts import Answer, Parts, PassResult
    from reconciler.reconcile._poller import Poller
    from reconciler.sensor import Command, Sensor, Watch

MAX_BACKOFF: Final = 900.0
"""Seconds; the longest pause between two tries of a source that does not answer."""

FIRST_BACKOFF: Final = 5.0
"""Seconds; doubled with each failure, drawn from 0..pause (full jitter)."""

JITTER: Final = 0.1
"""Share of the interval by which polls are spread, besides the host's own phase."""

MAX_RETRIES: Final = 3
"""Immediate passes after a lost race; then the ordinary drift interval takes over."""

EVENT_PAUSE: Final = 0.5
"""Seconds between two passes that events of the kernel ask for, on average: a flapping interface costs no whole CPU."""

EVENT_BURST: Final = 4
"""Passes that may follow each other at once. An interface that is made anew is two events or three, and until the pass
after the last one its packets go without the chain."""

ASKING_VERBS: Final = frozenset({"apply", "confirm", "plan", "accept", "resume"})
"""What wants to know what the source says now: answered when that is known."""

MAX_WAITING: Final = 16
"""Requests of others than root that wait for the source: each holds a descriptor, and gets a pass of its own."""

ROOT_VERBS: Final = frozenset({"accept", "suspend", "resume", "confirm", "teardown"})
"""What only uid 0 may ask for; the socket's mode and group decide about the rest."""


class Random(Protocol):
    """Randomness is an argument."""

    def uniform(self, low: float, high: float) -> float: ...


@dataclass(slots=True)
class Schedule:
    """When to poll next, and when to look at the kernel next; seconds of the monotonic clock."""

    interval: float
    drift_interval: float
    random: Random
    next_poll: float = 0.0
    next_drift: float = 0.0
    failures: int = 0
    retries: int = 0

    def start(self, now: float, phase: float) -> None:
        """The first pass is at once; later polls fall into this host's phase."""
        self.next_poll = self.next_drift = now
        self._phase = phase

    _phase: float = 0.0
    _ends: deque[float] = field(default_factory=lambda: deque(maxlen=EVENT_BURST))

    def woken(self, now: float, *, changed: bool, poll: bool) -> None:
        """Something happened: look again soon, or ask the source at once."""
        if changed:
            full = len(self._ends) == EVENT_BURST
            soonest = self._ends[0] + EVENT_BURST * EVENT_PAUSE if full else now
            self.next_drift = min(self.next_drift, max(now, soonest))
        if poll:
            self.next_poll = now

    def passed(
        self,
        now: float,
        *,
        polled: bool,
        transient: bool = False,
        retry: bool = False,
        retry_after: float | None = None,
    ) -> None:
        """A pass ended: plan the next ones; `retry_after` is what the source asked for, in seconds."""
        self._ends.append(now)
        if retry and self.retries < MAX_RETRIES:
            self.retries += 1
            self.next_drift = now
            self.next_poll = now if polled else self.next_poll
            return
        self.retries = 0
        self.next_drift = now + self.drift_interval * (1 + self.random.uniform(-JITTER, JITTER))
        if not polled:
            return
        if transient:
            pause = min(FIRST_BACKOFF * 2**self.failures, MAX_BACKOFF, max(self.interval, FIRST_BACKOFF))
            self.failures = min(self.failures + 1, 16)
            # On top of it: hosts that were sent away together must not come back together.
            self.next_poll = now + (retry_after or 0.0) + max(1.0, self.random.uniform(0, pause))
            return
        self.failures = 0
        pause = self._phase or self.interval
        self._phase = 0.0
        self.next_poll = now + max(1.0, pause * (1 + self.random.uniform(-JITTER, JITTER)))

    def wait(self, now: float, *, polling: bool = False) -> float:
        """Seconds until something is due; `polling` says that the source is being asked already."""
        return max((self.next_drift if polling else min(self.next_poll, self.next_drift)) - now, 0.0)


def phase_of(machine: str, interval: float) -> float:
    """Stable share of the interval for this host: hosts that boot together do not poll together."""
    number = int.from_bytes(hashlib.sha256(machine.encode()).digest()[:8], "big")
    return max(1.0, interval * number / 2**64)


class Agent:
    """The loop over one host; `run` returns when a signal asks for it. Programs stay as they are."""

    def __init__(  # noqa: PLR0913  # the objects of the composition root, each by its name
        self,
        parts: Parts,
        sensor: Sensor,
        *,
        random: Random,
        machine: str,
        open_watches: Callable[[tuple[str, ...]], Iterable[Watch]],
        report: Callable[[PassResult], None],
        poller: Poller | None = None,
    ) -> None:
        self.parts = parts
        self.poller = poller or InlinePoller(parts.source)
        self.waiting: list[Command] = []  # for the answer to the question under way
        self.later: list[Command] = []  # for the next one: they came while that was under way
        self.again = False  # ask once more: a SIGHUP came while a question was under way
        self.expecting = False  # somebody says that there is something new
        self.sensor = sensor
        self.open_watches = open_watches
        self.report = report
        config = parts.config.source
        self.schedule = Schedule(interval=config.interval, drift_interval=config.drift_interval, random=random)
        self.machine = machine
        self.watched: tuple[str, ...] | None = None

    def run(self) -> None:
        """Until a signal says stop; whoever still waits for the source is told so."""
        try:
            self._run()
        finally:
            self.poller.close()
            for command in (*self.waiting, *self.later):
                command.reply({"error": "the agent ends", "reason": "Cancelled", "exitCode": int(ExitCode.ERROR)})

    def _run(self) -> None:
        clock = self.parts.clock
        self.schedule.start(clock.monotonic(), phase_of(self.machine, self.schedule.interval))
        if self._booted():
            # The network may wait: what was applied last is attached, and nobody is asked.
            self.one_pass(Request(poll=False))
        else:
            # The first pass takes the answer; a source that is silent delays it no longer than this.
            self.schedule.next_drift = clock.monotonic() + self.schedule.drift_interval
        while True:
            self._turn(clock.monotonic())
            idle = self.later and not self.poller.busy
            seconds = 0.0 if idle else self.schedule.wait(clock.monotonic(), polling=self.poller.busy)
            wake = self.sensor.wait(seconds)
            for command in wake.commands:
                self.serve(command)
            if wake.stop:
                return
            self.again = self.again or (wake.poll and self.poller.busy)
            self.expecting = self.expecting or wake.poll
            self.schedule.woken(clock.monotonic(), changed=wake.changed, poll=wake.poll)

    def _booted(self) -> bool:
        """Whether the host was started anew since the last pass; then nothing of ours is attached."""
        try:
            inventory = self.parts.state.inventory()
        except StateError:
            return False
        return inventory is not None and inventory.boot_id != self.parts.kernel.boot_id()

    def _turn(self, now: float) -> None:
        """What is due now: a question, the pass that takes its answer, or a look at what runs."""
        due = now >= self.schedule.next_poll
        answer = self._question(due=due)
        if answer is not None:
            self._answered(answer)
        elif due and not self.poller.busy:
            self.one_pass(Request(poll=True))  # suspended, or without records: the pass says so, and asks nobody
        elif now >= self.schedule.next_drift:
            self.one_pass(Request(poll=False))
        if (failure := self.poller.failure()) is not None:
            self.parts.emit(event("warning", self.parts.clock.now(), message=f"maintenance: {failure}"))

    def _question(self, *, due: bool) -> Answer | None:
        """The answer, if there is one; else begin a question that is due, or that somebody waits for."""
        answer = self.poller.take()
        if answer is not None or self.poller.busy or not (due or self.later):
            return answer
        self.waiting, self.later = self.later, []
        if self._may_ask():
            expecting, self.expecting = self.expecting or bool(self.waiting), False
            self.poller.ask(expecting=expecting)
            return self.poller.take()
        waiting, self.waiting = self.waiting, []
        for command in waiting:
            self._reply(command, None)
        return None

    def _answered(self, answer: Answer) -> None:
        """The pass that takes an answer: that of whoever waits for it, or the scheduled one."""
        waiting, self.waiting = self.waiting, []
        for command in waiting:
            self._reply(command, answer)
        if not waiting:
            result = self.one_pass(Request(poll=True, answer=answer))
            if not (result.transient or result.retry_now):
                self.poller.maintain()  # on a budget, and outside of a pass
        if self.again:
            self.again, self.schedule.next_poll = False, self.parts.clock.monotonic()

    def _may_ask(self) -> bool:
        """Whether a pass would ask the source now: not while new commits are suspended, or after a teardown."""
        try:
            control = self.parts.state.control()
        except StateError:
            return False
        suspended = control.suspension is not None and (
            datetime.fromisoformat(control.suspension.until) > self.parts.clock.now()
        )
        return not suspended and not control.torn_down

    def one_pass(self, request: Request) -> PassResult:
        """One pass, its report, and the watches that fit what is desired now."""
        result = Pass(self.parts, request).run()
        self._passed(result, polled=request.poll)
        return result

    def _passed(self, result: PassResult, *, polled: bool) -> None:
        self.schedule.passed(
            self.parts.clock.monotonic(),
            polled=polled,
            transient=result.transient,
            retry=result.retry_now,
            retry_after=result.retry_after,
        )
        self.parts.source.rest()
        self._watch(result)
        self.report(result)

    def _watch(self, result: PassResult) -> None:
        if result.wanted is None:
            return
        inventory = result.outcome.inventory if result.outcome else result.plan.inventory if result.plan else None
        if inventory is None:
            return
        names = plan.required_namespaces(result.wanted.desired, self.parts.config.secure, inventory)
        if names == self.watched:
            return
        try:
            watches = self.open_watches(names)
        except OSError as error:
            # Containers share root's limit on inotify instances. Without events the drift interval finds what changed.
            message = f"interfaces are not watched, tried again after the next pass: {error.strerror or error}"
            self.parts.emit(event("warning", self.parts.clock.now(), message=message))
            return
        self.watched = names
        self.sensor.watch(watches)

    # --- the control socket ------------------------------------------------------------------------------

    def serve(self, command: Command) -> None:
        """Answer one request; whatever goes wrong is the answer."""
        if command.verb in ROOT_VERBS and command.uid != 0:
            message = f"{command.verb} needs uid 0, got uid {command.uid}"
            command.reply({"error": message, "reason": "Forbidden", "exitCode": int(ExitCode.ERROR)})
            return
        if command.verb not in ASKING_VERBS:
            self._reply(command, None)
            return
        if command.uid != 0 and len(self.waiting) + len(self.later) >= MAX_WAITING:
            message = f"{MAX_WAITING} requests wait for the source already; try again when it has answered"
            command.reply({"error": message, "reason": "Busy", "exitCode": int(ExitCode.ERROR)})
            return
        if command.verb == "resume":  # from now on, also for the question
            try:
                operations.resume(self.parts, by=f"uid {command.uid}")
            except ReconcilerError as error:
                command.reply(_refusal(error))
                return
        self.later.append(command)
        if (answer := self._question(due=False)) is not None:
            self._answered(answer)

    def _reply(self, command: Command, known: Answer | None) -> None:
        try:
            answer = self._answer(command, known)
        except ReconcilerError as error:
            answer = _refusal(error)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            answer = {
                "error": f"{command.verb}: bad arguments: {error}",
                "reason": "Usage",
                "exitCode": int(ExitCode.USAGE),
            }
        command.reply(answer)

    def _answer(self, command: Command, known: Answer | None) -> dict[str, Any]:
        arguments = command.arguments
        by = f"uid {command.uid}"
        match command.verb:
            case "apply" | "resume":
                return answer_of(self.one_pass(Request(poll=True, answer=known)))
            case "confirm":
                return answer_of(self.one_pass(Request(poll=True, answer=known, confirm=str(arguments["digest"]))))
            case "plan":
                return answer_of(Pass(self.parts, Request(poll=True, answer=known, dry_run=True)).run())
            case "accept":
                result = operations.accept(
                    self.parts, str(arguments["commit"]), reason=str(arguments["reason"]), by=by, known=known
                )
                self._passed(result, polled=True)
                return answer_of(result)
            case "suspend":
                seconds = float(arguments["seconds"])
                operations.suspend(self.parts, seconds=seconds, reason=str(arguments["reason"]), by=by)
                return answer_of(self.one_pass(Request(poll=False)))
            case "teardown":
                return teardown_answer(*operations.teardown(self.parts, by=by))
            case _:
                return {
                    "error": f"unknown verb {command.verb[:40]!r}",
                    "reason": "Usage",
                    "exitCode": int(ExitCode.USAGE),
                }


def _refusal(error: ReconcilerError) -> dict[str, Any]:
    return {"error": str(error), "reason": error.reason, "exitCode": int(error.exit_code)}


def answer_of(result: PassResult) -> dict[str, Any]:
    """A pass as an answer on the control socket."""
    return {
        "status": to_builtins(result.status),
        "wanted": _wanted(result),
        "plan": {**to_builtins(result.plan), "digest": result.plan.digest} if result.plan else None,
        "outcome": to_builtins(result.outcome),
        "exitCode": int(result.status.exit_code),
    }


def teardown_answer(made: Plan, outcome: Outcome) -> dict[str, Any]:
    """A teardown as an answer on the control socket; an error if anything may still be attached."""
    whole = outcome.failed is None and not (outcome.survivors or outcome.skipped or outcome.stale_hooks)
    return {
        "plan": {**to_builtins(made), "digest": made.digest},
        "outcome": to_builtins(outcome),
        "exitCode": int(ExitCode.OK if whole else ExitCode.ERROR),
    }


def _wanted(result: PassResult) -> dict[str, Any] | None:
    if result.wanted is None:
        return None
    wanted = result.wanted
    return {"commit": wanted.commit, "signer": wanted.signer, "subject": wanted.subject, "fresh": wanted.fresh}


__all__ = ["Agent", "Schedule", "answer_of", "encode_json", "phase_of", "teardown_answer"]
