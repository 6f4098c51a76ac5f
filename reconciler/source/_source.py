# SPDX-License-Identifier: Apache-2.0
"""One remote ref and one persistent bare repository: resolve, fetch, compare, read, promote."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler import _points
from reconciler.errors import SourceError
from reconciler.source._git import MAX_HEADERS, MINIMUM_GIT, GitRunner
from reconciler.source._read import ObjectReader, check_id, parse_commit
from reconciler.source._remote import explain, moved, prepare
from reconciler.source._repository import FETCH, LocalRepository, disk_errors, reference
from reconciler.source._tree import HOSTS, TreeReader
from reconciler.source._types import Ancestry, Checkout, CommitInfo, Mark, SourceRefusedError, SourceSettings
from reconciler.source._url import check_ref

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_PACKS: Final = 50
"""Packs above which `maintain` repacks; git's own gc.autoPackLimit."""

SHORT_LINE: Final = 16
"""Commits that are looked at one by one before git is asked."""

_NOT_AGAIN: Final = frozenset({"SourceTooLarge", "ShallowSource"})
"""Reasons for which nothing is asked a second time."""

_ADVERTISED: Final = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64})\t(.+)")
_SPACES: Final = {"refs/heads/": "--heads", "refs/tags/": "--tags"}


class Source:
    """The Git source of this host; made by `open_source`, ended by `close`.

    Commits are named by full ids. Nothing but `resolve`, `fetch`, `pull` and `probe` talks to the network. The
    local repository comes into being with the first `resolve`, which tells its object format.

    One thread may `resolve`, `fetch`, `pull` and `maintain` while another one reads and probes.
    """

    def __init__(self, settings: SourceSettings, directory: Path) -> None:
        self._settings = settings
        self._nothing = empty_directory(directory)
        self._runner = GitRunner(directory)
        self._local = LocalRepository(directory, self._runner, settings.limits)
        self._patience = 0
        self._answers = True  # what the last question found
        self._objects = self._reader()

    def close(self) -> None:
        """End every process; the repository stays."""
        self._objects.close()

    def rest(self) -> None:
        """End what reads, so that no process lingers between two passes; reading again starts anew."""
        self._objects.close()

    def check(self) -> None:
        """Make an existing local repository fit to use; `open_source` does it.

        Raises:
            SourceError: git is missing or too old, or the repository is damaged or shallow.
        """
        version = self._runner.version(self._settings.limits.read_timeout)
        if version < MINIMUM_GIT:
            wanted, got = (".".join(map(str, each)) for each in (MINIMUM_GIT, version))
            raise SourceError(f"expected git {wanted} or newer, got {got}", reason="GitTooOld")
        self._local.check()

    def cancel(self) -> None:
        """End running commands from another thread, for good: they fail with reason `Cancelled`."""
        self._runner.cancel()

    # --- the network ---------------------------------------------------------------------------------------

    def resolve(self) -> str:
        """The commit id that the source advertises for the ref now, over a new connection.

        Raises:
            SourceError: reasons SourceUnavailable, SourceTimeout, AuthenticationFailed, HostKeyRefused, TlsRefused,
                RedirectRefused, NotARepository, RefMissing, ObjectFormatChanged and others; see `_remote.py`.
        """
        self._answers = False
        commit = self._advertised(self._settings.limits.resolve_timeout)
        self._answers = True
        self._local.ensure(len(commit))
        return commit

    def probe(self, timeout: float) -> bool:
        """Whether the source answers for the ref on a new connection within `timeout` seconds; changes nothing."""
        try:
            self._advertised(timeout)
        except SourceError as error:
            if error.reason == "Cancelled":
                raise
            return False
        return True

    def fetch(self, commit: str) -> None:
        """Bring `commit`, which `resolve` returned, and everything it stands on into the local repository.

        Raises:
            SourceMovedError: the ref names another commit by now; resolve again.
            SourceError: the source cannot be reached, sends what fails git's checks, or exceeds a limit.
        """
        check_id(commit)
        self._local.require()
        if self.marked(Mark.CANDIDATE) == commit:
            return
        got = self._bring(self._settings.limits.fetch_timeout)
        if got != commit:
            raise moved(commit, got)

    def pull(self) -> str:
        """`resolve` and `fetch` over one connection, for whoever expects something new; returns the commit.

        Where that fails, or takes longer than a question may, both are asked one by one: their errors say more (such as
        how long a server wants to be left alone), and a fetch has more time.

        Raises:
            SourceError: those of `resolve` and `fetch`.
        """
        if self._answers and self._local.id_length() is not None:
            self._answers = False
            try:
                commit = self._bring(self._settings.limits.resolve_timeout)
            except SourceError as error:
                if error.reason in _NOT_AGAIN:
                    raise
            else:
                self._answers = True
                return commit
        commit = self.resolve()
        self.fetch(commit)
        return commit

    def _bring(self, timeout: float) -> str:
        """Fetch what the ref names now, which becomes the candidate."""
        with self._local.writing():
            self._local.sweep()
            # Without the candidate: another one is about to take its place.
            self._local.make_room(Mark.APPLIED, Mark.GOOD)
            remote = prepare(self._settings, self._nothing)
            done = _points.at(
                "git fetch",
                self._runner.run,
                *FETCH,
                "--end-of-options",
                self._settings.url,
                f"+{self._settings.ref}:{reference(Mark.CANDIDATE)}",
                timeout=timeout,
                remote=remote,
                watch=self._local.watch_size,
            )
            if done.code != 0:
                # git does not say that the limit on a file's size ended its child, but what it wrote does.
                if self._local.sweep() >= remote.file_bytes:
                    raise SourceRefusedError(
                        f"fetch {self._settings.ref}: expected a pack of at most {remote.file_bytes} bytes, got more",
                        reason="SourceTooLarge",
                    )
                raise explain(f"fetch {self._settings.ref}", done, remote)
            self._local.refuse_shallow()
            got = self._local.fetched()
        if got is None:
            raise SourceRefusedError(
                f"fetch: expected {self._settings.ref} with its whole history; the source is shallow or keeps it back",
                reason="ShallowSource",
            )
        with contextlib.closing(self._reader()) as reader:
            reader.one(got, "commit", self._settings.limits.commit_bytes)
        return got

    def _advertised(self, timeout: float) -> str:
        ref = self._settings.ref
        remote = replace(
            prepare(self._settings, self._nothing),
            memory_bytes=self._settings.limits.resolve_memory_bytes,
            trace_headers=True,
            file_bytes=MAX_HEADERS,  # ls-remote writes nothing but that trace
        )
        # git sends no prefix for a pattern (2.39: builtin/ls-remote.c), so that the server would list every ref it
        # has, pull requests included; it does send one for these options.
        space = [option for prefix, option in _SPACES.items() if ref.startswith(prefix)]
        done = self._runner.run(
            "ls-remote",
            "--quiet",
            *space,
            "--end-of-options",
            self._settings.url,
            ref,
            f"{ref}^{{}}",  # what an annotated tag names, too: else it would look like a commit
            timeout=timeout,
            remote=remote,
        )
        if done.code != 0:
            raise explain(f"poll {ref}", done, remote)
        # The patterns also match longer names that end like the ref.
        found = [match for line in done.output.splitlines() if (match := _ADVERTISED.fullmatch(line))]
        commits = {match[1].decode() for match in found if match[2] == ref.encode()}
        if not commits:
            raise SourceError(
                f"poll {ref}: the source answers, but not with this ref (is it there, and is the answer that of git?)",
                reason="RefMissing",
            )
        if len(commits) > 1:
            raise SourceRefusedError(f"poll {ref}: expected one commit, got {len(commits)}", reason="NotARepository")
        if any(match[2] == f"{ref}^{{}}".encode() for match in found):
            raise SourceRefusedError(
                f"poll {ref}: expected a branch or a lightweight tag, got an annotated tag", reason="RefRefused"
            )
        return commits.pop()

    # --- the local repository ------------------------------------------------------------------------------

    def ancestry(self, old: str, new: str) -> Ancestry:
        """How `new` relates to `old`; UNKNOWN when the repository does not hold both."""
        if check_id(old) == check_id(new):
            return Ancestry.EQUAL if self._holds(old) else Ancestry.UNKNOWN
        if self._local.require() != len(old) or len(old) != len(new):
            return Ancestry.UNKNOWN
        if self._first_parents(old, new) is not None:
            return Ancestry.DESCENDANT
        forwards = self._is_ancestor(old, new)
        if forwards is None:
            return Ancestry.UNKNOWN
        if forwards:
            return Ancestry.DESCENDANT
        return {True: Ancestry.REWOUND, False: Ancestry.UNRELATED, None: Ancestry.UNKNOWN}[self._is_ancestor(new, old)]

    def new_commits(self, watermark: str | None, head: str) -> tuple[str, ...]:
        """The commits of the first-parent line of `head` that `watermark` does not contain, oldest first.

        Args:
            watermark: what was applied before; None returns just `head`.
            head: the commit that is to be applied.

        Raises:
            SourceError: a commit is missing, or there are more than the limit allows.
        """
        check_id(head)
        if watermark is None:
            return (head,)
        limit = self._settings.limits.new_commits
        short = self._first_parents(check_id(watermark), head)
        if short is not None and len(short) <= limit:
            return short
        done = self._local.run(
            "rev-list",
            "--first-parent",
            f"--max-count={limit + 1}",
            "--end-of-options",
            head,
            f"^{check_id(watermark)}",
        )
        if done.code != 0:
            raise explain(f"list the commits from {watermark} to {head}", done)
        commits = tuple(check_id(line) for line in reversed(done.output.decode("ascii", "replace").split()))
        if len(commits) > limit:
            raise SourceRefusedError(
                f"expected at most {limit} new commits since {watermark}, got more; "
                f"raise source.minimumCommit, or run: reconciler accept {head} --reason TEXT",
                reason="TooManyCommits",
            )
        return commits

    def read_commit(self, commit: str) -> bytes:
        """The raw commit object, whose id was computed again over exactly these bytes.

        Raises:
            SourceError: it is missing, no commit, too large, or not what its id says.
        """
        self._local.require()
        return self._objects.one(check_id(commit), "commit", self._settings.limits.commit_bytes)

    def describe(self, commit: str) -> CommitInfo:
        """What the commit says about itself; unverified, and with its control characters."""
        return parse_commit(commit, self.read_commit(commit))

    def checkout(self, commit: str) -> Checkout:
        """The manifests of `commit` as bytes, and what could not be taken; the errors are those of `read_commit`."""
        tree = TreeReader(self._objects, self._settings.limits, self.describe(commit).tree)
        files, problems = tree.manifests()
        return Checkout(commit=commit, files=files, problems=problems, blobs=tree.blob)

    def paper(self, commit: str) -> Mapping[str, bytes]:
        """Files below hosts/, which say how `commit` was reviewed; what cannot be taken is left out."""
        tree = TreeReader(self._objects, self._settings.limits, self.describe(commit).tree)
        files, _ = tree.manifests((HOSTS,))
        return files

    def promote(self, commit: str, mark: Mark = Mark.APPLIED) -> None:
        """Keep `commit` reachable under `mark`, so that it can be read for as long as the mark stands.

        Raises:
            SourceError: the repository does not hold it, or cannot be written.
        """
        self.read_commit(commit)
        with self._local.writing():
            self._local.mark(mark, commit)

    def applied(self) -> str | None:
        """The commit that was promoted last, None before the first."""
        return self.marked(Mark.APPLIED)

    def marked(self, mark: Mark) -> str | None:
        """The commit under `mark`, None if there is none."""
        return self._local.marked(mark)

    def maintain(self, *, packs: int = MAX_PACKS) -> bool:
        """Rebuild above the limit on bytes, or join packs if there are more than `packs`; between two passes.

        Says whether it did something. What failed is tried again when there are twice as many packs.

        Raises:
            SourceError: it failed; the repository is as it was.
        """
        if self._local.id_length() is None:
            return False
        with self._local.writing():
            if self._local.make_room(Mark.APPLIED, Mark.GOOD, Mark.CANDIDATE):
                return True
            have = self._local.packs()
            if have <= max(packs, self._patience):
                return False
            self._patience = 2 * have
            self._local.repack()
            self._patience = 0
        return True

    # --- private -------------------------------------------------------------------------------------------

    def _reader(self) -> ObjectReader:
        return ObjectReader(self._runner, timeout=self._settings.limits.read_timeout, swapping=self._local.swapping)

    def _first_parents(self, old: str, new: str) -> tuple[str, ...] | None:
        """The commits from `old`, not included, to `new`, oldest first, if a short line of first parents leads there.

        Two processes less for nearly every poll that brings something: a few commits on top of what was applied, which
        are read and hashed anyway. None says nothing.
        """
        line: list[str] = []
        commit = new
        with contextlib.suppress(SourceError):
            while len(line) < SHORT_LINE:
                if commit == old:
                    self.read_commit(old)  # that it is there is part of the answer
                    return tuple(reversed(line))
                line.append(commit)
                parents = self.describe(commit).parents
                if not parents:
                    break
                commit = parents[0]
        return None

    def _holds(self, commit: str) -> bool:
        return self._local.run("cat-file", "-e", f"{commit}^{{commit}}").code == 0

    def _is_ancestor(self, old: str, new: str) -> bool | None:
        code = self._local.run("merge-base", "--is-ancestor", old, new).code
        return {0: True, 1: False}.get(code)


def open_source(settings: SourceSettings, directory: Path) -> Source:
    """The source behind `settings`, with its bare repository in `directory` (made on the first `resolve`).

    Works without the network; an existing repository is swept of what a killed process left.

    Raises:
        ConfigError: the URL, the ref or the authentication cannot work.
        SourceError: git is missing or too old, or the repository is damaged or shallow.
    """
    check_ref(settings.ref)
    nothing = empty_directory(directory)
    with disk_errors(directory):
        _points.at("mkdir state", directory.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
        _points.at("mkdir git.empty", nothing.mkdir, mode=0o500, exist_ok=True)
    with contextlib.suppress(SourceError):  # a token that is not there yet must not keep the agent from starting
        prepare(settings, nothing)
    source = Source(settings, directory)
    source.check()
    return source


def empty_directory(directory: Path) -> Path:
    """A directory without files beside the repository, for options that must name one."""
    return directory.with_name(f"{directory.name}.empty")
