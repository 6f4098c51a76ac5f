# SPDX-License-Identifier: Apache-2.0
"""Whether a host's state is the one that was reviewed: `--reviewed FILE` of status, plan and history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler import review
from reconciler.cli._tree import read_file

if TYPE_CHECKING:
    from pathlib import Path


def load(path: Path) -> review.Review:
    """The review in a JSON file.

    Raises:
        InputError: the file holds no review.
    """
    return review.from_json(read_file(path, review.MAX_DOCUMENT_BYTES), file=str(path))


def compare(path: Path, host: review.Running) -> tuple[bool, tuple[str, ...]]:
    """Whether the host's state is in the review, and sentences about it. Raises as `load` does."""
    return review.differences(load(path), host)
