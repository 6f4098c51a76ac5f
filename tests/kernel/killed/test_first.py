# SPDX-License-Identifier: Apache-2.0
"""SIGKILL, and calls that fail, in the very first pass of a host, and in its teardown."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from reconciler import _points
from reconciler.errors import ReconcilerError
from reconciler.reconcile import teardown, teardown_answer
from tests.kernel import support
from tests.kernel.killed.host import Host, Scene
from tests.kernel.killed.process import Fail, Kill, Record, forked, warmed
from tests.kernel.killed.rounds import kind_of, say
from tests.kernel.killed.test_errno import ERRNOS, failing
from tests.unit.test_docs import documented_reasons

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import Literal

    from tests.kernel.killed.host import Report, Seen
    from tests.kernel.killed.process import When

WAYS = ("tcx", "clsact")
SAID = "something may still be attached"
SAMPLE = 5
"""Kills in each of the two in `make test`."""


class Life:
    """A host from nothing to nothing, again and again."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.push("a")
        self.seen: Seen = self._begun(warmed(host.settle))
        self.last_points = self._points(self._torn_down)
        self._ended()
        self.first_points = self._points(self._first)
        forked(self._torn_down)
        self._ended()
        say(f"{host.way}: {len(self.first_points)} points of a first pass, {len(self.last_points)} of a teardown")

    def killed_at_first(self, number: int, when: When) -> None:
        struck = forked(self._first, Kill(number, when))
        assert struck.killed
        report = forked(self.host.settle).value
        try:
            self._begun(report, self.seen)
        except AssertionError as error:
            message = f"after {struck.struck}: {report.status}: {error}"
            raise AssertionError(message) from error
        forked(self._torn_down)
        self._ended()

    def killed_at_last(self, number: int, when: When) -> None:
        forked(self._first)
        struck = forked(self._torn_down, Kill(number, when))
        assert struck.killed
        forked(self._torn_down)
        try:
            self._ended()
        except AssertionError as error:
            message = f"after {struck.struck}: {error}"
            raise AssertionError(message) from error

    def failed_at_first(self, number: int, error: int) -> str:
        """A call of the first pass fails; the reason."""
        failed = forked(lambda: failing(self.host), Fail(number, error)).value
        assert failed.reason in documented_reasons().keys() - {"InternalError"}, failed
        assert failed.hooks in (None, {}, self.seen.hooks), failed
        report = forked(self.host.settle).value
        try:  # but for the names of files: a history whose only record could not be written is not there
            self._begun(replace(report, seen=replace(report.seen, files=())), replace(self.seen, files=()))
        except AssertionError as failure:
            message = f"after {self.first_points[number]} ({number}): {failed}, then {report.status.reason}: {failure}"
            raise AssertionError(message) from failure
        forked(self._torn_down)
        self._ended()
        reason: str = failed.reason
        return reason

    def failed_at_last(self, number: int, error: int) -> str:
        """A call of the teardown fails: nothing is attached any more, or it says so; the next one does the rest."""
        forked(self._first)
        said, hooks = forked(self._torn_down_or_said, Fail(number, error)).value
        reasons = documented_reasons().keys() - {"InternalError"}
        whole = said == "" and hooks == {}
        assert whole or said == SAID or said in reasons, f"{self.last_points[number]} ({number}): {said!r}, {hooks}"
        forked(self._torn_down)
        self._ended()
        answer: str = said
        return answer

    def _torn_down_or_said(self) -> tuple[str, object]:
        try:
            with self.host.opened() as parts:
                answer = teardown_answer(*teardown(parts, by="uid 0"))
                _points.hook = None
                return "" if answer["exitCode"] == 0 else SAID, self.host.look(parts).hooks
        except ReconcilerError as error:  # the command prints it and ends
            return error.reason, None

    def _points(self, work: Callable[[], None]) -> list[str]:
        record = Record()

        def recorded() -> list[str]:
            work()
            return record.names

        names: list[str] = forked(recorded, record).value
        return names

    def _first(self) -> None:
        assert self.host.one_pass().status.exit_code == 0

    def _torn_down(self) -> None:
        with self.host.opened() as parts:
            _, outcome = teardown(parts, by="uid 0")
            assert outcome.failed is None

    def _begun(self, report: Report, like: Seen | None = None) -> Seen:
        self.host.at_rest(report, like)
        return report.seen

    def _ended(self) -> None:
        """Nothing of it is left in the kernel."""
        assert not self.host.pins.exists()
        assert self.host.qdiscs() == ()
        assert self.host.freed(0)
        assert self.host.rubbish() == ()
        shutil.rmtree(self.host.directory)


@pytest.fixture
def life(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Life]:
    way: Literal["tcx", "clsact"] = request.param
    with support.pin_directory() as pins, Scene() as scene:
        host = Host(tmp_path, scene, way, pins)
        try:
            yield Life(host)
        finally:
            host.close()


def run(life: Life, first: list[tuple[int, When]], last: list[tuple[int, When]]) -> None:
    for number, when in first:
        life.killed_at_first(number, when)
    for number, when in last:
        life.killed_at_last(number, when)
    say(f"{life.host.way}: {len(first)} kills in a first pass, {len(last)} in a teardown")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("life", ["tcx"], indirect=True)
def test_kills_in_the_first_pass_and_in_the_last(life: Life) -> None:
    new = {"git init", "rename git", "mkdir packages", "open git lock"}
    first = [index for index, name in enumerate(life.first_points) if kind_of(name) in new][:SAMPLE]
    last = range(0, len(life.last_points), len(life.last_points) // SAMPLE)
    run(life, [(number, "after") for number in first], [(number, "before") for number in last])


def fail(life: Life, first: Iterable[int], last: Iterable[int]) -> None:
    turns = itertools.cycle(ERRNOS)
    reasons = [life.failed_at_first(number, next(turns)) for number in first]
    reasons += [life.failed_at_last(number, next(turns)) for number in last]
    say(f"{life.host.way}: failed calls in a first pass and a teardown, which ended with {dict(Counter(reasons))}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("life", ["tcx"], indirect=True)
def test_failures_in_the_first_pass_and_in_the_last(life: Life) -> None:
    places = {kind_of(name): index for index, name in reversed(list(enumerate(life.first_points)))}
    new = ("write git config", "mkdir packages", "mkdir git.empty", "bpf OBJ_PIN")
    first = [places[kind] for kind in new]
    last = range(3, len(life.last_points), len(life.last_points) // 3)
    fail(life, first, last)


@pytest.mark.torture
@pytest.mark.parametrize("life", WAYS, indirect=True)
def test_a_failure_at_every_point_of_the_first_pass_and_of_the_last(life: Life) -> None:
    fail(life, range(len(life.first_points)), range(len(life.last_points)))


@pytest.mark.torture
@pytest.mark.parametrize("life", WAYS, indirect=True)
def test_a_kill_at_every_point_of_the_first_pass_and_of_the_last(life: Life) -> None:
    whens: tuple[When, ...] = ("before", "after")
    first, last = (
        [(number, when) for number in range(len(points)) for when in whens]
        for points in (life.first_points, life.last_points)
    )
    run(life, first, last)
