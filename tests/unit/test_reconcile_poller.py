# SPDX-License-Identifier: Apache-2.0
"""The worker that asks the source: one question at a time, a wake at the end, and an end that comes when it is told."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from reconciler.errors import SourceError
from reconciler.reconcile import Answer, InlinePoller, ThreadPoller
from reconciler.sensor import Wake, open_sensor

if TYPE_CHECKING:
    from reconciler.source import Source

SECONDS = 30


@dataclass
class SlowSource:
    """Answers when it is let go, or told to stop."""

    let_go: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)
    fetched: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    broken: Exception | None = None

    def resolve(self) -> str:
        self.threads.add(threading.current_thread().name)
        assert self.let_go.wait(SECONDS)
        if self.stopped.is_set():
            raise SourceError("the source was told to stop", reason="Cancelled")
        if self.broken is not None:
            raise self.broken
        return "a" * 40

    def fetch(self, commit: str) -> None:
        self.fetched.append(commit)

    def pull(self) -> str:
        return self.resolve()

    def maintain(self) -> bool:
        self.threads.add(threading.current_thread().name)
        if self.broken is not None:
            raise self.broken
        return True

    def cancel(self) -> None:
        self.stopped.set()
        self.let_go.set()


def thread_poller(source: SlowSource) -> tuple[ThreadPoller, threading.Event]:
    woken = threading.Event()
    return ThreadPoller(cast("Source", source), woken.set), woken


def busy(poller: ThreadPoller) -> bool:
    return poller.busy


def test_the_loop_goes_on_until_the_answer_is_there() -> None:
    source = SlowSource()
    poller, woken = thread_poller(source)
    with closing(poller):
        assert not busy(poller)
        poller.ask(expecting=False)
        assert busy(poller)
        assert poller.take() is None
        assert not woken.is_set()
        source.let_go.set()
        assert woken.wait(SECONDS)
        assert poller.take() == Answer(head="a" * 40)
        assert poller.take() is None
        assert not busy(poller)
        poller.maintain()
        while poller.busy:
            woken.wait(0.01)
        assert poller.failure() is None
    assert source.fetched == ["a" * 40]
    assert len(source.threads) == 1
    assert threading.current_thread().name not in source.threads


def test_errors_and_defects_are_answers() -> None:
    for broken in (SourceError("no", reason="SourceTimeout"), RuntimeError("unexpected")):
        source = SlowSource(broken=broken)
        source.let_go.set()
        inline = InlinePoller(cast("Source", source))
        inline.ask(expecting=False)
        assert inline.take() == Answer(error=broken)
        assert inline.take() is None
        inline.close()
        poller, woken = thread_poller(source)
        with closing(poller):
            poller.ask(expecting=False)
            assert woken.wait(SECONDS)
            assert poller.take() == Answer(error=broken)


@pytest.mark.parametrize("broken", [SourceError("no space", reason="DiskFull"), RuntimeError("no space")])
def test_what_maintenance_ended_with_is_told_once(broken: Exception) -> None:
    source = SlowSource(broken=broken)
    inline = InlinePoller(cast("Source", source))
    inline.maintain()
    assert str(inline.failure()) == "no space"
    assert inline.failure() is None
    poller, woken = thread_poller(source)
    with closing(poller):
        poller.maintain()
        assert woken.wait(SECONDS)
        while poller.busy:
            woken.wait(0.01)
        assert str(poller.failure()) == "no space"
        assert poller.failure() is None


def test_closing_ends_what_is_under_way() -> None:
    source = SlowSource()
    poller, woken = thread_poller(source)
    poller.ask(expecting=False)
    poller.close()
    assert woken.is_set()
    answer = poller.take()
    assert answer is not None
    assert isinstance(answer.error, SourceError)


def test_a_nudge_ends_a_wait_from_another_thread() -> None:
    sensor = open_sensor(None, mode=0o600, group=None, watches=())
    with closing(sensor):
        thread = threading.Timer(0.05, sensor.nudge)
        thread.start()
        wake = sensor.wait(SECONDS)
        thread.join()
        assert wake == Wake()
    sensor.nudge()  # nobody waits any more
