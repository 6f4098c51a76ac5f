# SPDX-License-Identifier: Apache-2.0
"""The Git source: which commit is advertised, what it holds, and how it relates to what was applied.

The only importer of GitPython, which is used to run commands and for nothing else. One bare repository is kept; files
are read as bytes and never checked out. This module says what a commit *is* (its id is computed again over every byte
that is handed out); who signed it is the business of `trust`, and whether it may be applied that of `reconcile`.
"""

from __future__ import annotations

from reconciler.source._clone import Clone, Merge
from reconciler.source._git import MINIMUM_GIT
from reconciler.source._source import Source, open_source
from reconciler.source._tree import name_problem
from reconciler.source._types import (
    Ancestry,
    BlobReader,
    Checkout,
    CommitInfo,
    Mark,
    SourceAuth,
    SourceLimits,
    SourceMovedError,
    SourceRefusedError,
    SourceSettings,
)
from reconciler.source._url import RemoteUrl, check_ref, check_url

__all__ = [
    "MINIMUM_GIT",
    "Ancestry",
    "BlobReader",
    "Checkout",
    "Clone",
    "CommitInfo",
    "Mark",
    "Merge",
    "RemoteUrl",
    "Source",
    "SourceAuth",
    "SourceLimits",
    "SourceMovedError",
    "SourceRefusedError",
    "SourceSettings",
    "check_ref",
    "check_url",
    "name_problem",
    "open_source",
]
