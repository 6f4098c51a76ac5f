# SPDX-License-Identifier: Apache-2.0
"""What small verbs and the idle agent do not import: each of these costs tens of milliseconds and megabytes.

Nothing is timed; the sets of imported modules are what decides, and they are the same on every machine.
"""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli._output import SIGNS
from reconciler.model import ChangeKind, encode_json
from reconciler.status import Status
from tests.manifests import chain, text

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

from reconciler.model import encode_json
from reconciler.status import Status
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

from reconciler.model import encode_json
from reconciler.status import Status
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


def test_status_needs_little(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    report = Status(host="edge", at="2020-01-01T00:00:00+00:00", reason="InSync", exit_code=0, message="fine")
    (state / "status.json").write_bytes(encode_json(report))
    config = tmp_path / "config.yaml"
    config.write_text(f"kind: Config\nspec: {{paths: {{state: {state}}}}}\n")
    code = "from reconciler.cli import run_command\nassert run_command(['-c', sys.argv[1], 'status']) == 0"
    found = imported(code, str(config))
    assert not found & HEAVY
    assert not found & {"click", "dataclasses", "inspect", "msgspec", "pathlib", "subprocess", "typing"}
    ours = {name for name in found if name.startswith("reconciler")}
    assert ours == {"reconciler", "reconciler._words", "reconciler.cli", "reconciler.cli._quick"}


def test_to_validate_one_file_needs_little(tmp_path: Path) -> None:
    file = tmp_path / "chain.yaml"
    file.write_bytes(text(chain()))
    code = "from reconciler.cli import run_command\nassert run_command(['validate', sys.argv[1]]) == 0"
    found = imported(code, str(file))
    assert not found & HEAVY
    assert not found & {"msgspec", "hashlib", "subprocess", "tempfile"}
    ours = {name.split(".")[1] for name in found if name.startswith("reconciler.")}
    assert ours == {"_documents", "_lazy", "_resources", "_words", "cli", "errors", "manifest", "model"}
    assert not found & {"reconciler.manifest._objects", "reconciler.model._observed", "reconciler.model._steps"}


@pytest.mark.parametrize("package", ["manifest", "model"])
def test_names_that_are_imported_when_used_are_those_that_checkers_see(package: str) -> None:
    module = importlib.import_module(f"reconciler.{package}")
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    (block,) = [each for each in tree.body if isinstance(each, ast.If)]
    seen = {
        f"{each.module}".rpartition(".")[2]: sorted(alias.name for alias in each.names)
        for each in block.body
        if isinstance(each, ast.ImportFrom)
    }
    (call,) = [each.value for each in block.orelse if isinstance(each, ast.Assign)]
    assert isinstance(call, ast.Call)
    written: dict[str, str] = ast.literal_eval(call.args[1])
    assert {home: sorted(names.split()) for home, names in written.items()} == seen
    assert sorted(name for names in seen.values() for name in names) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    unknown: Any = module
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        assert unknown.nothing


def test_every_kind_of_change_has_a_sign() -> None:
    assert SIGNS.keys() == {kind.value for kind in ChangeKind}
