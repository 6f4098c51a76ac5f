# SPDX-License-Identifier: Apache-2.0
"""`reconciler status` without the rest of the program: 3 interpreter starts long instead of 10.

Only the plain form is answered here (`[-c PATH] status [-c PATH]`), and only when everything is as it should be: a
configuration that nobody else can write, a report of the format that this version writes. In every other case the
answer is None, and the verb of `_report` does it, with its errors; a test compares what both print.

Status needs one setting, where the state lies. So it also shows the last report when the configuration is one that the
agent would not start with: that is when people look.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from datetime import UTC, datetime
from types import SimpleNamespace

from reconciler._words import exit_code, render
from reconciler.cli import DEFAULT_CONFIG

TYPE_CHECKING = False  # typing takes 4 ms to import
if TYPE_CHECKING:
    from typing import Any, Final

DEFAULT_STATE: Final = "/var/lib/reconciler"
"""`config.Paths.state` unless configured; a test compares."""
VERSION: Final = 1
"""`status.Status.version`; a test compares."""
MAX_BYTES: Final = 16 << 20


def quick_status(arguments: list[str]) -> int | None:
    """Print the last pass's report and return its exit code; None, and nothing printed, if that takes more."""
    path = _config_path(arguments)
    if path is None:
        return None
    try:
        state = state_directory(path)
        report: Any = json.loads(_read(os.path.join(state, "status.json")), object_hook=_report)  # noqa: PTH118
        if type(report.version) is not int or report.version != VERSION:
            return None
        if type(report.exit_code) is not int:
            return None
        now = datetime.now(UTC)
        text, code = render(report, now), exit_code(report, now)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return code


def _config_path(arguments: list[str]) -> str | None:
    path = os.environ.get("RECONCILER_CONFIG") or DEFAULT_CONFIG
    rest = list(arguments)
    verbs = []
    while rest:
        word = rest.pop(0)
        if word in ("-c", "--config") and rest:
            path = rest.pop(0) or path
        else:
            verbs.append(word)
    return path if verbs == ["status"] else None


def state_directory(config: str) -> str:
    """Where the configuration at `config` says that the state lies.

    Raises:
        OSError, ValueError, LookupError, TypeError, AttributeError: it cannot be told here; load all of it.
    """
    real = os.path.realpath(config)
    for place in (os.path.abspath(config), real):  # noqa: PTH100  # pathlib takes 5 ms to import
        _check_folders(place)
    data = _read(real)
    if not any(each in data for each in (b"paths", b"\\", b"\0")):
        return DEFAULT_STATE  # no way to spell that key is in it, and YAML takes 8 ms to import
    import yaml  # noqa: PLC0415

    try:
        fields = yaml.load(data, yaml.CBaseLoader)  # noqa: S506  # makes texts, lists and mappings only
    except yaml.YAMLError as error:
        raise ValueError from error
    state = fields["spec"].get("paths", {}).get("state", DEFAULT_STATE)
    if fields["kind"] != "Config" or not state.startswith("/"):
        raise ValueError
    return str(state)


def _check_folders(place: str) -> None:
    # As config._load does: who can replace a folder on the way decides which file is read.
    while (folder := os.path.dirname(place)) != place:  # noqa: PTH120
        _check(os.stat(folder), sticky=True)  # noqa: PTH116
        place = folder


def _check(status: os.stat_result, *, sticky: bool) -> None:
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if status.st_uid not in (0, os.geteuid()) or (writable and not (sticky and status.st_mode & stat.S_ISVTX)):
        raise ValueError


def _read(path: str) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
        status = os.fstat(file.fileno())
        _check(status, sticky=False)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise ValueError
        return file.read(MAX_BYTES)


def _report(fields: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**fields)
