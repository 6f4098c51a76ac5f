# SPDX-License-Identifier: Apache-2.0
"""The command `reconciler`: builds the real objects, maps errors to exit codes; the one place that prints.

This module imports next to nothing: `_quick` shows a status without the rest, and everything else starts in `_group`.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing takes 4 ms to import
if TYPE_CHECKING:
    from typing import Final

DEFAULT_CONFIG: Final = "/etc/reconciler/config.yaml"
"""Where the host's configuration lies unless --config or RECONCILER_CONFIG says otherwise."""


def run_command(arguments: list[str]) -> int:
    """Run one verb; returns its exit code and never raises for what users or the world do wrong."""
    from reconciler.cli._quick import quick_status  # noqa: PLC0415

    code = quick_status(arguments)
    if code is not None:
        return code
    from reconciler.cli._group import run  # noqa: PLC0415  # click and what it needs

    return run(arguments)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command(sys.argv[1:]))
