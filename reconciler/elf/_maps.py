# SPDX-License-Identifier: Apache-2.0
"""Map definitions: the structs of section .maps, read as libbpf reads them.

`__uint(name, N)` is a pointer to an array of N integers, `__type(name, T)` a pointer to T. A field that is not
known is refused, as libbpf 1.x does, because it would mean something to another loader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reconciler.elf._types import Array, Composite, Member, Pointer
from reconciler.errors import ElfError

if TYPE_CHECKING:
    from reconciler.elf._btf import Btf

_NUMBERS: Final = frozenset(
    {"type", "max_entries", "map_flags", "numa_node", "key_size", "value_size", "pinning", "map_extra"}
)
_TYPES: Final = {"key": "key_size", "value": "value_size"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MapDef:
    """One map as the object defines it.

    Attributes:
        name: of the C variable.
        type: BPF_MAP_TYPE_* of linux/bpf.h.
        key_size: bytes; 0 where the object gives none.
        value_size: bytes; 0 where the object gives none.
        max_entries: 0 where the object gives none.
        flags: BPF_F_*.
        key_type_id: BTF type of keys, None when only a size is given.
        value_type_id: BTF type of values, None when only a size is given.
        numa_node: None when not given.
        extra: `map_extra`, for example the number of hash functions of a bloom filter.
        pinning: LIBBPF_PIN_*; 0 is none. Packages should not pin: the reconciler owns pin paths.
    """

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key_type_id: int | None
    value_type_id: int | None
    numa_node: int | None = None
    extra: int = 0
    pinning: int = 0


def read_map(btf: Btf, name: str, type_id: int) -> MapDef:
    """Read the definition of map `name` from the type of its variable.

    Raises:
        ElfError: it is not a definition that libbpf understands, or it needs what is not supported here.
    """
    definition = btf.resolve(type_id)
    if not isinstance(definition, Composite) or definition.union:
        raise ElfError(f"map {name}: expected a struct with __uint and __type, got {btf.describe(type_id)}")
    numbers: dict[str, int] = {}
    types: dict[str, int] = {}
    for member in definition.members:
        _read_field(btf, name, member, numbers, types)
    if "type" not in numbers:
        raise ElfError(f"map {name}: expected a map type: add __uint(type, BPF_MAP_TYPE_…)")
    return MapDef(
        name=name,
        type=numbers["type"],
        key_size=numbers.get("key_size", 0),
        value_size=numbers.get("value_size", 0),
        max_entries=numbers.get("max_entries", 0),
        flags=numbers.get("map_flags", 0),
        key_type_id=types.get("key"),
        value_type_id=types.get("value"),
        numa_node=numbers.get("numa_node"),
        extra=numbers.get("map_extra", 0),
        pinning=numbers.get("pinning", 0),
    )


def _read_field(btf: Btf, name: str, member: Member, numbers: dict[str, int], types: dict[str, int]) -> None:
    where = f"map {name}: {member.name}"
    if member.name in _NUMBERS:
        _set(numbers, member.name, _number(btf, where, member), where)
    elif member.name in _TYPES:
        pointer = btf.resolve(member.type_id)
        if not isinstance(pointer, Pointer):
            raise ElfError(f"{where}: expected __type({member.name}, …), got {btf.describe(member.type_id)}")
        if member.name in types:
            raise ElfError(f"{where}: expected it once, got it twice")
        types[member.name] = pointer.type_id
        _set(numbers, _TYPES[member.name], btf.size_of(pointer.type_id, where), where)
    elif member.name == "values":
        raise ElfError(
            f"{where}: expected a map without `values`: inner maps and initial program arrays are not supported; "
            "fill the map from the outside"
        )
    else:
        raise ElfError(f"{where}: expected a field that libbpf knows, got {member.name or 'an anonymous one'}")


def _number(btf: Btf, where: str, member: Member) -> int:
    pointer = btf.resolve(member.type_id)
    array = btf.resolve(pointer.type_id) if isinstance(pointer, Pointer) else None
    if not isinstance(array, Array):
        raise ElfError(f"{where}: expected __uint({member.name}, …), got {btf.describe(member.type_id)}")
    return array.count


def _set(numbers: dict[str, int], field: str, value: int, where: str) -> None:
    # The size may be said twice, by __uint(key_size, …) and by __type(key, …), if both say the same.
    if numbers.setdefault(field, value) != value:
        raise ElfError(f"{where}: expected {field} {numbers[field]} as said before, got {value}")
