# SPDX-License-Identifier: Apache-2.0
"""One remote ref and one persistent bare repository: resolve, fetch, compare, read, promote."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from typing import TYPE_CHECKING, Final

from reconciler.errors import SourceError
from reconciler.source._git import MINIMUM_GIT, Completed, GitRunner
from reconciler.source._read import ObjectReader, check_id, parse_commit
from reconciler.source._remote import explain, moved, prepare
from reconciler.source._tree import TreeReader
from reconciler.source._types import Ancestry, Checkout, CommitInfo, Mark, SourceRefusedError, SourceSettings
from reconciler.source._url import check_ref

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_TIMEOUT: Final = 10.0
"""Seconds to wait for another process that fetches or promotes."""
MAX_PACKS: Final = 50
"""Packs above which `maintain` repacks; git's own gc.autoPackLimit."""

_ADVERTISED: Final = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64})\t(.+)")
_CORE: Final = "[core]\n\trepositoryformatversion = {}\n\tfilemode = true\n\tbare = true\n"
_REPOSITORY: Final = {40: _CORE.format(0), 64: _CORE.format(1) + "[extensions]\n\tobjectformat = sha256\n"}
_SPACES: Final = {"refs/heads/": "--heads", "refs/tags/": "--tags"}
_FORMATS: Final = {40: "sha1", 64: "sha256"}


class Source:
    """The Git source of this host; made by `open_source`, ended by `close`.

    Commits are named by full ids. Nothing but `resolve`, `fetch` and `probe` talks to the network. The local
    repository comes into being with the first `resolve`, which tells its object format.
    """

    def __init__(self, settings: SourceSettings, directory: Path) -> None:
        self._settings = settings
        self._directory = directory
        self._nothing = empty_directory(directory)
        self._runner = GitRunner(directory)
        self._objects = ObjectReader(self._runner, timeout=settings.limits.read_timeout)

    def close(self) -> None:
        """End every process; the repository stays."""
        self._objects.close()

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
        self._objects.close()  # between two polls no process lingers, and the next read sees what was fetched
        commit = self._advertised(self._settings.limits.resolve_timeout)
        self._ensure_repository(len(commit))
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
        self._require_repository()
        if self.marked(Mark.CANDIDATE) == commit:
            return
        self._objects.close()
        with self._writing():
            self._sweep()
            self._make_room()
            remote = prepare(self._settings, self._nothing)
            done = self._runner.run(
                "fetch",
                "--quiet",
                "--no-tags",
                "--no-recurse-submodules",
                "--no-write-fetch-head",
                "--no-auto-maintenance",
                "--end-of-options",
                self._settings.url,
                f"+{self._settings.ref}:{_ref(Mark.CANDIDATE)}",
                timeout=self._settings.limits.fetch_timeout,
                remote=remote,
            )
            if done.code != 0:
                # git does not say that the limit on a file's size ended its child, but what it wrote does.
                if self._sweep() >= remote.file_bytes:
                    raise SourceRefusedError(
                        f"fetch {self._settings.ref}: expected a pack of at most {remote.file_bytes} bytes, got more",
                        reason="SourceTooLarge",
                    )
                raise explain(f"fetch {self._settings.ref}", done.messages, done.code, remote)
            self._refuse_shallow()
        got = self.marked(Mark.CANDIDATE)
        if got is None:
            raise SourceRefusedError(
                f"fetch: expected {self._settings.ref} with its whole history; the source is shallow or keeps it back",
                reason="ShallowSource",
            )
        if got != commit:
            raise moved(commit, got)
        self._objects.one(commit, "commit", self._settings.limits.commit_bytes)

    def _advertised(self, timeout: float) -> str:
        ref = self._settings.ref
        remote = prepare(self._settings, self._nothing)
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
            timeout=timeout,
            remote=remote,
        )
        if done.code != 0:
            raise explain(f"poll {ref}", done.messages, done.code, remote)
        # The pattern also matches longer names that end like the ref, and a tag comes with its peeled twin.
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
        if self._require_repository() != len(old) or len(old) != len(new):
            return Ancestry.UNKNOWN
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
        done = self._local(
            "rev-list",
            "--first-parent",
            f"--max-count={limit + 1}",
            "--end-of-options",
            head,
            f"^{check_id(watermark)}",
        )
        if done.code != 0:
            raise explain(f"list the commits from {watermark} to {head}", done.messages, done.code, None)
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
        self._require_repository()
        return self._objects.one(check_id(commit), "commit", self._settings.limits.commit_bytes)

    def describe(self, commit: str) -> CommitInfo:
        """What the commit says about itself; unverified, and with its control characters."""
        return parse_commit(commit, self.read_commit(commit))

    def checkout(self, commit: str) -> Checkout:
        """The manifests of `commit` as bytes, and what could not be taken; the errors are those of `read_commit`."""
        tree = TreeReader(self._objects, self._settings.limits, self.describe(commit).tree)
        files, problems = tree.manifests()
        return Checkout(commit=commit, files=files, problems=problems, blobs=tree.blob)

    def read_blob(self, commit: str, path: str, limit: int) -> bytes | None:
        """One file of `commit`; None if it has none.

        Raises:
            SourceError: it has more than `limit` bytes, is no plain file, or the errors of `read_commit`.
        """
        return TreeReader(self._objects, self._settings.limits, self.describe(commit).tree).blob(path, limit)

    def promote(self, commit: str, mark: Mark = Mark.APPLIED) -> None:
        """Keep `commit` reachable under `mark`, so that it can be read for as long as the mark stands.

        Raises:
            SourceError: the repository does not hold it, or cannot be written.
        """
        self.read_commit(commit)
        with self._writing():
            done = self._local("update-ref", _ref(mark), commit)
            if done.code != 0:
                raise explain(f"mark {commit} as {mark}", done.messages, done.code, None)

    def applied(self) -> str | None:
        """The commit that was promoted last, None before the first."""
        return self.marked(Mark.APPLIED)

    def marked(self, mark: Mark) -> str | None:
        """The commit under `mark`, None if there is none."""
        if self._format() is None:
            return None
        done = self._local("rev-parse", "--verify", "--quiet", "--end-of-options", _ref(mark))
        text = done.output.decode("ascii", "replace").strip()
        # With --end-of-options git 2.39 prints the option itself as well.
        return check_id(text.split()[-1]) if done.code == 0 and text else None

    def maintain(self, *, packs: int = MAX_PACKS) -> bool:
        """Repack if more than `packs` packs piled up; for quiet times, outside a pass. Says whether it did.

        Raises:
            SourceError: repacking failed; the repository is as it was.
        """
        if self._format() is None or sum(1 for _ in self._packs()) <= packs:
            return False
        self._objects.close()
        with self._writing():
            self._repack()
        return True

    # --- private -------------------------------------------------------------------------------------------

    def _local(self, *arguments: str) -> Completed:
        return self._runner.run(*arguments, timeout=self._settings.limits.read_timeout)

    def _holds(self, commit: str) -> bool:
        return self._local("cat-file", "-e", f"{commit}^{{commit}}").code == 0

    def _is_ancestor(self, old: str, new: str) -> bool | None:
        code = self._local("merge-base", "--is-ancestor", old, new).code
        return {0: True, 1: False}.get(code)

    def _format(self) -> int | None:
        # Hex digits of an id, None before the repository exists.
        try:
            config = (self._directory / "config").read_text("utf-8")
        except FileNotFoundError:
            return None
        return 64 if "sha256" in config else 40

    def _require_repository(self) -> int:
        length = self._format()
        if length is None:
            raise SourceError("expected a local repository; the source was not reached so far", reason="NeverReached")
        return length

    def _ensure_repository(self, length: int) -> None:
        have = self._format()
        if have == length:
            return
        if have is not None:
            raise SourceRefusedError(
                f"expected a {_FORMATS[have]} repository as before, got {_FORMATS[length]}; "
                f"if the source was converted, remove {self._directory} and accept its head",
                reason="ObjectFormatChanged",
            )
        # Made beside and renamed, so that a crash leaves either nothing or all of it.
        fresh = self._directory.with_name(f"{self._directory.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        runner = GitRunner(fresh)
        done = runner.run(
            "init",
            "--quiet",
            "--bare",
            "--template=",
            f"--object-format={_FORMATS[length]}",
            timeout=self._settings.limits.read_timeout,
        )
        if done.code != 0:
            raise explain(f"make the repository {fresh}", done.messages, done.code, None)
        fresh.chmod(0o700)
        fresh.rename(self._directory)
        self.check()

    def check(self) -> None:
        """Make an existing repository fit to use: our configuration, no shallow boundary, no leftovers.

        Raises:
            SourceError: it is no repository, or a shallow one.
        """
        length = self._format()
        if length is None:
            return
        if not (self._directory / "HEAD").is_file() or not (self._directory / "objects").is_dir():
            raise SourceError(
                f"{self._directory}: expected a bare repository; remove it, it is fetched again",
                reason="RepositoryDamaged",
            )
        self._refuse_shallow()
        config = self._directory / "config"
        if config.read_text("utf-8") != _REPOSITORY[length]:
            config.write_text(_REPOSITORY[length], "utf-8")
        # Somebody else may be writing: then he cleans up, and nobody has to wait to read.
        with contextlib.suppress(SourceError), self._writing(timeout=0):
            self._sweep()

    def _refuse_shallow(self) -> None:
        if (self._directory / "shallow").exists():
            raise SourceRefusedError(
                f"{self._directory}: expected a repository with its whole history, got a shallow one; remove it",
                reason="ShallowSource",
            )

    @contextlib.contextmanager
    def _writing(self, timeout: float | None = None) -> Iterator[None]:
        descriptor = os.open(self._directory / "reconciler.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + (LOCK_TIMEOUT if timeout is None else timeout)
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise SourceError(f"{self._directory}: another process writes to it", reason="Locked") from None
                    time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def _sweep(self) -> int:
        # Only while `_writing`: then nobody else can own any of these. Returns the size of the largest one.
        objects = self._directory / "objects"
        largest = 0
        for path in [*objects.glob("tmp_*"), *objects.glob("pack/tmp_*")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                largest = max(largest, path.stat().st_size)
                path.unlink()
        for path in [*self._directory.glob("*.lock"), *self._directory.glob("refs/**/*.lock")]:
            if path.name != "reconciler.lock":
                path.unlink(missing_ok=True)
        for pack in objects.glob("pack/*.pack"):
            if not pack.with_suffix(".idx").exists():
                pack.unlink(missing_ok=True)
        return largest

    def _packs(self) -> Iterator[Path]:
        return (self._directory / "objects" / "pack").glob("*.pack")

    def _make_room(self) -> None:
        limit = self._settings.limits.repository_bytes
        if self._size() <= limit:
            return
        with contextlib.suppress(SourceError):
            self._repack()
        if (size := self._size()) > limit:
            raise SourceRefusedError(
                f"{self._directory}: expected at most {limit} bytes, got {size}; nothing is fetched",
                reason="SourceTooLarge",
            )

    def _size(self) -> int:
        return sum(path.stat().st_size for path in (self._directory / "objects" / "pack").iterdir())

    def _repack(self) -> None:
        # -a -d also drops what no mark reaches: refused candidates, rewritten history.
        done = self._runner.run(
            "repack",
            "-a",
            "-d",
            "-q",
            "--no-write-bitmap-index",
            "--window-memory=64m",
            timeout=self._settings.limits.fetch_timeout,
        )
        if done.code != 0:
            self._sweep()
            raise explain("repack the local repository", done.messages, done.code, None)


def open_source(settings: SourceSettings, directory: Path) -> Source:
    """The source behind `settings`, with its bare repository in `directory` (made on the first `resolve`).

    Works without the network; an existing repository is swept of what a killed process left.

    Raises:
        ConfigError: the URL, the ref or the authentication cannot work.
        SourceError: git is missing or too old, or the repository is damaged or shallow.
    """
    check_ref(settings.ref)
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    empty_directory(directory).mkdir(mode=0o500, exist_ok=True)
    with contextlib.suppress(SourceError):  # a token that is not there yet must not keep the agent from starting
        prepare(settings, empty_directory(directory))
    source = Source(settings, directory)
    runner = GitRunner(directory)
    version = runner.version(settings.limits.read_timeout)
    if version < MINIMUM_GIT:
        raise SourceError(
            f"expected git {'.'.join(map(str, MINIMUM_GIT))} or newer, got {'.'.join(map(str, version))}",
            reason="GitTooOld",
        )
    source.check()
    return source


def empty_directory(directory: Path) -> Path:
    """A directory without files beside the repository, for options that must name one."""
    return directory.with_name(f"{directory.name}.empty")


def _ref(mark: Mark) -> str:
    return f"refs/reconciler/{mark}"
