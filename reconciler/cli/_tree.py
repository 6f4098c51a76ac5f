# SPDX-License-Identifier: Apache-2.0
"""Reads a work tree as `source` reads a commit: the same files, names and limits; and holds what was found in it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reconciler import manifest
from reconciler.errors import Diagnostic, InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(slots=True)
class Report:
    """What was looked at, and what was found."""

    findings: list[Diagnostic] = field(default_factory=list)
    chains: int = 0
    packages: int = 0
    other: str = ""
    """The one document that is neither, such as "configuration"."""
    elsewhere: set[str] = field(default_factory=set)
    """Packages of other repositories, which cannot be looked at here."""

    def take(self, look: Callable[[], object]) -> None:
        """Do `look`, and keep the findings that it raises."""
        try:
            look()
        except InputError as error:
            self.findings += error.diagnostics()


def no_repository(root: Path) -> Diagnostic | None:
    """What is wrong with a folder that holds nothing of a policy repository, and where one lies; None if it does."""
    here = root.absolute()
    if any(os.path.lexists(here / name) for name in (manifest.REPOSITORY_FILE, manifest.CHAINS_FOLDER)):
        return None
    above = next((each for each in here.resolve().parents if (each / manifest.REPOSITORY_FILE).is_file()), None)
    what = "expected a policy repository here (reconciler.yaml and chains/), got neither"
    hint = f"one lies in {above}: name that" if above else "name its folder, or make one with `reconciler init DIR`"
    return Diagnostic(message=f"{what}; {hint}", file=str(here))


def read_tree(
    root: Path, folders: tuple[str, ...] = (manifest.CHAINS_FOLDER,)
) -> tuple[dict[str, bytes], tuple[Diagnostic, ...]]:
    """The manifests of a work tree by path, and what of it a host would refuse to read."""
    below = [path for folder in folders for path in _below(root / folder)]
    return _read_files(root, [root / manifest.REPOSITORY_FILE, *below])


def read_tests(root: Path) -> tuple[dict[str, bytes], tuple[Diagnostic, ...]]:
    """The packet tests of a work tree by path, and what of it cannot be read."""
    below = _below(root / manifest.TESTS_FOLDER)
    return _read_files(root, [path for path in below if path.suffix in (".yaml", ".yml") or path.is_symlink()])


def plain_file(root: Path, name: str) -> bool:
    """Whether the work tree has a file of this name: neither it nor a folder on the way is a symbolic link."""
    place = root
    for part in name.split("/"):
        place /= part
        if place.is_symlink():
            return False
    return place.is_file()


def _below(folder: Path) -> list[Path]:
    """Everything below a folder of the work tree; the folder itself where it is a link, which is told and not followed.

    `rglob` follows no links but the one that it is asked for.
    """
    return [folder] if folder.is_symlink() else sorted(folder.rglob("*"))


def _read_files(root: Path, paths: list[Path]) -> tuple[dict[str, bytes], tuple[Diagnostic, ...]]:
    from reconciler.source import SourceLimits, name_problem  # noqa: PLC0415  # who reads one file needs no Git

    limits = SourceLimits()
    files: dict[str, bytes] = {}
    problems: list[Diagnostic] = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        problem = name_problem(path.name)
        if problem is None and path.is_symlink():
            wanted = "plain file (mode 100644)" if "/" in name or name == manifest.REPOSITORY_FILE else "directory"
            problem = f"expected a {wanted}, got a symbolic link"
        if problem is not None:
            problems.append(Diagnostic(message=problem, file=name))
        elif path.is_file():
            try:
                files[name] = read_file(path, limits.file_bytes)
            except InputError as error:
                problems += [finding.within(name) for finding in error.diagnostics()]
    return files, tuple(problems)


def read_file(path: Path, limit: int = 4 << 20) -> bytes:
    """At most `limit` bytes of a file.

    Raises:
        InputError: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        message = f"expected a readable file, got an error: {error.strerror}"
        raise InputError((Diagnostic(message=message, file=str(path)),)) from error
    if len(data) > limit:
        raise InputError((Diagnostic(message=f"expected at most {limit} bytes, got more", file=str(path)),))
    return data
