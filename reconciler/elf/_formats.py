# SPDX-License-Identifier: Apache-2.0
"""How bytes of a value are written as text: addresses, prefixes, MAC addresses, byte strings, network byte order.

A format is named by package.yaml (for the whole value, or by the path of a member) or follows from the type: the
typedefs `__be16`, `__be32` and `__be64` say network byte order, `struct in_addr` and `struct in6_addr` are addresses,
and `struct { __u32 prefixlen; …4 or 16 bytes… }` is the key of a longest-prefix-match map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from reconciler.elf._limits import MAX_DEPTH
from reconciler.elf._text import IPV4_BYTES, IPV6_BYTES, MAC_BYTES, PREFIX_LENGTH_BYTES, Format, Place, shown
from reconciler.elf._types import Array, Composite, Int, Type

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reconciler.elf._btf import Btf

_PREFIX_NAMES: Final = ("prefixlen", "prefix_len")


BIG_ENDIAN: Final = {Format.PORT_BE: 2, Format.BE16: 2, Format.BE32: 4, Format.BE64: 8}
_SIZES: Final = {
    Format.IPV4: (IPV4_BYTES,),
    Format.IPV6: (IPV6_BYTES,),
    Format.IP: (IPV4_BYTES, IPV6_BYTES),
    Format.MAC: (MAC_BYTES,),
}
_TYPEDEFS: Final = {"__be16": Format.BE16, "__be32": Format.BE32, "__be64": Format.BE64}


class Formats:
    """The formats that package.yaml gives to one value, by path."""

    __slots__ = ("_by_path",)

    def __init__(self, given: str | Mapping[str, str] | None, where: Place) -> None:
        by_path = {"": given} if isinstance(given, str) else dict(given or {})
        self._by_path: dict[str, Format] = {}
        for path, name in by_path.items():
            if name not in list(Format):
                raise where.error(f"expected a format among {', '.join(Format)}, got {shown(name)}")
            self._by_path[path] = Format(name)

    def at(self, path: str) -> Format | None:
        return self._by_path.get(path)

    def check(self, btf: Btf, type_id: int, where: Place) -> None:
        """See to it that each format has a member to apply to, of a type that it fits.

        Raises:
            EncodingError: names the path and the type.
        """
        for path, each in self._by_path.items():
            at = type_id
            for name in path.split(".") if path else ():
                found = _find_member(btf, at, name)
                if found is None:
                    raise where.error(f"format {each}: expected a member {path} in {btf.definition(type_id)}")
                at = found
            if not any(fits(btf, candidate, each) for candidate in _with_elements(btf, at)):
                raise where.error(f"format {each} does not fit {btf.definition(at)}" + (f" of {path}" if path else ""))


def _with_elements(btf: Btf, type_id: int) -> Iterator[int]:
    # The type itself and, for an array, the types of its elements.
    for _hop in range(MAX_DEPTH):
        yield type_id
        each = btf.resolve(type_id)
        if not isinstance(each, Array):
            return
        type_id = each.type_id


def _find_member(btf: Btf, type_id: int, name: str) -> int | None:
    *_outer, innermost = _with_elements(btf, type_id)
    pending = [(innermost, 0)]
    seen: set[int] = set()
    while pending:
        at, depth = pending.pop()
        each = btf.resolve(at)
        if not isinstance(each, Composite) or at in seen or depth > MAX_DEPTH:
            continue
        seen.add(at)
        for member in each.members:
            if member.name == name:
                return member.type_id
            if not member.name:
                pending.append((member.type_id, depth + 1))
    return None


def fits(btf: Btf, type_id: int, each: Format) -> bool:
    """Whether values of this type can be written in this format."""
    resolved = btf.resolve(type_id)
    match each:
        case Format.IPV4 | Format.IPV6 | Format.IP | Format.MAC:
            fit = _is_plain(btf, resolved) and btf.size(type_id) in _SIZES[each]
        case Format.CIDR:
            fit = lpm_address(btf, resolved) is not None
        case Format.CIDR_MAPPED:
            fit = lpm_address(btf, resolved) == IPV6_BYTES
        case Format.BYTES:
            fit = True
        case Format.TEXT:
            fit = is_bytes(btf, resolved)
        case Format.PORT_BE | Format.BE16 | Format.BE32 | Format.BE64:
            fit = isinstance(resolved, Int) and not resolved.boolean and resolved.size == BIG_ENDIAN[each]
        case _:
            assert_never(each)
    return fit


def inferred(btf: Btf, resolved: Type, aliases: tuple[str, ...]) -> Format | None:
    """The format that follows from the type, if any."""
    for alias in aliases:
        if alias in _TYPEDEFS and isinstance(resolved, Int) and resolved.size == BIG_ENDIAN[_TYPEDEFS[alias]]:
            return _TYPEDEFS[alias]
    if isinstance(resolved, Composite):
        if resolved.name == "in_addr" and resolved.size == IPV4_BYTES:
            return Format.IPV4
        if resolved.name == "in6_addr" and resolved.size == IPV6_BYTES:
            return Format.IPV6
        if lpm_address(btf, resolved) is not None and resolved.members[0].name in _PREFIX_NAMES:
            return Format.CIDR
    return None


def is_bytes(btf: Btf, resolved: Type) -> bool:
    """Whether it is an array of characters or of bytes."""
    if not isinstance(resolved, Array):
        return False
    element = btf.resolve(resolved.type_id)
    return isinstance(element, Int) and element.size == 1 and not element.boolean


def is_text(btf: Btf, resolved: Array) -> bool:
    """Whether it is an array of `char`, and not of `signed char` or `unsigned char`."""
    element = btf.resolve(resolved.type_id)
    return isinstance(element, Int) and element.name == "char" and element.size == 1


def lpm_address(btf: Btf, resolved: Type) -> int | None:
    """Bytes of the address if it is the key of an LPM map (struct bpf_lpm_trie_key) that holds nothing else."""
    if not isinstance(resolved, Composite) or resolved.union or len(resolved.members) != 2:  # noqa: PLR2004
        return None
    length, address = resolved.members
    first = btf.resolve(length.type_id)
    if not isinstance(first, Int) or first.size != PREFIX_LENGTH_BYTES or first.signed or length.offset:
        return None
    if length.bits or address.bits or address.offset != 8 * PREFIX_LENGTH_BYTES:
        return None
    if not _is_plain(btf, btf.resolve(address.type_id)):
        return None
    size = btf.size(address.type_id)
    return size if size in (IPV4_BYTES, IPV6_BYTES) and resolved.size == PREFIX_LENGTH_BYTES + size else None


def _is_plain(btf: Btf, resolved: Type) -> bool:
    for _hop in range(MAX_DEPTH):
        if not isinstance(resolved, Array):
            break
        resolved = btf.resolve(resolved.type_id)
    return isinstance(resolved, Composite) or (isinstance(resolved, Int) and not resolved.boolean)
