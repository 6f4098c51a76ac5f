# SPDX-License-Identifier: Apache-2.0
"""From an errno to an error of ours: which one is said at each place, because the same errno means different things."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from reconciler.errors import KernelError, NotSupportedError, OccupiedError, StaleError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

STALE: Mapping[int, type[KernelError]] = {
    errno.ESTALE: StaleError,  # expected_revision
    errno.ENOLINK: StaleError,  # a defunct link
    errno.ENOENT: StaleError,  # what was to be replaced or removed has gone
    errno.ENODEV: StaleError,  # so has the interface, or its namespace
}
OCCUPIED: Mapping[int, type[KernelError]] = {
    errno.EBUSY: OccupiedError,  # another XDP program in the same mode
    errno.EEXIST: OccupiedError,  # another XDP program in another mode; a filter with our prio and handle
    errno.ESTALE: StaleError,
    errno.ENODEV: StaleError,
}
UNSUPPORTED: Mapping[int, type[KernelError]] = {errno.EOPNOTSUPP: NotSupportedError}


class failing:  # noqa: N801  # reads as what it is: `with failing("open pin p"):`
    """Turn `OSError` into `KernelError`, or into what the first of `kinds` that knows the errno says.

    A class, since a generator takes three times as long, and this stands around every system call.
    """

    __slots__ = ("_call", "_kinds")

    def __init__(self, call: str, *kinds: Mapping[int, type[KernelError]]) -> None:
        self._call, self._kinds = call, kinds

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(value, OSError):
            number = value.errno or 0
            made = next((table[number] for table in self._kinds if number in table), KernelError)
            raise made(self._call, number, value.strerror or str(value)) from value
