# SPDX-License-Identifier: Apache-2.0
"""Packages: deterministic archives, the repositories that hold them, and the store that keeps what this host needs.

Nothing that leaves this module as a `Package` skipped a check; objects reach libbpf only after all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.packages._archive import (
    MAX_ARCHIVE_BYTES,
    build_archive,
    build_folder,
    open_archive,
    read_archive,
)
from reconciler.packages._cache import Cache, UnknownRepositoryError
from reconciler.packages._repositories import (
    BUNDLE_SUFFIX,
    FolderRepository,
    GitRepository,
    Repository,
    archive_name,
)
from reconciler.packages._store import Store, digest_of
from reconciler.trust import MAX_BUNDLE_BYTES

if TYPE_CHECKING:
    from reconciler.packages._https import HttpsRepository

__all__ = [
    "BUNDLE_SUFFIX",
    "MAX_ARCHIVE_BYTES",
    "MAX_BUNDLE_BYTES",
    "Cache",
    "FolderRepository",
    "GitRepository",
    "HttpsRepository",
    "Repository",
    "Store",
    "UnknownRepositoryError",
    "archive_name",
    "build_archive",
    "build_folder",
    "digest_of",
    "open_archive",
    "read_archive",
]


def __getattr__(name: str) -> object:
    # ssl, http.client and email cost 20 ms and 2 MiB, which hosts without a web server of packages never pay.
    if name == "HttpsRepository":
        from reconciler.packages._https import HttpsRepository  # noqa: PLC0415

        return HttpsRepository
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
