# SPDX-License-Identifier: Apache-2.0
"""Text for bytes and bytes for text: addresses, prefixes, MAC addresses, byte strings, names.

Knows nothing of types; `_formats` says which text belongs to which type.
"""

from __future__ import annotations

import enum
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from reconciler.errors import EncodingError

IPV4_BYTES: Final = 4
IPV6_BYTES: Final = 16
MAC_BYTES: Final = 6
PREFIX_LENGTH_BYTES: Final = 4
_MAPPED: Final = bytes(10) + b"\xff\xff"
_MAPPED_BITS: Final = 8 * len(_MAPPED)
_HEX: Final = re.compile(r"0x((?:[0-9a-fA-F]{2})*)")
_MAC: Final = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_PREFIX: Final = re.compile(r"([0-9a-fA-F.:]+)/(0|[1-9][0-9]{0,2})")
_SHOWN_CHARACTERS: Final = 60
_SHOWN_BITS: Final = 256


class Format(enum.StrEnum):
    """How a value is written in a manifest; the docstrings say for which types."""

    IPV4 = "ipv4"
    """4 bytes in network order, "192.0.2.1"."""
    IPV6 = "ipv6"
    """16 bytes in network order, "2001:db8::1"."""
    IP = "ip"
    """4 bytes as `ipv4`; 16 bytes as `ipv6`, or IPv4 stored as ::ffff:a.b.c.d."""
    CIDR = "cidr"
    """The key of an LPM map with 4 bytes of IPv4 or 16 bytes of IPv6, "10.0.0.0/8"."""
    CIDR_MAPPED = "cidr-mapped"
    """The key of an LPM map with 16 bytes; IPv4 is stored as ::ffff:a.b.c.d with 96 added to the prefix length."""
    MAC = "mac"
    """6 bytes, "02:00:00:00:00:01"."""
    BYTES = "bytes"
    """Any type, its bytes as they lie in memory, "0x0a000001"."""
    TEXT = "text"
    """An array of bytes, UTF-8, at least one byte NUL at the end."""
    PORT_BE = "port-be"
    """An integer of 2 bytes in network byte order."""
    BE16 = "be16"
    """An integer of 2 bytes in network byte order."""
    BE32 = "be32"
    """An integer of 4 bytes in network byte order."""
    BE64 = "be64"
    """An integer of 8 bytes in network byte order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a value stands.

    Attributes:
        text: for messages, for example "params.table[3].port".
        path: for formats: the same from the value on and without indexes, for example "port".
    """

    text: str
    path: str = ""

    def member(self, name: str) -> Place:
        return Place(
            text=f"{self.text}.{name}" if self.text else name, path=f"{self.path}.{name}" if self.path else name
        )

    def item(self, index: int) -> Place:
        return Place(text=f"{self.text}[{index}]", path=self.path)

    def error(self, message: str) -> EncodingError:
        return EncodingError(f"{self.text}: {message}" if self.text else message)


def to_bytes(each: Format, value: object, size: int, place: Place) -> bytes:
    """The `size` bytes of a value that is written in this format.

    Raises:
        EncodingError: names the place and what was expected.
    """
    if not isinstance(value, str):
        raise place.error(f"expected {_EXAMPLES.get(each, 'an integer')}, got {shown(value)}")
    match each:
        case Format.IPV4 | Format.IPV6 | Format.IP:
            return _address(each, value, size, place)
        case Format.CIDR | Format.CIDR_MAPPED:
            return _prefix(each, value, size - PREFIX_LENGTH_BYTES, place)
        case Format.MAC:
            return _mac(value, place)
        case Format.BYTES:
            return _hexadecimal(value, size, place)
        case Format.TEXT:
            return _text(value, size, place)
        case _:
            raise place.error(f"expected an integer, got {shown(value)}")


_EXAMPLES: Final = {
    Format.IPV4: 'an IPv4 address such as "192.0.2.1"',
    Format.IPV6: 'an IPv6 address such as "2001:db8::1"',
    Format.IP: 'an address such as "192.0.2.1"',
    Format.CIDR: 'an address and prefix length such as "10.0.0.0/8"',
    Format.CIDR_MAPPED: 'an address and prefix length such as "10.0.0.0/8"',
    Format.MAC: 'a MAC address such as "02:00:00:00:00:01"',
    Format.BYTES: 'bytes such as "0x0a000001"',
    Format.TEXT: "text",
}


def _address(each: Format, text: str, size: int, place: Place) -> bytes:
    address = _parse_address(text)
    if isinstance(address, ipaddress.IPv4Address) and size == IPV4_BYTES:
        return address.packed
    if isinstance(address, ipaddress.IPv4Address) and each is Format.IP:
        return _MAPPED + address.packed
    if isinstance(address, ipaddress.IPv6Address) and size == IPV6_BYTES:
        return address.packed
    wanted = Format.IPV4 if size == IPV4_BYTES else each
    raise place.error(f"expected {_EXAMPLES[wanted]}, got {shown(text)}")


def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    # A zone ("fe80::1%eth0") has no place in 16 bytes.
    if "%" in text:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _prefix(each: Format, text: str, size: int, place: Place) -> bytes:
    match = _PREFIX.fullmatch(text)
    address = _parse_address(match[1]) if match else None
    if match is None or address is None or int(match[2]) > address.max_prefixlen:
        raise place.error(f"expected {_EXAMPLES[each]}, got {shown(text)}")
    length = int(match[2])
    canonical = ipaddress.ip_network((address, length), strict=False)
    if canonical.network_address != address:
        raise place.error(f'expected "{canonical}", got {shown(text)}: bits after the prefix length are set')
    packed = address.packed
    if each is Format.CIDR_MAPPED and len(packed) == IPV4_BYTES:
        packed, length = _MAPPED + packed, length + _MAPPED_BITS
    if len(packed) != size:
        hint = "; the format cidr-mapped would take it" if len(packed) < size else ""
        raise place.error(f"expected an IPv{4 if size == IPV4_BYTES else 6} prefix, got {shown(text)}{hint}")
    return length.to_bytes(4, "little") + packed


def _mac(text: str, place: Place) -> bytes:
    if not _MAC.fullmatch(text):
        raise place.error(f"expected {_EXAMPLES[Format.MAC]}, got {shown(text)}")
    return bytes.fromhex(text.replace(":", ""))


def _hexadecimal(text: str, size: int, place: Place) -> bytes:
    match = _HEX.fullmatch(text)
    if match is None:
        raise place.error(f"expected {_EXAMPLES[Format.BYTES]}, got {shown(text)}")
    data = bytes.fromhex(match[1])
    if len(data) != size:
        raise place.error(f"expected {size} bytes, got {len(data)}")
    return data


def _text(text: str, size: int, place: Place) -> bytes:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise place.error("expected text that UTF-8 can hold, got a lone surrogate") from error
    if b"\0" in data:
        raise place.error("expected text without NUL characters")
    if len(data) >= size:
        raise place.error(
            f"expected text of at most {max(size - 1, 0)} bytes (one more is for the NUL), got {len(data)}"
        )
    return data.ljust(size, b"\0")


def from_bytes(each: Format, data: bytes) -> str | None:
    """The text for bytes in this format, None if they are not what `to_bytes` would have made."""
    match each:
        case Format.IPV4 | Format.IPV6 | Format.IP:
            if each is Format.IP and data.startswith(_MAPPED):
                data = data[len(_MAPPED) :]
            return str(ipaddress.ip_address(data))
        case Format.CIDR | Format.CIDR_MAPPED:
            return _prefix_text(data, mapped=each is Format.CIDR_MAPPED)
        case Format.MAC:
            return data.hex(":")
        case Format.TEXT:
            return _text_of(data)
        case _:
            return f"0x{data.hex()}"


def _prefix_text(data: bytes, *, mapped: bool) -> str | None:
    length, packed = int.from_bytes(data[:4], "little"), data[4:]
    if mapped and packed.startswith(_MAPPED) and length >= _MAPPED_BITS:
        length, packed = length - _MAPPED_BITS, packed[len(_MAPPED) :]
    try:
        return str(ipaddress.ip_network((packed, length)))
    except ValueError:
        return None


def _text_of(data: bytes) -> str | None:
    text, _nul, rest = data.partition(b"\0")
    if not _nul or rest.strip(b"\0"):
        return None
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return None


def shown(value: object) -> str:
    """A value for a message: short, in the words of JSON, without control characters."""
    match value:
        case bool() | None:
            text = json.dumps(value)
        case int():
            bits = value.bit_length()
            text = str(value) if bits <= _SHOWN_BITS else f"an integer of {bits} bits"
        case str():
            more = len(value) - _SHOWN_CHARACTERS
            text = json.dumps(value[:_SHOWN_CHARACTERS]) + (f" and {more} more" if more > 0 else "")
        case list() | tuple():
            text = f"a list of {len(value)}"
        case Mapping():
            text = "a mapping"
        case _:
            text = f"a {type(value).__name__}"
    return text
