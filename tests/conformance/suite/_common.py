# SPDX-License-Identifier: Apache-2.0
"""What the suite's modules share: for which ways a test runs, waiting, and what packets and hooks say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from tests.conformance.lab import (
    Way,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from reconciler.model import (
        AttachKind,
        HookPoint,
        LoadedGeneration,
    )
    from tests.conformance.lab import Lab

Test = TypeVar("Test", bound="Callable[..., None]")

SETTLE_SECONDS = 5.0
"""How long counters and freed objects may take: packets on a veth and references in the kernel go asynchronously."""


def only(*kinds: AttachKind) -> Callable[[Test], Test]:
    """This test says nothing about other ways of attaching."""

    def mark(test: Test) -> Test:
        test.ways = [way for way in Way if way.attach_kind in kinds]  # type: ignore[attr-defined]  # read below
        return test

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test once for each way of attaching that it is about."""
    if "lab" in metafunc.fixturenames:
        ways = getattr(metafunc.function, "ways", list(Way))
        metafunc.parametrize("lab", ways, indirect=True, ids=[str(way) for way in ways])


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SETTLE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def seen_by(lab: Lab, loaded: LoadedGeneration) -> dict[str, int]:
    return {stats.member: stats.counters["seen"][0] for stats in lab.kernel.stats(loaded)}


def assert_runs(lab: Lab, point: HookPoint, loaded: LoadedGeneration, count: int = 5) -> None:
    """Packets through the hook are counted by every member of the generation."""
    before = seen_by(lab, loaded)
    lab.send(point, count)
    assert before.keys() == {program.member for program in loaded.programs}
    assert eventually(lambda: all(now >= before[name] + count for name, now in seen_by(lab, loaded).items()))


def programs_on(lab: Lab, point: HookPoint) -> list[int]:
    return [seen.program_id for seen in lab.kernel.read_hook(point).attachments]
