# SPDX-License-Identifier: Apache-2.0
"""The package archive: built so that equal content gives equal bytes, read so that nothing hostile gets through.

An archive is a gzip stream of a plain ustar with regular files at its root: `package.yaml` first, then what it names.
The gzip stream is stored, not compressed: two versions of zlib compress the same bytes differently, and then nobody
could build an archive again and compare its digest with the one that was signed. Git packs and web servers compress.

The reader unpacks in memory only, counts every byte before it keeps it, and accepts nothing that the builder would not
write, except that the stream may be compressed: no folders, links, devices, sparse files, extended headers, second gzip
members or trailing bytes. So every reader of such an archive sees the same files in it.
"""

from __future__ import annotations

import io
import re
import struct
import tarfile
import zlib
from typing import TYPE_CHECKING, Final

from reconciler import elf, manifest
from reconciler.errors import Diagnostic, ElfError, PackageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from reconciler.model import PackageManifest

MAX_ARCHIVE_BYTES: Final = 32 * 2**20
"""The archive as it is fetched; a package of some objects has 10 KiB to 1 MiB."""
MAX_UNPACKED_BYTES: Final = 64 * 2**20
"""All files of an archive together, headers included."""
MAX_FILE_BYTES: Final = 16 * 2**20
"""One file of an archive: what `elf` reads at most."""
MAX_FILES: Final = 64
"""Files of an archive."""
MANIFEST: Final = "package.yaml"
EXTRA_FILES: Final = ("README.md",)
"""Files that are packed besides the manifest and its objects when they are there."""

SOURCE_SUFFIXES: Final = (".c", ".h")
"""Files that may lie in an archive although no program names them: the objects' source, for people."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BLOCK: Final = tarfile.BLOCKSIZE
_GZIP_HEADER: Final = bytes.fromhex("1f8b0800 00000000 00ff")
"""RFC 1952: deflate, no flags (so no name, comment or extra field), no time, unknown system."""
_GZIP_FLAGS: Final = 3
_STORED_BYTES: Final = 0xFFFF
"""Bytes that one stored block of deflate holds (RFC 1951, 3.2.4)."""


def build_archive(manifest_yaml: bytes, files: Mapping[str, bytes]) -> bytes:
    """An archive of `package.yaml` and `files`; the same input gives the same bytes on every machine.

    Raises:
        PackageError: a file name that the reader would refuse.
    """
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in (MANIFEST, *sorted(set(files) - {MANIFEST})):  # any order would do, but always the same
            if not _NAME.fullmatch(name):
                raise PackageError(f"expected a plain file name of letters, digits, '.', '_' and '-', got {name!r}")
            data = manifest_yaml if name == MANIFEST else files[name]
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o644, 0
            tar.addfile(info, io.BytesIO(data))
    return _gzip(output.getvalue())


def _gzip(plain: bytes) -> bytes:
    parts = [_GZIP_HEADER]
    for start in range(0, len(plain), _STORED_BYTES):
        block = plain[start : start + _STORED_BYTES]
        last = start + _STORED_BYTES >= len(plain)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    return b"".join((*parts, struct.pack("<II", zlib.crc32(plain), len(plain) & 0xFFFFFFFF)))


def build_folder(folder: Path, objects: Path | None = None) -> tuple[str, bytes]:
    """The archive of a package's folder: its file name, and its bytes.

    Args:
        folder: holds package.yaml, and README.md if there is one.
        objects: folder of the compiled objects, `folder` unless given.

    Raises:
        PackageError: package.yaml or an object is missing, or they do not fit; all findings.
    """
    text = _read(folder / MANIFEST)
    parsed = manifest.parse_package(text, file=str(folder / MANIFEST))
    names = sorted({program.object for program in parsed.programs})
    files = {name: _read((objects or folder) / name) for name in names}
    for name in EXTRA_FILES:
        if (folder / name).is_file():
            files[name] = _read(folder / name)
    _check(parsed, files, str(folder / MANIFEST))
    return f"{parsed.name}-{parsed.version}.tar.gz", build_archive(text, files)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PackageError(f"cannot read {path}: {error.strerror}; compile it, or correct package.yaml") from error
    if len(data) > MAX_FILE_BYTES:
        raise PackageError(f"{path}: expected at most {MAX_FILE_BYTES} bytes, got more")
    return data


def open_archive(data: bytes, *, file: str) -> tuple[PackageManifest, dict[str, bytes]]:
    """The manifest and the files of an archive, checked against each other; never calls libbpf.

    Args:
        file: what messages call the archive.

    Raises:
        PackageError: with all findings.
    """
    files = read_archive(data, file=file)
    if MANIFEST not in files:
        raise PackageError((Diagnostic(message=f"expected a {MANIFEST} at the archive's root, got none", file=file),))
    where = f"{file}:{MANIFEST}"
    parsed = manifest.parse_package(files[MANIFEST], file=where)
    _check(parsed, files, where)
    return parsed, files


def _check(parsed: PackageManifest, files: Mapping[str, bytes], where: str) -> None:
    findings: list[Diagnostic] = []
    objects: dict[str, elf.Object] = {}
    names = {program.object for program in parsed.programs}
    for name in sorted(names):
        if name not in files:
            findings.append(Diagnostic(message=f"expected the object {name}, which package.yaml names, got none"))
            continue
        try:
            objects[name] = elf.read_object(files[name], name=name)
        except ElfError as error:
            findings += error.findings
    for name in sorted(set(files) - names - {MANIFEST, *EXTRA_FILES}):
        if not name.endswith(SOURCE_SUFFIXES):
            findings.append(Diagnostic(message=f"expected files that package.yaml names, got {name} besides; drop it"))
    if not findings:
        findings += manifest.check_package(parsed, objects)
    if findings:
        raise PackageError(tuple(finding if finding.file else finding.within(where) for finding in findings))


def read_archive(data: bytes, *, file: str) -> dict[str, bytes]:
    """Files of an archive by name, unpacked in memory within the limits above.

    Raises:
        PackageError: what of it is not as the builder writes it.
    """
    try:
        return _members(_inflate(data))
    except _RefusedError as error:
        message = f"{error}; build it with `reconciler package build`"
        raise PackageError((Diagnostic(message=message, file=file),)) from error


class _RefusedError(Exception):
    """Why an archive is not read; becomes a PackageError that names the archive."""


def _inflate(data: bytes) -> bytes:
    if len(data) > MAX_ARCHIVE_BYTES:
        raise _RefusedError(f"expected at most {MAX_ARCHIVE_BYTES} bytes, got {len(data)}")
    if len(data) < len(_GZIP_HEADER) or data[:_GZIP_FLAGS] != _GZIP_HEADER[:_GZIP_FLAGS]:
        raise _RefusedError("expected a gzip stream, got something else")
    if data[_GZIP_FLAGS]:
        raise _RefusedError(
            "expected a gzip header without name, comment or extra field, got one (gzip -n leaves them out)"
        )
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        plain = stream.decompress(data, MAX_UNPACKED_BYTES + 1)
    except zlib.error as error:
        raise _RefusedError(f"the gzip stream is damaged ({error})") from error
    if len(plain) > MAX_UNPACKED_BYTES:
        raise _RefusedError(f"expected at most {MAX_UNPACKED_BYTES} bytes unpacked, got more")
    if not stream.eof:
        raise _RefusedError("the gzip stream ends too early")
    if stream.unused_data:
        raise _RefusedError("expected one gzip stream, got more bytes behind it")
    return plain


def _members(plain: bytes) -> dict[str, bytes]:
    """Walk the headers one by one: `tarfile` parses each, but never decides what comes next."""
    files: dict[str, bytes] = {}
    offset = 0
    while True:
        block = plain[offset : offset + _BLOCK]
        if len(block) < _BLOCK:
            raise _RefusedError("the tar ends without its two empty blocks")
        if not any(block):
            break
        info = _header(block)
        if len(files) >= MAX_FILES:
            raise _RefusedError(f"expected at most {MAX_FILES} files, got more")
        if info.name in files:
            raise _RefusedError(f"expected each file once, got {info.name!r} twice")
        start = offset + _BLOCK
        padded = -(-info.size // _BLOCK) * _BLOCK
        if start + padded > len(plain):
            raise _RefusedError(f"the tar ends within {info.name!r}")
        files[info.name] = plain[start : start + info.size]
        if any(plain[start + info.size : start + padded]):
            raise _RefusedError(f"expected zeros behind {info.name!r}, got other bytes")
        offset = start + padded
    if any(plain[offset:]) or len(plain) - offset < 2 * _BLOCK:
        raise _RefusedError("expected two empty blocks and nothing else at the end of the tar")
    return files


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise _RefusedError(f"a header of the tar is damaged ({error})") from error
    if block[156:157] != tarfile.REGTYPE:
        raise _RefusedError(f"expected regular files only, got type {block[156:157]!r} for {info.name!r}")
    if not _NAME.fullmatch(info.name):
        raise _RefusedError(f"expected plain file names without folders, got {info.name!r}")
    if not 0 <= info.size <= MAX_FILE_BYTES:
        raise _RefusedError(f"expected at most {MAX_FILE_BYTES} bytes in {info.name!r}, got {info.size}")
    canonical = tarfile.TarInfo(info.name)
    canonical.size, canonical.mode, canonical.mtime = info.size, 0o644, 0
    if canonical.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") != block:
        raise _RefusedError(f"expected a plain header (mode 0644, no owner, no time) for {info.name!r}, got another")
    return info
