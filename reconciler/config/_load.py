# SPDX-License-Identifier: Apache-2.0
"""The one place of `config` that opens files.

The configuration decides whom this host trusts, so the file and every file that it names must be writable by nobody
but root (or whoever runs this): its owner, its mode and those of each folder on the way are checked on the descriptor
that is then read, not on the name. Credentials are read by those who use them, each time, by the same rules.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.config._parse import parse_config
from reconciler.errors import ConfigError, Diagnostic

if TYPE_CHECKING:
    from reconciler.config._values import Config

MAX_FILE = 4 << 20
"""Bytes of a named file; sigstore's trusted_root.json has about 10 KiB."""

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_ACCESSIBLE = stat.S_IRWXG | stat.S_IRWXO


def load_config(path: str | Path, *, owner: int | None = None) -> Config:
    """Reads the configuration at `path` and the files that it names.

    Args:
        path: of the file; relative paths inside it start at its folder.
        owner: uid that may own the files besides root; None: whoever runs this.

    Raises:
        ConfigError: with every finding; also when a file is missing or somebody else could have written it.
    """
    file = Path(path).absolute()
    uid = os.geteuid() if owner is None else owner
    try:
        data = _read(file, uid)
    except ConfigError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            hint = "name another one with --config or RECONCILER_CONFIG; `reconciler init DIR` writes one"
            found = (replace(finding, message=f"{finding.message}; {hint}") for finding in error.diagnostics())
            raise ConfigError(tuple(found)) from error
        raise
    return parse_config(data, file=str(path), folder=str(file.parent), read=lambda name: _named(Path(name), uid))


def read_protected(path: Path, *, secret: bool) -> bytes:
    """The content of a file that only root, or whoever runs this, can have written.

    Args:
        path: of the file.
        secret: whether nobody else may be able to read it either.

    Raises:
        ConfigError: it is not like that, or (with the OSError as its cause) cannot be read.
    """
    return _read(path, os.geteuid(), secret=secret)


def _named(path: Path, owner: int) -> bytes:
    """The content of a file that the configuration names; findings are placed there, so they name it themselves."""
    try:
        return _read(path, owner)
    except ConfigError as error:
        raise ConfigError(
            tuple(
                replace(finding, message=f"{finding.message} ({finding.file or path})")
                for finding in error.diagnostics()
            )
        ) from error


def _read(path: Path, owner: int, *, secret: bool = False) -> bytes:
    """The content of `path`, if nobody but root and `owner` can have written (or, if `secret`, read) it."""
    try:
        real = path.resolve(strict=True)
        # The folders of the name as well: who can replace a link on the way decides which file is read.
        for folder in dict.fromkeys((*path.parents, *real.parents)):
            # A sticky folder such as /tmp is fine: others can add names to it, but not replace ours.
            _check(folder, folder.stat(), owner, sticky=True)
        # O_NONBLOCK: opening a FIFO must not hang; it is refused right after.
        with os.fdopen(os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                _refuse(path, "expected a regular file, got something else")
            _check(real, status, owner, sticky=False)
            if secret and status.st_mode & _ACCESSIBLE:
                mode = stat.S_IMODE(status.st_mode)
                _refuse(path, f"expected nobody else to be able to read it, got mode {mode:04o}; run chmod go=")
            data = file.read(MAX_FILE + 1)
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = f"expected a readable file, got an error: {reason}"
        raise ConfigError((Diagnostic(message=message, file=str(path)),)) from error
    if len(data) > MAX_FILE:
        _refuse(path, f"expected at most {MAX_FILE} bytes, got more")
    return data


def _check(path: Path, status: os.stat_result, owner: int, *, sticky: bool) -> None:
    if status.st_uid not in (0, owner):
        allowed = "root" if owner == 0 else f"root or uid {owner}"
        _refuse(path, f"expected it to be owned by {allowed}, got uid {status.st_uid}; chown it")
    if status.st_mode & _WRITABLE and not (sticky and status.st_mode & stat.S_ISVTX):
        mode = stat.S_IMODE(status.st_mode)
        _refuse(path, f"expected nobody else to be able to write it, got mode {mode:04o}; run chmod go-w")


def _refuse(path: Path, message: str) -> None:
    raise ConfigError((Diagnostic(message=message, file=str(path)),))
