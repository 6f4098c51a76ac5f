# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the files of the state directory."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from reconciler import _points
from reconciler.errors import LockedError, StateError, StateVersionError
from reconciler.model import (
    INVENTORY_VERSION,
    NOT_JSON,
    STATE_VERSION,
    ControlRecord,
    Inventory,
    SourceRecord,
    encode_json,
    encode_record,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

MAX_STATE_BYTES: Final = 256 * 2**20
"""No file of ours comes near it (4,000 interfaces make a 6 MiB inventory); a larger one is not ours."""

MAX_HISTORY_BYTES: Final = 16 * 2**20
"""history.jsonl is rotated once beyond this size, so it holds at most twice as much."""


class State:
    """The files of one host. Made by `open_state`; `close()` releases the lock."""

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self._lock = lock
        self._journal: int | None = None

    def close(self) -> None:
        """Release the lock and the journal. Idempotent."""
        for fd in (self._journal, self._lock if self._lock >= 0 else None):
            if fd is not None:
                os.close(fd)
        self._journal, self._lock = None, -1

    # --- records -----------------------------------------------------------------------------------------

    @property
    def has_source(self) -> bool:
        """Whether source.json is there; it is written before the first step of the first pass."""
        return os.access(self._file("source.json"), os.F_OK)

    def free_share(self) -> float:
        """How much of the file system that holds the records is free, 0..1; raises StateError."""
        try:
            found = os.statvfs(self.directory)
        except OSError as error:
            raise StateError(f"cannot ask for the space of {self.directory}: {error.strerror}") from error
        return found.f_bavail / found.f_blocks if found.f_blocks else 1.0

    def inventory(self) -> Inventory | None:
        """The inventory as last saved, None when there is none."""
        return self._read("inventory.json", Inventory, INVENTORY_VERSION)

    def save_inventory(self, inventory: Inventory) -> None:
        """Replace the inventory."""
        self._replace("inventory.json", encode_record(inventory))

    def source(self) -> SourceRecord:
        """What is known of the source; an empty record when there is none."""
        return self._read("source.json", SourceRecord, STATE_VERSION) or SourceRecord()

    def save_source(self, record: SourceRecord) -> None:
        """Replace it."""
        self._replace("source.json", encode_json(record))

    def control(self) -> ControlRecord:
        """What operators decided; an empty record when nothing was."""
        return self._read("control.json", ControlRecord, STATE_VERSION) or ControlRecord()

    def save_control(self, record: ControlRecord) -> None:
        """Replace it."""
        self._replace("control.json", encode_json(record))

    def save_status(self, text: bytes) -> None:
        """The last pass's report, for `status`; losing it loses nothing.

        One that cannot be written takes the one before with it: `status` must not go on saying that all is well.
        """
        try:
            self._replace("status.json", text)
        except StateError:
            with suppress(OSError):
                os.truncate(self._file("status.json"), 0)
            raise

    def _read(self, name: str, kind: type[T], newest: int) -> T | None:
        data = read_file(self._file(name))
        return None if data is None else decode_record(data, kind, newest, name)

    def _file(self, name: str) -> str:
        """No `Path`: it interns its parts, and what comes and goes each pass makes Python's table of them grow anew."""
        return f"{self.directory}/{name}"

    def _replace(self, name: str, data: bytes) -> None:
        path, temporary = self._file(name), self._file(f".{name}.new")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = _points.at(f"open {name}", os.open, temporary, flags, 0o600)
            try:
                _write_all(name, fd, data)
                _points.at(f"fsync {name}", os.fsync, fd)
            finally:
                os.close(fd)
            _points.at(f"rename {name}", os.replace, temporary, path)
            _sync_directory(self.directory)
        except OSError as error:
            raise StateError(f"cannot write {path}: {error.strerror}; check the disk") from error

    # --- journal -----------------------------------------------------------------------------------------

    def journal(self, boot_id: str, event: str, *, force: bool = True, **fields: object) -> None:
        """Append one record; with `force` it and all before it are on disk: what they name may exist from now on."""
        try:
            if self._journal is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                self._journal = _points.at("open journal", os.open, self._file("journal"), flags, 0o600)
                _end_line("journal", self._journal)
            _write_all("journal", self._journal, encode_record({"boot": boot_id, "event": event, **fields}) + b"\n")
            if force:
                _points.at("fsync journal", os.fsync, self._journal)
        except OSError as error:
            raise StateError(f"cannot append to {self._file('journal')}: {error.strerror}; check the disk") from error

    def clear_journal(self) -> None:
        """The inventory now holds all that the journal said."""
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None
        try:
            with suppress(FileNotFoundError):
                _points.at("unlink journal", os.unlink, self._file("journal"))
            _sync_directory(self.directory)
        except OSError as error:
            raise StateError(f"cannot remove {self._file('journal')}: {error.strerror}") from error

    def journal_records(self) -> tuple[dict[str, Any], ...]:
        """All whole records; a torn last line is what a crash leaves and is ignored."""
        data = read_file(self._file("journal")) or b""
        return tuple(_json_lines(data))

    # --- history -----------------------------------------------------------------------------------------

    def append_history(self, record: object) -> None:
        """One line for `history`. Not forced to disk: it may be lost, it may not block a repair."""
        path = self.directory / "history.jsonl"
        try:
            if path.exists() and path.stat().st_size > MAX_HISTORY_BYTES:
                _points.at("rename history", path.replace, path.with_name("history.1.jsonl"))
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = _points.at("open history", os.open, path, flags, 0o600)
            try:
                _end_line("history", fd)
                _write_all("history", fd, encode_json(record) + b"\n")
            finally:
                os.close(fd)
        except OSError as error:
            raise StateError(f"cannot append to {path}: {error.strerror}; check the disk") from error


def open_state(directory: Path, *, wait: bool = False) -> State:
    """Create the directory if needed and take the lock.

    Raises:
        LockedError: another process (the agent, or another `apply`) holds it.
        StateError: the directory cannot be used.
    """
    try:
        _require_ours(directory)
        _points.at("mkdir state", directory.mkdir, mode=0o700, parents=True, exist_ok=True)
        _require_ours(directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = _points.at("open lock", os.open, directory / "lock", flags, 0o600)
    except OSError as error:
        raise StateError(f"cannot use the state directory {directory}: {error.strerror}{_hint(error)}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(lock)
        message = f"another reconciler holds {directory / 'lock'}; stop it, or use its control socket"
        raise LockedError(message) from error
    return State(directory, lock)


def _hint(error: OSError) -> str:
    return "; run it as root" if isinstance(error, PermissionError) else "; check the disk and paths.state"


def _require_ours(directory: Path) -> None:
    """Who can write here, or put another folder in its place, can turn the watermark back: nobody but root and we.

    Raises:
        StateError: it, or a folder above it, is somebody else's, or others can write it.
    """
    directory = directory.absolute()
    real = Path(os.path.realpath(directory))
    for folder in dict.fromkeys((real, *directory.parents, *real.parents)):
        if not folder.exists():
            continue
        status = folder.stat()
        # Of a sticky folder above, such as /tmp, others can replace nothing of ours.
        sticky = folder != real and status.st_mode & stat.S_ISVTX
        if status.st_uid in (0, os.geteuid()) and (sticky or not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            continue
        raise StateError(
            f"{folder}: expected a directory that only root can write, got owner {status.st_uid} and mode "
            f"{stat.S_IMODE(status.st_mode):04o}; correct them after looking at what is in it"
        )


def read_status(directory: Path) -> bytes | None:
    """The last pass's report; needs no lock. None when there is none.

    Raises:
        StateError: it cannot be read, or the last pass could not write it.
    """
    data = read_file(directory / "status.json")
    if data == b"":
        raise StateError(f"{directory}: the last pass could not write its report; check the disk, and the agent's log")
    return data


def read_history(directory: Path) -> tuple[dict[str, Any], ...]:
    """All history records, oldest first; needs no lock."""
    older = read_file(directory / "history.1.jsonl") or b""
    return tuple(_json_lines(older + (read_file(directory / "history.jsonl") or b"")))


def read_file(path: Path | str) -> bytes | None:
    """Bytes of a state file, None when it does not exist.

    Raises:
        StateError: it cannot be read or is too large to be ours.
    """
    try:
        with open(path, "rb", opener=_open_no_link) as file:
            data = file.read(MAX_STATE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}{_hint(error)}") from error
    if len(data) > MAX_STATE_BYTES:
        raise StateError(
            f"{path}: expected at most {MAX_STATE_BYTES} bytes, got more; it is not a file of this program"
        )
    return data


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


class _Versioned(msgspec.Struct):
    """What every record has, whatever else it holds."""

    version: int | None = None


def decode_record(data: bytes, kind: type[T], newest: int, name: str) -> T:
    """One versioned record.

    Raises:
        StateVersionError: written by a newer agent.
        StateError: not such a record.
    """
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if version is None:
            raise StateError(
                f"{name}: expected a record with a version, got none; restore it or run `reconciler accept`"
            )
        if version > newest:
            message = (
                f"{name}: written in format {version}, this agent reads up to {newest}; install the newer agent again"
            )
            raise StateVersionError(message)
        return msgspec.json.decode(data, type=kind)
    except NOT_JSON as error:
        raise StateError(f"{name}: damaged ({error}); restore it or run `reconciler accept`") from error


def _json_lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        try:
            record = msgspec.json.decode(line)
        except NOT_JSON:
            continue
        if isinstance(record, dict):
            yield record


def _write_all(name: str, fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[_points.at(f"write {name}", os.write, fd, view) :]


def _end_line(name: str, fd: int) -> None:
    """What a crash tore stays a line of its own, so that it swallows no record that follows."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        _write_all(name, fd, b"\n")


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _points.at("fsync state", os.fsync, fd)
    finally:
        os.close(fd)
