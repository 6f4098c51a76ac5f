# SPDX-License-Identifier: Apache-2.0
"""The files that ship with the program: schemas, policies, CI jobs and the compiled packages of bpf/.

An installed wheel holds them below `reconciler/_data/`; in a checkout (editable install) they are read from the
folders that they are written in or built into. Nothing here says what a file means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["schema", "policies", "packages", "ci"]

CHECKOUT: Final[dict[Kind, tuple[str, ...]]] = {
    "schema": ("schema",),
    "policies": ("policies",),
    "packages": ("build", "packages"),
    "ci": ("deploy", "ci"),
}
"""Folder of the checkout for each kind; scripts/hatch_build.py puts the same ones into the wheel (a test compares)."""


def names(kind: Kind) -> tuple[str, ...]:
    """The files of one kind, relative, with `/`, sorted: `v1alpha1/chain.schema.json`. Empty when there are none."""
    return tuple(sorted(_walk(_root(kind), "")))


def resource(kind: Kind, name: str) -> bytes:
    """The bytes of one file.

    Raises:
        FileNotFoundError: `names(kind)` does not list `name`; nothing outside of the kind's folder is ever read.
    """
    if name not in names(kind):
        hint = "; run `make packages`" if kind == "packages" else ""
        message = f"expected {name!r} among the {kind} that ship, got none of that name{hint}"
        raise FileNotFoundError(message)
    return _root(kind).joinpath(*name.split("/")).read_bytes()


def _root(kind: Kind) -> Path:
    # Not importlib.resources: it imports tempfile, shutil and what they need, 10 ms of every verb. Wheels are unpacked.
    package = Path(__file__).parent
    data = package / "_data"
    # A wheel always has _data; a checkout never has, so a stale copy cannot hide the file being edited.
    return data / kind if data.is_dir() else package.parent.joinpath(*CHECKOUT[kind])


def _walk(folder: Path, prefix: str) -> list[str]:
    if not folder.is_dir():
        return []
    found: list[str] = []
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += _walk(entry, f"{prefix}{entry.name}/")
        else:
            found.append(prefix + entry.name)
    return found
