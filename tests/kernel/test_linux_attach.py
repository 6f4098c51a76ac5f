# SPDX-License-Identifier: Apache-2.0
"""Attachments on this kernel: any legal name, others' things untouched, threads that stay where they are."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import _points
from reconciler.errors import KernelError, NotSupportedError, StaleError
from reconciler.kernel import Scope, _attach, _attr, _bpf, _netns
from reconciler.kernel._bpf import _links
from reconciler.kernel._netlink import Route
from reconciler.kernel.linux import LinuxKernel
from reconciler.model import (
    AttachKind,
    ChangeMode,
    Evict,
    HookKind,
    Identity,
    LoadedGeneration,
    OwnedAttachment,
    RemovalMethod,
    Support,
    XdpMode,
)
from tests.kernel import support
from tests.kernel.generations import MemberDef
from tests.kernel.steps import Rig, first, pins_of
from tests.single import attach_one, is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAYS = {
    "xdp": (HookKind.XDP, AttachKind.XDP_LINK),
    "tcx-ingress": (HookKind.TC_INGRESS, AttachKind.TCX_LINK),
    "tcx-egress": (HookKind.TC_EGRESS, AttachKind.TCX_LINK),
    "clsact-ingress": (HookKind.TC_INGRESS, AttachKind.CLSACT_FILTER),
    "clsact-egress": (HookKind.TC_EGRESS, AttachKind.CLSACT_FILTER),
}
ONE, TWO = MemberDef(name="one"), MemberDef(name="two")


@contextmanager
def rig_for(pins: Path, way: str) -> Iterator[Rig]:
    hook, kind = WAYS[way]
    force = {"tcx": Support.NO} if kind is AttachKind.CLSACT_FILTER else {}
    with closing(LinuxKernel(pin_dir=pins, force=force)) as kernel:
        yield Rig(kernel=kernel, hook=hook, kind=kind)


@pytest.fixture(params=list(WAYS))
def rig(request: pytest.FixtureRequest, pins: Path) -> Iterator[Rig]:
    with rig_for(pins, request.param) as made:
        yield made


@pytest.fixture
def xdp(pins: Path) -> Iterator[Rig]:
    with rig_for(pins, "xdp") as made:
        yield made


@pytest.fixture
def tcx(pins: Path) -> Iterator[Rig]:
    with rig_for(pins, "tcx-ingress") as made:
        yield made


# === names =================================================================================================

NAMES = ["eth0.100", "a", "x" * 15, "we!rd~$(x)*[a]?", "a'b\"c\\d", "-dash", "ünïcödé", "..x", "host"]


@pytest.mark.parametrize("name", NAMES)
def test_any_legal_interface_name_works(pins: Path, name: str) -> None:
    with support.netns() as space:
        space.run(lambda: _rename_loopback_peer(space, name))
        for way in WAYS:
            with rig_for(pins, way) as rig:
                point = rig.point(space, name)
                loaded = rig.load(ONE)
                owned = rig.attach(point, loaded)
                seen = rig.kernel.snapshot(rig.scope(space))
                assert [item.name for item in seen.interfaces if item.ifindex == point.ifindex] == [name]
                state = seen.hooks[point]
                assert state.point.interface == name
                assert [item.program_id for item in state.attachments] == [first(loaded).id]
                rig.detach(owned)
                rig.kernel.unload(pins_of(loaded))


def _rename_loopback_peer(space: support.Netns, name: str) -> None:
    """A veth end of this name: made under a plain one, because ip(8) takes a leading dash for an option."""
    space.ip("link", "add", "name", "plain0", "type", "veth", "peer", "name", "plain1")
    space.ip("link", "set", "dev", "plain0", "name", name)


def test_a_name_with_glob_characters_is_found_by_a_glob(xdp: Rig) -> None:
    with support.netns() as space:
        _rename_loopback_peer(space, "we!rd~$(x)*[a]?")
        seen = xdp.kernel.snapshot(Scope(namespaces=(space.name,), interfaces={space.name: ("we!rd*",)}))
        assert {point.interface for point in seen.hooks} == {"we!rd~$(x)*[a]?"}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../proc/self/ns/net", "nul\0"])
def test_impossible_namespace_names_are_missing(xdp: Rig, name: str) -> None:
    seen = xdp.kernel.snapshot(Scope(namespaces=(name,)))
    assert seen.missing == (name,)
    assert seen.complete


def test_a_file_that_is_no_namespace_is_missing(xdp: Rig) -> None:
    with support.netns():  # makes the folder
        path = Path("/run/netns", support.unique())
        path.touch()
        try:
            assert xdp.kernel.snapshot(Scope(namespaces=(path.name,))).missing == (path.name,)
        finally:
            path.unlink()


# === threads ===============================================================================================


def test_no_thread_but_the_worker_ever_leaves_its_namespace(rig: Rig, wire: support.Wire) -> None:
    home = Path("/proc/self/ns/net").stat().st_ino
    point, old, new = rig.point(wire.near, wire.interface), rig.load(ONE, TWO), rig.load(ONE)
    places: set[tuple[str, int]] = set()
    stop = threading.Event()

    def sample() -> None:
        while not stop.is_set():
            for task in Path("/proc/self/task").iterdir():
                with suppress(OSError):  # the thread ended
                    places.add((task.name, (task / "ns/net").stat().st_ino))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        for _ in range(10):
            owned = rig.attach(point, old)
            owned = rig.switch(owned, old, new)
            rig.kernel.snapshot(rig.scope(wire.near, wire.far))
            rig.detach(owned)
    finally:
        stop.set()
        sampler.join()
    moved = {task for task, inode in places if inode != home}
    assert str(os.getpid()) not in moved
    assert len(moved) <= 1
    assert Path("/proc/thread-self/ns/net").stat().st_ino == home


def test_another_thread_may_use_it(rig: Rig, wire: support.Wire) -> None:
    point, loaded = rig.point(wire.near, wire.interface), rig.load(ONE)
    done: list[int] = []

    def work() -> None:
        rig.detach(rig.attach(point, loaded))
        done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


# === others ================================================================================================


def surroundings(wire: support.Wire) -> dict[str, Any]:
    """Everything about tc and XDP on the wire that is somebody else's, as other tools print it."""
    near, dev = wire.near, wire.interface
    found = {
        "qdiscs": near.tc("-j", "qdisc", "show", "dev", dev),
        "tcx": [
            (hook, near.run(partial(_bpf.tcx_query, wire.ifindex, hook)).entries)
            for hook in (_bpf.BPF_TCX_INGRESS, _bpf.BPF_TCX_EGRESS)
        ],
        "links": near.ip("-d", "-j", "link", "show", "dev", dev),
    }
    for parent in ("ingress", "egress", "root"):
        found[parent] = near.tc("-j", "filter", "show", "dev", dev, parent)
    return found


def add_foreign_things(wire: support.Wire, *, xdp: bool) -> list[int]:
    """A root qdisc, clsact with bpf and other filters in both directions, tcx entries; descriptors of the links."""
    near, dev = wire.near, wire.interface
    near.tc("qdisc", "add", "dev", dev, "root", "handle", "1:", "pfifo", "limit", "77")
    near.tc("qdisc", "add", "dev", dev, "clsact")
    for parent in ("ingress", "egress"):
        near.tc("filter", "add", "dev", dev, parent, "prio", "49000", "protocol", "ip", "u32", "match", "u32", "0", "0")

    def inside() -> list[int]:
        links: list[int] = []
        with Route() as route, _bpf.closing(_bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)) as program:
            for parent in (0xFFFFFFF2, 0xFFFFFFF3):
                for handle in (1, 2):
                    route.set_filter(_foreign_filter(wire.ifindex, parent, handle), program, replace=False)
            for hook in (_bpf.BPF_TCX_INGRESS, _bpf.BPF_TCX_EGRESS):
                _bpf.tcx_attach(program, wire.ifindex, hook)
                with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)) as other:
                    links.append(_bpf.link_create_tcx(other, wire.ifindex, hook, None))
        if xdp:
            with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.XDP, 2, _bpf.BPF_XDP)) as program:
                links.append(_bpf.link_create_xdp(program, wire.ifindex, _bpf.XDP_FLAGS_DRV_MODE))
        return links

    return near.run(inside)


def _foreign_filter(ifindex: int, parent: int, handle: int) -> Any:
    from reconciler.kernel._netlink import BpfFilter  # noqa: PLC0415  # only here

    return BpfFilter(
        ifindex=ifindex,
        parent=parent,
        prio=300,
        protocol=3,
        chain=0,
        handle=handle,
        program_id=0,
        name=f"theirs{handle}",
        direct_action=True,
    )


def test_what_others_attached_is_untouched_byte_for_byte(rig: Rig, wire: support.Wire) -> None:
    links = add_foreign_things(wire, xdp=rig.hook is not HookKind.XDP)
    try:
        before = surroundings(wire)
        point, old, new = rig.point(wire.near, wire.interface), rig.load(ONE, TWO), rig.load(ONE)
        owned = rig.attach(point, old)
        during = surroundings(wire)
        assert during != before  # it would notice
        assert rig.programs_on(point)[0] == first(old).id
        owned = rig.switch(owned, old, new)
        assert rig.programs_on(point)[0] == first(new).id
        assert rig.programs_on(point)[1:] == foreign_programs(rig, wire, before)
        rig.kernel.snapshot(rig.scope(wire.near))
        rig.detach(owned)
        assert surroundings(wire) == before
    finally:
        for link in links:
            os.close(link)


def foreign_programs(rig: Rig, wire: support.Wire, before: dict[str, Any]) -> list[int]:
    """What runs on the rig's hook besides ours."""
    if rig.hook is HookKind.XDP:
        return []
    entries = dict(before["tcx"])[46 if rig.hook is HookKind.TC_INGRESS else 47]
    programs = [program for program, _ in entries] if rig.kind is AttachKind.TCX_LINK else []
    parent = 0xFFFFFFF2 if rig.hook is HookKind.TC_INGRESS else 0xFFFFFFF3

    def filters() -> list[int]:
        with Route() as route:
            return [item.program_id for item in route.filters(wire.ifindex, parent) if item.prio == 300]

    return [*programs, *wire.near.run(filters)]


def test_a_qdisc_that_somebody_uses_with_other_filters_stays(pins: Path, wire: support.Wire) -> None:
    with rig_for(pins, "clsact-ingress") as rig:
        owned = rig.attach(rig.point(wire.near, wire.interface), rig.load(ONE))
        assert owned.made_qdisc
        wire.near.tc(
            "filter", "add", "dev", wire.interface, "egress", "protocol", "ip", "u32", "match", "u32", "0", "0"
        )
        before = wire.near.tc("filter", "show", "dev", wire.interface, "egress")
        rig.detach(owned)
        assert wire.near.tc("filter", "show", "dev", wire.interface, "egress") == before
        assert "clsact" in wire.near.tc("qdisc", "show", "dev", wire.interface)


def test_filters_of_an_ingress_qdisc_are_seen_and_evicted(pins: Path, wire: support.Wire) -> None:
    """The old qdisc is no place for ours, but its programs run on the same hook."""
    with rig_for(pins, "tcx-ingress") as rig:
        wire.near.tc("qdisc", "add", "dev", wire.interface, "ingress")

        def add() -> None:
            with Route() as route, _bpf.closing(_bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)) as program:
                route.set_filter(_foreign_filter(wire.ifindex, 0xFFFF0000, 1), program, replace=False)

        wire.near.run(add)
        point = rig.point(wire.near, wire.interface)
        seen = rig.kernel.snapshot(rig.scope(wire.near))
        (foreign,) = seen.hooks[point].attachments
        assert seen.hooks[point].clsact == "ingress"
        step = Evict(
            point=point,
            attachment=foreign,
            program=seen.programs[foreign.program_id].identity,
            method=RemovalMethod.FILTER_DELETE,
            reason="test",
        )
        rig.kernel.evict(step)
        assert rig.programs_on(point) == []


def test_filters_of_a_shared_block_are_seen_and_evicted(pins: Path, wire: support.Wire) -> None:
    """They run on every hook that shares the block, and are named by it and not by an interface."""
    with rig_for(pins, "tcx-ingress") as rig:
        wire.near.tc("qdisc", "add", "dev", wire.interface, "ingress_block", "22", "egress_block", "23", "clsact")

        def add() -> None:
            with Route() as route, _bpf.closing(_bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)) as program:
                route.set_filter(_foreign_filter(-1, 22, 1), program, replace=False)

        wire.near.run(add)
        point = rig.point(wire.near, wire.interface)
        seen = rig.kernel.snapshot(rig.scope(wire.near))
        (foreign,) = seen.hooks[point].attachments
        assert foreign.filter is not None
        assert foreign.filter.parent == 22
        assert seen.hooks[replace(point, kind=HookKind.TC_EGRESS)].attachments == ()
        step = Evict(
            point=point,
            attachment=foreign,
            program=seen.programs[foreign.program_id].identity,
            method=RemovalMethod.FILTER_DELETE,
            reason="test",
        )
        rig.kernel.evict(step)
        assert rig.programs_on(point) == []


# === XDP modes =============================================================================================


def mode_step(owned: OwnedAttachment, old: LoadedGeneration, new: LoadedGeneration, mode: XdpMode) -> ChangeMode:
    return ChangeMode(
        point=owned.point,
        generation=new.name,
        old=old.name,
        pin=owned.pin or "",
        link_id=owned.link_id or 0,
        mode=mode,
        old_mode=XdpMode(owned.mode or ""),
        reason="test",
    )


def test_a_change_of_mode_that_fails_brings_the_old_program_back(xdp: Rig) -> None:
    with support.netns() as space:
        point, old, new = xdp.point(space, "lo"), xdp.load(ONE), xdp.load(TWO)
        owned = xdp.attach(point, old, mode=XdpMode.GENERIC)
        with pytest.raises(NotSupportedError):
            xdp.kernel.change_mode(mode_step(owned, old, new, XdpMode.NATIVE), first(new))
        (here,) = xdp.kernel.read_hook(point).attachments
        assert (here.program_id, here.mode) == (first(old).id, "generic")
        pinned = {pin.path: pin.id for pin in xdp.kernel.snapshot(xdp.scope(space)).pins}
        assert pinned[owned.pin or ""] == here.link_id


@pytest.mark.parametrize("failing", ["unlink", "pin"])
def test_a_change_of_mode_whose_pin_fails_brings_the_old_program_back(
    xdp: Rig, wire: support.Wire, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    point, old, new = xdp.point(wire.near, wire.interface), xdp.load(ONE), xdp.load(ONE)
    owned = xdp.attach(point, old, mode=XdpMode.NATIVE)
    pins = xdp.kernel._pins
    real = getattr(pins, failing)

    def fails_once(*arguments: Any) -> None:
        monkeypatch.setattr(pins, failing, real)
        raise KernelError(failing, errno.ENOSPC)

    monkeypatch.setattr(pins, failing, fails_once)
    with pytest.raises(KernelError):
        xdp.kernel.change_mode(mode_step(owned, old, new, XdpMode.GENERIC), first(new))
    (found,) = xdp.kernel.read_hook(point).attachments
    assert (found.program_id, found.mode) == (first(old).id, "native")
    assert [pin.id for pin in xdp.kernel.snapshot(xdp.scope(wire.near)).pins if pin.path == owned.pin] == [
        found.link_id
    ]


def test_a_hook_with_more_entries_than_there_is_room_for_is_read_whole(
    tcx: Rig, wire: support.Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        for _ in range(5):
            program = stack.enter_context(_bpf.closing(_bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)))
            wire.near.run(partial(_bpf.tcx_attach, program, wire.ifindex, _bpf.BPF_TCX_INGRESS))
        point = tcx.point(wire.near, wire.interface)
        whole = tcx.kernel.read_hook(point)
        assert len(whole.attachments) == 5
        monkeypatch.setattr(_links, "MAX_MPROG", 2)
        assert tcx.kernel.read_hook(point) == whole


def test_a_signal_while_the_verifier_runs_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = _bpf.bpf, []

    def interrupted(command: _bpf.Cmd, attr: Any) -> int:
        calls.append(command)
        if len(calls) < 3:
            raise BlockingIOError(errno.EAGAIN, "signal pending")
        return real(command, attr)

    monkeypatch.setattr(_links, "bpf", interrupted)
    os.close(_bpf.load_trivial(_bpf.ProgType.XDP, 2, _bpf.BPF_XDP))
    assert calls == [_bpf.Cmd.PROG_LOAD] * 3


def test_displacing_reports_its_gap_and_ends_the_foreign_link(xdp: Rig, wire: support.Wire) -> None:
    point, loaded = xdp.point(wire.near, wire.interface), xdp.load(ONE)
    with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.XDP, 2, _bpf.BPF_XDP)) as program:
        link = wire.near.run(lambda: _bpf.link_create_xdp(program, point.ifindex, _bpf.XDP_FLAGS_DRV_MODE))
    with _bpf.closing(link):
        (foreign,) = xdp.kernel.read_hook(point).attachments
        owned = xdp.attach(point, loaded, displace=foreign)
        assert owned.gap is not None
        assert owned.gap > 0
        assert _bpf.link_info(link).ifindex == 0
        assert xdp.programs_on(point) == [first(loaded).id]


# === whose link is it ======================================================================================


def test_equal_programs_on_equal_ifindexes_are_told_apart(xdp: Rig) -> None:
    """One namespace holds the program by a link, the other by netlink: `bpf_link_info` alone cannot say which."""
    with support.wire() as one, support.wire() as two:
        assert one.ifindex == two.ifindex
        with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.XDP, 2, _bpf.BPF_XDP)) as program:
            link = one.near.run(lambda: _bpf.link_create_xdp(program, one.ifindex, _bpf.XDP_FLAGS_DRV_MODE))

            def by_netlink() -> None:
                with Route() as route:
                    route.set_xdp(two.ifindex, program, -1, _bpf.XDP_FLAGS_DRV_MODE)

            two.near.run(by_netlink)
            with _bpf.closing(link):
                for spaces in ((one.near, two.near), (two.near, one.near)):
                    seen = xdp.kernel.snapshot(xdp.scope(*spaces))
                    kinds = {
                        name: [item.kind for item in seen.hooks[xdp.point(each.near, each.interface)].attachments]
                        for name, each in (("one", one), ("two", two))
                    }
                    assert kinds == {"one": [AttachKind.XDP_LINK], "two": [AttachKind.XDP_NETLINK]}
                assert [item.link_id for item in xdp.kernel.read_hook(xdp.point(two.near, "near0")).attachments] == [
                    None
                ]


@pytest.mark.parametrize("way", ["evict", "displace"])
@pytest.mark.parametrize("flags", [0, 1 << 5], ids=["plain", "frags"])
def test_the_link_of_another_namespace_is_not_taken_for_the_one_on_the_hook(xdp: Rig, way: str, flags: int) -> None:
    """One program, two links, equal ifindexes: nothing that the kernel says of the links tells them apart."""
    with support.netns() as other, support.netns() as watched, ExitStack() as stack:
        program = stack.enter_context(_bpf.closing(load_xdp(flags)))
        links: list[int] = []
        for space in (other, watched, other):
            if len(links) == 2:
                support.add_veth(space, "more0", space, "more1")
            ifindex = space.ifindex("lo" if len(links) < 2 else "more0")
            make = partial(_bpf.link_create_xdp, program, ifindex, _bpf.XDP_FLAGS_SKB_MODE)
            links.append(stack.enter_context(_bpf.closing(space.run(make))))
        point = xdp.point(watched, "lo")
        seen = xdp.kernel.snapshot(xdp.scope(watched))
        (foreign,) = seen.hooks[point].attachments
        if way == "displace":
            xdp.attach(point, xdp.load(ONE), mode=XdpMode.GENERIC, displace=foreign)
        else:
            step = Evict(
                point=point,
                attachment=foreign,
                program=seen.programs[foreign.program_id].identity,
                method=RemovalMethod.LINK_DETACH,
                reason="test",
            )
            xdp.kernel.evict(step)
        number = _bpf.prog_info(program).id
        assert [_bpf.link_info(link).ifindex > 0 for link in links] == [True, False, True]
        assert [_bpf.link_info(link).prog_id for link in (links[0], links[2])] == [number, number]
        assert number not in xdp.programs_on(point)
        assert xdp.programs_on(xdp.point(other, "lo")) == [number]


def load_xdp(flags: int) -> int:
    """A program that lets everything pass, with or without multi-buffer support."""
    code = (_attr.Insn(code=0xB7, imm=2), _attr.Insn(code=0x95))
    return _links._load(code, _bpf.ProgType.XDP, _bpf.BPF_XDP, flags)


def test_ours_on_equal_ifindexes_are_told_apart(xdp: Rig) -> None:
    with support.wire() as one, support.wire() as two:
        loaded = xdp.load(ONE)
        points = [xdp.point(each.near, each.interface) for each in (one, two)]
        owned = [xdp.attach(point, loaded) for point in points]
        assert points[0].ifindex == points[1].ifindex
        for spaces in ((one.near, two.near), (two.near, one.near)):
            seen = xdp.kernel.snapshot(xdp.scope(*spaces))
            assert [seen.hooks[point].attachments[0].link_id for point in points] == [item.link_id for item in owned]
        xdp.detach(owned[0])
        assert not is_alive(xdp.kernel, owned[0], first(loaded))
        assert is_alive(xdp.kernel, owned[1], first(loaded))


@pytest.mark.parametrize("point", ["bpf LINK_DETACH", "unlink bpffs"])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_detach_that_fails_leaves_nothing_of_itself_and_the_later_ones_untouched(
    tcx: Rig, monkeypatch: pytest.MonkeyPatch, point: str, failing: int
) -> None:
    with support.netns() as space:
        loaded = tcx.load(ONE)
        for number in range(3):
            space.ip("link", "add", f"v{number}", "type", "veth", "peer", "name", f"w{number}")
        owned = [tcx.attach(tcx.point(space, f"v{number}"), loaded) for number in range(3)]
        calls: list[str] = []

        def strike(name: str, call: partial[Any]) -> Any:
            calls.append(name)
            if name == point and calls.count(name) == failing + 1:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            return call()

        with monkeypatch.context() as patch:
            patch.setattr(_points, "hook", strike)
            progress = tcx.kernel.detach([tcx.detaching(each) for each in owned])
        assert len(progress.done) == failing
        assert isinstance(progress.error, KernelError)
        assert [tcx.programs_on(each.point) for each in owned] == [[]] * failing + [[first(loaded).id]] * (3 - failing)
        assert [is_alive(tcx.kernel, each, first(loaded)) for each in owned] == [False] * failing + [True] * (
            3 - failing
        )
        again = tcx.kernel.detach([tcx.detaching(each) for each in owned])  # those that are gone, and the others
        assert (again.error, len(again.done)) == (None, 3)
        assert [tcx.programs_on(each.point) for each in owned] == [[], [], []]
        tcx.kernel.unload(pins_of(loaded))


def test_more_links_than_are_held_at_once_are_detached(tcx: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_attach, "AT_ONCE", 2)
    with support.netns() as space:
        loaded = tcx.load(ONE)
        for number in range(5):
            space.ip("link", "add", f"v{number}", "type", "veth", "peer", "name", f"w{number}")
        owned = [tcx.attach(tcx.point(space, f"v{number}"), loaded) for number in range(5)]
        progress = tcx.kernel.detach([tcx.detaching(each) for each in owned])
        assert (progress.error, len(progress.done)) == (None, 5)
        assert [tcx.programs_on(each.point) for each in owned] == [[]] * 5
        tcx.kernel.unload(pins_of(loaded))


def test_a_link_made_a_moment_ago_is_still_looked_at(xdp: Rig, wire: support.Wire) -> None:
    with support.netns() as elsewhere:
        loaded = xdp.load(ONE)
        owned = xdp.attach(xdp.point(wire.near, wire.interface), loaded)
        wire.near.ip("link", "set", "dev", wire.interface, "down")
        wire.near.ip("link", "set", "dev", wire.interface, "name", "renamed0")
        assert is_alive(xdp.kernel, owned, first(loaded))
        wire.near.ip("link", "set", "dev", "renamed0", "netns", elsewhere.name)
        assert not is_alive(xdp.kernel, owned, first(loaded))


def test_an_interface_that_moved_takes_its_link_along(xdp: Rig, wire: support.Wire) -> None:
    with support.netns() as elsewhere:
        loaded = xdp.load(ONE)
        owned = xdp.attach(xdp.point(wire.near, wire.interface), loaded)
        wire.near.ip("link", "set", "dev", wire.interface, "netns", elsewhere.name)
        seen = xdp.kernel.snapshot(xdp.scope(wire.near, elsewhere))
        assert owned.point not in seen.hooks
        (here,) = seen.hooks[xdp.point(elsewhere, wire.interface)].attachments
        assert (here.kind, here.program_id, here.link_id) == (AttachKind.XDP_LINK, first(loaded).id, owned.link_id)
        assert not is_alive(xdp.kernel, owned, first(loaded))


def test_an_interface_made_anew_is_another_hook(rig: Rig, wire: support.Wire) -> None:
    loaded = rig.load(ONE)
    owned = rig.attach(rig.point(wire.near, wire.interface), loaded)
    wire.near.ip("link", "del", "dev", wire.interface)
    support.add_veth(wire.near, wire.interface, wire.far, wire.far_interface)
    again = rig.point(wire.near, wire.interface)
    assert again != owned.point
    assert rig.programs_on(again) == []
    assert not is_alive(rig.kernel, owned, first(loaded))
    with pytest.raises(KernelError) as caught:
        rig.kernel.read_hook(owned.point)
    assert caught.value.errno == errno.ENODEV
    rig.attach(again, loaded)
    assert rig.programs_on(again) == [first(loaded).id]


def test_a_name_that_returned_as_another_namespace_is_another_hook(rig: Rig) -> None:
    # Held, because the kernel may give the number of one that is gone to the next one at once (docs/limitations.md).
    with support.netns() as space, Path("/run/netns", space.name).open():
        space.ip("link", "add", "name", "if0", "type", "veth", "peer", "name", "if1")
        point, loaded = rig.point(space, "if0"), rig.load(ONE)
        support.run("ip", "netns", "del", space.name)
        support.run("ip", "netns", "add", space.name)
        space.ip("link", "add", "name", "if0", "type", "veth", "peer", "name", "if1")
        assert rig.point(space, "if0").ifindex == point.ifindex
        with pytest.raises(StaleError):
            _attach_blindly(rig, point, loaded)
        assert rig.programs_on(rig.point(space, "if0")) == []


def _attach_blindly(rig: Rig, point: Any, loaded: Any) -> None:
    """Attach without reading the hook first, which alone would tell."""
    from reconciler.model import Attach, FilterId  # noqa: PLC0415  # only here

    filtered = rig.kind is AttachKind.CLSACT_FILTER
    step = Attach(
        point=point,
        generation=loaded.name,
        kind=rig.kind,
        reason="test",
        pin=None if filtered else f"links/{point.key}",
        filter=FilterId(parent=0xFFFFFFF2, prio=10, handle=7) if filtered else None,
        make_qdisc=True,
    )
    attach_one(rig.kernel, step, first(loaded))


# === evictions =============================================================================================


def test_eviction_compares_the_revision(tcx: Rig, wire: support.Wire) -> None:
    point = tcx.point(wire.near, wire.interface)
    with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)) as program:
        wire.near.run(lambda: _bpf.tcx_attach(program, point.ifindex, _bpf.BPF_TCX_INGRESS))
        state = tcx.kernel.read_hook(point)
        facts = _bpf.prog_info(program)
        step = Evict(
            point=point,
            attachment=state.attachments[0],
            program=Identity(id=facts.id, load_time=facts.load_time),
            method=RemovalMethod.PROG_DETACH,
            reason="test",
            revision=(state.revision or 0) + 1,
        )
        with pytest.raises(StaleError):
            tcx.kernel.evict(step)
        assert tcx.programs_on(point) == [facts.id]
        tcx.kernel.evict(replace(step, revision=state.revision))
        assert tcx.programs_on(point) == []


def test_what_cannot_be_removed_is_said(tcx: Rig, wire: support.Wire) -> None:
    point = tcx.point(wire.near, wire.interface)
    with _bpf.closing(_bpf.load_trivial(_bpf.ProgType.SCHED_CLS, -1)) as program:
        wire.near.run(lambda: _bpf.tcx_attach(program, point.ifindex, _bpf.BPF_TCX_INGRESS))
        facts = _bpf.prog_info(program)
        step = Evict(
            point=point,
            attachment=tcx.kernel.read_hook(point).attachments[0],
            program=Identity(id=facts.id, load_time=facts.load_time),
            method=RemovalMethod.NOT_POSSIBLE,
            reason="test",
        )
        with pytest.raises(NotSupportedError):
            tcx.kernel.evict(step)
        assert tcx.programs_on(point) == [facts.id]


def test_a_thread_that_cannot_return_from_a_namespace_does_nothing_twice(
    rig: Rig, wire: support.Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel needs memory to enter a namespace; the way back may fail when the work is done already."""
    old, new = rig.load(ONE), rig.load(ONE, TWO)
    point = rig.point(wire.near, "near0")
    owned = rig.attach(point, old)
    ways: list[str] = []
    real = _netns._call

    def out_of_memory(function: str, *arguments: int) -> None:
        ways.append(function)
        if len(ways) == 2:
            raise OSError(errno.ENOMEM, "setns: Cannot allocate memory")
        real(function, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_netns, "_call", out_of_memory)
        owned = rig.switch(owned, old, new)
    assert len(ways) >= 2
    assert rig.programs_on(point) == [first(new).id]
    assert is_alive(rig.kernel, owned, first(new))
    rig.detach(owned)
    for loaded in (old, new):
        rig.kernel.unload(pins_of(loaded))


def test_a_call_for_another_namespace_inside_one_is_an_error_and_waits_for_nobody(wire: support.Wire) -> None:
    """There is one thread: it would wait for itself."""
    near, far = wire.near, wire.far
    with closing(_netns.Worker()) as worker:
        inner: tuple[Callable[[], object], ...] = (
            lambda: worker.run(far.name, far.inode, list),
            lambda: worker.run(far.name, None, list),
            lambda: worker.fresh(list),
        )
        for call in inner:
            for outer in (partial(worker.run, near.name, near.inode), worker.fresh):
                with pytest.raises(RuntimeError, match="no call for another network namespace"):
                    outer(call)
        # The same one is no other, and the thread is where it was.
        assert worker.run(near.name, near.inode, lambda: worker.run(near.name, near.inode, lambda: 7)) == 7
        assert worker.run(near.name, None, lambda: worker.run(near.name, near.inode, lambda: 8)) == 8
        assert worker.run(far.name, far.inode, lambda: socket.if_nametoindex(wire.far_interface)) > 0
