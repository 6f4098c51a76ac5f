# SPDX-License-Identifier: Apache-2.0
"""The places at which something outside of this process changes: where a test kills the process, or lets a call fail.

Every system call that changes the kernel, and every file of ours that is written, synced, renamed or removed, goes
through `at` under a stable name. In production `hook` is None and `at` is a plain call. Nothing sets it but a test,
in its own process: no variable, no file and no option does, so nobody can steer an agent by it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

hook: Callable[[str, partial[Any]], Any] | None = None
"""Called instead of the call, which it may make, not make, or make and never return from."""


def at(name: str, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """`call(*arguments, **named)`, at the point of this name."""
    if hook is None:
        return call(*arguments, **named)
    result: T = hook(name, partial(call, *arguments, **named))
    return result
