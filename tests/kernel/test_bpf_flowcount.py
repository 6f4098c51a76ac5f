# SPDX-License-Identifier: Apache-2.0
"""flowcount: what makes a flow, that nothing is lost between CPUs, and that no frame is held back."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass

import pytest

from reconciler.kernel import _bpf
from tests import packets
from tests.kernel import support
from tests.kernel.progtest import TCX_NEXT, Program
from tests.packets import CLIENT, CLIENT6, SERVER, SERVER6, TCP, UDP, ethernet, ipv4, tcp, tcp4, udp4, udp6

KEY = struct.Struct("!16s16sHHB3x")
VALUE = struct.Struct("<QQQQ")  # packets, bytes, first seen, last seen

PACKET_VNET_HDR = 15  # include/uapi/linux/if_packet.h
SOL_PACKET = 263


@dataclass(frozen=True, slots=True)
class Flow:
    source: str
    destination: str
    source_port: int
    destination_port: int
    protocol: int


def _text(address: bytes) -> str:
    whole = ipaddress.IPv6Address(address)
    return str(whole.ipv4_mapped or whole)


def flows(program: Program) -> dict[Flow, tuple[int, int, int, int]]:
    found = {}
    for key, value in program.raw_entries("flows").items():
        source, destination, *rest = KEY.unpack(key)
        found[Flow(_text(source), _text(destination), *rest)] = VALUE.unpack(value)
    return found


def counted(program: Program) -> dict[Flow, tuple[int, int]]:
    return {flow: numbers[:2] for flow, numbers in flows(program).items()}


def test_each_direction_protocol_and_pair_of_ports_is_a_flow() -> None:
    frames = [
        udp4(53),
        udp4(53),
        udp4(54),
        udp6(53),
        tcp4(53),
        udp4(40000, source=SERVER, destination=CLIENT, source_port=53),
        packets.VALID_FRAMES["icmp"],
    ]
    with Program("flowcount") as program:
        assert {program.verdict(frame) for frame in frames} == {TCX_NEXT}
        assert counted(program) == {
            Flow(CLIENT, SERVER, 40000, 53, UDP): (2, 2 * len(udp4(53))),
            Flow(CLIENT, SERVER, 40000, 54, UDP): (1, len(udp4(53))),
            Flow(CLIENT6, SERVER6, 40000, 53, UDP): (1, len(udp6(53))),
            Flow(CLIENT, SERVER, 40000, 53, TCP): (1, len(tcp4(53))),
            Flow(SERVER, CLIENT, 53, 40000, UDP): (1, len(udp4(53))),
            Flow(CLIENT, SERVER, 0, 0, packets.ICMP): (1, len(packets.VALID_FRAMES["icmp"])),
        }


def test_tags_and_extension_headers_do_not_hide_a_flow() -> None:
    behind = {name: frame for name, frame in packets.VALID_FRAMES.items() if name.startswith("tcp6")}
    with Program("flowcount") as program:
        for frame in behind.values():
            program.verdict(frame)
        total = sum(map(len, behind.values()))
        assert counted(program) == {Flow(CLIENT6, SERVER6, 40000, 443, TCP): (len(behind), total)}


def test_later_fragments_count_without_ports_and_the_rest_in_stats_only() -> None:
    unread = [packets.arp(), packets.VALID_FRAMES["not ip"], ethernet(ipv4(tcp(443)[:8], protocol=TCP, more=True))]
    with Program("flowcount") as program:
        program.verdict(packets.VALID_FRAMES["later fragment"])
        for frame in unread:
            assert program.verdict(frame) == TCX_NEXT
        assert list(counted(program)) == [Flow(CLIENT, SERVER, 0, 0, TCP)]
        assert program.stats()["passed"][0] == program.stats()["seen"][0] == 1 + len(unread)


def test_without_ports_a_flow_is_a_pair_of_hosts() -> None:
    with Program("flowcount", params={"by_port": False}) as program:
        for port in (1, 2, 3):
            program.verdict(udp4(port))
        assert counted(program) == {Flow(CLIENT, SERVER, 0, 0, UDP): (3, 3 * len(udp4(1)))}


def test_times_are_in_order_and_within_the_test() -> None:
    with Program("flowcount") as program:
        program.verdict(udp4(53))
        ((_, _, first, last),) = flows(program).values()
        program.run(udp4(53), repeat=1000)
        ((_, _, first_again, last_again),) = flows(program).values()
        assert 0 < first == first_again <= last <= last_again


def test_two_cpus_lose_no_packet_of_one_flow() -> None:
    each, cpus = 20_000, sorted(os.sched_getaffinity(0))
    with Program("flowcount") as program:

        def work(cpu: int) -> None:
            os.sched_setaffinity(0, {cpu})
            program.run(udp4(53), repeat=each)

        threads = [threading.Thread(target=work, args=(cpu,)) for cpu in cpus]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = each * len(cpus)
        assert list(counted(program).values()) == [(expected, expected * len(udp4(53)))]


def test_more_flows_than_the_map_holds_push_out_others_and_hold_nothing_back() -> None:
    many = Counter[int]()
    with Program("flowcount") as program:
        for number in range(70_000):
            many[program.verdict(udp4(number & 0xFFFF, source=f"10.0.{number >> 16}.1"))] += 1
        assert many == {TCX_NEXT: 70_000}
        assert 0 < len(program.raw_entries("flows")) <= 65_536


@pytest.mark.parametrize("linear", [14, 34, 42])
def test_headers_outside_the_linear_part_are_read(linear: int, wire: support.Wire) -> None:
    """A packet socket with a virtio header makes skbs of which only the first bytes are linear."""
    for space, interface in ((wire.near, wire.interface), (wire.far, wire.far_interface)):
        space.ip("link", "set", "dev", interface, "mtu", "9000")
    frame = wire.frame(dport=53, payload=bytes(6000))
    with Program("flowcount") as program, contextlib.ExitStack() as stack:
        index = wire.ifindex
        link = wire.near.run(lambda: _bpf.link_create_tcx(program.fd, index, _bpf.BPF_TCX_INGRESS, None))
        stack.callback(os.close, link)
        sender = stack.enter_context(wire.far.packet_socket(wire.far_interface))
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sender.send(struct.pack("<BBHHHH", 0, 0, linear, 0, 0, 0) + frame)
        support.receive_all(stack.enter_context(wire.near.packet_socket(wire.interface)))
        flow = Flow(wire.far_address, wire.near_address, 4000, 53, socket.IPPROTO_UDP)
        assert counted(program) == {flow: (1, len(frame))}
