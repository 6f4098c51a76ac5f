# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from reconciler import manifest
from reconciler.manifest._frames import endpoint, frame
from tests import packets
from tests.manifests import REPOSITORY

if TYPE_CHECKING:
    from reconciler.errors import Diagnostic
    from reconciler.manifest import PacketTest

PACKAGE = {"name": "x", "version": "1.0.0", "digest": "sha256:" + "0" * 64}


def chain(name: str, hook: dict[str, Any]) -> bytes:
    spec = {"priority": 1, "hook": hook, "members": [{"name": "x", "package": PACKAGE, "program": "x"}]}
    return yaml.safe_dump(
        {"apiVersion": "reconciler/v1alpha1", "kind": "Chain", "metadata": {"name": name}, "spec": spec}
    ).encode()


CHAINS = manifest.parse_all(
    {
        "reconciler.yaml": REPOSITORY,
        "chains/a.yaml": chain("edge", {"type": "xdp", "interfaces": ["eth0"]}),
        "chains/b.yaml": chain("out", {"type": "tc", "direction": "egress", "interfaces": ["eth0"]}),
    }
).chains


def read(*packets: dict[str, Any], on: str = "edge") -> tuple[tuple[PacketTest, ...], tuple[Diagnostic, ...]]:
    document = {
        "apiVersion": "reconciler/v1alpha1",
        "kind": "PacketTest",
        "metadata": {"name": "t"},
        "spec": {"chain": on, "packets": [{"name": "p", "verdict": "pass", **each} for each in packets]},
    }
    return manifest.parse_tests({"tests/t.yaml": yaml.safe_dump(document, sort_keys=False).encode()}, CHAINS)


def message(*packets: dict[str, Any], on: str = "edge") -> str:
    tests, found = read(*packets, on=on)
    assert not any(each.packets for each in tests)
    (finding,) = found
    assert (finding.file, finding.line is not None) == ("tests/t.yaml", True)
    return finding.message


def test_a_test_names_its_chain_and_its_packets_in_order() -> None:
    (test,), findings = read({"hex": "00" * 14, "times": 3}, {"to": "198.51.100.2:80"}, on="out")
    assert findings == ()
    assert (test.name, test.chain.name, test.file) == ("t", "out", "tests/t.yaml")
    assert [each.times for each in test.packets] == [3, 1]
    assert test.packets[0].frame == bytes(14)


def test_pass_is_every_way_on() -> None:
    (on_xdp,), _ = read({})
    (on_tc,), _ = read({}, on="out")
    assert on_xdp.packets[0].verdicts == {2}
    assert on_tc.packets[0].verdicts == {0, -1}


def test_what_cannot_be_tested_is_said_with_its_place() -> None:
    assert "expected a chain of this repository (edge, out), got 'none'" in message({}, on="none")
    assert "expected a verdict of xdp" in message({"verdict": "shot"})
    assert "either hex or the fields of a packet, got hex and to" in message({"hex": "00" * 14, "to": "192.0.2.1"})
    assert "got an IPv4 and an IPv6 address" in message({"from": "192.0.2.1", "to": "2001:db8::1"})
    assert "expected a port of at most 65535, got 70000" in message({"to": "192.0.2.1:70000"})
    assert "expected flags with TCP only, got them with udp" in message({"protocol": "udp", "flags": ["syn"]})
    assert "expected no port with ICMP" in message({"protocol": "icmp", "to": "192.0.2.1:80"})
    assert "at least 14 bytes" in message({"hex": "00"})
    assert "999.1.1.1" in message({"to": "999.1.1.1"})


def test_documents_alone_can_be_checked_without_chains() -> None:
    assert manifest.parse_tests({"t.yaml": b"{kind: PacketTest}"}, None)[1]
    tests, findings = manifest.parse_tests({"t.yaml": b"{"}, CHAINS)
    assert tests == ()
    assert findings


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("192.0.2.1", "192.0.2.1", None),
        ("192.0.2.1:443", "192.0.2.1", 443),
        ("2001:db8::1", "2001:db8::1", None),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
    ],
)
def test_an_endpoint_is_an_address_and_perhaps_a_port(text: str, address: str, port: int | None) -> None:
    assert (str(endpoint(text).address), endpoint(text).port) == (address, port)


def test_frames_are_those_that_the_tests_of_packages_make() -> None:
    made = frame({"protocol": "tcp", "to": "198.51.100.2:443", "flags": ["syn", "ack"], "payload": 5, "vlan": 7})
    flags = packets.SYN | packets.ACK
    body = packets.ipv4(packets.tcp(443, flags=flags, payload=bytes(5)), protocol=packets.TCP)
    expected = packets.ethernet(body, tags=[(packets.DOT1Q, 7)])
    at = 14 + 4 + 10  # the checksum, which those leave out
    assert made[:at] + bytes(2) + made[at + 2 :] == expected
    header = made[18:38]
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF

    made = frame({"protocol": "udp", "from": "[2001:db8::1]:40000", "to": "[2001:db8:1::2]:53"})
    assert made == packets.ethernet(packets.ipv6(packets.udp(53), next_header=packets.UDP))
    made = frame({"protocol": "icmp", "to": "2001:db8:1::2"})
    assert made[20] == packets.ICMPV6
    assert made[54] == 128
    made = frame({"protocol": "icmp"})
    assert (made[23], made[34]) == (packets.ICMP, 8)
