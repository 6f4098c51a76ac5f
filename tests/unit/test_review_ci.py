# SPDX-License-Identifier: Apache-2.0
"""deploy/ci and .pre-commit-hooks.yaml: what they may do, and that what they call is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconciler.cli import _templates as templates
from tests.command import reconciler

ROOT = Path(__file__).resolve().parents[2]
CI = ROOT / "deploy" / "ci"
COMMAND = str(ROOT / ".venv" / "bin" / "reconciler")
GITHUB = sorted((CI / "github").glob("*.yml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def scripts(workflow: Any) -> str:
    return "\n".join(step["run"] for step in steps(workflow) if "run" in step)


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.stem)
def test_no_script_holds_text_of_the_event(path: Path) -> None:
    assert "${{" not in scripts(load(path))


def test_the_job_that_reads_the_pull_request_may_do_nothing() -> None:
    workflow = load(CI / "github" / "reconciler-review.yml")
    # YAML 1.1 reads the key `on` as true.
    assert workflow[True] == {"pull_request": None}
    assert workflow["permissions"] == {"contents": "read"}
    (checkout,) = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"] == {"fetch-depth": 0, "persist-credentials": False}
    assert "secrets." not in (CI / "github" / "reconciler-review.yml").read_text()


def test_the_job_that_may_write_takes_nothing_but_values_from_the_other() -> None:
    workflow = load(CI / "github" / "reconciler-review-comment.yml")
    assert list(workflow[True]) == ["workflow_run"]
    assert workflow[True]["workflow_run"]["workflows"] == [load(CI / "github" / "reconciler-review.yml")["name"]]
    assert workflow["permissions"] == {"actions": "read", "pull-requests": "write"}
    assert not [step for step in steps(workflow) if "uses" in step]  # no checkout, and no action with the token
    assert "review.md" not in scripts(workflow)
    (taken,) = re.findall(r"unzip -p artifact\.zip (\S+)", scripts(workflow))
    assert taken == "review.json"
    assert "reconciler review --from review.json -o markdown" in scripts(workflow)


@pytest.mark.parametrize("folder", ["deploy", "init"])
def test_hooks_call_the_command_as_it_is(folder: str) -> None:
    text = (ROOT / ".pre-commit-hooks.yaml").read_text() if folder == "deploy" else templates.PRE_COMMIT
    loaded = yaml.safe_load(text)
    hooks = loaded if folder == "deploy" else loaded["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["reconciler-validate", "reconciler-review"]
    for hook in hooks:
        words = shlex.split(hook["entry"])
        assert words[0] == "reconciler"
        said = reconciler(words[1], "--help")
        assert said.code == 0
        assert all(word in said.out for word in words[2:] if word.startswith("--"))
        assert hook["pass_filenames"] is False
        # The project's own folder makes no wheel before `make packages`, so nothing can be installed from it here.
        assert hook["language"] == "system"


def test_hooks_stop_what_hosts_refuse_and_show_what_gets_weaker(policy: Path) -> None:
    hooks = {
        hook["id"]: hook
        for hook in yaml.safe_load((policy / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    }

    def run(name: str) -> subprocess.CompletedProcess[str]:
        entry = shlex.split(hooks[name]["entry"])
        return subprocess.run([COMMAND, *entry[1:]], cwd=policy, check=False, capture_output=True, text=True)

    chain = policy / "chains" / "demo.yaml"
    text = chain.read_text()
    chain.write_text(text.replace("rate: 10", "rate: 500"))
    assert run("reconciler-validate").returncode == 0
    shown = run("reconciler-review")
    assert (shown.returncode, hooks["reconciler-review"]["verbose"]) == (0, True)
    assert "RV019 high" in shown.stdout
    chain.write_text(text.replace("rate: 10", "rate: many"))
    assert run("reconciler-validate").returncode == 1


def test_files_that_init_writes_are_those_that_ship(tmp_path: Path) -> None:
    assert reconciler("init", tmp_path / "policy").code == 0
    shipped = {path.relative_to(CI).as_posix() for path in CI.rglob("*") if path.is_file()}
    assert shipped == set(templates.CI_FILES)
    for target, mode in templates.CI_FILES.values():
        file = tmp_path / "policy" / target
        assert file.stat().st_mode & 0o777 == mode
        assert "@VERSION@" not in file.read_text()


# --- the shell script, end to end --------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def run_script(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CI / "review.sh", *arguments],
        cwd=folder,
        env={**os.environ, "RECONCILER": COMMAND, **environment},
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A clone with a branch that raises a limit, while main went on elsewhere."""
    assert reconciler("init", tmp_path / "policy").code == 0
    folder = tmp_path / "policy"
    git(folder, "checkout", "-q", "-b", "raise")
    chain = folder / "chains" / "demo.yaml"
    chain.write_text(chain.read_text().replace("rate: 10", "rate: 500"))
    git(folder, "commit", "-q", "-a", "-m", "raise the limit")
    git(folder, "checkout", "-q", "main")
    (folder / "README.md").write_text("other words\n")
    git(folder, "commit", "-q", "-a", "-m", "words")
    return folder


def test_the_script_reviews_the_merge_of_a_branch_and_then_what_was_merged(policy: Path) -> None:
    ran = run_script(policy, "main", "raise", "out")
    assert ran.returncode == 0, ran.stderr
    comment = (policy / "out" / "review.md").read_text()
    assert comment.startswith("<!-- reconciler-review -->\n## Review: weaker\n")
    assert re.search(r"`reviewed what merging [0-9a-f]{40} into BASE would make, against BASE [0-9a-f]{40}`", comment)
    assert "`~ ratelimit rate 10 → 500" in comment
    assert "`demo`, 1 host, secure mode `audit`: state" in comment
    # The picture is the one that the documentation shows.
    (shown,) = re.findall(r"^```mermaid\n.*?^```$", (ROOT / "docs/review.md").read_text(), re.DOTALL | re.MULTILINE)
    assert shown in comment
    made = json.loads((policy / "out" / "review.json").read_text())
    assert (made["base"], made["kind"]) == (git(policy, "rev-parse", "main"), "merge")
    assert json.loads((policy / "out" / "review.sarif").read_text())["version"] == "2.1.0"
    assert ran.stdout.endswith("\nthe comment is in out/review.md\n")
    assert run_script(policy, "main", "raise", FAIL_ON="info").returncode == 2
    assert git(policy, "status", "--short") == "?? out/"  # what it leaves by default is ignored

    before = git(policy, "rev-parse", "main")
    git(policy, "merge", "-q", "--no-edit", "raise")
    assert run_script(policy, before, "main", "out").returncode == 0
    merged = json.loads((policy / "out" / "review.json").read_text())
    assert [merged["kind"], merged["chains"]] == ["commits", made["chains"]]
    assert [each["digest"] for each in merged["hosts"]] == [each["digest"] for each in made["hosts"]]
    assert "nothing is left" not in ran.stderr
    assert "BASE (main) and HEAD (raise) were compared, and BASE holds all of HEAD" in (
        run_script(policy, "main", "raise", "out").stderr
    )
    assert "are one commit: nothing is left to be merged" in run_script(policy, "main", "HEAD", "out").stderr


def test_a_clone_that_is_too_shallow_says_how_to_deepen_it(policy: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth=1", "--branch=raise", policy.as_uri(), "shallow")
    ran = run_script(tmp_path / "shallow", git(policy, "rev-parse", "main"), "HEAD", "out")
    assert ran.returncode == 1
    assert "git fetch --unshallow" in ran.stderr
    assert "No review could be made" in (tmp_path / "shallow" / "out" / "review.md").read_text()


def test_names_of_commits_are_no_options(policy: Path) -> None:
    ran = run_script(policy, "--json=/tmp/evil", "raise", "out")
    assert ran.returncode == 1
    assert run_script(policy, "main").returncode == 64
