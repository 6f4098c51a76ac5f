# SPDX-License-Identifier: Apache-2.0
"""The packet probe itself: it loses nothing, tells the kinds apart, and sees what XDP and tc drop."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import pytest

from reconciler.kernel import _bpf
from tests import support_probe
from tests.kernel import support
from tests.kernel.progtest import Program
from tests.support_probe import DROP_PORT, FRAME_BYTES, PASS_PORT, Receiver, Sender, Target

QUEUE = 256
"""Packets that a veth may hold when the machine is busy: these were sent before, and are judged after."""

RULES = [({"zone": 0, "protocol": 17, "port": DROP_PORT}, "DENY")]


def target(wire: support.Wire) -> Target:
    mac = wire.mac(wire.near, wire.interface).hex(":")
    return Target(mac=mac, address=wire.near_address, source=wire.far_address)


@pytest.mark.parametrize("udp", [False, True], ids=["packet", "udp"])
def test_every_packet_of_both_kinds_arrives_where_nothing_filters(udp: bool, wire: support.Wire) -> None:
    with Receiver(wire.near.name, interface=None if udp else wire.interface) as receiver:
        with Sender(wire.far.name, wire.far_interface, to=target(wire), count=20_000, drop_every=4) as sender:
            sent = sender.finish(stop=False)
        received = receiver.finish()
    assert (sent.passed, sent.dropped) == (15_000, 5_000)
    assert (received.passed, received.dropped, received.lost, received.reordered) == (15_000, 5_000, 0, 0)
    (window,) = received.escaped
    assert (window.kind, window.count, window.first, window.last) == (1, 5_000, 3, 19_999)
    assert sent.start_ns <= window.first_sent_ns < window.last_sent_ns <= sent.end_ns
    assert window.last_sent_ns <= window.received_ns <= time.monotonic_ns()


def test_the_pace_is_kept_and_the_end_is_when_it_is_told(wire: support.Wire) -> None:
    with Sender(wire.far.name, wire.far_interface, to=target(wire), rate=50_000, drop_every=0) as sender:
        time.sleep(0.5)
        sent = sender.finish()
    elapsed = sent.end_ns - sent.start_ns
    assert sent.dropped == 0
    # Never faster than told, whatever the machine does; slower by no more than the sender says it was late.
    assert sent.passed <= elapsed * 50_000 / 1e9 + 1
    assert sent.passed >= (elapsed - sent.latest_ns) * 50_000 / 1e9 - 1


def test_what_an_xdp_program_drops_is_not_received(wire: support.Wire) -> None:
    index = wire.ifindex
    with Program("firewall", "firewall_xdp", params={"default_verdict": "ALLOW"}, maps={"rules": RULES}) as wall:
        link = wire.near.run(lambda: _bpf.link_create_xdp(wall.fd, index, _bpf.XDP_FLAGS_DRV_MODE))
        try:
            with Receiver(wire.near.name, interface=wire.interface) as receiver:
                with Sender(wire.far.name, wire.far_interface, to=target(wire), count=10_000) as sender:
                    sent = sender.finish(stop=False)
                received = receiver.finish()
        finally:
            os.close(link)
        assert (received.passed, received.dropped, received.escaped) == (sent.passed, 0, ())
        assert wall.stats()["dropped"] == (sent.dropped, sent.dropped * FRAME_BYTES)


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_what_a_tc_program_drops_is_not_received(direction: str, wire: support.Wire) -> None:
    space, interface = (wire.near, wire.interface) if direction == "ingress" else (wire.far, wire.far_interface)
    kind = _bpf.BPF_TCX_INGRESS if direction == "ingress" else _bpf.BPF_TCX_EGRESS
    index = space.ifindex(interface)
    program = f"firewall_{direction}"
    with Program("firewall", program, params={"default_verdict": "ALLOW"}, maps={"rules": RULES}) as wall:
        link = space.run(lambda: _bpf.link_create_tcx(wall.fd, index, kind, None))
        try:
            with Receiver(wire.near.name, interface=None) as receiver:
                with Sender(wire.far.name, wire.far_interface, to=target(wire), count=10_000) as sender:
                    sent = sender.finish(stop=False)
                received = receiver.finish()
        finally:
            os.close(link)
        assert (received.passed, received.dropped, received.lost) == (sent.passed, 0, 0)
        assert wall.stats()["dropped"][0] == sent.dropped
        assert sent.refused == (0 if direction == "ingress" else sent.dropped)


def test_the_longest_gap_is_seen(wire: support.Wire) -> None:
    with Receiver(wire.near.name, interface=wire.interface) as receiver:
        with Sender(wire.far.name, wire.far_interface, to=target(wire), rate=2_000, drop_every=0) as sender:
            time.sleep(0.3)
            wire.near.ip("link", "set", "dev", wire.interface, "down")
            down = time.monotonic_ns()
            time.sleep(0.3)
            up = time.monotonic_ns()
            wire.near.ip("link", "set", "dev", wire.interface, "up")
            time.sleep(0.3)
            sender.finish()
        received = receiver.finish()
    assert received.gap_ns >= up - down
    assert received.gap_start_ns <= down


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["listen"],
        ["send", "--interface", "x"],
        ["receive"],
        ["receive", "--udp", "--interface", "x"],
        ["receive", "--udp", "--seconds", "1801"],
        ["receive", "--udp", "--count", "-1"],
        ["receive", "--udp", "more"],
        ["receive", "--udp", "--drop-ports", ","],
        ["receive", "--udp", "--drop-ports", "1,2,3,4,5,6,7,8"],
    ],
)
def test_wrong_usage_is_said(arguments: list[str]) -> None:
    done = subprocess.run([support_probe.build(), *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 64
    assert done.stderr.startswith("probe: ")
    assert done.stdout == ""


def test_an_interface_that_is_not_there_is_an_error(wire: support.Wire) -> None:
    with pytest.raises(AssertionError, match="nosuch0"):
        Receiver(wire.near.name, interface="nosuch0").__enter__()


def test_each_kind_has_a_port_of_its_own(wire: support.Wire) -> None:
    ports: dict[str, Any] = {
        "pass_port": PASS_PORT + 10,
        "drop_ports": (DROP_PORT + 10, DROP_PORT + 30, DROP_PORT + 20),
    }
    with Receiver(wire.near.name, interface=None, **ports) as receiver:
        with Sender(wire.far.name, wire.far_interface, to=target(wire), count=600, **ports) as sender:
            sent = sender.finish(stop=False)
        received = receiver.finish()
    assert sent.kinds == received.kinds == (300, 100, 100, 100)
    assert [(each.kind, each.first, each.last) for each in received.escaped] == [(1, 1, 595), (2, 3, 597), (3, 5, 599)]


def test_a_mark_says_where_the_stream_is(wire: support.Wire) -> None:
    with Sender(wire.far.name, wire.far_interface, to=target(wire), rate=20_000) as sender:
        first = sender.mark()
        while (second := sender.mark()).sequence == first.sequence:
            pass
        sent = sender.finish()
    assert sent.start_ns <= first.at_ns < second.at_ns <= sent.end_ns
    assert first.sequence < second.sequence <= sum(sent.kinds)


@pytest.mark.parametrize("packets", [0, 2_000], ids=["five-ms", "many-packets"])
def test_a_gap_that_was_opened_is_found_counted_and_located(packets: int, wire: support.Wire) -> None:
    """What every verdict of "nothing escaped" rests on: a chain that is away for five milliseconds is seen."""
    index = wire.ifindex
    with Program("firewall", "firewall_xdp", params={"default_verdict": "ALLOW"}, maps={"rules": RULES}) as wall:

        def attach() -> int:
            return wire.near.run(lambda: _bpf.link_create_xdp(wall.fd, index, _bpf.XDP_FLAGS_DRV_MODE))

        link = attach()
        with (
            Receiver(wire.near.name, interface=wire.interface) as receiver,
            Sender(wire.far.name, wire.far_interface, to=target(wire)) as sender,
        ):
            opening = sender.mark()
            _bpf.link_detach(link)
            os.close(link)
            opened = sender.mark()
            time.sleep(0.005)
            while sender.mark().sequence < opened.sequence + packets:
                pass
            closing = sender.mark()
            link = attach()
            closed = sender.mark()
            while sender.mark().sequence < closed.sequence + 100:  # some are dropped again
                pass
            sent = sender.finish()
            received = receiver.finish()
        os.close(link)
        dropped, _ = wall.stats()["dropped"]
    (window,) = received.escaped
    assert opening.sequence - QUEUE <= window.first <= opened.sequence + 2
    assert closing.sequence - QUEUE <= window.last < closed.sequence
    assert window.count == (window.last - window.first) // 2 + 1
    assert opening.at_ns <= window.last_sent_ns <= closed.at_ns
    # Each of them is somewhere.
    assert received.lost == 0
    assert received.dropped == window.count
    assert dropped + received.dropped + sent.refused_kinds[1] == sent.dropped


def test_a_sender_finds_an_interface_that_is_made_anew(wire: support.Wire) -> None:
    with (
        Receiver(wire.near.name, interface=None) as receiver,
        Sender(wire.far.name, wire.far_interface, to=target(wire), rate=2_000, drop_every=0) as sender,
    ):
        mac = wire.mac(wire.near, wire.interface).hex(":")
        wire.near.ip("link", "del", "dev", wire.interface)
        gone = sender.mark()
        support.add_veth(wire.near, wire.interface, wire.far, wire.far_interface, up=False)
        wire.near.ip("link", "set", "dev", wire.interface, "address", mac, "up")
        wire.near.ip("addr", "add", f"{wire.near_address}/24", "dev", wire.interface)
        wire.far.ip("link", "set", "dev", wire.far_interface, "up")
        while sender.mark().sequence < gone.sequence + 100:
            time.sleep(0.01)
        sent = sender.finish()
        received = receiver.finish()
    assert sent.retries > 0
    assert received.passed > 0
    assert received.gap_start_ns <= gone.at_ns <= received.gap_start_ns + received.gap_ns
