# SPDX-License-Identifier: Apache-2.0
"""Reads objects of a bare repository, and hashes every one of them.

Commits, trees and blobs come from one `git cat-file --batch` process, as bytes. Each object's id is computed again over
its bytes, from the commit that was asked for down to the last blob: so what is read here is what the commit's
signature covers, whatever is stored on the disk. Nothing is parsed by git, and nothing is written to a work tree.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reconciler.errors import SourceError
from reconciler.source._types import CommitInfo, SourceRefusedError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    from reconciler.source._git import GitRunner

_BATCH: Final = 256
"""Object ids written before answers are read: 16 KiB, less than a pipe holds (64 KiB), so nobody blocks."""
_SMALL: Final = 16 << 10
"""Bytes of a commit that is kept until the processes end; one has some hundred."""
_HEX: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_HEADER: Final = re.compile(rb"([0-9a-f]{40,64}) (commit|tree|blob|tag) ([0-9]{1,18})")
_PERSON: Final = re.compile(rb"(.*) (-?[0-9]{1,18}) [+-][0-9]{4,8}")

MODE_FILE: Final = "100644"
MODE_TREE: Final = "40000"
MODES: Final = {
    MODE_TREE: "a directory",
    "100755": "an executable file",
    "120000": "a symbolic link",
    "160000": "a submodule",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a tree."""

    mode: str
    name: bytes
    id: str

    def __repr__(self) -> str:
        return f"{self.mode} {self.id} {self.name!r}"


class ObjectReader:
    """A running `git cat-file --batch` and, on demand, `--batch-check`; has one owner that calls `close`."""

    def __init__(self, runner: GitRunner, *, timeout: float, swapping: threading.Lock | None = None) -> None:
        """`swapping` is held by who puts another repository in the place of this one."""
        self._runner = runner
        self._swapping = swapping or threading.Lock()
        self._timeout = timeout
        self._contents: _Pipe | None = None
        self._sizes: _Pipe | None = None
        self._commits: dict[str, bytes] = {}

    def close(self) -> None:
        """End the processes; reading again starts new ones."""
        for pipe in (self._contents, self._sizes):
            if pipe is not None:
                self._runner.stop(pipe.process)
        self._contents = self._sizes = None
        self._commits.clear()

    def one(self, oid: str, kind: str, limit: int) -> bytes:
        """The bytes of one object.

        Raises:
            SourceError: it is missing, of another kind, damaged, or larger than `limit` bytes.
        """
        known = self._commits.get(oid) if kind == "commit" else None
        if known is not None and len(known) <= limit:
            return known  # one pass asks for the same few commits a dozen times
        content = self.many([oid], kind, limit, limit)[0]
        if kind == "commit" and len(content) <= _SMALL:
            if len(self._commits) >= _BATCH:
                self._commits.clear()
            self._commits[oid] = content
        return content

    def many(self, oids: Sequence[str], kind: str, limit: int, total: int) -> list[bytes]:
        """The bytes of several objects of one kind, in order; at most `total` bytes. The errors are those of `one`."""
        contents: list[bytes] = []
        try:
            for start in range(0, len(oids), _BATCH):
                with self._swapping:
                    for content in self._batch(oids[start : start + _BATCH], kind, limit):
                        contents.append(content)
                        total -= len(content)
                        _require_room(total, kind)
        except BaseException:
            self.close()  # answers that nobody read would be taken for those of the next question
            raise
        return contents

    def sizes(self, oids: Sequence[str]) -> list[int | None]:
        """The sizes in bytes of blobs; None for what is missing or no blob."""
        if self._sizes is None:
            self._sizes = _Pipe(self._runner.start("cat-file", "--batch-check"))
        answers: list[int | None] = []
        try:
            for start in range(0, len(oids), _BATCH):
                part = oids[start : start + _BATCH]
                with self._swapping:
                    self._sizes.ask(part, self._timeout)
                    for oid in part:
                        found = _HEADER.fullmatch(self._sizes.line())
                        known = found is not None and found[1].decode() == oid and found[2] == b"blob"
                        answers.append(int(found[3]) if found is not None and known else None)
        except BaseException:
            self.close()
            raise
        return answers

    def _batch(self, oids: Sequence[str], kind: str, limit: int) -> Iterator[bytes]:
        if self._contents is None:
            self._contents = _Pipe(self._runner.start("cat-file", "--batch"))
        pipe = self._contents
        pipe.ask(oids, self._timeout)
        for oid in oids:
            found = _HEADER.fullmatch(pipe.line())
            if found is None or found[1].decode() != oid:
                raise SourceError(f"expected the {kind} {oid} in the repository; it is missing", reason="ObjectMissing")
            got, size = found[2].decode(), int(found[3])
            if got != kind:
                raise SourceRefusedError(f"expected {oid} to be a {kind}, got a {got}", reason="ObjectsRefused")
            if size > limit:
                raise SourceRefusedError(
                    f"expected the {kind} {oid} to have at most {limit} bytes, got {size}", reason="SourceTooLarge"
                )
            content = pipe.exactly(size + 1)[:-1]
            if object_id(kind, content, len(oid)) != oid:
                raise SourceError(
                    f"expected the bytes of {kind} {oid}, got others; remove the local repository, it is fetched again",
                    reason="RepositoryDamaged",
                )
            yield content


class _Pipe:
    """Questions to and answers from a process, with a deadline for each batch."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._buffer = bytearray()
        self._deadline = 0.0

    def ask(self, oids: Sequence[str], timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        assert self.process.stdin is not None  # noqa: S101 - started with pipes
        try:
            self.process.stdin.write("".join(f"{oid}\n" for oid in oids).encode("ascii"))
            self.process.stdin.flush()
        except OSError as error:
            raise _ended() from error

    def line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        content = bytes(self._buffer[:size])
        del self._buffer[:size]
        return content

    def _more(self) -> None:
        stdout, stderr = self.process.stdout, self.process.stderr
        assert stdout is not None  # noqa: S101 - started with pipes
        assert stderr is not None  # noqa: S101 - started with pipes
        poll = select.poll()
        for stream in (stdout, stderr):
            poll.register(stream, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000)}
        if not ready:
            raise SourceError("git cat-file: expected an answer in time; it was ended", reason="SourceTimeout")
        if stdout.fileno() in ready:
            chunk = os.read(stdout.fileno(), 1 << 20)
            if not chunk:
                raise _ended()
            self._buffer += chunk
        elif not os.read(stderr.fileno(), 1 << 16):  # complaints are read so that they block nobody, and dropped
            raise _ended()


def object_id(kind: str, content: bytes, length: int) -> str:
    """The id of an object: 40 hex digits long in SHA-1 repositories, 64 in SHA-256 ones."""
    data = f"{kind} {len(content)}\0".encode("ascii")
    digest = (
        hashlib.sha256(data)
        if length == hashlib.sha256().digest_size * 2
        else hashlib.sha1(data, usedforsecurity=False)
    )
    digest.update(content)
    return digest.hexdigest()


def check_id(commit: str) -> str:
    """`commit` if it is a full object id.

    Raises:
        SourceError: it is anything else (an abbreviation, a ref, an option).
    """
    if not _HEX.fullmatch(commit):
        raise SourceRefusedError(f"expected a full commit id of 40 or 64 hex digits, got {commit[:80]!a}")
    return commit


def parse_commit(commit: str, content: bytes) -> CommitInfo:
    """What a commit says about itself.

    Raises:
        SourceError: the bytes are no commit.
    """
    head, _, message = content.partition(b"\n\n")
    lines = head.split(b"\n")
    tree, parents, author, committer = _headers(lines)
    written = _PERSON.fullmatch(author or b"")
    made = _PERSON.fullmatch(committer or b"")
    if tree is None or written is None or made is None or not all(_HEX.fullmatch(oid) for oid in (tree, *parents)):
        raise SourceRefusedError(
            f"expected a commit with tree, author and committer, got {commit} without", reason="ObjectsRefused"
        )
    return CommitInfo(
        id=commit,
        tree=tree,
        parents=parents,
        author=written[1].decode("utf-8", "replace"),
        subject=message.partition(b"\n")[0].decode("utf-8", "replace"),
        time=int(made[2]),
    )


def _headers(lines: list[bytes]) -> tuple[str | None, tuple[str, ...], bytes | None, bytes | None]:
    # In git's order: tree, parents, author, committer; what follows is not of interest here.
    rest = iter(lines)
    name, _, value = next(rest, b"").partition(b" ")
    tree = value.decode("ascii", "replace") if name == b"tree" else None
    parents = []
    name, _, value = next(rest, b"").partition(b" ")
    while name == b"parent":
        parents.append(value.decode("ascii", "replace"))
        name, _, value = next(rest, b"").partition(b" ")
    author = value if name == b"author" else None
    name, _, value = next(rest, b"").partition(b" ")
    return tree, tuple(parents), author, value if name == b"committer" else None


def parse_tree(content: bytes, id_length: int, refuse: Callable[[], SourceError]) -> list[Entry]:
    """The entries of a tree, in its order.

    Args:
        content: the tree's bytes.
        id_length: hex digits of an id.
        refuse: makes the error for bytes that are no tree.
    """
    entries, position, size = [], 0, id_length // 2
    while position < len(content):
        space = content.find(b" ", position, position + 8)
        end = content.find(b"\0", space + 1) if space >= 0 else -1
        if end < 0 or end + 1 + size > len(content):
            raise refuse()
        mode = content[position:space].decode("ascii", "replace")
        entries.append(Entry(mode, content[space + 1 : end], content[end + 1 : end + 1 + size].hex()))
        position = end + 1 + size
    return entries


def _require_room(left: int, kind: str) -> None:
    if left < 0:
        raise SourceRefusedError(f"expected fewer bytes in {kind}s of one commit", reason="SourceTooLarge")


def _ended() -> SourceError:
    return SourceError("git cat-file: expected an answer; it ended by itself", reason="RepositoryDamaged")
