# SPDX-License-Identifier: Apache-2.0
"""The values that go into and come out of a source."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reconciler.errors import Diagnostic, Disposition, SourceError

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAuth:
    """How this host reaches and recognises its source; all of it is passed to git explicitly, nothing is inherited.

    Attributes:
        token_file: https: one line, `TOKEN`, `USER:TOKEN`, or `Bearer TOKEN`; root-only.
        ca_file: https: PEM of the only certificate authorities that are accepted; None: the system's.
        proxy: https: http(s)://HOST:PORT.
        proxy_auth_file: https: one line, `USER:PASSWORD` for the proxy; root-only.
        client_cert_file: https: PEM certificate for mutual TLS.
        client_key_file: https: its key.
        ssh_key_file: ssh: the private key, without a passphrase; required.
        known_hosts_file: ssh: the only host keys that are accepted; required.
    """

    token_file: Path | None = None
    ca_file: Path | None = None
    proxy: str | None = None
    proxy_auth_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    ssh_key_file: Path | None = None
    known_hosts_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLimits:
    """What a remote may cost this host, however hostile it is.

    Attributes:
        resolve_timeout: seconds for one ls-remote.
        fetch_timeout: seconds for one fetch.
        read_timeout: seconds for one command on the local repository.
        repack_timeout: seconds for joining packs.
        pack_bytes: the largest pack that one fetch may bring (bytes).
        repository_bytes: above it the repository is rebuilt, and if that does not help, nothing is fetched (bytes).
        resolve_memory_bytes: address space of each process of one ls-remote, which keeps the answer in memory (bytes).
        memory_bytes: address space of each process of one fetch (bytes).
        tree_bytes: the largest tree object that is read (bytes).
        files: entries below `chains/`, directories counted.
        depth: directories below the root.
        file_bytes: the largest manifest (bytes).
        total_bytes: all manifests together (bytes).
        new_commits: commits between the watermark and the head.
        commit_bytes: the largest commit object (bytes).
    """

    resolve_timeout: float = 30.0
    fetch_timeout: float = 300.0
    read_timeout: float = 60.0
    repack_timeout: float = 60.0
    pack_bytes: int = 512 * MIB
    repository_bytes: int = 2048 * MIB
    resolve_memory_bytes: int = 256 * MIB
    memory_bytes: int = 4096 * MIB
    tree_bytes: int = 4 * MIB
    files: int = 20_000
    depth: int = 16
    file_bytes: int = 1 * MIB
    total_bytes: int = 64 * MIB
    new_commits: int = 10_000
    commit_bytes: int = 1 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """Where the source is.

    Attributes:
        url: https://…, ssh://…, or file:///… if `allow_file`.
        ref: one fully qualified ref, for example refs/heads/main.
        allow_file: whether the host's configuration allows file:// by name.
    """

    url: str
    ref: str
    auth: SourceAuth = field(default_factory=SourceAuth)
    allow_file: bool = False
    limits: SourceLimits = field(default_factory=SourceLimits)


class Ancestry(enum.StrEnum):
    """How a commit relates to one that was applied before."""

    EQUAL = "equal"
    DESCENDANT = "descendant"
    REWOUND = "rewound"
    """The new commit is an ancestor of the old one: history was turned back."""
    UNRELATED = "unrelated"
    """Neither descends from the other: history was rewritten."""
    UNKNOWN = "unknown"
    """Could not tell: one of the two is not in the repository. Never to be read as one of the others."""


class Mark(enum.StrEnum):
    """A commit that is kept reachable, so that no repacking ever drops it."""

    CANDIDATE = "candidate"
    APPLIED = "applied"
    GOOD = "good"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitInfo:
    """What a commit says about itself, unverified: control characters are kept, printers strip them.

    Attributes:
        author: "Name <address>", undecodable bytes replaced.
        subject: the first line of the message.
        time: committer's time, seconds since 1970 (chosen by whoever made the commit).
        parents: first parent first.
    """

    id: str
    tree: str
    parents: tuple[str, ...]
    author: str
    subject: str
    time: int


BlobReader = Callable[[str, int], bytes | None]
"""(path in the commit, limit in bytes) to the blob's bytes; None if the commit has no such file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """The manifests of one commit, as bytes; nothing was written to a work tree.

    Attributes:
        files: `reconciler.yaml` and everything below `chains/`; every byte was hashed up to the commit's id.
        problems: what cannot be a manifest (symbolic links, submodules, odd names or modes, too large), by path.
            A path that names a directory stands for everything below it. A problem is no reason to think
            that the file is gone.
        blobs: reads other files of the same commit, for example packages/NAME-VERSION.tar.gz.
    """

    commit: str
    files: Mapping[str, bytes]
    problems: tuple[Diagnostic, ...]
    blobs: BlobReader = field(repr=False, compare=False)


class SourceMovedError(SourceError):
    """The ref moved between being advertised and being fetched; resolving again is all it takes."""

    reason = "SourceMoved"
    disposition = Disposition.RETRY


class SourceRefusedError(SourceError):
    """The source answers, but with something that will not be taken before somebody changes it."""

    reason = "SourceRefused"
    disposition = Disposition.STALLED
