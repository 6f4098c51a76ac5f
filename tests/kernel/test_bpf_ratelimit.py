# SPDX-License-Identifier: Apache-2.0
"""ratelimit: what it counts as a new connection, and that its buckets are exact."""

from __future__ import annotations

import errno
import os
import struct
import threading
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.kernel import _bpf
from tests import packets
from tests.kernel.progtest import XDP_DROP, XDP_PASS, Program
from tests.packets import ACK, FIN, RST, SYN, TCP, ethernet, fragment, ipv4, ipv6, tcp, tcp4, tcp6

ONE = 10**9
BUCKET = struct.Struct("<IIQQ")  # lock, used, tokens, updated


@dataclass(frozen=True, slots=True)
class Bucket:
    used: int
    tokens: int
    updated: int


def read(program: Program, port: int) -> Bucket:
    raw = _bpf.map_lookup(program.map_fd("buckets"), port.to_bytes(4, "little"), BUCKET.size)
    return Bucket(*BUCKET.unpack(raw)[1:])


def write(program: Program, port: int, bucket: Bucket) -> None:
    raw = BUCKET.pack(0, bucket.used, bucket.tokens, bucket.updated)
    _bpf.map_update(program.map_fd("buckets"), port.to_bytes(4, "little"), raw)


def limiter(rate: int = 1, burst_ms: int = 1000, *, ports: tuple[tuple[int, int], ...] = ((443, 0),)) -> Program:
    return Program("ratelimit", params={"rate": rate, "burst_ms": burst_ms}, maps={"ports": ports})


def is_limited(program: Program, frame: bytes, port: int = 443) -> bool:
    """Whether the frame takes from the bucket of the port."""
    write(program, port, Bucket(1, ONE, 2**63))  # updated far ahead: no time passes
    program.verdict(frame)
    return read(program, port).tokens == 0


@pytest.mark.parametrize("frame", [tcp4(443), tcp6(443), tcp4(443, flags=SYN | FIN), tcp4(443, flags=SYN | 0xC0)])
def test_a_syn_without_ack_takes_one_connection(frame: bytes) -> None:
    with limiter() as program:
        assert is_limited(program, frame)


@pytest.mark.parametrize("flags", [SYN | ACK, ACK, RST, FIN | ACK, 0])
def test_other_segments_take_nothing(flags: int) -> None:
    with limiter() as program:
        assert not is_limited(program, tcp4(443, flags=flags))
        assert program.passes(tcp4(443, flags=flags))


@pytest.mark.parametrize("name", [name for name in packets.VALID_FRAMES if name.startswith("tcp")])
def test_a_syn_is_found_behind_tags_options_and_extension_headers(name: str) -> None:
    with limiter() as program:
        assert is_limited(program, packets.VALID_FRAMES[name])


def test_a_syn_is_found_behind_ip_options_and_in_a_first_fragment() -> None:
    with limiter() as program:
        assert is_limited(program, ethernet(ipv4(tcp(443), protocol=TCP, options=bytes(40))))
        assert is_limited(program, ethernet(ipv4(tcp(443), protocol=TCP, more=True)))
        inner = fragment(TCP, tcp(443), more=True)
        assert is_limited(program, ethernet(ipv6(inner, next_header=packets.FRAGMENT)))


def test_the_port_is_the_destination_and_in_network_order() -> None:
    with limiter(ports=((443, 0),)) as program:
        assert not is_limited(program, ethernet(ipv4(tcp(80, source_port=443), protocol=TCP)))
        assert not is_limited(program, tcp4(int.from_bytes((443).to_bytes(2, "little"), "big")))


def test_each_port_has_a_bucket_and_a_rate_of_its_own_shared_by_both_families() -> None:
    with limiter(rate=1, ports=((443, 0), (80, 3), (8080, 2))) as program:
        passed = {port: sum(program.passes(make(port)) for make in (tcp4, tcp6) * 3) for port in (80, 443, 8080)}
        took = {port: read(program, port) for port in (80, 443, 8080)}
        # What has been refilled since the first frame is known exactly, so a slow machine changes nothing.
        for port, rate in ((443, 1), (80, 3), (8080, 2)):
            assert passed[port] >= rate
            assert took[port].used == 1
        assert program.passes(tcp4(22))


def test_an_entry_above_the_largest_rate_counts_as_the_largest() -> None:
    with limiter(burst_ms=60_000, ports=((443, 2**32 - 1),)) as program:
        assert program.passes(tcp4(443))
        assert read(program, 443).tokens == 60 * 1_000_000 * ONE - ONE


def test_a_slow_port_with_a_small_burst_still_takes_one_connection() -> None:
    with limiter(rate=1, burst_ms=1) as program:
        assert program.passes(tcp4(443))
        assert read(program, 443).tokens == 0


LIMITS = st.sampled_from([(1, 1000), (3, 1000), (7, 60_000), (999_983, 1), (1_000_000, 60_000)])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=LIMITS,
    used=st.booleans(),
    tokens=st.integers(0, 2**63),
    age=st.one_of(st.integers(-(10**12), 10**12), st.just(2**63)),
    frames=st.integers(1, 3),
)
def test_every_step_of_a_bucket_equals_the_model(
    limit: tuple[int, int], used: bool, tokens: int, age: int, frames: int
) -> None:
    rate, burst_ms = limit
    capacity = max(rate * burst_ms * 10**6, ONE)
    with limiter(rate, burst_ms) as program:
        program.verdict(tcp4(443))
        now = read(program, 443).updated
        before = Bucket(int(used), tokens, max(now - age, 0))
        write(program, 443, before)
        for _ in range(frames):
            passed = program.passes(tcp4(443))
            after = read(program, 443)
            had = before.tokens if before.used and before.tokens <= capacity else capacity
            elapsed = after.updated - before.updated if before.used else 0
            had = min(capacity, had + elapsed * rate)
            assert elapsed >= 0
            assert passed == (had >= ONE)
            assert after == Bucket(1, had - ONE * passed, after.updated)
            before = after


def test_two_cpus_never_take_the_same_connection() -> None:
    rate, syn, each = 3, tcp4(443), 30_000
    cpus = sorted(os.sched_getaffinity(0))
    with limiter(rate, 60_000) as program:
        program.run(syn, repeat=60)  # so that a pause of 20 seconds before the threads run cannot fill the bucket
        start, before = read(program, 443), program.stats()["passed"][0]

        def work(cpu: int) -> None:
            os.sched_setaffinity(0, {cpu})
            program.run(syn, repeat=each)

        threads = [threading.Thread(target=work, args=(cpu,)) for cpu in cpus]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        end, stats = read(program, 443), program.stats()
        taken = stats["passed"][0] - before
        assert end.tokens == start.tokens + (end.updated - start.updated) * rate - taken * ONE
        assert stats["passed"][0] + stats["dropped"][0] == stats["seen"][0] == 60 + each * len(cpus)
        assert taken >= 120


@pytest.mark.parametrize("name", list(packets.VALID_FRAMES))
def test_frames_cut_anywhere_get_a_verdict_and_never_pass_with_half_a_header(name: str) -> None:
    whole = packets.VALID_FRAMES[name]
    with (
        limiter() as strict,
        Program("ratelimit", params={"drop_malformed": False}, maps={"ports": [(443, 0)]}) as lenient,
    ):
        for end in range(14, len(whole) + 1):
            verdict = strict.verdict(whole[:end])
            assert verdict in (XDP_PASS, XDP_DROP)
            assert lenient.verdict(whole[:end]) == XDP_PASS
            if name.startswith("tcp") and end < len(whole):
                assert verdict == XDP_DROP, f"{end} bytes of {len(whole)}"
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            strict.verdict(whole[:13])


MALFORMED = {
    "IPv4 header of 16 bytes": ethernet(b"\x44" + ipv4(tcp(443), protocol=TCP)[1:]),
    "IPv6 in an IPv4 frame": ethernet(ipv6(tcp(443), next_header=TCP), ethertype=packets.IPV4),
    "IPv4 in an IPv6 frame": ethernet(ipv4(tcp(443), protocol=TCP) + bytes(40), ethertype=packets.IPV6),
    "three tags": ethernet(ipv4(tcp(443), protocol=TCP), tags=[(packets.DOT1Q, 1)] * 3),
    "a first fragment of 8 bytes": ethernet(ipv4(tcp(443)[:8], protocol=TCP, more=True)),
    "a fragment at byte 8 of TCP": ethernet(ipv4(bytes(32), protocol=TCP, offset=1)),
    "a fragment at byte 16 of TCP": ethernet(ipv4(bytes(32), protocol=TCP, offset=2)),
    "an IPv6 fragment at byte 8 of TCP": ethernet(
        ipv6(fragment(TCP, bytes(32), offset=1), next_header=packets.FRAGMENT)
    ),
}
_next, _payload = packets.extensions([packets.DESTINATION] * 9, TCP, tcp(443))
MALFORMED["nine extension headers"] = ethernet(ipv6(_payload, next_header=_next))


@pytest.mark.parametrize("name", list(MALFORMED))
def test_what_no_sender_makes_is_dropped(name: str) -> None:
    with limiter() as program:
        assert program.verdict(MALFORMED[name]) == XDP_DROP


def test_eight_extension_headers_are_followed() -> None:
    following, payload = packets.extensions([packets.DESTINATION] * 8, TCP, tcp(443))
    with limiter() as program:
        assert is_limited(program, ethernet(ipv6(payload, next_header=following)))


@settings(max_examples=200)
@given(frame=st.binary(min_size=14, max_size=256))
def test_no_bytes_whatsoever_are_aborted(frame: bytes) -> None:
    assert _shared().verdict(frame) in (XDP_PASS, XDP_DROP)


@settings(max_examples=200)
@given(
    name=st.sampled_from(sorted(packets.VALID_FRAMES)),
    at=st.integers(12, 200),
    value=st.integers(0, 255),
)
def test_one_changed_byte_is_never_aborted(name: str, at: int, value: int) -> None:
    frame = bytearray(packets.VALID_FRAMES[name])
    frame[at % len(frame)] = value
    assert _shared().verdict(bytes(frame)) in (XDP_PASS, XDP_DROP)


_loaded: list[Program] = []


def _shared() -> Program:
    # One program for all examples of a property: loading takes longer than running.
    if not _loaded:
        _loaded.append(limiter())
    return _loaded[0]


@pytest.fixture(autouse=True)
def _unload() -> object:
    yield
    while _loaded:
        _loaded.pop().__exit__(None, None, None)
