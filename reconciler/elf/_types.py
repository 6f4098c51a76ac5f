# SPDX-License-Identifier: Apache-2.0
"""The kinds of BTF types as values (Documentation/bpf/btf.rst of Linux)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Void:
    """Type 0: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int:
    """An integer, a character or a boolean.

    Attributes:
        name: as the compiler calls it, for example "unsigned int".
        size: bytes: 1, 2, 4, 8 or 16.
        bits: how many of them count; fewer than 8 * size only in objects of old compilers.
        offset: bits before the first that counts; 0 in objects of current compilers.
        signed: two's complement.
        boolean: `_Bool`.
    """

    name: str
    size: int
    bits: int
    offset: int
    signed: bool
    boolean: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Float:
    """A floating-point number of `size` bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """A pointer to `type_id`; 8 bytes."""

    type_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """`count` elements of `type_id`."""

    type_id: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of a struct or union.

    Attributes:
        name: "" for an anonymous struct or union.
        type_id: its type.
        offset: bits from the beginning.
        bits: width of a bitfield, 0 for any other member.
    """

    name: str
    type_id: int
    offset: int
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite:
    """A struct or a union of `size` bytes."""

    name: str
    size: int
    union: bool
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enum:
    """An enumeration.

    Attributes:
        name: "" for an anonymous one.
        size: bytes: 1, 2, 4 or 8.
        signed: says the compiler; before clang 15 it never says so, and negative values show it.
        values: (name, value) in order of declaration.
    """

    name: str
    size: int
    signed: bool
    values: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A struct or union that is only declared."""

    name: str
    union: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Modifier:
    """A qualifier of `type_id`: const, volatile, restrict or a type tag."""

    word: str
    type_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Typedef:
    """Another name of `type_id`."""

    name: str
    type_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function, its prototype, or a declaration tag: known, but never the type of a value."""

    name: str
    type_id: int
    references: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable; `static` says that only its compilation unit sees it."""

    name: str
    type_id: int
    static: bool
    external: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One variable of a data section: the variable's type, offset and size in bytes."""

    type_id: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSection:
    """The variables of one ELF section; `size` is 0 in an object that no linker has touched."""

    name: str
    size: int
    variables: tuple[Placed, ...]


Type: TypeAlias = (
    Void
    | Int
    | Float
    | Pointer
    | Array
    | Composite
    | Enum
    | Forward
    | Modifier
    | Typedef
    | Function
    | Variable
    | DataSection
)
