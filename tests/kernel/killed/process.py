# SPDX-License-Identifier: Apache-2.0
"""Processes that die or fail at a named point: forked from this warm one, so that a death costs milliseconds.

A child runs a function and hands its result over a pipe. What strikes it is a hook for `reconciler._points`, which the
child installs in itself; this process never has one.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import pickle
import signal
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from reconciler import _points

if TYPE_CHECKING:
    from collections.abc import Callable
    from functools import partial

CHILD_SECONDS = 120
"""After which a child that hangs is ended by its own alarm."""

When = Literal["before", "after", "torn"]


class Strike(Protocol):
    """What happens at the points that a child comes to."""

    def __call__(self, tell: Callable[[object], None], name: str, call: partial[Any]) -> Any: ...


@dataclass
class Record:
    """Writes the points down."""

    names: list[str] = field(default_factory=list)

    def __call__(self, tell: Callable[[object], None], name: str, call: partial[Any]) -> Any:
        self.names.append(name)
        return call()


@dataclass
class Kill:
    """SIGKILL at the n-th point (from 0) of a name, or of all: before its call, after it, or in a write's middle."""

    number: int
    when: When
    name: str | None = None
    seen: int = 0

    def __call__(self, tell: Callable[[object], None], name: str, call: partial[Any]) -> Any:
        if self.name not in {None, name}:
            return call()
        number, self.seen = self.seen, self.seen + 1
        if number != self.number:
            return call()
        tell((number, name, self.when))
        if self.when == "torn" and name.startswith("write "):
            *others, data = call.args
            call.func(*others, data[: len(data) // 2])
        elif self.when == "after":
            with contextlib.suppress(OSError):  # a folder that is not empty stays
                call()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a killed process went on")


@dataclass
class Fail:
    """The n-th point (from 0) of a name, or of all, is not called and fails; with `onwards` the later ones too."""

    number: int
    error: int
    name: str | None = None
    onwards: bool = False
    seen: int = 0

    def __call__(self, tell: Callable[[object], None], name: str, call: partial[Any]) -> Any:
        if self.name not in {None, name}:
            return call()
        number, self.seen = self.seen, self.seen + 1
        if number < self.number or (number > self.number and not self.onwards):
            return call()
        if number == self.number:
            tell((number, name, errno.errorcode[self.error]))
        raise OSError(self.error, os.strerror(self.error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a child ended: with a value, or by SIGKILL; `struck` is what the strike said of where it was."""

    value: Any = None
    killed: bool = False
    struck: tuple[int, str, str] | None = None


def forked(work: Callable[[], Any], strike: Strike | None = None) -> Ended:
    """The result of `work` in a child of its own.

    Raises:
        AssertionError: the child raised (with its traceback), or ended in a way that nobody asked for.
    """
    return ended(*started(work, strike))


def started(work: Callable[[], Any], strike: Strike | None = None) -> tuple[int, int]:
    """A child that does `work`; to be given to `ended`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run(work, strike, reading, writing)
    os.close(writing)
    return child, reading


def ended(child: int, reading: int) -> Ended:
    """How a started child ended; raises what `forked` raises."""
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    told = _unpickled(data)
    struck = next((value for kind, value in told if kind == "struck"), None)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if killed and struck is not None:
        return Ended(killed=True, struck=struck)
    for kind, value in told:
        if kind == "error":
            message = f"in a child struck at {struck}:\n{value}"
            raise AssertionError(message)
        if kind == "value" and status == 0:
            return Ended(value=value, struck=struck)
    message = f"expected a child that returns or is killed by its strike, got wait status {status} ({struck})"
    raise AssertionError(message)


def warmed(work: Callable[[], Any]) -> Any:
    """The result of `work` in a child, after which this process knows all modules that it needed."""

    def watched() -> tuple[Any, list[str]]:
        return work(), sorted(sys.modules)

    value, modules = forked(watched).value
    for name in modules:
        if name not in sys.modules:
            importlib.import_module(name)
    return value


def _run(work: Callable[[], Any], strike: Strike | None, reading: int, writing: int) -> None:
    """The child's whole life."""
    try:
        signal.alarm(CHILD_SECONDS)
        os.close(reading)

        def send(kind: str, value: object) -> None:
            os.write(writing, pickle.dumps((kind, value)))

        try:
            if strike is not None:
                _points.hook = lambda name, call: strike(lambda value: send("struck", value), name, call)
            value = work()
        except BaseException:  # noqa: BLE001  # whatever it is, it is the parent's to judge
            send("error", traceback.format_exc())
        else:
            send("value", value)
    finally:
        os._exit(0)


def _unpickled(data: bytes) -> list[tuple[str, Any]]:
    found, stream = [], io.BytesIO(data)
    while stream.tell() < len(data):
        found.append(pickle.load(stream))
    return found
