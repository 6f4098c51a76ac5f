# SPDX-License-Identifier: Apache-2.0
"""The command as tests run it: in this process, with what it prints and its exit code."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from typing import Any

from reconciler.cli import run_command


@dataclass(frozen=True, slots=True)
class Ran:
    """What one run gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def reconciler(*arguments: object) -> Ran:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command([str(each) for each in arguments])
    return Ran(int(code), out.getvalue(), err.getvalue())
