# SPDX-License-Identifier: Apache-2.0
"""One object: its programs, maps, globals, licence and types.

The order of checks is the order of trust: container, types, then what the types say about the sections. Where
libbpf would take an offset from the symbol table (global variables of an unlinked object), so does this reader.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from reconciler.elf._btf import Btf
from reconciler.elf._limits import (
    INSTRUCTION_BYTES,
    MAX_DATA_BYTES,
    MAX_GLOBALS,
    MAX_LICENSE,
    MAX_MAPS,
    MAX_OBJECT_BYTES,
    MAX_PROGRAMS,
)
from reconciler.elf._maps import MapDef, read_map
from reconciler.elf._sections import (
    SHT_NOBITS,
    SHT_PROGBITS,
    STT_FUNC,
    STT_OBJECT,
    Section,
    Sections,
    Symbol,
    read_sections,
    text_at,
)
from reconciler.elf._types import DataSection, Function, Placed, Variable
from reconciler.errors import ElfError

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Sections of subprograms, which are no entry programs.
_TEXT: Final = ".text"
_EXTERNAL: Final = (".kconfig", ".ksyms")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSection:
    """One entry program.

    Attributes:
        name: of the C function.
        section: exactly as in the object, for example "xdp", "xdp.frags" or "tc".
        offset: bytes from the section's beginning.
        size: bytes; 8 per instruction.
    """

    name: str
    section: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalVar:
    """One global variable.

    Attributes:
        name: of the C variable; a `static` inside a function is called "function.variable".
        section: ".rodata", ".data", ".bss", or one of the first two with a suffix.
        offset: bytes from the section's beginning, as in the map that libbpf makes of it.
        size: bytes.
        type_id: BTF type, qualifiers included.
        initial: contents in the object; relocations are not applied.
        tunable: `const volatile` in a read-only section: a parameter, set before load and folded by the verifier.
    """

    name: str
    section: str
    offset: int
    size: int
    type_id: int
    initial: bytes
    tunable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """What an unverified object says about itself.

    Attributes:
        name: as given to `read_object`.
        sha256: of the whole object, hexadecimal.
        license: None when the object has none.
        programs: entry programs by section and offset.
        maps: by name.
        globals: by section and offset.
        externals: names that the kernel must provide: kernel functions, kernel variables and configuration values.
        btf: the types.
    """

    name: str
    sha256: str
    license: str | None
    programs: tuple[ProgramSection, ...]
    maps: tuple[MapDef, ...]
    globals: tuple[GlobalVar, ...]
    externals: tuple[str, ...]
    btf: Btf

    def find_program(self, name: str) -> ProgramSection | None:
        """The entry program of this name."""
        return next((program for program in self.programs if program.name == name), None)

    def find_map(self, name: str) -> MapDef | None:
        """The map of this name."""
        return next((each for each in self.maps if each.name == name), None)

    def find_global(self, name: str) -> GlobalVar | None:
        """The global variable of this name.

        Raises:
            ElfError: several compilation units have a `static` one of this name.
        """
        found = [variable for variable in self.globals if variable.name == name]
        if len(found) > 1:
            raise ElfError(f"{self.name}: expected one variable {name}, got {len(found)}: rename the others")
        return found[0] if found else None


def read_object(data: bytes, *, name: str) -> Object:
    """Read an object that nobody has verified yet.

    Args:
        data: the whole object.
        name: what messages call it, for example its path inside the package.

    Raises:
        ElfError: it is not a little-endian eBPF object with BTF, or exceeds a limit; says which and where.
    """
    try:
        return _read_object(data, name)
    except ElfError as error:
        raise ElfError(tuple(finding.within(name) for finding in error.findings)) from error


def _read_object(data: bytes, name: str) -> Object:
    sections = read_sections(data)
    section = sections.find(".BTF")
    if section is None:
        raise ElfError("expected a .BTF section, got none: compile with -g (`llvm-strip -g` keeps it)")
    btf = Btf.read(section.data)
    if sections.find("maps") is not None:
        raise ElfError('expected maps in section ".maps", got section "maps", which libbpf 1.x cannot read')
    data_sections = btf.data_sections()
    return Object(
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        license=_license(sections),
        programs=_programs(sections),
        maps=_maps(sections, btf, data_sections),
        globals=_globals(sections, btf, data_sections),
        externals=_externals(btf, data_sections),
        btf=btf,
    )


def _license(sections: Sections) -> str | None:
    section = sections.find("license")
    if section is None:
        return None
    text = text_at(section.data, 0, "section license")
    if not 0 < len(text) <= MAX_LICENSE:
        raise ElfError(f"section license: expected 1 to {MAX_LICENSE} characters, got {len(text)}")
    return text


def _programs(sections: Sections) -> tuple[ProgramSection, ...]:
    programs: list[ProgramSection] = []
    for symbol in sections.symbols:
        section = sections.sections[symbol.section]
        if symbol.kind != STT_FUNC or not section.executable or section.name == _TEXT:
            continue
        programs.append(_program(section, symbol))
        if len(programs) > MAX_PROGRAMS:
            raise ElfError(f"expected at most {MAX_PROGRAMS} programs")
    programs.sort(key=lambda program: (program.section, program.offset, program.name))
    for first, second in itertools.pairwise(programs):
        if first.section == second.section and first.offset + first.size > second.offset:
            raise ElfError(f"program {second.name}: expected it after program {first.name}, but they overlap")
    names = [program.name for program in programs]
    _refuse_repeated("program", names)
    return tuple(programs)


def _program(section: Section, symbol: Symbol) -> ProgramSection:
    _check_identifier("program", symbol.name)
    if section.kind != SHT_PROGBITS:
        raise ElfError(f"program {symbol.name}: expected code in section {section.name}, got none")
    if symbol.local:
        raise ElfError(f"program {symbol.name}: expected a global function, got a static one in {section.name}")
    if not symbol.size or symbol.size % INSTRUCTION_BYTES or symbol.offset % INSTRUCTION_BYTES:
        raise ElfError(f"program {symbol.name}: expected whole instructions, got {symbol.size} bytes")
    if symbol.offset + symbol.size > section.size:
        raise ElfError(f"program {symbol.name}: expected it inside the {section.size} bytes of {section.name}")
    return ProgramSection(name=symbol.name, section=section.name, offset=symbol.offset, size=symbol.size)


def _check_identifier(what: str, name: str) -> None:
    # Names of programs and maps become names of pins and of kernel objects.
    if not _IDENTIFIER.fullmatch(name):
        raise ElfError(f"{what} {name!r}: expected a C identifier of at most 128 characters")


def _refuse_repeated(what: str, names: list[str]) -> None:
    for name in sorted(names):
        if names.count(name) > 1:
            raise ElfError(f"expected one {what} {name}, got {names.count(name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Located:
    # A variable at its place in the section's contents.
    variable: Variable
    offset: int
    size: int


def _maps(sections: Sections, btf: Btf, data_sections: dict[str, DataSection]) -> tuple[MapDef, ...]:
    section = sections.find(".maps")
    described = data_sections.get(".maps")
    if described is None:
        if section is not None and section.size:
            raise ElfError("section .maps: expected BTF of its variables, got none: compile with -g")
        return ()
    if section is None:
        raise ElfError("section .maps: expected it in the object, but only BTF describes it")
    if len(described.variables) > MAX_MAPS:
        raise ElfError(f"expected at most {MAX_MAPS} maps, got {len(described.variables)}")
    maps: list[MapDef] = []
    for located in _locate(btf, described, section, _symbols_of(sections)):
        variable = located.variable
        _check_identifier("map", variable.name)
        if variable.static:
            raise ElfError(f"map {variable.name}: expected a global variable, got a static one")
        maps.append(read_map(btf, variable.name, variable.type_id))
    _refuse_repeated("map", [each.name for each in maps])
    return tuple(sorted(maps, key=lambda each: each.name))


def _globals(sections: Sections, btf: Btf, data_sections: dict[str, DataSection]) -> tuple[GlobalVar, ...]:
    described = [data_sections[name] for name in sorted(data_sections) if _holds_globals(name)]
    if sum(len(each.variables) for each in described) > MAX_GLOBALS:
        raise ElfError(f"expected at most {MAX_GLOBALS} global variables")
    symbols = _symbols_of(sections)
    variables: list[GlobalVar] = []
    total = 0
    for each in described:
        section = sections.find(each.name)
        if section is None or section.kind != (SHT_NOBITS if each.name == ".bss" else SHT_PROGBITS):
            raise ElfError(f"section {each.name}: expected it in the object, but only BTF describes it")
        variables.extend(_global(btf, section, located) for located in _locate(btf, each, section, symbols))
        total += section.size
        if total > MAX_OBJECT_BYTES:
            # Sections may lie over each other, so the object's size does not bound them.
            raise ElfError(f"expected at most {MAX_OBJECT_BYTES} bytes of data sections together")
    return tuple(variables)


def _global(btf: Btf, section: Section, located: _Located) -> GlobalVar:
    begin, end = located.offset, located.offset + located.size
    qualifiers = btf.qualifiers(located.variable.type_id)
    return GlobalVar(
        name=located.variable.name,
        section=section.name,
        offset=begin,
        size=located.size,
        type_id=located.variable.type_id,
        initial=bytes(located.size) if section.kind == SHT_NOBITS else bytes(section.data[begin:end]),
        tunable=section.name.startswith(".rodata") and qualifiers >= {"const", "volatile"},
    )


def _holds_globals(section: str) -> bool:
    return section in (".rodata", ".data", ".bss") or section.startswith((".rodata.", ".data."))


_Symbols: TypeAlias = dict[tuple[int, str], list[Symbol]]


def _symbols_of(sections: Sections) -> _Symbols:
    # Variables by section and name; `static` ones may share a name.
    symbols: _Symbols = {}
    for symbol in sections.symbols:
        if symbol.kind == STT_OBJECT:
            symbols.setdefault((symbol.section, symbol.name), []).append(symbol)
    return symbols


def _locate(btf: Btf, described: DataSection, section: Section, symbols: _Symbols) -> list[_Located]:
    # In order of offset, inside the section, not overlapping: so all of them together are no larger than it.
    if section.size > MAX_DATA_BYTES:
        raise ElfError(f"section {section.name}: expected at most {MAX_DATA_BYTES} bytes, got {section.size}")
    located = sorted(
        (_place(btf, described, placed, section, symbols) for placed in described.variables),
        key=lambda each: each.offset,
    )
    end = 0
    for each in located:
        if each.offset < end:
            raise ElfError(f"variable {each.variable.name}: expected it after byte {end} of {section.name}: overlap")
        end = each.offset + each.size
    if end > section.size:
        raise ElfError(f"section {section.name}: expected variables inside {section.size} bytes, got {end}")
    return located


def _place(btf: Btf, described: DataSection, placed: Placed, section: Section, symbols: _Symbols) -> _Located:
    variable = btf.type(placed.type_id)
    if not isinstance(variable, Variable) or variable.external:
        raise ElfError(f"section {described.name}: expected variables, got {btf.describe(placed.type_id)}")
    where = f"variable {variable.name}"
    found = symbols.get((section.index, variable.name), [])
    if variable.static or described.size:
        # A static variable, or a linked object: BTF has the offset. Symbols, if any are left, must agree.
        offset = placed.offset
        if len(found) == 1 and (found[0].offset, found[0].size) != (offset, placed.size):
            raise ElfError(f"{where}: expected it at byte {found[0].offset} as its symbol says, BTF says {offset}")
    else:
        if len(found) != 1 or found[0].local:
            raise ElfError(f"{where}: expected one global symbol in {described.name}, got {len(found)}")
        offset = found[0].offset
        if found[0].size != placed.size:
            raise ElfError(f"{where}: expected {placed.size} bytes as BTF says, its symbol says {found[0].size}")
    size = btf.size_of(variable.type_id, where)
    if size > placed.size:
        raise ElfError(f"{where}: expected {size} bytes for its type, got {placed.size}")
    return _Located(variable=variable, offset=offset, size=placed.size)


def _externals(btf: Btf, data_sections: dict[str, DataSection]) -> tuple[str, ...]:
    names: list[str] = []
    for section in _EXTERNAL:
        described = data_sections.get(section)
        for placed in described.variables if described is not None else ():
            each = btf.type(placed.type_id)
            if not isinstance(each, Variable | Function):
                raise ElfError(
                    f"section {section}: expected variables and functions, got {btf.describe(placed.type_id)}"
                )
            names.append(each.name)
    return tuple(sorted(names))
