# SPDX-License-Identifier: Apache-2.0
"""Sections and symbols of an ELF object, read within limits.

Reads ELF64, little endian, ET_REL, EM_BPF and nothing else. It does not interpret a section's contents and does not
apply relocations. Nothing is copied: a section's contents is a view of the object's bytes, checked to lie inside.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from reconciler.elf._limits import MAX_NAME, MAX_OBJECT_BYTES, MAX_SECTIONS, MAX_SYMBOLS
from reconciler.errors import ElfError

# elf.h; the names are those of the specification.
_MAGIC: Final = b"\x7fELF"
_ELFCLASS64: Final = 2
_ELFDATA2LSB: Final = 1
_ELFDATA2MSB: Final = 2
_EV_CURRENT: Final = 1
_ET_REL: Final = 1
_EM_BPF: Final = 247
SHT_NULL: Final = 0
SHT_PROGBITS: Final = 1
SHT_SYMTAB: Final = 2
SHT_STRTAB: Final = 3
SHT_NOBITS: Final = 8
SHF_ALLOC: Final = 0x2
SHF_EXECINSTR: Final = 0x4
SHF_COMPRESSED: Final = 0x800
SHN_LORESERVE: Final = 0xFF00
STB_LOCAL: Final = 0
STT_OBJECT: Final = 1
STT_FUNC: Final = 2

_HEADER: Final = struct.Struct("<4sBBBB8xHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")

_DESCRIPTIVE: Final = (".BTF", ".BTF.ext", ".maps", "license", "version")
_PRINTABLE: Final = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section.

    Attributes:
        index: number in the section table.
        name: "" or printable ASCII.
        kind: sh_type.
        flags: sh_flags.
        link: sh_link.
        size: bytes; may be anything for SHT_NOBITS.
        data: contents; empty for SHT_NOBITS.
    """

    index: int
    name: str
    kind: int
    flags: int
    link: int
    size: int
    data: memoryview

    @property
    def executable(self) -> bool:
        return bool(self.flags & SHF_EXECINSTR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbol:
    """One function or object symbol that is defined in a section.

    Attributes:
        name: printable ASCII.
        kind: STT_FUNC or STT_OBJECT.
        local: STB_LOCAL, that is `static` in C.
        section: number of the section.
        offset: bytes from the section's beginning.
        size: bytes.
    """

    name: str
    kind: int
    local: bool
    section: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """The sections and symbols of one object."""

    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    by_name: dict[str, Section]

    def find(self, name: str) -> Section | None:
        """The section that the kernel's loader would take for `name`."""
        return self.by_name.get(name)


def text_at(table: memoryview | bytes, offset: int, what: str) -> str:
    """The NUL-terminated printable ASCII name at `offset` of a string table.

    Raises:
        ElfError: it lies outside, does not end, is too long or holds other characters.
    """
    if offset >= len(table):
        raise ElfError(f"{what}: expected a name inside the string table of {len(table)} bytes, got offset {offset}")
    piece = bytes(table[offset : offset + MAX_NAME + 1])
    end = piece.find(b"\0")
    if end < 0:
        raise ElfError(f"{what}: expected a name of at most {MAX_NAME} characters that ends inside its string table")
    if end and not _PRINTABLE.fullmatch(piece, 0, end):
        raise ElfError(f"{what}: expected a name of printable ASCII characters, got {piece[: min(end, 40)]!r}")
    return piece[:end].decode("ascii")


def read_sections(data: bytes) -> Sections:
    """Read the section table and the symbol table.

    Raises:
        ElfError: `data` is not an eBPF object of the one accepted form.
    """
    if len(data) > MAX_OBJECT_BYTES:
        raise ElfError(f"expected an object of at most {MAX_OBJECT_BYTES} bytes, got {len(data)}")
    offset, count, names_index = _header(data)
    view = memoryview(data)
    table = _piece(view, offset, count * _SECTION.size, "section table")
    headers = list(_SECTION.iter_unpack(table))
    if names_index >= count or headers[names_index][1] != SHT_STRTAB:
        raise ElfError(f"expected the number of the section names' string table (e_shstrndx), got {names_index}")
    names = _piece(view, headers[names_index][4], headers[names_index][5], "section names")
    sections = tuple(_section(view, names, index, header) for index, header in enumerate(headers))
    return Sections(sections=sections, symbols=_symbols(sections), by_name=_by_name(sections))


def _header(data: bytes) -> tuple[int, int, int]:
    # Returns the section table's offset, its number of entries and the index of the names' section.
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise ElfError("expected an ELF object, got something else: compile with `clang -target bpf -c`")
    fields = _HEADER.unpack_from(data)
    _magic, width, order, version, _abi, kind, machine, _version, _entry, _phoff, shoff = fields[:11]
    _flags, _ehsize, _phentsize, _phnum, shentsize, shnum, shstrndx = fields[11:]
    if order == _ELFDATA2MSB:
        raise ElfError("expected a little-endian object, got a big-endian one: compile with `-target bpfel`")
    if (width, order, version) != (_ELFCLASS64, _ELFDATA2LSB, _EV_CURRENT):
        raise ElfError(f"expected ELF class 64, little endian, version 1, got {width}, {order}, {version}")
    if machine != _EM_BPF:
        raise ElfError(f"expected an object for eBPF (e_machine {_EM_BPF}), got {machine}: compile with `-target bpf`")
    if kind != _ET_REL:
        raise ElfError(f"expected a relocatable object (ET_REL), got e_type {kind}")
    if shentsize != _SECTION.size or not 0 < shnum <= MAX_SECTIONS:
        raise ElfError(
            f"expected 1 to {MAX_SECTIONS} section headers of {_SECTION.size} bytes, got {shnum} of {shentsize}"
        )
    return shoff, shnum, shstrndx


def _piece(view: memoryview, offset: int, size: int, what: str) -> memoryview:
    if offset > len(view) or size > len(view) - offset:
        raise ElfError(f"{what}: expected {size} bytes at offset {offset}, but the object has {len(view)}")
    return view[offset : offset + size]


def _section(view: memoryview, names: memoryview, index: int, header: tuple[int, ...]) -> Section:
    name_offset, kind, flags, _address, offset, size, link, _info, _align, _entsize = header
    name = text_at(names, name_offset, f"section {index}")
    stored = kind not in (SHT_NULL, SHT_NOBITS)
    data = _piece(view, offset, size, f"section {name or index}") if stored else view[:0]
    return Section(index=index, name=name, kind=kind, flags=flags, link=link, size=size, data=data)


def _matters(section: Section) -> bool:
    # Sections that are loaded, and those that libbpf finds by name, whatever their type: with two of the same name
    # it might read the other one.
    loaded = section.kind in (SHT_PROGBITS, SHT_NOBITS) and section.flags & (SHF_ALLOC | SHF_EXECINSTR)
    return bool(loaded) or section.name in _DESCRIPTIVE


def _by_name(sections: tuple[Section, ...]) -> dict[str, Section]:
    found: dict[str, Section] = {}
    for section in filter(_matters, sections):
        if section.name in found:
            raise ElfError(f"expected one section {section.name}, got two")
        if section.name in _DESCRIPTIVE and section.kind != SHT_PROGBITS:
            raise ElfError(f"section {section.name}: expected contents (SHT_PROGBITS), got type {section.kind}")
        if section.flags & SHF_COMPRESSED:
            raise ElfError(f"section {section.name}: expected it uncompressed")
        found[section.name] = section
    return found


def _symbols(sections: tuple[Section, ...]) -> tuple[Symbol, ...]:
    tables = [section for section in sections if section.kind == SHT_SYMTAB]
    if len(tables) != 1:
        raise ElfError(f"expected one symbol table, got {len(tables)}: strip with `llvm-strip -g`, which keeps it")
    table = tables[0]
    if len(table.data) % _SYMBOL.size or len(table.data) > MAX_SYMBOLS * _SYMBOL.size:
        raise ElfError(
            f"expected at most {MAX_SYMBOLS} symbols of {_SYMBOL.size} bytes, got a table of {len(table.data)} bytes"
        )
    if table.link >= len(sections) or sections[table.link].kind != SHT_STRTAB:
        raise ElfError(f"symbol table: expected the number of its string table, got {table.link}")
    names = sections[table.link].data
    symbols: list[Symbol] = []
    for index, (name, info, _other, section, offset, size) in enumerate(_SYMBOL.iter_unpack(table.data)):
        kind = info & 0xF
        if kind not in (STT_OBJECT, STT_FUNC) or section == 0 or section >= SHN_LORESERVE:
            continue
        text = text_at(names, name, f"symbol {index}")
        if section >= len(sections):
            raise ElfError(f"symbol {text or index}: expected one of {len(sections)} sections, got number {section}")
        symbols.append(
            Symbol(name=text, kind=kind, local=info >> 4 == STB_LOCAL, section=section, offset=offset, size=size)
        )
    return tuple(symbols)
