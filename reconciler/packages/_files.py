# SPDX-License-Identifier: Apache-2.0
"""Reads a file that somebody else may have put there."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file; never follows a link in its place, never hangs on a FIFO.

    Raises:
        OSError: as the system says; ELOOP for a symbolic link, EINVAL for what is no regular file, EFBIG for more
            than `limit` bytes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        data = bytearray()
        while status.st_size <= limit and len(data) <= limit:
            chunk = os.read(fd, limit + 1 - len(data))
            if not chunk:
                return bytes(data)
            data += chunk
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    finally:
        os.close(fd)
