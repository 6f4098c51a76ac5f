# SPDX-License-Identifier: Apache-2.0
"""From an errno to an error of ours: which one is said at each place, because the same errno means different things."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reconciler.errors import KernelError, NotSupportedError, OccupiedError, StaleError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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


@contextmanager
def failing(call: str, *kinds: Mapping[int, type[KernelError]]) -> Iterator[None]:
    """Turn `OSError` into `KernelError`, or into what the first of `kinds` that knows the errno says."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        kind = next((table[number] for table in kinds if number in table), KernelError)
        raise kind(call, number, error.strerror or str(error)) from error
