# SPDX-License-Identifier: Apache-2.0
"""The bare repository on this host's disk: made whole or not at all, one writer at a time, nothing left lying about.

Several processes may read it. Who writes (fetches, marks, repacks) holds a lock beside it; so whatever temporary file,
folder or git lock is found while holding it belongs to somebody who was killed.

It stays small in two ways. Every fetch brings a pack: small packs are joined when there are many, in steps that cost
as much as they join. What no mark reaches (refused heads, rewritten history) goes when the limit is exceeded: what is
reachable is copied into a fresh repository, which then takes the name of the old one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
import time
from typing import TYPE_CHECKING, Final

from reconciler import _points
from reconciler.errors import SourceError
from reconciler.source._git import Completed, GitRunner, Remote
from reconciler.source._read import check_id
from reconciler.source._remote import explain
from reconciler.source._types import Mark, SourceLimits, SourceRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FETCH: Final = (
    "fetch",
    "--quiet",
    "--no-tags",
    "--no-recurse-submodules",
    "--no-auto-maintenance",
)
MAX_ID: Final = 64
"""Digits of an object id of SHA-256."""
BLOCK: Final = 4096
"""Bytes that a file takes at least on common file systems: a million objects of some bytes each fill a disk, too."""
LOCK_TIMEOUT: Final = 10.0
"""Seconds to wait for another process that fetches or promotes."""

_CORE: Final = "[core]\n\trepositoryformatversion = {}\n\tfilemode = true\n\tbare = true\n"
_CONFIGS: Final = {40: _CORE.format(0), 64: _CORE.format(1) + "[extensions]\n\tobjectformat = sha256\n"}
_FORMATS: Final = {40: "sha1", 64: "sha256"}


class LocalRepository:
    """A bare repository in `directory`, which may not exist yet.

    Attributes:
        directory: its place.
        swapping: held while `directory` is replaced by another one.
    """

    def __init__(self, directory: Path, runner: GitRunner, limits: SourceLimits) -> None:
        self.directory = directory
        # Made once: `Path` interns its parts, and what comes and goes at each poll makes Python's table of them grow.
        self._config = directory / "config"
        self._marks = {mark: directory / reference(mark) for mark in Mark}
        self.swapping = threading.Lock()
        self._fresh, self._old = (directory.with_name(f"{directory.name}.{each}") for each in ("new", "old"))
        self._rebuilt: dict[tuple[Mark, ...], int] = {}
        self._runner = runner
        self._limits = limits

    def run(self, *arguments: str) -> Completed:
        """Run a git command that needs no network."""
        with self.swapping:
            return self._runner.run(*arguments, timeout=self._limits.read_timeout)

    def id_length(self) -> int | None:
        """Hex digits of an object id; None before the repository exists.

        Raises:
            SourceError: the disk does not say.
        """
        with disk_errors(self.directory):
            try:
                config = self._config.read_bytes()
            except FileNotFoundError:
                return None
        return 64 if b"sha256" in config else 40

    def require(self) -> int:
        """Hex digits of an object id.

        Raises:
            SourceError: the repository does not exist yet.
        """
        length = self.id_length()
        if length is None:
            raise SourceError("expected a local repository; the source was not reached so far", reason="NeverReached")
        return length

    def ensure(self, length: int) -> None:
        """Make the repository for ids of `length` hex digits, unless it is there.

        Raises:
            SourceError: it is there with another object format, or cannot be made.
        """
        have = self.id_length()
        if have == length:
            return
        if have is not None:
            raise SourceRefusedError(
                f"expected a {_FORMATS[have]} repository as before, got {_FORMATS[length]}; "
                f"if the source was converted, remove {self.directory} and accept its head",
                reason="ObjectFormatChanged",
            )
        # Made beside and renamed, so that a crash leaves either nothing or all of it.
        with self.writing():
            self.recover()
            if self.id_length() is None:
                self._make(length)
                _points.at("rename git", self._fresh.rename, self.directory)

    def check(self) -> None:
        """Make an existing repository fit to use: our configuration, no shallow boundary, no leftovers.

        Raises:
            SourceError: it is no repository, or a shallow one.
        """
        # Somebody else may be writing: then he cleans up, and nobody has to wait to read.
        with contextlib.suppress(SourceError), self.writing(timeout=0):
            self.recover()
        length = self.id_length()
        if length is None:
            return
        if not (self.directory / "HEAD").is_file() or not (self.directory / "objects" / "pack").is_dir():
            raise SourceError(
                f"{self.directory}: expected a bare repository; remove it, it is fetched again",
                reason="RepositoryDamaged",
            )
        self.refuse_shallow()
        with disk_errors(self.directory):
            if self._config.read_text("utf-8") != _CONFIGS[length]:
                fresh = self._config.with_name("config.new")
                _points.at("write git config", fresh.write_text, _CONFIGS[length], "utf-8")
                _points.at("rename git config", fresh.replace, self._config)
        with contextlib.suppress(SourceError), self.writing(timeout=0):
            self.sweep()

    def refuse_shallow(self) -> None:
        """Raise SourceError if history ends at a boundary: then no ancestry can be proved."""
        if (self.directory / "shallow").exists():
            raise SourceRefusedError(
                f"{self.directory}: expected a repository with its whole history, got a shallow one; remove it",
                reason="ShallowSource",
            )

    @contextlib.contextmanager
    def writing(self, timeout: float | None = None) -> Iterator[None]:
        """Be the only writer.

        Args:
            timeout: seconds to wait for another one; None: `LOCK_TIMEOUT`.

        Raises:
            SourceError: somebody else still writes (reason Locked), or the disk refuses.
        """
        with disk_errors(self.directory):
            # Beside it, because `rebuild` puts another folder in its place.
            path, flags = self.directory.with_name(f"{self.directory.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = _points.at("open git lock", os.open, path, flags, 0o600)
        try:
            self._lock(descriptor, LOCK_TIMEOUT if timeout is None else timeout)
            with disk_errors(self.directory):
                yield
        finally:
            os.close(descriptor)

    def sweep(self) -> int:
        """Remove what killed processes left; only while `writing`. Returns the size in bytes of the largest file."""
        objects = self.directory / "objects"
        largest = 0
        # .temp is what the protocol for static files leaves, .keep a fetch: repacking would leave such a pack alone.
        leftovers = ("tmp_*", "pack/tmp_*", "pack/*.temp", "pack/*.keep", "??/tmp_*", "??/*.temp")
        for path in [each for pattern in leftovers for each in objects.glob(pattern)]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                largest = max(largest, path.stat().st_size)
                path.unlink()
        for path in [*self.directory.glob("*.lock"), *self.directory.glob("refs/**/*.lock")]:
            path.unlink(missing_ok=True)
        for pack in objects.glob("pack/*.pack"):
            if not pack.with_suffix(".idx").exists():
                pack.unlink(missing_ok=True)
        return largest

    def recover(self) -> None:
        """Undo or finish what a killed `rebuild` or `ensure` began; only while `writing`."""
        if self._old.is_dir() and not self.directory.exists():
            _points.at("rename git back", self._old.rename, self.directory)
        for path in (self._fresh, self._old):
            shutil.rmtree(path, ignore_errors=True)

    def make_room(self, *keep: Mark) -> bool:
        """Rebuild with what `keep` reaches, if the limit on the repository is exceeded; only while `writing`.

        Says whether it did.

        Raises:
            SourceError: it is still too large afterwards.
        """
        limit = self._limits.repository_bytes
        if (size := self._size()) <= limit:
            return False
        # The same again would give the same again, and costs a copy of all of it each time.
        if wanted := self._rebuilt.get(keep) != size:
            self.rebuild(*keep)
            self._rebuilt[keep] = size = self._size()
        if size > limit:
            raise SourceRefusedError(
                f"{self.directory}: expected at most {limit} bytes, got {size}; nothing is fetched",
                reason="SourceTooLarge",
            )
        return wanted

    def rebuild(self, *keep: Mark) -> None:
        """Put a fresh repository in the place of this one, with what `keep` reaches; only while `writing`.

        Raises:
            SourceError: it failed; the repository is as it was.
        """
        self._make(self.require())
        marks = {mark: commit for mark in keep if (commit := self.marked(mark)) is not None}
        if marks:
            refs = [reference(mark) for mark in marks]
            done = _points.at(
                "git fetch locally",
                self._runner.run,
                *FETCH,
                "--no-write-fetch-head",
                "--end-of-options",
                str(self.directory),
                *(f"+{ref}:{ref}" for ref in refs),
                timeout=self._limits.fetch_timeout,
                remote=self._itself(),
                git_dir=self._fresh,
            )
            if done.code != 0:
                raise explain("rebuild the local repository", done)
        # No name is without its repository but between these two, where `recover` finds the old one.
        with self.swapping:
            try:
                _points.at("rename git away", self.directory.rename, self._old)
                _points.at("rename git", self._fresh.rename, self.directory)
            except OSError:
                self.recover()
                raise
        shutil.rmtree(self._old, ignore_errors=True)

    def watch_size(self) -> None:
        """Raise SourceError when a fetch brings more than there may be.

        The limit on a file's size limits a pack; a server of static files sends any number of loose objects.
        """
        limit = self._limits.repository_bytes + self._limits.pack_bytes
        if self._size() > limit:
            raise SourceRefusedError(
                f"{self.directory}: expected at most {limit} bytes, got more; the fetch was ended",
                reason="SourceTooLarge",
            )

    def fetched(self) -> str | None:
        """What the last fetch brought, while still `writing`; None when git took nothing of what was sent.

        A mark does not say it: git leaves a ref as it was, and ends with 0, where a server's history is shallow.
        """
        with (self.directory / "FETCH_HEAD").open("rb") as file:
            head = file.read(MAX_ID + 1).partition(b"\t")[0].decode("ascii", "replace")
        return check_id(head) if head else None

    def packs(self) -> int:
        """How many packs there are; every fetch brings one."""
        return sum(1 for _ in (self.directory / "objects" / "pack").glob("*.pack"))

    def repack(self) -> None:
        """Join small packs, and loose objects, so that each pack is twice the next; only while `writing`.

        Raises:
            SourceError: it failed, or took longer than `repack_timeout`; nothing is lost.
        """
        options = ("-d", "-q", "--geometric=2", "--no-write-bitmap-index", "--window-memory=64m")
        try:
            done = _points.at("git repack", self._runner.run, "repack", *options, timeout=self._limits.repack_timeout)
            if done.code != 0:
                raise explain("repack the local repository", done)
        except SourceError:
            self.sweep()
            raise

    def mark(self, mark: Mark, commit: str) -> None:
        """Point `mark` at `commit`; only while `writing`.

        Raises:
            SourceError: it cannot be written.
        """
        done = _points.at("git update-ref", self.run, "update-ref", reference(mark), commit)
        if done.code != 0:
            raise explain(f"mark {commit} as {mark}", done)

    def marked(self, mark: Mark) -> str | None:
        """The commit under `mark`, None if there is none."""
        if self.id_length() is None:
            return None
        with contextlib.suppress(OSError, SourceError):
            # As git writes it. A ref that is packed, symbolic or damaged is git's to read.
            return check_id(self._marks[mark].read_text("ascii", "replace").removesuffix("\n"))
        done = self.run("rev-parse", "--verify", "--quiet", "--end-of-options", reference(mark))
        text = done.output.decode("ascii", "replace").strip()
        # With --end-of-options git 2.39 prints the option itself as well.
        return check_id(text.split()[-1]) if done.code == 0 and text else None

    def _make(self, length: int) -> None:
        # An empty repository in `_fresh`.
        shutil.rmtree(self._fresh, ignore_errors=True)
        done = _points.at(
            "git init",
            self._runner.run,
            "init",
            "--quiet",
            "--bare",
            "--template=",
            f"--object-format={_FORMATS[length]}",
            timeout=self._limits.read_timeout,
            git_dir=self._fresh,
        )
        if done.code != 0:
            raise explain(f"make the repository {self._fresh}", done)
        _points.at("write git config", (self._fresh / "config").write_text, _CONFIGS[length], "utf-8")
        _points.at("chmod git", self._fresh.chmod, 0o700)
        # What git writes later it syncs; an empty one of these after a power cut would be no repository for good.
        for name in ("HEAD", "config"):
            with (self._fresh / name).open("rb") as file:
                _points.at("fsync git", os.fsync, file.fileno())

    def _itself(self) -> Remote:
        # This repository as a source: the only use of a transport that no configuration allowed.
        limits = self._limits
        return Remote(
            transport="file",
            environment={},
            config=b"",
            secrets=(),
            memory_bytes=limits.memory_bytes,
            file_bytes=limits.repository_bytes + limits.pack_bytes,
        )

    def _size(self) -> int:
        total = 0
        for folder in (self.directory / "objects").iterdir():
            for path in folder.iterdir() if folder.is_dir() else ():
                with contextlib.suppress(FileNotFoundError):  # a fetch renames what it wrote
                    total += -(-path.stat().st_size // BLOCK) * BLOCK
        return total

    def _lock(self, descriptor: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SourceError(f"{self.directory}: another process writes to it", reason="Locked") from None
                time.sleep(0.02)
            else:
                return


def reference(mark: Mark) -> str:
    """The ref that stands for `mark`."""
    return f"refs/reconciler/{mark}"


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what the disk refuses into a SourceError that names `path`."""
    try:
        yield
    except OSError as error:
        reason = "DiskFull" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "RepositoryUnavailable"
        raise SourceError(f"{path}: expected to read and write it: {error.strerror}", reason=reason) from error
