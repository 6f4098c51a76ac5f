# SPDX-License-Identifier: Apache-2.0
"""firewall: the order in which its maps decide, on each of its three programs."""

from __future__ import annotations

import errno

import pytest

from tests import packets
from tests.kernel.progtest import Program
from tests.packets import (
    ACK,
    CLIENT,
    CLIENT6,
    ICMP,
    ICMPV6,
    RST,
    SYN,
    TCP,
    UDP,
    ethernet,
    fragment,
    icmp,
    ipv4,
    ipv6,
    tcp,
    tcp4,
    tcp6,
    udp4,
    udp6,
)

PROGRAMS = ("firewall_xdp", "firewall_ingress", "firewall_egress")
each_program = pytest.mark.parametrize("program", PROGRAMS)


def firewall(program: str = "firewall_xdp", *, default: str = "DENY", **rest: object) -> Program:
    """Keyword arguments are maps, as lists of (key, value), or parameters, as everything else."""
    maps = {name: value for name, value in rest.items() if isinstance(value, list)}
    params = {name: value for name, value in rest.items() if not isinstance(value, list)}
    return Program("firewall", program, params={"default_verdict": default, **params}, maps=maps)


def service(port: int = 0, *, protocol: int = TCP, zone: int = 0) -> dict[str, int]:
    return {"zone": zone, "protocol": protocol, "port": port}


def syn(program: str, port: int, remote: str) -> bytes:
    """A TCP frame with this address at the end that the program looks at."""
    make = tcp6 if ":" in remote else tcp4
    return make(port, destination=remote) if program == "firewall_egress" else make(port, source=remote)


def passes_if_made(wall: Program, frame: bytes) -> bool | None:
    """None where this kernel does not make such a frame for a test: on tc, IP without the whole fixed header."""
    try:
        return wall.passes(frame)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


@each_program
def test_empty_maps_leave_the_default(program: str) -> None:
    with firewall(program) as closed, firewall(program, default="ALLOW") as opened:
        for frame in (tcp4(443), tcp6(443), udp4(53), udp6(53), packets.VALID_FRAMES["icmp"]):
            assert not closed.passes(frame)
            assert opened.passes(frame)


@each_program
def test_a_denied_network_is_denied_whatever_else_is_said(program: str) -> None:
    everything = [(service(protocol=0), "ALLOW")]
    with firewall(
        program,
        default="ALLOW",
        deny_v4=[("10.1.0.0/16", 0)],
        deny_v6=[("2001:db8:bad::/48", 0)],
        allow_v4=[("10.1.2.0/24", 0)],
        allow_v6=[("2001:db8:bad::1/128", 0)],
        rules=everything,
    ) as wall:
        assert not wall.passes(syn(program, 443, "10.1.2.3"))
        assert wall.passes(syn(program, 443, "10.2.2.3"))
        assert not wall.passes(syn(program, 443, "2001:db8:bad::1"))
        assert wall.passes(syn(program, 443, "2001:db8:900d::1"))


@each_program
def test_an_allowed_network_passes_before_rules_are_asked(program: str) -> None:
    with firewall(
        program,
        allow_v4=[("10.1.2.0/24", 0)],
        allow_v6=[("2001:db8::/32", 0)],
        rules=[(service(22), "DENY")],
    ) as wall:
        assert wall.passes(syn(program, 22, "10.1.2.3"))
        assert not wall.passes(syn(program, 22, "10.1.3.3"))
        assert wall.passes(syn(program, 22, "2001:db8::3"))
        assert not wall.passes(syn(program, 22, "2001:db9::3"))


def test_the_direction_says_which_end_is_remote() -> None:
    frame = tcp4(443, source="10.0.0.1", destination="10.9.9.9")
    for program in PROGRAMS:
        with firewall(program, default="ALLOW", deny_v4=[("10.0.0.1/32", 0)]) as wall:
            assert wall.passes(frame) == (program == "firewall_egress")


@pytest.mark.parametrize(("network", "length"), [("10.1.2.3", 32), ("10.1.0.0", 16), ("8.0.0.0", 6), ("0.0.0.0", 0)])
def test_prefixes_of_ipv4_of_every_kind_match(network: str, length: int) -> None:
    with firewall(allow_v4=[(f"{network}/{length}", 0)]) as wall:
        assert wall.passes(tcp4(443, source="10.1.2.3"))
        assert wall.passes(tcp4(443, source="192.0.2.1")) == (length == 0)
        assert not wall.passes(tcp6(443)), "a rule for IPv4 never holds for IPv6"


@pytest.mark.parametrize("length", [128, 64, 33, 0])
def test_prefixes_of_ipv6_of_every_kind_match(length: int) -> None:
    network = {128: "2001:db8::1", 64: "2001:db8::", 33: "2001:db8::", 0: "::"}[length]
    with firewall(allow_v6=[(f"{network}/{length}", 0)]) as wall:
        assert wall.passes(tcp6(443, source="2001:db8::1"))
        assert wall.passes(tcp6(443, source="3000::1")) == (length == 0)
        assert not wall.passes(tcp4(443)), "a rule for IPv6 never holds for IPv4"


def test_the_most_exact_rule_counts() -> None:
    rules = [
        (service(protocol=0), "DENY"),
        (service(), "ALLOW"),
        (service(22), "DENY"),
        (service(53, protocol=UDP), "ALLOW"),
    ]
    with firewall(default="ALLOW", rules=rules) as wall:
        assert wall.passes(tcp4(443))
        assert not wall.passes(tcp4(22))
        assert wall.passes(udp6(53))
        assert not wall.passes(udp6(22)), "the rule for port 22 is about TCP"
        assert not wall.passes(packets.VALID_FRAMES["icmp"])


def test_a_zone_is_asked_before_everybody_and_the_longest_prefix_is_the_zone() -> None:
    with firewall(
        zones_v4=[("10.0.0.0/8", 1), ("10.1.0.0/16", 2)],
        zones_v6=[("2001:db8::/32", 1)],
        rules=[(service(22, zone=1), "ALLOW"), (service(443), "ALLOW"), (service(zone=2), "DENY")],
    ) as wall:
        assert wall.passes(tcp4(22, source="10.9.9.9"))
        assert wall.passes(tcp6(22, source="2001:db8::5"))
        assert not wall.passes(tcp4(22, source="192.0.2.1")), "not in the zone"
        assert wall.passes(tcp4(443, source="10.9.9.9")), "zone 1 says nothing of 443, zone 0 does"
        assert not wall.passes(tcp4(22, source="10.1.2.3")), "in zone 2 only, though 10.0.0.0/8 is zone 1"
        assert not wall.passes(tcp4(443, source="10.1.2.3")), "any rule of the own zone comes before zone 0"


def test_ports_are_destination_ports() -> None:
    with firewall(rules=[(service(53, protocol=UDP), "ALLOW")]) as wall:
        assert wall.passes(udp4(53))
        assert not wall.passes(udp4(1234, source_port=53))


@each_program
def test_rules_hold_behind_tags_options_and_extension_headers(program: str) -> None:
    frames = {name: frame for name, frame in packets.VALID_FRAMES.items() if name.startswith("tcp")}
    assert len(frames) >= 8
    with firewall(program, rules=[(service(443), "ALLOW")]) as wall:
        for name, frame in frames.items():
            assert wall.passes(frame), name
    with firewall(program, default="ALLOW", rules=[(service(443), "DENY")]) as wall:
        for name, frame in frames.items():
            assert not wall.passes(frame), name


def test_arp_and_neighbour_discovery_always_pass() -> None:
    with firewall(
        rules=[(service(protocol=ICMPV6), "DENY")], deny_v6=[("::/0", 0)], deny_v4=[("0.0.0.0/0", 0)]
    ) as wall:
        assert wall.passes(packets.arp())
        for kind in range(131, 140):
            near = ethernet(ipv6(icmp(kind, body=bytes(20)), next_header=ICMPV6, hop_limit=255))
            far = ethernet(ipv6(icmp(kind, body=bytes(20)), next_header=ICMPV6, hop_limit=254))
            assert wall.passes(near) == (133 <= kind <= 137)
            assert not wall.passes(far), "it came through a router"
        assert not wall.passes(ethernet(ipv4(icmp(135), protocol=ICMP))), "ICMP is not ICMPv6"


def test_what_is_not_ip_gets_the_default() -> None:
    with firewall() as closed, firewall(default="ALLOW") as opened:
        assert not closed.passes(packets.VALID_FRAMES["not ip"])
        assert opened.passes(packets.VALID_FRAMES["not ip"])


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, ACK, RST, 0])
def test_established_means_ack_or_rst(flags: int) -> None:
    with firewall(allow_established=True) as wall, firewall() as strict:
        for frame in (tcp4(40000, flags=flags), tcp6(40000, flags=flags)):
            assert wall.passes(frame) == bool(flags & (ACK | RST))
            assert not strict.passes(frame)


def test_a_rule_that_denies_comes_before_established() -> None:
    with firewall(allow_established=True, rules=[(service(22), "DENY")]) as wall:
        assert not wall.passes(tcp4(22, flags=ACK))


LATER = {
    "IPv4": ethernet(ipv4(bytes(64), protocol=UDP, offset=185)),
    "IPv6": ethernet(ipv6(fragment(UDP, bytes(64), offset=185), next_header=packets.FRAGMENT)),
}


@pytest.mark.parametrize("family", LATER)
def test_later_fragments_have_no_ports(family: str) -> None:
    frame = LATER[family]
    with firewall(rules=[(service(0, protocol=UDP), "ALLOW")]) as wall:
        assert wall.passes(frame), "a rule without a port"
    with firewall(rules=[(service(53, protocol=UDP), "ALLOW")]) as wall:
        assert not wall.passes(frame), "a rule with a port does not hold"
    with firewall(allow_fragments=True) as wall:
        assert wall.passes(frame)
    with firewall(allow_fragments=True, rules=[(service(0, protocol=UDP), "DENY")]) as wall:
        assert not wall.passes(frame)
    with firewall(allow_fragments=True, deny_v4=[(f"{CLIENT}/32", 0)], deny_v6=[(f"{CLIENT6}/128", 0)]) as wall:
        assert not wall.passes(frame)


def test_a_first_fragment_is_judged_by_its_port() -> None:
    with firewall(rules=[(service(443), "ALLOW")]) as wall:
        assert wall.passes(ethernet(ipv4(tcp(443), protocol=TCP, more=True)))
        assert not wall.passes(ethernet(ipv4(tcp(444), protocol=TCP, more=True)))


@each_program
@pytest.mark.parametrize("name", list(packets.VALID_FRAMES))
def test_frames_cut_anywhere_get_a_verdict(program: str, name: str) -> None:
    whole = packets.VALID_FRAMES[name]
    with (
        firewall(program, default="ALLOW") as wall,
        firewall(program, default="ALLOW", drop_malformed=False) as lenient,
    ):
        judged = 0
        for end in range(14, len(whole) + 1):
            passed = passes_if_made(wall, whole[:end])
            if passed is None:
                assert program != "firewall_xdp"
                assert end < 14 + 40
                continue
            judged += 1
            assert lenient.passes(whole[:end]), "the default, as for every other frame"
            if name.startswith("tcp"):
                assert passed == (end == len(whole)), f"{end} bytes of {len(whole)}"
        assert judged >= 2


def test_malformed_frames_get_the_default_when_they_are_not_dropped() -> None:
    three_tags = ethernet(ipv4(tcp(443), protocol=TCP), tags=[(packets.DOT1Q, 1)] * 3)
    with firewall(default="ALLOW") as strict, firewall(drop_malformed=False) as closed:
        assert not strict.passes(three_tags)
        assert not closed.passes(three_tags)


def test_frames_and_bytes_are_counted_by_verdict() -> None:
    with firewall("firewall_ingress", rules=[(service(443), "ALLOW")]) as wall:
        for frame in (tcp4(443), tcp6(443), tcp4(22)):
            wall.verdict(frame)
        assert wall.stats() == {
            "seen": (3, len(tcp4(0)) * 2 + len(tcp6(0))),
            "passed": (2, len(tcp4(0)) + len(tcp6(0))),
            "dropped": (1, len(tcp4(0))),
        }
