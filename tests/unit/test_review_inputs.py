# SPDX-License-Identifier: Apache-2.0
"""What `review` says to somebody who asks wrongly: expected, got, and what to do; and which repository it takes."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from reconciler import review
from reconciler.model import Acknowledgement
from reconciler.review import Finding
from tests.command import reconciler
from tests.manifests import text
from tests.unit.test_review_host import REVIEW

if TYPE_CHECKING:
    from pathlib import Path


REPOSITORY = {
    "apiVersion": "reconciler/v1alpha1",
    "kind": "Repository",
    "metadata": {"name": "corp"},
    "spec": {"allowEmpty": True},
}


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a repository of two histories, a bare one, an empty one, and none."""
    for name in ("policy", "empty"):
        (tmp_path / name).mkdir()
        git(tmp_path / name, "init", "-q")
    policy = tmp_path / "policy"
    (policy / "reconciler.yaml").write_bytes(text(REPOSITORY))
    git(policy, "add", "-A")
    git(policy, "commit", "-q", "-m", "one")
    git(policy, "commit", "-q", "--allow-empty", "-m", "two")
    git(policy, "checkout", "-q", "--orphan", "other")
    git(policy, "commit", "-q", "-m", "another history")
    git(policy, "checkout", "-q", "main")
    git(tmp_path, "clone", "-q", "--bare", "policy", "bare.git")
    (tmp_path / "plain").mkdir()
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "x.json").write_text("nothing")
    monkeypatch.chdir(policy)
    return tmp_path


WRONG = {
    "nothing": ((), 64, "expected two commits, BASE and HEAD, or --worktree, got neither; for a branch, `reconciler"),
    "one commit": (("main",), 64, "expected two commits"),
    "both": (("main", "main", "--worktree"), 64, "expected either HEAD or --worktree, got both; leave one out"),
    "a review and commits": (("--from", "x", "main", "HEAD"), 64, "got both; leave one out"),
    "no such base": (("nosuch", "main"), 1, "expected the commit 'nosuch' in "),
    "no such head": (("main", "nosuch"), 1, "name a commit, branch or tag that is here, such as origin/main, or fetch"),
    "an option as a commit": (("--", "--help", "main"), 1, "expected the commit '--help' in "),
    "no commit at all": (("HEAD", "HEAD", "--repository", "../empty"), 1, "expected the commit 'HEAD' in "),
    "a tree": (("main^{tree}", "main"), 1, "expected the commit 'main^{tree}' in "),
    "another history": (("main", "other"), 1, "name the branch that HEAD left"),
    "no repository": (("main", "main", "--repository", "../plain"), 1, "expected a Git repository here or above, got"),
    "no folder": (("main", "main", "--repository", "nosuch"), 1, "nosuch: expected a folder, got none; name that of a"),
    "a bare work tree": (("--worktree", "--repository", "../bare.git"), 1, "got a bare repository; name two commits"),
    "no records": (("main", "main", "--snapshots", "../plain"), 1, "got none; `reconciler observe --record FILE`"),
    "no folder of records": (("main", "main", "--snapshots", "nosuch"), 1, "got no such file; `reconciler observe"),
    "no record": (("main", "main", "--snapshots", "../records"), 1, "expected a record of `reconciler observe"),
    "no review": (("--from", "../records/x.json"), 1, "expected a review as `reconciler review -o json` writes it"),
    "no file": (("--from", "nosuch"), 1, "expected a readable file, got an error: No such file or directory"),
    "nowhere to write": (("main", "main", "--sarif", "no/x"), 1, "expected a file that can be written, got an error"),
    "no format": (("main", "main", "-o", "yaml"), 64, "'yaml' is not one of 'table', 'json', 'markdown', 'sarif'"),
    "no severity": (("main", "main", "--fail-on", "all"), 64, "'all' is not one of 'high', 'medium', 'low', 'info'"),
    "no date": (("main", "main", "--now", "tomorrow"), 64, "expected a date such as 2026-12-31, got 'tomorrow'"),
    "no such day": (
        ("main", "main", "--now", "2026-02-30"),
        64,
        "expected a date such as 2026-12-31, got '2026-02-30'",
    ),
}


@pytest.mark.parametrize(("arguments", "code", "words"), WRONG.values(), ids=WRONG)
@pytest.mark.usefixtures("here")
def test_what_is_wrong_is_said_with_what_to_do(arguments: tuple[str, ...], code: int, words: str) -> None:
    ran = reconciler("review", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert words in re.sub(r"\s+", " ", ran.err)


def test_a_folder_that_is_no_repository_is_not_the_one_from_which_it_was_named(here: Path) -> None:
    """Above "../plain", as it is written, lies this folder."""
    ran = reconciler("review", "main", "main", "--repository", "../plain")
    assert ran.code == 1
    assert "../plain: expected a Git repository" in ran.err
    (here / "policy" / "sub").mkdir()
    (here / "link").symlink_to(here / "policy" / "sub")
    assert reconciler("review", "HEAD", "--worktree", "--repository", "../link").code == 0


ACCEPTED = Acknowledgement(finding="RV010", why="w", until="2026-12-31")
WORST = {
    "high": Finding(id="RV010", message="m"),
    "medium": Finding(id="RV008", message="m"),
    "low": Finding(id="RV031", message="m"),
    "info": Finding(id="RV054", message="m"),
    "acknowledged": Finding(id="RV010", message="m", acknowledged=ACCEPTED),
    "nothing": None,
}
SEVERITIES = ["high", "medium", "low", "info"]


@pytest.mark.parametrize("limit", [None, *SEVERITIES])
@pytest.mark.parametrize("worst", WORST)
def test_only_a_severity_that_is_asked_for_fails(worst: str, limit: str | None, tmp_path: Path) -> None:
    """2 for a finding that counts and is at least so severe, otherwise 0, whatever the review says."""
    finding = WORST[worst]
    file = tmp_path / "review.json"
    file.write_text(review.to_json(replace(REVIEW, findings=() if finding is None else (finding,))))
    ran = reconciler("review", "--from", file, *(() if limit is None else ("--fail-on", limit)))
    fails = limit is not None and worst in SEVERITIES and SEVERITIES.index(worst) <= SEVERITIES.index(limit)
    assert ran.code == (2 if fails else 0)


@pytest.mark.usefixtures("here")
def test_one_commit_on_both_sides_is_said() -> None:
    ran = reconciler("review", "main", "HEAD")
    assert ran.code == 0
    assert "are one commit: nothing is left to be merged" in ran.err
    assert ran.out.startswith("unchanged: nothing changes on any host\n")
    swapped = reconciler("review", "main", "main~1")
    assert swapped.code == 0
    assert "BASE holds all of HEAD already" in swapped.err
