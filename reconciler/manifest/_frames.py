# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames for packet tests, from the fields of a manifest.

Checksums of IPv4 headers are right; those of TCP, UDP and ICMP are 0, since programs on a hook of an interface see what
comes before anything checks them. Nothing that is made here ever leaves the machine.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_DESTINATION_AND_SOURCE: Final = bytes.fromhex("020000000002020000000001")
"""Locally administered addresses."""
_IPV4, _IPV6, _VLAN = 0x0800, 0x86DD, 0x8100
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_FLAGS: Final = {"fin": 0x01, "syn": 0x02, "rst": 0x04, "psh": 0x08, "ack": 0x10, "urg": 0x20}
_DEFAULTS: Final = {4: ("192.0.2.1", "198.51.100.2"), 6: ("2001:db8::1", "2001:db8:1::2")}
_DEFAULT_PORT: Final = 40000
_MAX_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address, and the port where one was given."""

    address: Address
    port: int | None


def endpoint(text: str) -> Endpoint:
    """Read `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`. Raises ValueError in words."""
    address, port = text, None
    if text.startswith("["):
        address, _, rest = text[1:].partition("]:")
        port = int(rest)
    elif text.count(":") == 1:
        address, _, rest = text.partition(":")
        port = int(rest)
    if port is not None and port > _MAX_PORT:
        raise ValueError(f"expected a port of at most {_MAX_PORT}, got {port}")
    return Endpoint(ipaddress.ip_address(address), port)


def frame(fields: Mapping[str, Any]) -> bytes:
    """The frame that `fields` describe (schema/v1alpha1/packettest.schema.json, `packet`).

    Raises:
        ValueError: the fields contradict each other, in words.
    """
    if "hex" in fields:
        extra = sorted(fields.keys() & {"protocol", "from", "to", "flags", "vlan", "payload"})
        if extra:
            raise ValueError(f"expected either hex or the fields of a packet, got hex and {', '.join(extra)}")
        return bytes.fromhex(fields["hex"])
    source, destination = _ends(fields)
    body = _transport(fields, source, destination)
    packet = _ip(source.address, destination.address, _number(fields, source.address.version), body)
    kind = _IPV4 if source.address.version == 4 else _IPV6  # noqa: PLR2004  # IP versions
    tag = struct.pack("!HH", _VLAN, fields["vlan"]) if "vlan" in fields else b""
    return _DESTINATION_AND_SOURCE + tag + struct.pack("!H", kind) + packet


def _ends(fields: Mapping[str, Any]) -> tuple[Endpoint, Endpoint]:
    given = {name: endpoint(fields[name]) for name in ("from", "to") if name in fields}
    versions = {each.address.version for each in given.values()} or {4}
    if len(versions) > 1:
        raise ValueError("expected two addresses of one family, got an IPv4 and an IPv6 address")
    near, far = (Endpoint(ipaddress.ip_address(text), None) for text in _DEFAULTS[versions.pop()])
    return given.get("from", near), given.get("to", far)


def _number(fields: Mapping[str, Any], version: int) -> int:
    match fields.get("protocol", "tcp"):
        case "tcp":
            return _TCP
        case "udp":
            return _UDP
        case _:
            return _ICMP if version == 4 else _ICMPV6  # noqa: PLR2004


def _transport(fields: Mapping[str, Any], source: Endpoint, destination: Endpoint) -> bytes:
    payload = bytes(fields.get("payload", 0))
    protocol = fields.get("protocol", "tcp")
    if "flags" in fields and protocol != "tcp":
        raise ValueError(f"expected flags with TCP only, got them with {protocol}")
    if protocol == "icmp":
        if source.port is not None or destination.port is not None:
            raise ValueError("expected no port with ICMP, got one")
        echo = 8 if source.address.version == 4 else 128  # noqa: PLR2004  # RFC 792, RFC 4443
        return struct.pack("!BBHHH", echo, 0, 0, 1, 1) + payload
    ports = struct.pack("!HH", _DEFAULT_PORT if source.port is None else source.port, destination.port or 0)
    if protocol == "udp":
        return ports + struct.pack("!HH", 8 + len(payload), 0) + payload
    flags = sum(_FLAGS[name] for name in fields.get("flags", ()))
    return ports + struct.pack("!IIBBHHH", 1, 0, 5 << 4, flags, 1024, 0, 0) + payload


def _ip(source: Address, destination: Address, protocol: int, body: bytes) -> bytes:
    if source.version == 6:  # noqa: PLR2004
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + source.packed + destination.packed + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0)
    header += source.packed + destination.packed
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return header[:10] + struct.pack("!H", check) + header[12:] + body
