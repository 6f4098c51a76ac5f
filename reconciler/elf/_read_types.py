# SPDX-License-Identifier: Apache-2.0
"""Makes BTF types of the bytes of a .BTF section; kinds and bit positions are those of linux/btf.h.

Checks that every name and every reference to a type lies inside. It does not check that types make sense together
(a type may contain itself), which is why everything that walks types counts its depth and its steps.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reconciler.elf._limits import MAX_BTF_BYTES, MAX_NAME_CHARACTERS, MAX_TYPES
from reconciler.elf._sections import text_at
from reconciler.elf._types import (
    Array,
    Composite,
    DataSection,
    Enum,
    Float,
    Forward,
    Function,
    Int,
    Member,
    Modifier,
    Placed,
    Pointer,
    Type,
    Typedef,
    Variable,
    Void,
)
from reconciler.errors import ElfError

if TYPE_CHECKING:
    from collections.abc import Callable

_MAGIC: Final = 0xEB9F
_MAGIC_SWAPPED: Final = 0x9FEB
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_WORD: Final = struct.Struct("<I")
_ARRAY: Final = struct.Struct("<III")
_MEMBER: Final = struct.Struct("<III")
_ENUM: Final = struct.Struct("<Ii")
_ENUM64: Final = struct.Struct("<III")
_PARAMETER: Final = struct.Struct("<II")
_VARIABLE: Final = struct.Struct("<III")

_INT_SIGNED: Final = 1
_INT_BOOL: Final = 4


class _Cursor:
    """Reads the type section from front to back."""

    def __init__(self, types: memoryview, strings: memoryview) -> None:
        self._types = types
        self._strings = strings
        self._names: dict[int, str] = {0: ""}
        self._characters = 0
        self.position = 0

    @property
    def remaining(self) -> int:
        return len(self._types) - self.position

    def take(self, layout: struct.Struct, what: str) -> tuple[int, ...]:
        if layout.size > self.remaining:
            raise ElfError(f"{what}: expected {layout.size} more bytes of BTF, got {self.remaining}")
        fields: tuple[int, ...] = layout.unpack_from(self._types, self.position)
        self.position += layout.size
        return fields

    def take_all(self, layout: struct.Struct, count: int, what: str) -> list[tuple[int, ...]]:
        size = layout.size * count
        if size > self.remaining:
            raise ElfError(f"{what}: expected {size} more bytes of BTF for {count} entries, got {self.remaining}")
        piece = self._types[self.position : self.position + size]
        self.position += size
        return list(layout.iter_unpack(piece))

    def name(self, offset: int, what: str) -> str:
        if offset not in self._names:
            self._names[offset] = text_at(self._strings, offset, what)
            self._characters += len(self._names[offset])
            if self._characters > MAX_NAME_CHARACTERS:
                raise ElfError(f"BTF: expected names of at most {MAX_NAME_CHARACTERS} characters together")
        return self._names[offset]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """What every type begins with."""

    where: str
    name: str
    count: int
    flag: bool
    value: int


def read_types(data: memoryview) -> tuple[Type, ...]:
    """Read all types; a type's id is its index, and 0 is void.

    Raises:
        ElfError: `data` is no BTF within the limits, or a name or reference points outside.
    """
    cursor = _open(data)
    types: list[Type] = [Void()]
    while cursor.remaining:
        if len(types) >= MAX_TYPES:
            raise ElfError(f"expected at most {MAX_TYPES} BTF types")
        types.append(_read_type(cursor, len(types)))
    for index, each in enumerate(types):
        for reference in _references(each):
            if reference >= len(types):
                raise ElfError(f"BTF type {index}: expected a type below {len(types)}, got {reference}")
    return tuple(types)


def _open(data: memoryview) -> _Cursor:
    if len(data) > MAX_BTF_BYTES:
        raise ElfError(f"expected at most {MAX_BTF_BYTES} bytes of BTF, got {len(data)}")
    if len(data) < _HEADER.size:
        raise ElfError(f"expected a BTF header of {_HEADER.size} bytes, got {len(data)}")
    magic, version, flags, length, type_offset, type_length, string_offset, string_length = _HEADER.unpack_from(data)
    if magic == _MAGIC_SWAPPED:
        raise ElfError("expected little-endian BTF, got big-endian BTF: compile with `-target bpfel`")
    if (magic, version, flags) != (_MAGIC, _VERSION, 0):
        raise ElfError(f"expected BTF of version {_VERSION} without flags, got {magic:#x}, {version}, {flags}")
    body = data[length:]
    if not _HEADER.size <= length <= len(data) or type_offset % 4:
        raise ElfError(f"BTF: expected an aligned header of {_HEADER.size} to {len(data)} bytes, got {length}")
    if type_offset + type_length > len(body) or string_offset + string_length > len(body):
        raise ElfError(f"BTF: expected types and strings inside {len(body)} bytes")
    strings = body[string_offset : string_offset + string_length]
    if not strings or strings[0] or strings[-1]:
        raise ElfError("BTF: expected a string table that begins and ends with a NUL")
    return _Cursor(body[type_offset : type_offset + type_length], strings)


def _read_type(cursor: _Cursor, index: int) -> Type:
    where = f"BTF type {index}"
    name, info, value = cursor.take(_TYPE, where)
    kind = info >> 24 & 0x1F
    reader = _READERS.get(kind)
    if reader is None:
        raise ElfError(f"{where}: expected a kind of 1 to {max(_READERS)}, got {kind}")
    head = _Head(where=where, name=cursor.name(name, where), count=info & 0xFFFF, flag=bool(info >> 31), value=value)
    return reader(cursor, head)


def _int(cursor: _Cursor, head: _Head) -> Type:
    (word,) = cursor.take(_WORD, head.where)
    encoding, offset, bits = word >> 24 & 0xF, word >> 16 & 0xFF, word & 0xFF
    if head.value not in (1, 2, 4, 8, 16) or not 0 < bits <= 8 * head.value - offset:
        raise ElfError(f"{head.where}: expected an integer of 1 to 16 bytes, got {bits} bits in {head.value} bytes")
    return Int(
        name=head.name,
        size=head.value,
        bits=bits,
        offset=offset,
        signed=bool(encoding & _INT_SIGNED),
        boolean=bool(encoding & _INT_BOOL),
    )


def _pointer(_cursor: _Cursor, head: _Head) -> Type:
    return Pointer(type_id=head.value)


def _array(cursor: _Cursor, head: _Head) -> Type:
    element, _index, count = cursor.take(_ARRAY, head.where)
    return Array(type_id=element, count=count)


def _composite(cursor: _Cursor, head: _Head, *, union: bool) -> Type:
    members: list[Member] = []
    for name, type_id, offset in cursor.take_all(_MEMBER, head.count, head.where):
        # kind_flag: the upper 8 bits of the offset are the width of a bitfield.
        bits, start = (offset >> 24, offset & 0xFFFFFF) if head.flag else (0, offset)
        if start + bits > 8 * head.value:
            raise ElfError(f"{head.where}: expected a member inside {head.value} bytes, got one at bit {start}")
        members.append(Member(name=cursor.name(name, head.where), type_id=type_id, offset=start, bits=bits))
    return Composite(name=head.name, size=head.value, union=union, members=tuple(members))


def _struct(cursor: _Cursor, head: _Head) -> Type:
    return _composite(cursor, head, union=False)


def _union(cursor: _Cursor, head: _Head) -> Type:
    return _composite(cursor, head, union=True)


def _enum(cursor: _Cursor, head: _Head) -> Type:
    if head.value not in (1, 2, 4, 8):
        raise ElfError(f"{head.where}: expected an enumeration of 1, 2, 4 or 8 bytes, got {head.value}")
    entries = cursor.take_all(_ENUM, head.count, head.where)
    signed = head.flag or any(value < 0 for _name, value in entries)
    values = tuple((cursor.name(name, head.where), value) for name, value in entries)
    return Enum(name=head.name, size=head.value, signed=signed, values=values)


def _enum64(cursor: _Cursor, head: _Head) -> Type:
    if head.value not in (1, 2, 4, 8):
        raise ElfError(f"{head.where}: expected an enumeration of 1, 2, 4 or 8 bytes, got {head.value}")
    values: list[tuple[str, int]] = []
    for name, low, high in cursor.take_all(_ENUM64, head.count, head.where):
        value = high << 32 | low
        if head.flag and high >> 31:
            value -= 1 << 64
        values.append((cursor.name(name, head.where), value))
    return Enum(name=head.name, size=head.value, signed=head.flag, values=tuple(values))


def _forward(_cursor: _Cursor, head: _Head) -> Type:
    return Forward(name=head.name, union=head.flag)


def _typedef(_cursor: _Cursor, head: _Head) -> Type:
    return Typedef(name=head.name, type_id=head.value)


def _volatile(_cursor: _Cursor, head: _Head) -> Type:
    return Modifier(word="volatile", type_id=head.value)


def _const(_cursor: _Cursor, head: _Head) -> Type:
    return Modifier(word="const", type_id=head.value)


def _restrict(_cursor: _Cursor, head: _Head) -> Type:
    return Modifier(word="restrict", type_id=head.value)


def _type_tag(_cursor: _Cursor, head: _Head) -> Type:
    return Modifier(word=f"tag:{head.name}", type_id=head.value)


def _function(_cursor: _Cursor, head: _Head) -> Type:
    return Function(name=head.name, type_id=head.value)


def _prototype(cursor: _Cursor, head: _Head) -> Type:
    parameters = cursor.take_all(_PARAMETER, head.count, head.where)
    return Function(name="", type_id=head.value, references=tuple(type_id for _name, type_id in parameters))


def _variable(cursor: _Cursor, head: _Head) -> Type:
    (linkage,) = cursor.take(_WORD, head.where)
    # BTF_VAR_STATIC, BTF_VAR_GLOBAL_ALLOCATED, BTF_VAR_GLOBAL_EXTERN.
    if linkage > 2:  # noqa: PLR2004
        raise ElfError(f"{head.where}: expected the linkage 0, 1 or 2 of variable {head.name}, got {linkage}")
    return Variable(name=head.name, type_id=head.value, static=linkage == 0, external=linkage == 2)  # noqa: PLR2004


def _data_section(cursor: _Cursor, head: _Head) -> Type:
    entries = cursor.take_all(_VARIABLE, head.count, head.where)
    variables = tuple(Placed(type_id=type_id, offset=offset, size=size) for type_id, offset, size in entries)
    return DataSection(name=head.name, size=head.value, variables=variables)


def _float(_cursor: _Cursor, head: _Head) -> Type:
    if head.value not in (2, 4, 8, 12, 16):
        raise ElfError(f"{head.where}: expected a floating-point number of 2 to 16 bytes, got {head.value}")
    return Float(name=head.name, size=head.value)


def _declaration_tag(cursor: _Cursor, head: _Head) -> Type:
    cursor.take(_WORD, head.where)
    return Function(name=head.name, type_id=head.value)


# BTF_KIND_* of linux/btf.h.
_READERS: Final[dict[int, Callable[[_Cursor, _Head], Type]]] = {
    1: _int,
    2: _pointer,
    3: _array,
    4: _struct,
    5: _union,
    6: _enum,
    7: _forward,
    8: _typedef,
    9: _volatile,
    10: _const,
    11: _restrict,
    12: _function,
    13: _prototype,
    14: _variable,
    15: _data_section,
    16: _float,
    17: _declaration_tag,
    18: _type_tag,
    19: _enum64,
}


def _references(each: Type) -> tuple[int, ...]:
    match each:
        case Pointer() | Array() | Modifier() | Typedef() | Variable():
            return (each.type_id,)
        case Function():
            return (each.type_id, *each.references)
        case Composite():
            return tuple(member.type_id for member in each.members)
        case DataSection():
            return tuple(variable.type_id for variable in each.variables)
        case _:
            return ()
