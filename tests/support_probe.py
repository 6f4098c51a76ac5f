# SPDX-License-Identifier: Apache-2.0
"""The packet probe (tests/probe/probe.c) from Python: a paced stream of two kinds of packets, and what arrives of it.

    with Receiver(near, interface="near0") as receiver, Sender(far, "far0", to=Target(...), rate=50_000) as sender:
        switch_something()
        sent = sender.finish()
        got = receiver.finish()
    assert got.escaped == () and got.passed == sent.passed

Packets of the kind "drop" go to a UDP port that the chain under test denies: one that arrives has escaped. Times are
`time.monotonic_ns()`. A receiver on an interface sits before tc ingress, one with `interface=None` (UDP) behind all.
Namespaces are names in /run/netns. Every probe ends by itself (seconds, count); leaving the block ends it at once.
"""

from __future__ import annotations

import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).parents[1]
PROBE = ROOT / "build" / "probe"
PASS_PORT, DROP_PORT = 7001, 7002
FRAME_BYTES = 74
"""Length of every frame that a sender makes: Ethernet, IPv4, UDP and 32 bytes."""


@functools.cache
def build() -> Path:
    """Compile the probe if needed; its path."""
    made = subprocess.run(["make", "-s", "-C", ROOT / "tests" / "probe"], check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return PROBE


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a sender's frames go."""

    mac: str
    address: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a sender did.

    Attributes:
        retries: times that the interface took nothing for a moment; those packets were sent later.
        refused: packets that were dropped on their way out of this host (tc egress, no carrier); they count as sent.
        latest_ns: how far the sender fell behind its pace at worst, in ns.
        start_ns: CLOCK_MONOTONIC.
        end_ns: likewise.
    """

    passed: int
    dropped: int
    retries: int
    refused: int
    latest_ns: int
    start_ns: int
    end_ns: int

    @property
    def rate(self) -> float:
        """Packets per second that were reached."""
        return (self.passed + self.dropped) * 1e9 / max(self.end_ns - self.start_ns, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Escaped:
    """A packet of the kind "drop" that arrived; times in ns, CLOCK_MONOTONIC."""

    sequence: int
    sent_ns: int
    received_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What a receiver counted.

    Attributes:
        passed: packets of the kind "pass".
        dropped: packets of the kind "drop", all of which should have been dropped on the way.
        escaped: the first of the latter.
        lost: packets that the receiving sockets had no memory for; anything but 0 makes the counts worthless.
        gap_ns: the longest time between the sending of two "pass" packets that arrived one after the other.
        gap_start_ns: when the former of the two was sent.
    """

    passed: int
    dropped: int
    escaped: tuple[Escaped, ...]
    lost: int
    reordered: int
    gap_ns: int
    gap_start_ns: int


class _Probe:
    def __init__(self, netns: str, mode: str, arguments: list[str]) -> None:
        command = [str(build()), mode, "--netns", netns, *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def first_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _result(self, *, stop: bool) -> Any:
        if stop:
            self._process.terminate()
        output, errors = self._process.communicate()
        assert self._process.returncode == 0, errors
        return json.loads(output)


class Sender(_Probe):
    """Sends from its construction on, `rate` packets a second, every `drop_every`th of the kind "drop" (0: none)."""

    def __init__(
        self,
        netns: str,
        interface: str,
        *,
        to: Target,
        rate: int = 50_000,
        count: int | None = None,
        seconds: int = 60,
        drop_every: int = 2,
        ports: tuple[int, int] = (PASS_PORT, DROP_PORT),
    ) -> None:
        arguments = ["--interface", interface, "--dst-mac", to.mac, "--dst-ip", to.address, "--src-ip", to.source]
        arguments += ["--rate", str(rate), "--seconds", str(seconds), "--drop-every", str(drop_every)]
        arguments += ["--pass-port", str(ports[0]), "--drop-port", str(ports[1])]
        arguments += [] if count is None else ["--count", str(count)]
        super().__init__(netns, "send", arguments)

    def finish(self, *, stop: bool = True) -> Sent:
        """Stop sending (or, with `stop=False`, wait until `count` or `seconds` is reached)."""
        raw = self._result(stop=stop)
        return Sent(
            passed=raw["sent"]["pass"],
            dropped=raw["sent"]["drop"],
            retries=raw["retries"],
            refused=raw["refused"],
            latest_ns=raw["latest_ns"],
            start_ns=raw["start_ns"],
            end_ns=raw["end_ns"],
        )


class Receiver(_Probe):
    """Counts from the start of its block on: on an interface, or with None on two UDP sockets."""

    def __init__(
        self,
        netns: str,
        *,
        interface: str | None,
        seconds: int = 120,
        listed: int = 100,
        ports: tuple[int, int] = (PASS_PORT, DROP_PORT),
    ) -> None:
        arguments = ["--udp"] if interface is None else ["--interface", interface]
        arguments += ["--pass-port", str(ports[0]), "--drop-port", str(ports[1])]
        super().__init__(netns, "receive", [*arguments, "--seconds", str(seconds), "--list", str(listed)])

    def __enter__(self) -> Self:
        ready = self.first_line()
        if ready != "ready":
            self._process.kill()
            _, errors = self._process.communicate()
            message = f"expected a receiver that is ready, got {ready!r}: {errors.strip()}"
            raise AssertionError(message)
        return self

    def finish(self) -> Received:
        """Count what has arrived by now, and end. Finish the sender first."""
        raw = self._result(stop=True)
        names = ("sequence", "sent_ns", "received_ns")
        return Received(
            passed=raw["pass"]["count"],
            dropped=raw["drop"]["count"],
            escaped=tuple(Escaped(**dict(zip(names, each, strict=True))) for each in raw["escaped"]),
            lost=raw["lost"],
            reordered=raw["pass"]["reordered"] + raw["drop"]["reordered"],
            gap_ns=raw["pass"]["gap_ns"],
            gap_start_ns=raw["pass"]["gap_start_ns"],
        )
