# SPDX-License-Identifier: Apache-2.0
"""The packet probe itself: it loses nothing, tells the kinds apart, and sees what XDP and tc drop."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from reconciler.kernel import _bpf
from tests import support_probe
from tests.kernel.progtest import Program
from tests.support_probe import DROP_PORT, FRAME_BYTES, PASS_PORT, Receiver, Sender, Target

if TYPE_CHECKING:
    from tests.kernel import support

RULES = [({"zone": 0, "protocol": 17, "port": DROP_PORT}, "DENY")]


def target(wire: support.Wire) -> Target:
    mac = wire.mac(wire.near, wire.interface).hex(":")
    return Target(mac=mac, address=wire.near_address, source=wire.far_address)


@pytest.mark.parametrize("udp", [False, True], ids=["packet", "udp"])
def test_every_packet_of_both_kinds_arrives_where_nothing_filters(udp: bool, wire: support.Wire) -> None:
    with Receiver(wire.near.name, interface=None if udp else wire.interface, listed=7) as receiver:
        with Sender(wire.far.name, wire.far_interface, to=target(wire), count=20_000, drop_every=4) as sender:
            sent = sender.finish(stop=False)
        received = receiver.finish()
    assert (sent.passed, sent.dropped) == (15_000, 5_000)
    assert (received.passed, received.dropped, received.lost, received.reordered) == (15_000, 5_000, 0, 0)
    assert [each.sequence for each in received.escaped] == list(range(3, 28, 4))
    for each in received.escaped:
        assert sent.start_ns <= each.sent_ns <= each.received_ns <= time.monotonic_ns()


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
        ["receive", "--udp", "--seconds", "601"],
        ["receive", "--udp", "--count", "-1"],
        ["receive", "--udp", "more"],
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


def test_the_ports_of_the_kinds_can_be_chosen(wire: support.Wire) -> None:
    ports = (PASS_PORT + 10, DROP_PORT + 10)
    with Receiver(wire.near.name, interface=None, ports=ports) as receiver:
        with Sender(wire.far.name, wire.far_interface, to=target(wire), count=100, ports=ports) as sender:
            sender.finish(stop=False)
        received = receiver.finish()
    assert (received.passed, received.dropped) == (50, 50)
