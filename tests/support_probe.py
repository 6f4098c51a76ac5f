# SPDX-License-Identifier: Apache-2.0
"""The packet probe (tests/probe/probe.c) from Python: a paced stream of several kinds of packets, and what arrives.

    with Receiver(near, interface="near0") as receiver, Sender(far, "far0", to=Target(...), rate=50_000) as sender:
        before = sender.mark()
        switch_something()
        after = sender.mark()
        sent = sender.finish()
        got = receiver.finish()
    assert got.escaped == () and got.passed == sent.passed

Packets of kind 0 should pass. Every other kind goes to a UDP port of its own that a member of the chain under test
denies: one that arrives has escaped; `escaped` says which and when. Times are `time.monotonic_ns()`. A receiver on an
interface sits before tc ingress, one with `interface=None` (UDP) behind all. Namespaces are names in /run/netns. Every
probe ends by itself (seconds, count); leaving the block ends it at once.
"""

from __future__ import annotations

import functools
import json
import signal
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
class Mark:
    """A moment of a stream: packets from this number on were not sent yet."""

    sequence: int
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a sender did.

    Attributes:
        kinds: packets by kind.
        refused_kinds: those of them that were dropped on their way out (a full queue, tc egress), by kind.
        retries: times that the interface took nothing for a moment; those packets were sent later.
        latest_ns: how far the sender fell behind its pace at worst, in ns.
        start_ns: CLOCK_MONOTONIC.
        end_ns: likewise.
    """

    kinds: tuple[int, ...]
    refused_kinds: tuple[int, ...]
    retries: int
    latest_ns: int
    start_ns: int
    end_ns: int

    @property
    def passed(self) -> int:
        return self.kinds[0]

    @property
    def dropped(self) -> int:
        return sum(self.kinds[1:])

    @property
    def refused(self) -> int:
        return sum(self.refused_kinds)

    @property
    def rate(self) -> float:
        """Packets per second that were reached."""
        return sum(self.kinds) * 1e9 / max(self.end_ns - self.start_ns, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Packets of one kind that should have been dropped and arrived, without a dropped one of that kind among them.

    Attributes:
        kind: from 1 on, in the order of the sender's `drop_ports`.
        count: how many.
        first: number of the first one in the stream.
        last: likewise of the last one.
        first_sent_ns: CLOCK_MONOTONIC.
        last_sent_ns: likewise.
        received_ns: when the last one was read; it may have arrived half a millisecond earlier.
    """

    kind: int
    count: int
    first: int
    last: int
    first_sent_ns: int
    last_sent_ns: int
    received_ns: int

    @property
    def seconds(self) -> float:
        """From the first one's sending to the last one's."""
        return (self.last_sent_ns - self.first_sent_ns) / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What a receiver counted.

    Attributes:
        kinds: packets by kind.
        escaped: when packets of the kinds that should have been dropped arrived; the first `listed` windows.
        lost: packets that the receiving sockets had no memory for; anything but 0 makes the counts worthless.
        gap_ns: the longest time between the sending of two "pass" packets that arrived one after the other.
        gap_start_ns: when the former of the two was sent.
    """

    kinds: tuple[int, ...]
    escaped: tuple[Window, ...]
    lost: int
    reordered: int
    gap_ns: int
    gap_start_ns: int

    @property
    def passed(self) -> int:
        return self.kinds[0]

    @property
    def dropped(self) -> int:
        """Packets that should have been dropped on the way, and arrived."""
        return sum(self.kinds[1:])


class _Probe:
    def __init__(self, netns: str, mode: str, arguments: list[str]) -> None:
        command = [str(build()), mode, "--netns", netns, *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        ready = self.line()
        if ready != "ready":
            self._process.kill()
            _, errors = self._process.communicate()
            message = f"expected a probe that is ready, got {ready!r}: {errors.strip()}"
            raise AssertionError(message)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _result(self, *, stop: bool) -> Any:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        if stop:
            self._process.terminate()
        output, errors = self._process.stdout.read(), self._process.stderr.read()
        assert self._process.wait() == 0, errors
        return json.loads(output)


class Sender(_Probe):
    """Sends from its construction on, `rate` packets a second; every `drop_every`th (0: none) should be dropped.

    Those go to `drop_ports` in turn; the one that is number k in there makes kind k, from 1 on.
    """

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
        pass_port: int = PASS_PORT,
        drop_ports: tuple[int, ...] = (DROP_PORT,),
    ) -> None:
        arguments = ["--interface", interface, "--dst-mac", to.mac, "--dst-ip", to.address, "--src-ip", to.source]
        arguments += ["--rate", str(rate), "--seconds", str(seconds), "--drop-every", str(drop_every)]
        arguments += _ports(pass_port, drop_ports)
        arguments += [] if count is None else ["--count", str(count)]
        super().__init__(netns, "send", arguments)

    def mark(self) -> Mark:
        """Where the stream is now."""
        self._process.send_signal(signal.SIGUSR1)
        raw = json.loads(self.line())
        assert raw.keys() == {"sequence", "at_ns"}, f"the sender has ended: {raw}"
        return Mark(**raw)

    def finish(self, *, stop: bool = True) -> Sent:
        """Stop sending (or, with `stop=False`, wait until `count` or `seconds` is reached)."""
        raw = self._result(stop=stop)
        return Sent(
            kinds=tuple(raw["sent"]),
            refused_kinds=tuple(raw["refused"]),
            retries=raw["retries"],
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
        listed: int = 1000,
        pass_port: int = PASS_PORT,
        drop_ports: tuple[int, ...] = (DROP_PORT,),
    ) -> None:
        arguments = ["--udp"] if interface is None else ["--interface", interface]
        arguments += _ports(pass_port, drop_ports)
        super().__init__(netns, "receive", [*arguments, "--seconds", str(seconds), "--list", str(listed)])

    def finish(self) -> Received:
        """Count what has arrived by now, and end. Finish the sender first."""
        raw = self._result(stop=True)
        names = ("kind", "count", "first", "last", "first_sent_ns", "last_sent_ns", "received_ns")
        return Received(
            kinds=tuple(raw["received"]),
            escaped=tuple(Window(**dict(zip(names, each, strict=True))) for each in raw["windows"]),
            lost=raw["lost"],
            reordered=raw["reordered"],
            gap_ns=raw["gap_ns"],
            gap_start_ns=raw["gap_start_ns"],
        )


def _ports(pass_port: int, drop_ports: tuple[int, ...]) -> list[str]:
    return ["--pass-port", str(pass_port), "--drop-ports", ",".join(map(str, drop_ports))]
