# SPDX-License-Identifier: Apache-2.0
"""Which files of a commit are taken, and which are refused by name.

`reconciler.yaml` and everything below `chains/`, as plain files with plain names. What cannot be taken becomes a
diagnostic that names the path, never an exception: one odd file must not stop hosts that it does not concern. Limits
hold before a byte of the offending object is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from reconciler.errors import Diagnostic, SourceError
from reconciler.source._read import MODE_FILE, MODE_TREE, MODES, Entry, ObjectReader, parse_tree
from reconciler.source._types import SourceLimits, SourceRefusedError

ROOT_FILE: Final = "reconciler.yaml"
CHAINS: Final = "chains"
HOSTS: Final = "hosts"
"""Read for reviews and reports only."""
MAX_NAME: Final = 255
"""Bytes; NAME_MAX of common file systems, so that whoever reviews the repository can check it out."""
MAX_PROBLEMS: Final = 200
"""Findings that are kept; one line says how many more there are."""

_NAME: Final = re.compile(r"[A-Za-z0-9._@+=,-]+")
_GIT_NAME: Final = re.compile(r"\.git|git~[0-9]+", re.IGNORECASE)


def name_problem(name: str) -> str | None:
    """Why one component of a path is refused; None if it is fine.

    Names are ASCII: so there are no look-alikes, no reordering and no two spellings of one character, and what a
    reviewer sees is what the host reads.
    """
    if name in ("", ".", "..") or _GIT_NAME.fullmatch(name):
        return "expected a file name, got one that git or a file system gives a meaning to"
    if len(name) > MAX_NAME:
        return f"expected a name of at most {MAX_NAME} bytes, got {len(name)}"
    if name.startswith("-"):
        return "expected a name that does not start with '-'"
    if not _NAME.fullmatch(name):
        return "expected a name of ASCII letters, digits and ._-@+=, (no blanks); rename it"
    return None


@dataclass(slots=True)
class _Findings:
    problems: list[Diagnostic] = field(default_factory=list)
    more: int = 0

    def add(self, path: str, message: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Diagnostic(message=message, file=path))
        else:
            self.more += 1

    def all(self) -> tuple[Diagnostic, ...]:
        if self.more:
            return (*self.problems, Diagnostic(message=f"{self.more} more findings", file=CHAINS))
        return tuple(self.problems)


class TreeReader:
    """Reads one commit's files through an `ObjectReader`.

    `known` holds blobs that were read before, by id; what is read now is added. The files of two commits are the same
    ones for the most part.
    """

    def __init__(
        self, objects: ObjectReader, limits: SourceLimits, root: str, known: dict[str, bytes] | None = None
    ) -> None:
        self._objects = objects
        self._limits = limits
        self._root = root
        self._known = {} if known is None else known

    def manifests(self, folders: tuple[str, ...] = (CHAINS,)) -> tuple[dict[str, bytes], tuple[Diagnostic, ...]]:
        """The manifests by path, in order of paths, and what could not be taken.

        Args:
            folders: at the root, of which everything is taken.

        Raises:
            SourceError: an object is missing or damaged.
        """
        findings = _Findings()
        blobs: dict[str, str] = {}
        top = {entry.name: entry for entry in self._tree(self._root)}
        if (entry := top.get(ROOT_FILE.encode())) is not None:
            if entry.mode == MODE_FILE:
                blobs[ROOT_FILE] = entry.id
            else:
                findings.add(ROOT_FILE, _wrong_mode(entry.mode))
        for folder in folders:
            if (entry := top.get(folder.encode())) is None:
                continue
            if entry.mode == MODE_TREE:
                self._walk(folder, entry.id, blobs, findings)
            else:
                findings.add(folder, f"expected a directory, got {MODES.get(entry.mode, f'mode {entry.mode}')}")
        files = self._load(blobs, findings)
        return files, findings.all()

    def blob(self, path: str, limit: int) -> bytes | None:
        """One file of the commit, None if there is none.

        Raises:
            SourceError: it is larger than `limit` bytes, no plain file, or an object is damaged.
        """
        oid = self._root
        *folders, last = path.split("/")
        for name in folders:
            entry = self._child(oid, name)
            if entry is None:
                return None
            if entry.mode != MODE_TREE:
                raise SourceRefusedError(f"{path}: expected {name!r} to be a directory, got {_mode(entry.mode)}")
            oid = entry.id
        entry = self._child(oid, last)
        if entry is None:
            return None
        if entry.mode != MODE_FILE:
            raise SourceRefusedError(f"{path}: {_wrong_mode(entry.mode)}")
        (size,) = self._objects.sizes([entry.id])
        if size is not None and size > limit:
            message = f"{path}: expected at most {limit} bytes, got {size}"
            raise SourceRefusedError(message, reason="SourceTooLarge")
        return self._objects.one(entry.id, "blob", limit)

    def _child(self, tree: str, name: str) -> Entry | None:
        wanted = name.encode("utf-8", "surrogateescape")
        return next((entry for entry in self._tree(tree) if entry.name == wanted), None)

    def _tree(self, oid: str) -> list[Entry]:
        content = self._objects.one(oid, "tree", self._limits.tree_bytes)
        return parse_tree(content, len(oid), lambda: _no_tree(oid))

    def _walk(self, folder: str, root: str, blobs: dict[str, str], findings: _Findings) -> None:
        # Level by level, so that one round of questions answers a whole level; the number of entries is limited
        # over all levels, because a tree may name the same subtree many times (2^depth files from few bytes).
        level = [(folder, root)]
        entries = 0
        for _ in range(self._limits.depth):
            oids = sorted({oid for _, oid in level})
            trees = dict(zip(oids, self._trees(oids), strict=True))
            below: list[tuple[str, str]] = []
            for path, oid in level:
                entries += len(trees[oid])
                if entries > self._limits.files:
                    findings.add(folder, f"expected at most {self._limits.files} files and directories, got more")
                    return
                self._take(path, trees[oid], blobs, below, findings)
            level = below
            if not level:
                return
        for path, _ in level:
            findings.add(path, f"expected at most {self._limits.depth} levels of directories")

    def _trees(self, oids: list[str]) -> list[list[Entry]]:
        limit = self._limits.tree_bytes
        contents = self._objects.many(oids, "tree", limit, limit * 4)
        return [
            parse_tree(content, len(oid), lambda oid=oid: _no_tree(oid))  # type: ignore[misc]
            for oid, content in zip(oids, contents, strict=True)
        ]

    @staticmethod
    def _take(
        folder: str, tree: list[Entry], blobs: dict[str, str], below: list[tuple[str, str]], findings: _Findings
    ) -> None:
        seen: dict[str, str] = {}
        for entry in tree:
            name = entry.name.decode("utf-8", "backslashreplace")
            path = f"{folder}/{name}"
            problem = name_problem(name)
            twin = seen.setdefault(name.lower(), name)
            if problem is None and twin is not name:
                problem = f"expected names that differ in more than case, got also {twin!r}"
            if problem is not None:
                findings.add(path, problem)
            elif entry.mode == MODE_TREE:
                below.append((path, entry.id))
            elif entry.mode == MODE_FILE:
                blobs[path] = entry.id
            else:
                findings.add(path, _wrong_mode(entry.mode))

    def _load(self, blobs: dict[str, str], findings: _Findings) -> dict[str, bytes]:
        paths = sorted(blobs)
        fresh = sorted({*blobs.values()} - self._known.keys())
        sizes: dict[str, int | None] = {oid: len(content) for oid, content in self._known.items()}
        sizes.update(zip(fresh, self._objects.sizes(fresh), strict=True))
        wanted: list[str] = []
        total = 0
        for path in paths:
            size = sizes[blobs[path]]
            if size is None:
                raise SourceError(f"{path}: expected the file's content in the repository", reason="ObjectMissing")
            if size > self._limits.file_bytes:
                findings.add(path, f"expected at most {self._limits.file_bytes} bytes, got {size}")
                continue
            total += size
            if total > self._limits.total_bytes:
                findings.add(CHAINS, f"expected at most {self._limits.total_bytes} bytes in all manifests together")
                break
            wanted.append(path)
        oids = sorted({blobs[path] for path in wanted} - self._known.keys())
        contents = self._objects.many(oids, "blob", self._limits.file_bytes, self._limits.total_bytes)
        self._known.update(zip(oids, contents, strict=True))
        return {path: self._known[blobs[path]] for path in wanted}


def _mode(mode: str) -> str:
    return MODES.get(mode, f"mode {mode}")


def _wrong_mode(mode: str) -> str:
    return f"expected a plain file (mode {MODE_FILE}), got {_mode(mode)}"


def _no_tree(oid: str) -> SourceError:
    return SourceRefusedError(f"expected {oid} to be a well-formed tree", reason="ObjectsRefused")
