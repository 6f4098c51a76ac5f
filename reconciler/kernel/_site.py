# SPDX-License-Identifier: Apache-2.0
"""Where a batch of steps happens: our pins, a way into namespaces, and programs that are opened once for the batch."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from reconciler.errors import KernelError, StaleError
from reconciler.kernel import Progress, _bpf, in_order
from reconciler.kernel._failing import STALE, failing
from reconciler.kernel._pins import Pins, identity_of
from reconciler.model import HookPoint, Identity, PinKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from reconciler.kernel._snapshot import Reader


class _OnHook(Protocol):
    @property
    def point(self) -> HookPoint: ...


S = TypeVar("S", bound=_OnHook)
T = TypeVar("T")


def first_pin(generation: str) -> str:
    """Path of the first program of a generation (docs/architecture.md)."""
    return f"gen/{generation}/p00"


def stale(call: str, detail: str) -> StaleError:
    """What was planned for is not there any more."""
    return StaleError(call, errno.ESTALE, detail)


@dataclass(slots=True)
class Site:
    """For one batch; leaving the `with` block closes what it opened."""

    pins: Pins
    reader: Reader
    _opened: list[int] = field(default_factory=list)
    _firsts: dict[tuple[str, Identity], int] = field(default_factory=dict)
    _programs: dict[Identity, int] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._opened:
            os.close(self._opened.pop())

    def first(self, generation: str, expected: Identity) -> int:
        """A descriptor, the site's, of a generation's first program. Raises StaleError when it is another one."""
        known = self._firsts.get((generation, expected))
        if known is not None:
            return known
        path = first_pin(generation)
        if not self.pins.exists(path):
            raise stale(f"open {path}", f"expected program {expected.id}, got no pin")
        with failing(f"open pin {path}"):
            descriptor = _bpf.obj_get(self.pins.path(path))
        self._opened.append(descriptor)
        with failing(f"read {path}", {errno.EINVAL: StaleError}):  # EINVAL: what is pinned there is no program
            found = identity_of(descriptor, PinKind.PROGRAM)
        if found != expected:
            raise stale(f"open {path}", f"expected program {expected.id}, got {found.id}")
        self._firsts[generation, expected] = descriptor
        return descriptor

    def program(self, call: str, expected: Identity) -> int:
        """A descriptor of exactly this program, the site's. Raises StaleError when its id is another's, or nobody's."""
        known = self._programs.get(expected)
        if known is not None:
            return known
        with failing(call, STALE):
            descriptor = _bpf.prog_by_id(expected.id)
        self._opened.append(descriptor)
        if identity_of(descriptor, PinKind.PROGRAM) != expected:
            raise stale(call, f"program id {expected.id} names another program now")
        self._programs[expected] = descriptor
        return descriptor

    def in_order(self, call: Callable[[S], T], steps: Sequence[S]) -> Progress[T]:
        """Each step by `call`, with one way into each namespace for all that follow each other there."""
        return self.together(partial(in_order, call), steps)

    def together(self, call: Callable[[Sequence[S]], Progress[T]], steps: Sequence[S]) -> Progress[T]:
        """All that follow each other in one namespace by one `call`, inside of it."""
        done: list[T] = []
        for group in by_namespace(steps):
            progress = self._together(call, group)
            done += progress.done
            if progress.error is not None:
                return Progress(done=tuple(done), error=progress.error)
        return Progress(done=tuple(done))

    def _together(self, call: Callable[[Sequence[S]], Progress[T]], group: list[S]) -> Progress[T]:
        """One call inside the namespace, and never a second one of what has begun."""
        begun = False

        def work() -> Progress[T]:
            nonlocal begun
            begun = True
            return call(group)

        try:
            return self.reader.inside(group[0].point, work)
        except OSError as error:
            if begun:
                return Progress(done=(), error=KernelError("a batch of steps", error.errno or 0, str(error)))
        return call(group)  # the namespace is gone; each step knows best what that means for it


def by_namespace(steps: Iterable[S]) -> list[list[S]]:
    """Runs of neighbours in one namespace."""
    return [list(group) for _, group in groupby(steps, lambda step: (step.point.netns, step.point.netns_inode))]
