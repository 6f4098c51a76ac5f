# SPDX-License-Identifier: Apache-2.0
"""Frames as bytes, layer by layer: each function takes the payload that it wraps.

    ethernet(ipv4(tcp(443, flags=SYN), protocol=TCP))
    ethernet(ipv6(fragment(TCP, tcp(443)[:8], more=True), next_header=FRAGMENT), tags=[(0x8100, 7)])

Checksums are 0 where no program reads them; what goes over a real wire uses `tests.kernel.support`.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, NO_NEXT, DESTINATION = 0, 43, 44, 51, 59, 60
IPV4, IPV6, ARP, DOT1Q, DOT1AD = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

CLIENT, SERVER = "192.0.2.1", "198.51.100.2"
CLIENT6, SERVER6 = "2001:db8::1", "2001:db8:1::2"


def ethernet(payload: bytes, *, tags: Sequence[tuple[int, int]] = (), ethertype: int | None = None) -> bytes:
    """A frame; `tags` are (ethertype, VLAN id), the outermost first. The type follows from the payload's IP version."""
    if ethertype is None:
        ethertype = IPV6 if payload[:1] and payload[0] >> 4 == 6 else IPV4
    types = [each for each, _ in tags] + [ethertype]
    frame = bytes.fromhex("020000000002 020000000001") + struct.pack("!H", types[0])
    for (_, vlan), following in zip(tags, types[1:], strict=True):
        frame += struct.pack("!HH", vlan, following)
    return frame + payload


def ipv4(
    payload: bytes,
    *,
    protocol: int,
    source: str = CLIENT,
    destination: str = SERVER,
    options: bytes = b"",
    offset: int = 0,
    more: bool = False,
) -> bytes:
    """`options`: a multiple of 4 bytes, at most 40; `offset` in units of 8 bytes."""
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | words,
        0,
        words * 4 + len(payload),
        1,
        more << 13 | offset,
        64,
        protocol,
        0,
        ipaddress.IPv4Address(source).packed,
        ipaddress.IPv4Address(destination).packed,
    )
    return header + options + payload


def ipv6(
    payload: bytes, *, next_header: int, source: str = CLIENT6, destination: str = SERVER6, hop_limit: int = 64
) -> bytes:
    header = struct.pack("!IHBB", 6 << 28, len(payload), next_header, hop_limit)
    return header + ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(destination).packed + payload


def extension(next_header: int, payload: bytes, *, units: int = 0) -> bytes:
    """A hop-by-hop, routing or destination header of 8 + 8 x `units` bytes."""
    return struct.pack("!BB", next_header, units) + bytes(6 + 8 * units) + payload


def authentication(next_header: int, payload: bytes, *, check_bytes: int = 12) -> bytes:
    """An authentication header (RFC 4302); its length counts units of 4 bytes, less 2."""
    return struct.pack("!BBHII", next_header, (12 + check_bytes) // 4 - 2, 0, 1, 1) + bytes(check_bytes) + payload


def fragment(next_header: int, payload: bytes, *, offset: int = 0, more: bool = False) -> bytes:
    """`offset` in units of 8 bytes."""
    return struct.pack("!BBHI", next_header, 0, offset << 3 | more, 7) + payload


def extensions(kinds: Sequence[int], last: int, payload: bytes) -> tuple[int, bytes]:
    """A chain of extension headers in the given order; (next header of the IPv6 header, everything behind it)."""
    following = last
    for kind in reversed(kinds):
        match kind:
            case 44:
                payload = fragment(following, payload)
            case 51:
                payload = authentication(following, payload)
            case _:
                payload = extension(following, payload, units=kind % 3)
        following = kind
    return following, payload


def tcp(port: int, *, flags: int = SYN, source_port: int = 40000, payload: bytes = b"") -> bytes:
    return struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, flags, 1024, 0, 0) + payload


def udp(port: int, *, source_port: int = 40000, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload


def icmp(kind: int, *, body: bytes = bytes(4)) -> bytes:
    return struct.pack("!BBH", kind, 0, 0) + body


def arp() -> bytes:
    return ethernet(struct.pack("!HHBBH", 1, IPV4, 6, 4, 1) + bytes(20), ethertype=ARP)


def tcp4(port: int, *, flags: int = SYN, source: str = CLIENT, destination: str = SERVER) -> bytes:
    return ethernet(ipv4(tcp(port, flags=flags), protocol=TCP, source=source, destination=destination))


def tcp6(port: int, *, flags: int = SYN, source: str = CLIENT6, destination: str = SERVER6) -> bytes:
    return ethernet(ipv6(tcp(port, flags=flags), next_header=TCP, source=source, destination=destination))


def udp4(port: int, *, source: str = CLIENT, destination: str = SERVER, source_port: int = 40000) -> bytes:
    datagram = udp(port, source_port=source_port)
    return ethernet(ipv4(datagram, protocol=UDP, source=source, destination=destination))


def udp6(port: int, *, source: str = CLIENT6, destination: str = SERVER6, source_port: int = 40000) -> bytes:
    datagram = udp(port, source_port=source_port)
    return ethernet(ipv6(datagram, next_header=UDP, source=source, destination=destination))


VALID_FRAMES = {
    "tcp4": tcp4(443),
    "tcp6": tcp6(443),
    "udp4 with options": ethernet(ipv4(udp(53), protocol=UDP, options=bytes(40))),
    "tcp4 in 802.1Q": ethernet(ipv4(tcp(443), protocol=TCP), tags=[(DOT1Q, 7)]),
    "tcp6 in QinQ": ethernet(ipv6(tcp(443), next_header=TCP), tags=[(DOT1AD, 7), (DOT1Q, 8)]),
    "first fragment": ethernet(ipv4(tcp(443), protocol=TCP, more=True)),
    "later fragment": ethernet(ipv4(bytes(32), protocol=TCP, offset=100)),
    "icmp": ethernet(ipv4(icmp(8), protocol=ICMP)),
    "neighbour solicitation": ethernet(ipv6(icmp(135, body=bytes(20)), next_header=ICMPV6, hop_limit=255)),
    "arp": arp(),
    "not ip": ethernet(bytes(46), ethertype=0x88CC),
}
for _kinds in (
    [HOP_BY_HOP],
    [ROUTING],
    [DESTINATION],
    [FRAGMENT],
    [AUTHENTICATION],
    [HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION],
):
    _next, _payload = extensions(_kinds, TCP, tcp(443))
    VALID_FRAMES[f"tcp6 behind {_kinds}"] = ethernet(ipv6(_payload, next_header=_next))
"""One frame of every kind that the parser knows, by name."""
