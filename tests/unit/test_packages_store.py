# SPDX-License-Identifier: Apache-2.0
"""The store believes no file name, and keeps what it is told to keep."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from reconciler.errors import StateError
from reconciler.model import Signer
from reconciler.packages import MAX_ARCHIVE_BYTES, Store, digest_of

if TYPE_CHECKING:
    from pathlib import Path

ARCHIVE, BUNDLE = b"archive", b"bundle"
DIGEST = digest_of(ARCHIVE)
SIGNER = Signer(name="rule", identity="alice@example.org", issuer="https://issuer.example.org")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state" / "packages")
    made.put(DIGEST, ARCHIVE, BUNDLE, SIGNER)
    return made


def path_of(store: Store, suffix: str) -> Path:
    return store.directory / (DIGEST.removeprefix("sha256:") + suffix)


def test_what_was_put_is_got_by_another_store(store: Store) -> None:
    again = Store(store.directory)
    assert again.get(DIGEST) == (ARCHIVE, BUNDLE)
    assert again.signer(DIGEST) == SIGNER
    assert (store.directory.stat().st_mode & 0o777) == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in store.directory.iterdir())


def test_nothing_is_there_before_it_was_put(tmp_path: Path) -> None:
    empty = Store(tmp_path / "none")
    assert empty.get(DIGEST) is None
    assert empty.signer(DIGEST) is None
    empty.prune(frozenset())
    assert not empty.directory.exists()


@pytest.mark.parametrize("content", [b"", b"Archive", ARCHIVE + b"\n", bytes(MAX_ARCHIVE_BYTES + 1)], ids=len)
def test_an_archive_that_was_altered_is_not_there(store: Store, content: bytes) -> None:
    path_of(store, ".tar.gz").write_bytes(content)
    assert store.get(DIGEST) is None


@pytest.mark.parametrize("suffix", [".tar.gz", ".json"])
def test_half_a_package_is_not_there(store: Store, suffix: str) -> None:
    path_of(store, suffix).unlink()
    assert store.get(DIGEST) is None


@pytest.mark.parametrize("suffix", [".tar.gz", ".json", ".signer"])
def test_links_fifos_and_folders_are_not_followed(store: Store, tmp_path: Path, suffix: str) -> None:
    path = path_of(store, suffix)
    elsewhere = path.rename(tmp_path / "elsewhere")

    def check() -> None:
        found = store.signer(DIGEST) if suffix == ".signer" else store.get(DIGEST)
        assert found is None

    path.symlink_to(elsewhere)
    check()
    path.unlink()
    os.mkfifo(path)
    check()
    path.unlink()
    path.mkdir()
    check()


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'{"name": 1}', b"\xff"])
def test_a_damaged_record_of_the_signer_is_not_there(store: Store, content: bytes) -> None:
    path_of(store, ".signer").write_bytes(content)
    assert store.signer(DIGEST) is None


def test_pruning_keeps_what_is_named_and_what_is_not_ours(store: Store) -> None:
    other = b"other"
    store.put(digest_of(other), other, BUNDLE, SIGNER)
    (store.directory / f".{'0' * 64}.tar.gz.new").write_bytes(b"half")
    (store.directory / "notes.txt").write_bytes(b"mine")
    store.prune(frozenset({DIGEST}))
    left = sorted(path.name for path in store.directory.iterdir())
    hexadecimal = DIGEST.removeprefix("sha256:")
    assert left == sorted([f"{hexadecimal}.tar.gz", f"{hexadecimal}.json", f"{hexadecimal}.signer", "notes.txt"])
    store.prune(frozenset())
    assert [path.name for path in store.directory.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc/passwd", "sha256:" + "A" * 64, DIGEST + "\n"])
def test_only_digests_become_paths(store: Store, digest: str) -> None:
    for call in (lambda: store.get(digest), lambda: store.signer(digest), lambda: store.put(digest, b"", b"", SIGNER)):
        with pytest.raises(StateError, match="digest"):
            call()


def test_a_disk_that_does_not_take_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="cannot keep"):
        Store(tmp_path / "file" / "packages").put(DIGEST, ARCHIVE, BUNDLE, SIGNER)


def test_what_cannot_be_removed_is_said(store: Store) -> None:
    path = path_of(store, ".json")
    path.unlink()
    path.mkdir()
    with pytest.raises(StateError, match="cannot tidy"):
        store.prune(frozenset())
