# SPDX-License-Identifier: Apache-2.0
"""Under traffic: no packet sees half a chain and none passes unfiltered; and the grace periods behind that."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Self

import pytest

from reconciler.errors import DrainError
from reconciler.kernel import Scope, _bpf, _grace, _libbpf, trial
from reconciler.kernel.linux import LinuxKernel
from reconciler.model import AttachKind, HookKind, Support
from tests.kernel import support
from tests.kernel.generations import MemberDef
from tests.kernel.steps import Rig, first, pins_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from reconciler.model import LoadedGeneration

WAYS = {
    "xdp": (HookKind.XDP, AttachKind.XDP_LINK),
    "tcx": (HookKind.TC_INGRESS, AttachKind.TCX_LINK),
    "clsact": (HookKind.TC_INGRESS, AttachKind.CLSACT_FILTER),
}
SWITCHES = 100
PAYLOAD = 42
"""Where the payload of a UDP frame over IPv4 begins."""


@pytest.fixture(params=list(WAYS))
def rig(request: pytest.FixtureRequest, pins: Path) -> Iterator[Rig]:
    hook, kind = WAYS[request.param]
    force = {"tcx": Support.NO} if kind is AttachKind.CLSACT_FILTER else {}
    with closing(LinuxKernel(pin_dir=pins, force=force)) as kernel:
        yield Rig(kernel=kernel, hook=hook, kind=kind)


class Traffic:
    """Frames from far to near as fast as they go, and what a UDP service at the near end received of them."""

    def __init__(self, wire: support.Wire, port: int, *, blocked: int | None = None) -> None:
        self._sender = wire.far.packet_socket(wire.far_interface)
        self._service = wire.near.socket(socket.AF_INET, socket.SOCK_DGRAM, timeout=0.2)
        self._service.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._service.bind((wire.near_address, port))
        self._frame = wire.frame(dport=port)
        self._stop = threading.Event()
        self.payloads: list[bytes] = []
        self.sent = 0
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._sender.close()
        self._service.close()

    def _send(self) -> None:
        while not self._stop.is_set():
            with suppress(OSError):  # the queue is full
                self._sender.send(self._frame)
                self.sent += 1

    def _receive(self) -> None:
        while True:
            try:
                self.payloads.append(self._service.recv(64))
            except TimeoutError:
                if self._stop.is_set():
                    return

    def more(self, count: int = 20) -> None:
        """Wait until that many more frames were sent."""
        until = self.sent + count
        assert support.eventually(lambda: self.sent >= until)


def marking(mark: int, *, members: int = 3, **changes: object) -> tuple[MemberDef, ...]:
    """Members that write this mark into one byte of the payload each."""
    return tuple(
        MemberDef(name=f"m{index}", values={"mark": mark, "mark_offset": PAYLOAD + index}, **changes)  # type: ignore[arg-type]
        for index in range(members)
    )


def seen(rig: Rig, loaded: LoadedGeneration) -> list[tuple[int, int]]:
    return [
        (stats.counters["seen"][0], stats.counters["broken"][0] + stats.counters["dropped"][0])
        for stats in rig.kernel.stats(loaded)
    ]


def test_no_packet_sees_a_mix_and_none_escapes(rig: Rig, wire: support.Wire) -> None:
    point = rig.point(wire.near, wire.interface)
    current = rig.load(*marking(1))
    owned = rig.attach(point, current)
    with Traffic(wire, 7000) as traffic:
        traffic.more()
        for number in range(SWITCHES):
            new = rig.load(*marking(2 + number % 200))
            owned = rig.switch(owned, current, new)
            rig.kernel.drain()
            keep = set(pins_of(new))
            rig.kernel.unload(tuple(path for path in pins_of(current) if path not in keep))
            current = new
            traffic.more()
    marks = {payload[:3] for payload in traffic.payloads}
    assert len(traffic.payloads) > SWITCHES
    assert [mark for mark in marks if len(set(mark)) != 1] == []
    assert b"\0\0\0" not in marks
    assert len(marks) > SWITCHES // 2


def test_a_blocked_packet_stays_blocked_through_switches(rig: Rig, wire: support.Wire) -> None:
    point = rig.point(wire.near, wire.interface)
    members = (MemberDef(name="m0"), MemberDef(name="m1", deny=(7001,)))
    current = rig.load(*members)
    owned = rig.attach(point, current)
    with Traffic(wire, 7001) as traffic:
        for _ in range(SWITCHES // 2):
            new = rig.load(*members)
            owned = rig.switch(owned, current, new)
            rig.kernel.drain()
            keep = set(pins_of(new))
            rig.kernel.unload(tuple(path for path in pins_of(current) if path not in keep))
            current = new
            traffic.more()
    assert traffic.payloads == []
    assert traffic.sent > SWITCHES
    # State and stats were carried over: every frame was counted once by each member, whichever generation it met.
    (zero, _), (one, dropped) = seen(rig, current)
    assert zero == one == dropped
    assert SWITCHES < zero <= traffic.sent  # a veth drops what its queue cannot take


def test_every_member_of_the_longest_chain_runs(rig: Rig, wire: support.Wire) -> None:
    members = tuple(MemberDef(name=f"m{index}") for index in range(33))
    loaded = rig.load(*members)
    rig.attach(rig.point(wire.near, wire.interface), loaded)
    with wire.far.packet_socket(wire.far_interface) as sender:
        sender.send(wire.frame(dport=7002))
    assert support.eventually(lambda: [count for count, _ in seen(rig, loaded)] == [1] * 33)
    assert {broken for _, broken in seen(rig, loaded)} == {0}


@pytest.mark.parametrize(("verdict", "arrives"), [("drop", False), ("pass", True)])
def test_a_broken_tail_call_gives_the_declared_verdict(
    rig: Rig, wire: support.Wire, verdict: str, arrives: bool
) -> None:
    """The array of a chain whose last reference is gone is emptied by the kernel: this is what `onBroken` is for."""
    values = {
        "chain_broken": {"drop": 1 if rig.hook is HookKind.XDP else 2, "pass": 2 if rig.hook is HookKind.XDP else 0}[
            verdict
        ]
    }
    loaded = rig.load(MemberDef(name="m0", values=values), MemberDef(name="m1"))
    rig.attach(rig.point(wire.near, wire.interface), loaded)
    array = loaded.maps[0]
    rig.kernel._keeper.release(array.pin)
    (rig.kernel._pins.root / array.pin).unlink()
    rig.kernel.drain()
    with (
        wire.near.socket(socket.AF_INET, socket.SOCK_DGRAM, timeout=0.5) as service,
        wire.far.packet_socket(wire.far_interface) as sender,
    ):
        service.bind((wire.near_address, 7003))

        def one_more_broken() -> bool:
            sender.send(wire.frame(dport=7003))
            return next(iter(rig.kernel.stats(loaded))).counters["broken"][0] > 0

        assert support.eventually(one_more_broken)
        while True:  # what was sent before the array was emptied
            with suppress(TimeoutError):
                service.recv(100)
                continue
            break
        sender.send(wire.frame(dport=7003))
        got = False
        with suppress(TimeoutError):
            got = bool(service.recv(100))
        assert got is arrives


# === grace periods =========================================================================================


def kernel_with(pins: Path, **force: Support) -> LinuxKernel:
    return LinuxKernel(pin_dir=pins, force={name.replace("_", "-"): answer for name, answer in force.items()})


def test_each_way_of_draining_can_be_forced(pins: Path) -> None:
    with closing(kernel_with(pins, membarrier=Support.NO)) as kernel:
        assert kernel.features().drain == ("map-in-map",)
        assert kernel.drain() == "map-in-map"
    with closing(kernel_with(pins, membarrier=Support.YES, map_in_map=Support.NO)) as kernel:
        assert kernel.drain() == "membarrier"
    with closing(kernel_with(pins, membarrier=Support.NO, map_in_map=Support.NO)) as kernel, pytest.raises(DrainError):
        kernel.drain()


@pytest.mark.parametrize("way", ["membarrier", "map-in-map"])
def test_a_drain_ends_after_the_packets_that_were_in_flight_when_it_began(way: str) -> None:
    """Each way: one packet is on its way through a slow program, and must have left it when the drain returns."""
    support.need(way != "membarrier" or _grace.membarrier_waits(), "membarrier does not wait here")
    with _libbpf.Object(support.compile_program(support.PROGS / "slow.bpf.c"), "slow") as opened:
        opened.choose("slow")
        program = opened.load()
        seen = opened.map_fd("seen")

        def times(which: int) -> int:
            return int.from_bytes(_bpf.map_lookup(seen, which.to_bytes(4, "little"), 8), "little")

        for number in range(2):
            packet = threading.Thread(target=trial.run, args=(program, bytes(64)))
            packet.start()
            try:
                assert support.eventually(partial(lambda before: times(0) > before, number))
                in_flight = times(1) == number
                assert _grace.drain((way,)) == way
                assert times(1) == number + 1
            finally:
                packet.join()
            assert in_flight, "the packet had left before the drain began, so this proves nothing"


def test_membarrier_is_only_used_where_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one CPU the kernel returns at once; on nohz_full it refuses."""
    assert _grace.membarrier_waits() is (os.sysconf("SC_NPROCESSORS_ONLN") > 1)
    monkeypatch.setattr(os, "sysconf", lambda _: 1)
    assert not _grace.membarrier_waits()

    def refuse(_: int) -> int:
        raise OSError(errno.EINVAL, "nohz_full")

    monkeypatch.undo()
    monkeypatch.setattr(_grace, "membarrier", refuse)
    assert not _grace.membarrier_waits()
    assert _grace.drain(("membarrier", "map-in-map")) == "map-in-map"


def test_expediting_writes_and_restores(pins: Path) -> None:
    with closing(LinuxKernel(pin_dir=pins)) as kernel:
        support.need(kernel.features().expedite is Support.YES, "rcu_expedited cannot be used here")
        with support.exclusive("rcu_expedited"):
            assert kernel.grace_setting() == 0
            with kernel.expedite() as took:
                assert took
                assert kernel.grace_setting() == 1
                with kernel.expedite() as again:
                    assert not again  # on already, so not ours to switch off
                assert kernel.grace_setting() == 1
            assert kernel.grace_setting() == 0
            with pytest.raises(ZeroDivisionError), kernel.expedite():
                _ = 1 // 0
            assert kernel.grace_setting() == 0


def test_expediting_ends_by_itself(pins: Path) -> None:
    with closing(LinuxKernel(pin_dir=pins)) as kernel:
        support.need(kernel.features().expedite is Support.YES, "rcu_expedited cannot be used here")
        with support.exclusive("rcu_expedited"), _grace.expedited("auto", allowed=True, limit=0.05) as took:
            assert took
            assert support.eventually(lambda: kernel.grace_setting() == 0)


def test_expediting_can_be_forbidden(pins: Path) -> None:
    with closing(LinuxKernel(pin_dir=pins, expedite="never")) as kernel:
        assert kernel.grace_setting() is None
        with kernel.expedite() as took:
            assert not took
    with closing(kernel_with(pins, expedite=Support.NO)) as kernel:
        assert kernel.grace_setting() is None
        with kernel.expedite() as took:
            assert not took


@pytest.mark.parametrize(
    ("file", "text"), [("isolated", "1-3"), ("nohz_full", "2"), ("realtime", "1"), ("rcu_normal", "1"), ("rcu", "2")]
)
def test_machines_on_which_it_must_not_be_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, text: str
) -> None:
    for name in ("isolated", "nohz_full"):
        (tmp_path / name).write_text("\n")
    for name in ("realtime", "rcu_normal", "rcu"):
        (tmp_path / name).write_text("0\n")
    monkeypatch.setattr(_grace, "_CPUS", tmp_path)
    monkeypatch.setattr(_grace, "_REALTIME", tmp_path / "realtime")
    monkeypatch.setattr(_grace, "_RCU_NORMAL", tmp_path / "rcu_normal")
    monkeypatch.setattr(_grace, "RCU_EXPEDITED", tmp_path / "rcu")
    assert _grace.may_expedite()
    (tmp_path / file).write_text(f"{text}\n")
    assert not _grace.may_expedite()


def test_after_a_crash_only_what_still_reads_one_is_restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "rcu"
    monkeypatch.setattr(_grace, "RCU_EXPEDITED", file)
    file.write_text("1\n")
    _grace.restore(0)
    assert file.read_text() == "0\n"
    file.write_text("0\n")
    _grace.restore(1)
    assert file.read_text() == "0\n"


# === snapshots under churn =================================================================================


@pytest.fixture
def churn(wire: support.Wire) -> Iterator[Callable[[], int]]:
    """Somebody replaces a program on the egress hook all the time."""
    stop, rounds = threading.Event(), [0]
    ifindex = wire.ifindex

    def work() -> None:
        with (
            _bpf.closing(_bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)) as one,
            _bpf.closing(_bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)) as two,
            _bpf.closing(_bpf.link_create_tcx(one, ifindex, _bpf.BPF_TCX_EGRESS, None)) as link,
        ):
            while not stop.is_set():
                _bpf.link_update(link, two, one)
                _bpf.link_update(link, one, two)
                rounds[0] += 1
                time.sleep(0.0005)

    thread = threading.Thread(target=lambda: wire.near.run(work))
    thread.start()
    try:
        assert support.eventually(lambda: rounds[0] > 0)
        yield lambda: rounds[0]
    finally:
        stop.set()
        thread.join()


def test_churn_on_one_hook_does_not_unsettle_others(pins: Path, wire: support.Wire, churn: Callable[[], int]) -> None:
    with closing(LinuxKernel(pin_dir=pins)) as kernel:
        unsettled = set()
        for _ in range(30):
            before = churn()
            looked = kernel.snapshot(Scope(namespaces=(wire.near.name,)))
            assert looked.complete
            unsettled |= {point.kind for point, state in looked.hooks.items() if not state.settled}
            for state in looked.hooks.values():
                assert {item.program_id for item in state.attachments} <= set(looked.programs)
            assert support.eventually(partial(lambda earlier: churn() > earlier, before))
        assert unsettled <= {HookKind.TC_EGRESS}


def test_interfaces_and_programs_that_vanish_are_no_error(pins: Path, wire: support.Wire) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            wire.far.ip("link", "add", "name", "brief0", "type", "veth", "peer", "name", "brief1")
            ifindex = wire.far.ifindex("brief0")
            with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.XDP, 2, _bpf.BPF_XDP)) as program:
                os.close(wire.far.run(partial(_bpf.link_create_xdp, program, ifindex, _bpf.XDP_FLAGS_DRV_MODE)))
            wire.far.ip("link", "del", "dev", "brief0")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with closing(LinuxKernel(pin_dir=pins)) as kernel:
            for _ in range(50):
                looked = kernel.snapshot(Scope(namespaces=(wire.far.name,)))
                assert wire.far_interface in {item.name for item in looked.interfaces}
                point = next(each for each in looked.hooks if each.interface == wire.far_interface)
                assert looked.hooks[point].settled
    finally:
        stop.set()
        thread.join()


def test_a_generation_that_is_attached_is_known_by_its_first_pin(rig: Rig, wire: support.Wire) -> None:
    loaded = rig.load(*marking(1))
    point = rig.point(wire.near, wire.interface)
    rig.attach(point, loaded)
    looked = rig.kernel.snapshot(rig.scope(wire.near))
    (pinned,) = [pin.id for pin in looked.pins if pin.path == f"gen/{loaded.name}/p00"]
    assert looked.hooks[point].attachments[0].program_id == pinned == first(loaded).id
    assert set(looked.programs[pinned].map_ids) >= {item.id for item in loaded.maps if item.member == "m0"}
