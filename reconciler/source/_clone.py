# SPDX-License-Identifier: Apache-2.0
"""A clone that somebody made, for example CI: read as hosts read theirs, and never written.

Objects come out of `git cat-file` with the same limits, name rules and hashes as everywhere in this package. A merge is
made by `git merge-tree`, whose new objects go to a folder of its own. No hook, filter, attribute or driver that the
repository's content names is ever run.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from reconciler.errors import SourceError
from reconciler.source._git import MINIMUM_GIT, Completed, GitRunner
from reconciler.source._read import ObjectReader, parse_commit
from reconciler.source._tree import CHAINS, HOSTS, TreeReader
from reconciler.source._types import Checkout, SourceLimits

if TYPE_CHECKING:
    from types import TracebackType

MERGE_TREE_GIT: Final = (2, 38)
"""`git merge-tree --write-tree` came with 2.38."""
MAX_CONFLICTS: Final = 20

_ID: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """What merging two commits gives.

    Attributes:
        tree: id of the merged tree, None when they conflict.
        base: the commit that both started from, None when HEAD is just ahead or nothing is known.
        conflicts: paths.
    """

    tree: str | None
    base: str
    conflicts: tuple[str, ...] = ()


class Clone:
    """An existing repository below `path`; end it with `close` or use it in a `with`."""

    def __init__(self, path: Path, limits: SourceLimits | None = None) -> None:
        """Raises SourceError when there is no repository at or above `path`."""
        self._limits = limits or SourceLimits()
        self._git_dir = find_git_dir(path)
        plain = GitRunner(self._git_dir)
        self._objects_dir = self._ask(plain, "rev-parse", "--git-path", "objects")
        self._scratch = Path(tempfile.mkdtemp(prefix="reconciler-review-"))  # from here on `close` removes it
        objects = (self._git_dir / self._objects_dir).resolve()
        # Quoted as git's alternates are: a colon separates them.
        alternate = '"' + str(objects).replace("\\", "\\\\").replace('"', '\\"') + '"'
        self._runner = GitRunner(
            self._git_dir,
            {"GIT_OBJECT_DIRECTORY": str(self._scratch), "GIT_ALTERNATE_OBJECT_DIRECTORIES": alternate},
        )
        self._objects = ObjectReader(self._runner, timeout=self._limits.read_timeout)
        self._blobs: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process, and remove the objects of merges."""
        self._objects.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def resolve(self, revision: str) -> str:
        """The commit id behind a revision.

        Raises:
            SourceError: there is no such commit here; says how to get it if the clone is shallow.
        """
        done = self._run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        found = done.output.decode("ascii", "replace").split()
        if done.code == 0 and found and _ID.fullmatch(found[-1]):
            return found[-1]
        message = f"expected the commit {revision[:200]!a} in {self._git_dir}, got none"
        raise SourceError(f"{message}; {DEEPEN if self.shallow else FETCH}", reason="CommitMissing")

    def work_tree(self, path: Path) -> Path:
        """The folder above `path` that holds the work tree.

        Raises:
            SourceError: it is a bare repository.
        """
        start = path.resolve()
        for folder in (start, *start.parents):
            if (folder / ".git").exists():
                return folder
        message = f"{path}: expected a work tree, got a bare repository; name two commits"
        raise SourceError(message, reason="NotARepository")

    def holds(self, commit: str) -> bool:
        """Whether the clone has this commit."""
        return bool(_ID.fullmatch(commit)) and self._run("cat-file", "-e", f"{commit}^{{commit}}").code == 0

    @property
    def shallow(self) -> bool:
        """Whether history ends at a boundary."""
        done = self._run("rev-parse", "--is-shallow-repository")
        return done.output.strip().endswith(b"true")

    def merge(self, base: str, head: str) -> Merge:
        """What merging `head` into `base` gives; both are commit ids.

        Raises:
            SourceError: they have no common history here, or git is too old.
        """
        done = self._run("merge-base", base, head)
        found = done.output.decode("ascii", "replace").split()
        if done.code != 0 or not found:
            advice = DEEPEN if self.shallow else "they come from different repositories: name the branch that HEAD left"
            message = f"expected {base[:12]} and {head[:12]} to have history in common, got none; {advice}"
            raise SourceError(message, reason="CommitMissing" if self.shallow else "HistoryUnrelated")
        if found[0] == base:
            return Merge(tree=self._tree_of(head), base=base)
        version = self._runner.version(self._limits.read_timeout)
        if version < MERGE_TREE_GIT:
            got = ".".join(map(str, version))
            message = (
                f"expected git 2.38 or newer to review a branch that is behind, got {got}; rebase it, or update git"
            )
            raise SourceError(message, reason="GitTooOld")
        done = self._run("merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", base, head)
        words = [word.decode("utf-8", "backslashreplace") for word in done.output.split(b"\0") if word]
        if done.code == 0 and words and _ID.fullmatch(words[0]):
            return Merge(tree=words[0], base=found[0])
        if done.code == 1:
            return Merge(tree=None, base=found[0], conflicts=tuple(dict.fromkeys(words[1:]))[:MAX_CONFLICTS])
        raise SourceError(f"git merge-tree failed with {done.code}", reason="MergeFailed")

    def commit(self, commit: str) -> Checkout:
        """Manifests and groups of a commit, as bytes.

        Raises:
            SourceError: an object is missing or damaged.
        """
        return self._checkout(self._tree_of(commit), commit)

    def merged(self, merge: Merge, name: str) -> Checkout:
        """Manifests and groups of a merge without conflicts; `name` stands for its commit."""
        if merge.tree is None:
            raise SourceError("expected a merge without conflicts", reason="MergeFailed")
        return self._checkout(merge.tree, name)

    def _checkout(self, tree: str, name: str) -> Checkout:
        reader = TreeReader(self._objects, self._limits, tree, self._blobs)
        files, problems = reader.manifests((CHAINS, HOSTS))
        return Checkout(commit=name, files=files, problems=problems, blobs=reader.blob)

    def _tree_of(self, commit: str) -> str:
        return parse_commit(commit, self._objects.one(commit, "commit", self._limits.commit_bytes)).tree

    def _run(self, *arguments: str) -> Completed:
        return self._runner.run(*arguments, timeout=self._limits.read_timeout)

    def _ask(self, runner: GitRunner, *arguments: str) -> str:
        if runner.version(self._limits.read_timeout) < MINIMUM_GIT:
            wanted = ".".join(map(str, MINIMUM_GIT))
            raise SourceError(f"expected git {wanted} or newer", reason="GitTooOld")
        done = runner.run(*arguments, timeout=self._limits.read_timeout)
        if done.code != 0:
            message = f"expected a Git repository in {self._git_dir}, got something else"
            raise SourceError(message, reason="NotARepository")
        return done.output.decode("utf-8", "surrogateescape").strip()


DEEPEN: Final = (
    "this clone is shallow: fetch the whole history (GitHub: `fetch-depth: 0` of actions/checkout; GitLab: "
    "`GIT_DEPTH: 0`; elsewhere: `git fetch --unshallow`)"
)


FETCH: Final = "name a commit, branch or tag that is here, such as origin/main, or fetch it (`git fetch origin`)"


def find_git_dir(path: Path) -> Path:
    """The Git directory at or above `path`: .git, what a .git file names, or a bare repository itself.

    Raises:
        SourceError: there is none.
    """
    if not path.is_dir():
        raise SourceError(f"{path}: expected a folder, got none; name that of a clone", reason="NotARepository")
    # Not `absolute`: what lies above "../x" would be this folder, and its repository another one than was named.
    start = path.resolve()
    for folder in (start, *start.parents):
        candidate = folder / ".git"
        if candidate.is_dir():
            return candidate
        if candidate.is_file():
            text = candidate.read_text("utf-8", "surrogateescape").strip()
            if text.startswith("gitdir: "):
                return (folder / text.removeprefix("gitdir: ")).absolute()
        if (folder / "HEAD").is_file() and (folder / "objects").is_dir():
            return folder
    message = f"{path}: expected a Git repository here or above, got none; name the folder of a clone"
    raise SourceError(message, reason="NotARepository")
