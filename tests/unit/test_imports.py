# SPDX-License-Identifier: Apache-2.0
"""What small verbs and the idle agent do not import: each of these costs tens of milliseconds and megabytes.

Nothing is timed; the sets of imported modules are what decides, and they are the same on every machine.
"""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = frozenset(
    {"asyncio", "cryptography", "git", "jsonschema", "pyroute2", "requests", "rich", "sigstore", "ssl", "sqlite3"}
)
"""What a host with plain keys and a Git source needs only in part, or not at all."""

PRINT_MODULES = "import json, sys; sys.stderr.write('\\n' + json.dumps(sorted(sys.modules)))"


def imported(code: str, *arguments: str) -> frozenset[str]:
    """The modules that a new interpreter holds after `code`; what the machine's own site adds is not counted."""
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:] = {paths!r}\n{code}\n{PRINT_MODULES}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return frozenset(json.loads(done.stderr.rpartition("\n")[2]))


def test_the_agent_holds_no_more_of_large_libraries_than_it_uses() -> None:
    code = """
import reconciler.cli._agent, reconciler.cli._compose, reconciler.packages
import reconciler.kernel.linux, reconciler.kernel.watch
from pathlib import Path
from reconciler.source._git import GitRunner
GitRunner(Path("/nonexistent")).version(60)
"""
    found = imported(code)
    assert found & HEAVY == {"cryptography"}  # which checks signatures by keys and of commits
    assert "cryptography.x509" not in found  # only hosts with trust roots need it
    assert "http.client" not in found  # only hosts with a web server of packages need it


def test_a_library_of_which_parts_were_taken_is_whole_for_everybody_else() -> None:
    code = """
import sys
import reconciler.kernel._netlink
from pathlib import Path
from reconciler.source._git import GitRunner
GitRunner(Path("/nonexistent")).version(60)
assert not {"git", "pyroute2"} & set(sys.modules)
import git.cmd, git.repo, pyroute2.netlink.rtnl
assert git.Repo and git.cmd.Git and pyroute2.IPRoute and pyroute2.netlink.rtnl
GitRunner(Path("/nonexistent")).version(60)
"""
    assert {"git", "pyroute2"} <= imported(code)


def test_a_package_that_is_missing_is_reported_by_its_import() -> None:
    code = """
from reconciler._imports import without_init
try:
    with without_init("no_such_package"):
        import no_such_package.module
except ModuleNotFoundError as error:
    assert error.name == "no_such_package", error
else:
    raise AssertionError
"""
    imported(code)
