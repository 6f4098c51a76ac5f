# SPDX-License-Identifier: Apache-2.0
"""Values to bytes, by BTF type, for a little-endian kernel.

Nothing is guessed: every member must be given (padding aside), every number must fit, bytes in between are zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

from reconciler.elf._btf import KERNEL_MANAGED, Btf, Budget
from reconciler.elf._formats import BIG_ENDIAN, Formats, fits, inferred, is_bytes, is_text
from reconciler.elf._limits import MAX_DATA_BYTES
from reconciler.elf._text import Format, Place, shown, to_bytes
from reconciler.elf._types import Array, Composite, Enum, Float, Int, Member, Pointer, Type
from reconciler.errors import ElfError, EncodingError

_PADDING: Final = re.compile(r"_*(?:pad|padding|reserved|unused)_?[0-9]*_*")
_SHOWN_ENUMERATORS: Final = 8

ByteOrder = Literal["little", "big"]


def encode(
    btf: Btf,
    type_id: int,
    value: object,
    *,
    where: str,
    format: str | Mapping[str, str] | None = None,  # noqa: A002 - the word of package.yaml
    budget: Budget | None = None,
) -> bytes:
    """Encode a value for a little-endian kernel.

    Integers are range-checked; `bool` takes true and false only; enumerations take a name or a declared value;
    structs take a mapping with every member (padding may be left out); unions a mapping with one member, or their
    bytes as "0x…"; arrays a list of exactly their length; arrays of `char` also text, of other bytes also "0x…".
    Pointers and floating-point numbers are refused.

    Args:
        btf: the types.
        type_id: the type of the value, qualifiers and typedefs allowed.
        value: as read from YAML or JSON.
        where: what messages call the value, for example "members[0].params.max".
        format: a `Format`, or formats by path of the member ("addr", "rule.port"; indexes are left out).
        budget: that of several calls together; None: one of its own.

    Raises:
        EncodingError: the value does not fit; names the field, what was expected and what was given.
    """
    place = Place(text=where)
    try:
        formats = Formats(format, place)
        formats.check(btf, type_id, place)
        size = btf.size(type_id)
        if size > MAX_DATA_BYTES:
            raise place.error(f"expected a type of at most {MAX_DATA_BYTES} bytes, got {btf.describe(type_id)}")
        return Encoder(btf, formats, budget or Budget(EncodingError)).encode(type_id, value, place, 0)
    except ElfError as error:
        raise place.error(str(error)) from error


class Encoder:
    """One value being encoded."""

    def __init__(self, btf: Btf, formats: Formats, budget: Budget) -> None:
        self._btf = btf
        self._formats = formats
        self._budget = budget

    def encode(self, type_id: int, value: object, place: Place, depth: int) -> bytes:
        """As many bytes as the type has."""
        self._budget.spend(place.text, depth)
        each, aliases = self._btf.aliases(type_id)
        chosen = self._formats.at(place.path)
        order: ByteOrder = "little"
        if chosen is not None and fits(self._btf, type_id, chosen):
            if chosen not in BIG_ENDIAN:
                return to_bytes(chosen, value, self._btf.size(type_id), place)
            order = "big"
        elif (implied := inferred(self._btf, each, aliases)) is not None:
            order = "big" if implied in BIG_ENDIAN else "little"
            if isinstance(value, str):
                implied = Format.IPV4 if implied is Format.BE32 else implied
                return to_bytes(implied, value, self._btf.size(type_id), place)
        return self._encode(type_id, each, value, place, depth, order)

    def _encode(self, type_id: int, each: Type, value: object, place: Place, depth: int, order: ByteOrder) -> bytes:
        match each:
            case Int():
                number = integer(each, value, place, 8 * each.size)
                return number.to_bytes(each.size, order, signed=number < 0)
            case Enum():
                number = enumerator(each, value, place, 8 * each.size)
                return number.to_bytes(each.size, "little", signed=number < 0)
            case Array():
                return self._array(each, value, place, depth)
            case Composite():
                return self.composite(each, value, place, depth)
            case Pointer():
                raise place.error(f"expected a type without pointers, got {self._btf.describe(type_id)}")
            case Float():
                raise place.error(f"floating-point numbers are not supported, got {self._btf.describe(type_id)}")
            case _:
                raise place.error(f"expected a type that has values, got {self._btf.describe(type_id)}")

    def _array(self, each: Array, value: object, place: Place, depth: int) -> bytes:
        size = each.count * self._btf.size(each.type_id)
        if isinstance(value, str) and is_bytes(self._btf, each):
            return to_bytes(Format.TEXT if is_text(self._btf, each) else Format.BYTES, value, size, place)
        if not isinstance(value, list | tuple) or len(value) != each.count:
            raise place.error(f"expected a list of {each.count}, got {shown(value)}")
        items = (self.encode(each.type_id, item, place.item(i), depth + 1) for i, item in enumerate(value))
        return b"".join(items)

    def composite(self, each: Composite, value: object, place: Place, depth: int) -> bytes:
        """The bytes of a struct or union."""
        word = "union" if each.union else "struct"
        if each.name in KERNEL_MANAGED:
            raise place.error(f"expected nothing: the kernel keeps struct {each.name} for itself")
        if each.union and isinstance(value, str):
            return to_bytes(Format.BYTES, value, each.size, place)
        if not isinstance(value, Mapping):
            raise place.error(f"expected a mapping for {word} {each.name}".rstrip() + f", got {shown(value)}")
        names = self._names(each, place, depth)
        for key in value:
            if key not in names:
                raise place.error(f"expected members among {', '.join(names)}, got {shown(key)}")
        return self._members(each, value, place, depth)

    def _members(self, each: Composite, given: Mapping[str, object], place: Place, depth: int) -> bytes:
        # `given` holds no keys but names of `each` or of anonymous structs and unions inside it.
        self._budget.spend(place.text, depth, steps=len(each.members), size=each.size)
        buffer = bytearray(each.size)
        for member in self._chosen(each, given, place, depth) if each.union else each.members:
            if not member.name:
                self._anonymous(buffer, member, given, place, depth)
            elif member.name in given:
                self._member(buffer, member, given[member.name], place.member(member.name), depth)
            elif not self._optional(member):
                wanted = self._btf.describe(member.type_id)
                raise place.member(member.name).error(f"expected {wanted}, got nothing")
        return bytes(buffer)

    def _chosen(self, each: Composite, given: Mapping[str, object], place: Place, depth: int) -> list[Member]:
        # The one member of a union that the keys belong to.
        groups = [(member, self._names_of(member, place, depth)) for member in each.members]
        chosen = [member for member, names in groups if any(name in given for name in names)]
        if len(chosen) != 1:
            names = [name for _member, names in groups for name in names]
            got = ", ".join(shown(name) for name in given) or "none"
            raise place.error(f"expected one member of the union ({', '.join(names)}), got {got}")
        return chosen

    def _anonymous(
        self, buffer: bytearray, member: Member, given: Mapping[str, object], place: Place, depth: int
    ) -> None:
        inner = self._btf.resolve(member.type_id)
        if isinstance(inner, Composite):
            names = self._names(inner, place, depth + 1)
            part = {name: given[name] for name in names if name in given}
            _write(buffer, member, self._members(inner, part, place, depth + 1), place)

    def _member(self, buffer: bytearray, member: Member, value: object, place: Place, depth: int) -> None:
        if not member.bits:
            _write(buffer, member, self.encode(member.type_id, value, place, depth + 1), place)
            return
        each = bitfield_type(self._btf, member, place)
        read = integer if isinstance(each, Int) else enumerator
        number = read(each, value, place, member.bits)  # type: ignore[arg-type]
        mask = (1 << member.bits) - 1
        begin, end = member.offset // 8, (member.offset + member.bits + 7) // 8
        whole = int.from_bytes(buffer[begin:end], "little") & ~(mask << member.offset % 8)
        whole |= (number & mask) << member.offset % 8
        buffer[begin:end] = whole.to_bytes(end - begin, "little")

    def _optional(self, member: Member) -> bool:
        each = self._btf.resolve(member.type_id)
        return (
            is_padding(member)
            or (isinstance(each, Composite) and each.name in KERNEL_MANAGED)
            or (isinstance(each, Array) and not each.count)
        )

    def _names_of(self, member: Member, place: Place, depth: int) -> list[str]:
        if member.name:
            return [member.name]
        inner = self._btf.resolve(member.type_id)
        return self._names(inner, place, depth + 1) if isinstance(inner, Composite) else []

    def _names(self, each: Composite, place: Place, depth: int) -> list[str]:
        # Names of the members, those of anonymous structs and unions included.
        self._budget.spend(place.text, depth, steps=len(each.members))
        names = [name for member in each.members for name in self._names_of(member, place, depth)]
        if len(set(names)) != len(names):
            raise place.error(f"expected members of different names in {each.name or 'an anonymous struct'}")
        return names


def is_padding(member: Member) -> bool:
    """Whether a member is padding by its name, so that it may be left out and is zero then."""
    return bool(_PADDING.fullmatch(member.name))


def bitfield_type(btf: Btf, member: Member, place: Place) -> Int | Enum:
    """The type of a bitfield.

    Raises:
        EncodingError: it is no integer, or wider than its type, or in network byte order.
    """
    each, aliases = btf.aliases(member.type_id)
    if not isinstance(each, Int | Enum) or member.bits > 8 * each.size:
        raise place.error(f"expected a bitfield of an integer type, got {btf.describe(member.type_id)}")
    if inferred(btf, each, aliases) is not None:
        raise place.error("bitfields in network byte order are not supported")
    return each


def integer(each: Int, value: object, place: Place, bits: int) -> int:
    """The number for a value of an integer type, checked against `bits` bits.

    Raises:
        EncodingError: it is of another type or out of range.
    """
    if each.offset or each.bits != 8 * each.size:
        raise place.error("bitfields as old compilers write them are not supported: compile with clang 11 or newer")
    if each.boolean:
        if not isinstance(value, bool):
            raise place.error(f"expected true or false, got {shown(value)}")
        return int(value)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if each.signed else (0, (1 << bits) - 1)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise place.error(f"expected an integer in {low}..{high}, got {shown(value)}")
    return value


def enumerator(each: Enum, value: object, place: Place, bits: int) -> int:
    """The number for a name or a declared value of an enumeration, checked against `bits` bits.

    Raises:
        EncodingError: it is not declared, or does not fit.
    """
    if isinstance(value, str):
        number = dict(each.values).get(value)
    else:
        declared = isinstance(value, int) and not isinstance(value, bool)
        number = next((number for _name, number in each.values if declared and number == value), None)
    if number is None:
        names = [f"{name} ({number})" for name, number in each.values[:_SHOWN_ENUMERATORS]]
        more = ", …" if len(each.values) > _SHOWN_ENUMERATORS else ""
        raise place.error(f"expected one of {', '.join(names)}{more}, got {shown(value)}")
    if not -(1 << bits - 1) <= number < 1 << bits:
        raise place.error(f"expected a value of {bits} bits, but {shown(value)} is {number}")
    return number


def _write(buffer: bytearray, member: Member, data: bytes, place: Place) -> None:
    begin = member.offset // 8
    if member.offset % 8 or begin + len(data) > len(buffer):
        raise place.error(f"expected {member.name or 'a member'} inside its struct of {len(buffer)} bytes")
    buffer[begin : begin + len(data)] = data
