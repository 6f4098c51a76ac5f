# SPDX-License-Identifier: Apache-2.0
"""Faults: the n-th state-changing primitive fails, or the process dies right before or right after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

from tests.sim._objects import Crash

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.errors import KernelError

Result = TypeVar("Result")


@dataclass(slots=True)
class Faults:
    """Counts primitives and strikes where it was told to.

    Attributes:
        count: primitives that were tried so far.
        log: names of those that took effect.
        dead: the process was killed; nothing works until `FakeKernel.restart`.
    """

    count: int = 0
    log: list[str] = field(default_factory=list)
    dead: bool = False
    _errors: dict[int, KernelError] = field(default_factory=dict)
    _from: tuple[int, KernelError] | None = None
    _named: list[tuple[str, KernelError]] = field(default_factory=list)
    _crash: tuple[int, str] | None = None

    def fail_at(self, n: int, error: KernelError, *, onwards: bool = False) -> None:
        """The `n`-th primitive from now (1 is the next) raises `error`; with `onwards` all later ones, too."""
        if onwards:
            self._from = (self.count + n, error)
        else:
            self._errors[self.count + n] = error

    def fail_on(self, what: str, error: KernelError) -> None:
        """The next primitive of that name raises `error`."""
        self._named.append((what, error))

    def crash_at(self, n: int, *, when: Literal["before", "after"] = "after") -> None:
        """The process dies right before or right after the `n`-th primitive from now."""
        self._crash = (self.count + n, when)

    def clear(self) -> None:
        """Forget every fault that did not strike yet."""
        self._errors.clear()
        self._named.clear()
        self._from = self._crash = None

    def alive(self) -> None:
        """Raises Crash when the process is dead."""
        if self.dead:
            raise Crash("the process was killed; restart() starts the next one")

    def run(self, what: str, action: Callable[[], Result], after: Callable[[str], None]) -> Result:
        """One primitive: `action` has its whole effect or, raising, none; `after` looks at what it left."""
        self.alive()
        self.count += 1
        self._die(what, "before")
        self._fail(what)
        result = action()
        self.log.append(what)
        after(what)
        self._die(what, "after")
        return result

    def _die(self, what: str, when: str) -> None:
        if self._crash == (self.count, when):
            self._crash, self.dead = None, True
            raise Crash(f"killed {when} {what}, primitive {self.count}")

    def _fail(self, what: str) -> None:
        error = self._errors.pop(self.count, None)
        if error is None and self._from is not None and self.count >= self._from[0]:
            error = self._from[1]
        for name, named in self._named if error is None else ():
            if name == what:
                error = named
                self._named.remove((name, named))
                break
        if error is not None:
            raise error
