# SPDX-License-Identifier: Apache-2.0
"""One comparison: ours and a baseline, measured in turn in one run, as medians and a ratio.

A module of benchmarks holds `MEASURES`, a tuple of `Measure`; `benchmarks.__main__` runs them.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What one comparison gave.

    Attributes:
        ours: median.
        baseline: median of what it is compared with; None where the target is a plain limit.
        unit: of both.
        target: largest ratio that is acceptable; without a baseline the largest value of `ours`. None: no target.
    """

    name: str
    ours: float
    baseline: float | None
    unit: str
    target: float | None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.baseline if self.baseline else None

    @property
    def holds(self) -> bool:
        reached = self.ours if self.ratio is None else self.ratio
        return self.target is None or reached <= self.target

    def row(self) -> dict[str, object]:
        """One entry of results.json."""
        return {
            "name": self.name,
            "ours": round(self.ours, 4),
            "baseline": None if self.baseline is None else round(self.baseline, 4),
            "unit": self.unit,
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "target": self.target,
            "holds": self.holds,
        }

    def line(self) -> str:
        """One line of the table."""
        numbers = [self.ours, self.baseline, self.ratio, self.target]
        cells = "".join(f"{'-' if number is None else f'{number:.2f}':>10}" for number in numbers)
        return f"{self.name:62}{cells}  {self.unit}{'' if self.holds else '  MISSED'}"


HEADER = f"{'':62}" + "".join(f"{title:>10}" for title in ("ours", "baseline", "ratio", "target"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How thoroughly to measure.

    Attributes:
        rounds: how often each side of a comparison runs.
        scale: share of the interfaces and passes that are asked for; 1 for figures that count.
    """

    rounds: int = 5
    scale: float = 1.0

    def some(self, count: int) -> int:
        """`count`, scaled; at least 2."""
        return max(2, round(count * self.scale))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One benchmark: its key on the command line, what it measures, and how."""

    key: str
    what: str
    run: Callable[[Options], Iterable[Comparison]]


def seconds(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def interleaved(*sides: Callable[[], float], rounds: int, warm: bool = True) -> tuple[float, ...]:
    """Medians in milliseconds of measurements taken in turn; unless `warm` is off, a first round does not count."""
    taken = [[side() for side in sides] for _ in range(rounds + warm)][int(warm) :]
    return tuple(1000 * statistics.median(column) for column in zip(*taken, strict=True))


def quiet(*command: str, netns: str | None = None) -> None:
    """Run a command and throw away what it prints."""
    inside = ("nsenter", f"--net=/run/netns/{netns}") if netns else ()
    subprocess.run([*inside, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
