# SPDX-License-Identifier: Apache-2.0
"""The helpers themselves: a frame crosses the wire, programs compile."""

from __future__ import annotations

import socket

from tests.kernel import support


def test_a_frame_crosses_the_wire(wire: support.Wire) -> None:
    frame = wire.frame(dport=7777, payload=b"hello")
    with (
        wire.near.packet_socket(wire.interface) as near,
        wire.far.packet_socket(wire.far_interface) as far,
        wire.near.socket(socket.AF_INET, socket.SOCK_DGRAM) as service,
    ):
        service.bind((wire.near_address, 7777))
        far.send(frame)
        assert service.recv(100) == b"hello"
        assert frame in support.receive_all(near)


def test_programs_compile() -> None:
    for define in ("HOOK_XDP", "HOOK_XDP_FRAGS", "HOOK_TC"):
        assert support.compile_program(support.PROGS / "member.bpf.c", define).startswith(b"\x7fELF")
