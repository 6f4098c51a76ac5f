# SPDX-License-Identifier: Apache-2.0
"""Asking the source, apart from the pass that takes the answer.

A source may answer slowly, a byte a second, or never; what runs must be repaired all the same. So the agent asks in one
worker thread, which resolves and fetches and does nothing else, and a pass begins when the answer is there. The pass
itself stays in the loop's thread: whatever is decided, recorded or changed happens there, in order.

Invariants: one question at a time; whoever asked after a question began is not served with its answer; the worker never
reads what a pass decides by, and never writes what a pass records.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from reconciler.reconcile._parts import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.source import Source


def ask(source: Source, *, expecting: bool) -> Answer:
    """What the source advertises, fetched; an error is an answer too.

    Args:
        source: who is asked.
        expecting: something new is likely: fetch at once; else ask first, which is all that most polls need.
    """
    try:
        if expecting:
            return Answer(head=source.pull())
        head = source.resolve()
        source.fetch(head)
    except Exception as error:  # noqa: BLE001  # a pass reports it, in the thread that may
        return Answer(error=error)
    return Answer(head=head)


class Poller(Protocol):
    """Asks the source, and keeps its copy in shape, while the loop may go on."""

    @property
    def busy(self) -> bool:
        """Whether a question is under way or its answer not taken yet, or maintenance is under way."""

    def ask(self, *, expecting: bool) -> None:
        """Begin, as the function `ask`; only while not `busy`."""

    def take(self) -> Answer | None:
        """The answer, once."""

    def maintain(self) -> None:
        """Repack or rebuild when that is due; only while not `busy`."""

    def failure(self) -> Exception | None:
        """What maintenance ended with, once."""

    def close(self) -> None:
        """End what is under way."""


class InlinePoller:
    """Asks in the caller's thread: everything is over when `ask` returns."""

    busy = False

    def __init__(self, source: Source) -> None:
        """Nothing is asked yet."""
        self._source = source
        self._answer: Answer | None = None
        self._failure: Exception | None = None

    def ask(self, *, expecting: bool) -> None:
        """Ask, and wait for the answer."""
        self._answer = ask(self._source, expecting=expecting)

    def take(self) -> Answer | None:
        """The answer, once."""
        answer, self._answer = self._answer, None
        return answer

    def maintain(self) -> None:
        """Maintain, and wait for the end."""
        self._failure = _maintained(self._source)

    def failure(self) -> Exception | None:
        """What maintenance ended with, once."""
        failure, self._failure = self._failure, None
        return failure

    def close(self) -> None:
        """Nothing is ever under way."""


class ThreadPoller:
    """Asks in one worker thread, and wakes the loop when that is over; made in the loop's thread, ended by `close`."""

    def __init__(self, source: Source, wake: Callable[[], None]) -> None:
        self._source = source
        self._wake = wake
        # The thread must outlive its git: a killed *thread's* children get their parent-death signal too.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="source")
        self._asked: Future[Answer] | None = None
        self._maintained: Future[Exception | None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a question is under way or its answer not taken yet, or maintenance is under way."""
        return self._asked is not None or (self._maintained is not None and not self._maintained.done())

    def ask(self, *, expecting: bool) -> None:
        """Begin; the loop is woken at the end."""
        self._asked = self._pool.submit(ask, self._source, expecting=expecting)
        self._asked.add_done_callback(lambda _: self._wake())

    def take(self) -> Answer | None:
        """The answer, once."""
        if self._asked is None or not self._asked.done():
            return None
        answer, self._asked = self._asked.result(), None
        return answer

    def maintain(self) -> None:
        """Begin; the loop is woken at the end."""
        self._maintained = self._pool.submit(_maintained, self._source)
        self._maintained.add_done_callback(lambda _: self._wake())

    def failure(self) -> Exception | None:
        """What maintenance ended with, once."""
        if self._maintained is None or not self._maintained.done():
            return None
        failure, self._maintained = self._maintained.result(), None
        return failure

    def close(self) -> None:
        """End what is under way; the source cannot be used any more."""
        self._source.cancel()
        self._pool.shutdown()


def _maintained(source: Source) -> Exception | None:
    try:
        source.maintain()
    except Exception as error:  # noqa: BLE001  # as in `ask`: it is told, and ends nothing
        return error
    return None
