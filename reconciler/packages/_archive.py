# SPDX-License-Identifier: Apache-2.0
"""The package archive: built so that equal content gives equal bytes, read so that nothing hostile gets through.

An archive is a gzip stream of a plain ustar with regular files at its root: `package.yaml` first, then what it names.
Its bytes follow from its files alone, so that anybody can build it again and compare the digest with the one that was
signed: headers are written here, because two versions of `tarfile` differ, and the gzip stream is stored, not
compressed, because two versions of zlib differ. Git packs and web servers compress.

The reader unpacks in memory only, counts every byte before it keeps it, and accepts nothing that the builder would not
write, except that the stream may be compressed: no folders, links, devices, sparse files, extended headers, second gzip
members or trailing bytes. So every reader of such an archive sees the same files in it.
"""

from __future__ import annotations

import re
import struct
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
_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_REGULAR: Final = b"0"
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
"""POSIX.1-1988 ustar: name, mode, uid, gid, size, mtime, checksum, type, link, magic, version, owner, group, device,
prefix."""
_SIZE: Final = re.compile(rb"[0-7]{11}\0")
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
    parts = []
    for name in (MANIFEST, *sorted(set(files) - {MANIFEST})):  # any order would do, but always the same
        if not _NAME.fullmatch(name):
            raise PackageError(f"expected a plain file name of letters, digits, '.', '_' and '-', got {name!r}")
        data = manifest_yaml if name == MANIFEST else files[name]
        parts += [_header(name, len(data)), data, bytes(-len(data) % _BLOCK)]
    return _gzip(b"".join((*parts, _END)))


def _header(name: str, size: int) -> bytes:
    """The one header that a file of this name and size can have: mode 0644, no owner, no time."""
    nobody, checksum = b"0000000\0", b" " * 8
    fields = [name.encode(), b"0000644\0", nobody, nobody, b"%011o\0" % size, b"%011o\0" % 0, checksum, _REGULAR]
    fields += [b"", b"ustar\0", b"00", b"", b"", b"", b"", b""]
    fields[6] = b"%06o\0 " % sum(_HEADER.pack(*fields))
    return _HEADER.pack(*fields)


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
    """Files of an archive by name, unpacked in memory within the limits above; what they hold is not looked at.

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
    files: dict[str, bytes] = {}
    offset = 0
    while any(block := plain[offset : offset + _BLOCK]):
        name, size = _read_header(block)
        if len(files) >= MAX_FILES:
            raise _RefusedError(f"expected at most {MAX_FILES} files, got more")
        if name in files:
            raise _RefusedError(f"expected each file once, got {name!r} twice")
        start, end = offset + _BLOCK, offset + _BLOCK + size
        offset = end + -size % _BLOCK
        if offset > len(plain):
            raise _RefusedError(f"the tar ends within {name!r}")
        if any(plain[end:offset]):
            raise _RefusedError(f"expected zeros behind {name!r}, got other bytes")
        files[name] = plain[start:end]
    if plain[offset:] != _END:
        raise _RefusedError("expected two empty blocks at the end of the tar, and nothing else")
    return files


def _read_header(block: bytes) -> tuple[str, int]:
    """Name and size of a file whose header is, byte for byte, the one that the builder writes for them."""
    if len(block) < _BLOCK:
        raise _RefusedError("the tar ends within a header")
    raw_name, *_, kind = _HEADER.unpack(block)[:8]
    name = raw_name.rstrip(b"\0").decode("latin-1")
    if kind != _REGULAR:
        raise _RefusedError(f"expected regular files only, got type {kind!r} for {name!r}")
    if not _NAME.fullmatch(name):
        raise _RefusedError(f"expected plain file names without folders, got {name!r}")
    text = _HEADER.unpack(block)[4]
    if not _SIZE.fullmatch(text) or (size := int(text[:-1], 8)) > MAX_FILE_BYTES:
        raise _RefusedError(f"expected at most {MAX_FILE_BYTES} bytes in {name!r}, got {text!r} (octal)")
    if _header(name, size) != block:
        raise _RefusedError(f"expected a plain header (mode 0644, no owner, no time) for {name!r}, got another")
    return name, size
