# SPDX-License-Identifier: Apache-2.0
"""Bytes to values, by BTF type: the inverse of `encode`, for `observe` and `plan`.

What `encode` made comes back as an equal value or as one that encodes to the same bytes. Bytes that `encode` would
never make (undeclared enumerators, pointers, padding that is not zero) are shown too, as numbers or as "0x…".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from reconciler.elf._btf import KERNEL_MANAGED, Btf, Budget, JsonValue
from reconciler.elf._encode import Encoder, bitfield_type, is_padding
from reconciler.elf._formats import BIG_ENDIAN, Formats, fits, inferred, is_bytes, is_text
from reconciler.elf._text import Format, Place, from_bytes
from reconciler.elf._types import Array, Composite, Enum, Int, Member, Type
from reconciler.errors import ElfError, EncodingError

if TYPE_CHECKING:
    from collections.abc import Mapping


def decode(
    btf: Btf,
    type_id: int,
    data: bytes,
    *,
    format: str | Mapping[str, str] | None = None,  # noqa: A002 - the word of package.yaml
    budget: Budget | None = None,
) -> JsonValue:
    """Decode the bytes of a value as a little-endian kernel holds them.

    Args:
        btf: the types.
        type_id: the type of the value.
        data: exactly as many bytes as the type has.
        format: as for `encode`.
        budget: that of several calls together; None: one of its own.

    Raises:
        EncodingError: the number of bytes is not that of the type, or the type has too many members.
    """
    place = Place(text=btf.describe(type_id))
    try:
        formats = Formats(format, place)
        formats.check(btf, type_id, place)
        if len(data) != btf.size(type_id):
            raise place.error(f"expected {btf.size(type_id)} bytes, got {len(data)}")
        return _Decoder(btf, formats, budget or Budget(EncodingError)).decode(type_id, data, place, 0)
    except ElfError as error:
        raise place.error(str(error)) from error


class _Decoder:
    """One value being decoded."""

    def __init__(self, btf: Btf, formats: Formats, budget: Budget) -> None:
        self._btf = btf
        self._formats = formats
        self._budget = budget

    def decode(self, type_id: int, data: bytes, place: Place, depth: int) -> JsonValue:
        self._budget.spend(place.text, depth, size=len(data))
        each, aliases = self._btf.aliases(type_id)
        chosen = self._formats.at(place.path)
        order: Literal["little", "big"] = "little"
        if chosen is not None and fits(self._btf, type_id, chosen):
            if chosen not in BIG_ENDIAN:
                text = from_bytes(chosen, data)
                return text if text is not None else f"0x{data.hex()}"
            order = "big"
        elif (implied := inferred(self._btf, each, aliases)) is not None:
            if implied is Format.BE32:
                return from_bytes(Format.IPV4, data)
            if implied in BIG_ENDIAN:
                order = "big"
            elif (text := from_bytes(implied, data)) is not None:
                return text
        return self._decode(each, data, place, depth, order)

    def _decode(self, each: Type, data: bytes, place: Place, depth: int, order: Literal["little", "big"]) -> JsonValue:
        match each:
            case Int():
                return _number(each, int.from_bytes(data, order), 8 * each.size)
            case Enum():
                return _number(each, int.from_bytes(data, "little"), 8 * each.size)
            case Array():
                return self._array(each, data, place, depth)
            case Composite(union=True):
                return self._union(each, data, place, depth)
            case Composite():
                return self._members(each, data, place, depth)
            case _:
                return f"0x{data.hex()}"

    def _array(self, each: Array, data: bytes, place: Place, depth: int) -> JsonValue:
        if is_bytes(self._btf, each):
            if not is_text(self._btf, each):
                return f"0x{data.hex()}"
            text = from_bytes(Format.TEXT, data)
            if text is not None:
                return text
        size = self._btf.size(each.type_id)
        return [
            self.decode(each.type_id, data[i * size : (i + 1) * size], place.item(i), depth + 1)
            for i in range(each.count)
        ]

    def _members(self, each: Composite, data: bytes, place: Place, depth: int) -> dict[str, JsonValue]:
        self._budget.spend(place.text, depth, steps=len(each.members))
        values: dict[str, JsonValue] = {}
        for member in each.members:
            inner = self._btf.resolve(member.type_id)
            if isinstance(inner, Composite) and inner.name in KERNEL_MANAGED:
                continue
            if not member.name:
                if isinstance(inner, Composite):
                    values |= self._anonymous(inner, member, data, place, depth)
                continue
            value = self._member(member, data, place.member(member.name), depth)
            if not (is_padding(member) and self._is_zero(member, data)):
                values[member.name] = value
        return values

    def _anonymous(
        self, inner: Composite, member: Member, data: bytes, place: Place, depth: int
    ) -> dict[str, JsonValue]:
        piece = self._piece(member, data, place)
        if not inner.union:
            return self._members(inner, piece, place, depth + 1)
        return self._one_member(inner, piece, place, depth + 1)

    def _union(self, each: Composite, data: bytes, place: Place, depth: int) -> JsonValue:
        # The widest member shows most of the bytes; where it does not show all of them, they are shown as bytes.
        value = self._one_member(each, data, place, depth)
        try:
            again = Encoder(self._btf, self._formats, self._budget).composite(each, value, place, depth)
        except EncodingError:
            again = None
        return value if again == data else f"0x{data.hex()}"

    def _one_member(self, each: Composite, data: bytes, place: Place, depth: int) -> dict[str, JsonValue]:
        self._budget.spend(place.text, depth, steps=len(each.members))
        if not each.members:
            return {}
        member = max(each.members, key=lambda member: member.bits or 8 * self._btf.size(member.type_id))
        alone = Composite(name="", size=each.size, union=False, members=(member,))
        return self._members(alone, data, place, depth)

    def _member(self, member: Member, data: bytes, place: Place, depth: int) -> JsonValue:
        if member.bits:
            return _number(bitfield_type(self._btf, member, place), _bits(member, data), member.bits)
        return self.decode(member.type_id, self._piece(member, data, place), place, depth + 1)

    def _piece(self, member: Member, data: bytes, place: Place) -> bytes:
        begin, size = member.offset // 8, self._btf.size(member.type_id)
        if member.offset % 8 or begin + size > len(data):
            raise place.error(f"expected {member.name or 'a member'} inside its struct of {len(data)} bytes")
        return data[begin : begin + size]

    def _is_zero(self, member: Member, data: bytes) -> bool:
        begin = member.offset // 8
        return not _bits(member, data) if member.bits else not any(data[begin : begin + self._btf.size(member.type_id)])


def _bits(member: Member, data: bytes) -> int:
    begin, end = member.offset // 8, (member.offset + member.bits + 7) // 8
    return int.from_bytes(data[begin:end], "little") >> member.offset % 8 & (1 << member.bits) - 1


def _number(each: Int | Enum, raw: int, bits: int) -> JsonValue:
    if isinstance(each, Int) and each.boolean:
        return raw != 0
    number = raw - (1 << bits) if each.signed and raw >> bits - 1 else raw
    if isinstance(each, Enum):
        return next((name for name, value in each.values if value == number), number)
    return number
