# SPDX-License-Identifier: Apache-2.0
"""What the fake does beyond the protocol; the protocol itself is tested by tests/conformance."""

from __future__ import annotations

import pytest

from reconciler.errors import KernelError
from reconciler.kernel import Kernel, Scope
from reconciler.model import Attach, AttachKind, Detach, HookKind, Identity, OwnedAttachment, PinKind, Switch
from tests.sim.fake_kernel import Crash, FakeKernel
from tests.sim.samples import generation
from tests.single import attach_one, detach_one, is_alive, switch_one

WHOLE = (("chain", "member0"), ("chain", "member1"))


def eth0(kernel: FakeKernel, *, text: str = "a", kind: HookKind = HookKind.XDP) -> OwnedAttachment:
    """eth0 with a generation attached."""
    kernel.add_interface("eth0")
    return attach(kernel, text=text, kind=kind)


def attach(kernel: FakeKernel, *, text: str = "a", kind: HookKind = HookKind.XDP) -> OwnedAttachment:
    wanted, packages = generation(kind=kind, text=text)
    loaded = kernel.load(wanted, packages)
    point = kernel.point("eth0", kind)
    how = AttachKind.XDP_LINK if kind is HookKind.XDP else AttachKind.TCX_LINK
    step = Attach(point=point, generation=wanted.name, kind=how, reason="", pin=f"links/{point.key}")
    return attach_one(kernel, step, loaded.programs[0].identity)


def switch(kernel: FakeKernel, owned: OwnedAttachment, *, text: str) -> OwnedAttachment:
    wanted, packages = generation(kind=owned.point.kind, text=text, reuse=True)
    first = kernel.load(wanted, packages).programs[0].identity
    step = Switch(
        point=owned.point,
        generation=wanted.name,
        old=owned.generation,
        program=kernel.first_program(owned.generation),
        kind=owned.kind,
        reason="",
        pin=owned.pin,
        link_id=owned.link_id,
    )
    return switch_one(kernel, step, first)


def pins_of(kernel: FakeKernel, name: str) -> tuple[str, ...]:
    return tuple(path for path in kernel.pins if path.startswith(f"gen/{name}/"))


def test_it_is_a_kernel() -> None:
    kernel: Kernel = FakeKernel()
    assert kernel.snapshot(Scope()).complete


@pytest.mark.parametrize("kind", [HookKind.XDP, HookKind.TC_INGRESS])
def test_a_packet_sees_the_whole_chain_and_is_counted(kind: HookKind) -> None:
    kernel = FakeKernel()
    owned = eth0(kernel, kind=kind)
    assert kernel.run_packet(owned.point, 100).members == WHOLE
    wanted, packages = generation(kind=kind, text="b", reuse=True)
    stats = {seen.member: seen.counters["seen"] for seen in kernel.stats(kernel.load(wanted, packages))}
    assert stats == {"member0": (1, 100), "member1": (1, 100)}
    assert kernel.violations == []


def test_unloading_before_a_grace_period_is_a_violation() -> None:
    kernel = FakeKernel()
    old = eth0(kernel)
    new = switch(kernel, old, text="b")
    kernel.unload(pins_of(kernel, old.generation))
    assert "before a grace period" in kernel.violations[0]
    assert kernel.run_packet(new.point).members == WHOLE


def test_unloading_after_a_grace_period_frees_everything() -> None:
    kernel = FakeKernel()
    old = eth0(kernel)
    switch(kernel, old, text="b")
    kernel.drain()
    kernel.unload(pins_of(kernel, old.generation))
    assert kernel.violations == []
    assert len(kernel.programs) == 2
    assert {program.generation for program in kernel.programs.values()} != {old.generation}


def test_unloading_what_is_attached_is_a_violation() -> None:
    kernel = FakeKernel()
    owned = eth0(kernel)
    kernel.unload(pins_of(kernel, owned.generation))
    assert "a packet sees" in kernel.violations[0]
    assert kernel.run_packet(owned.point).broken


def test_ids_come_back_after_they_wrapped_but_never_with_the_same_load_time() -> None:
    kernel = FakeKernel(id_limit=4)
    seen = set()
    for _ in range(4):
        wanted, packages = generation(1)
        loaded = kernel.load(wanted, packages)
        seen.add(loaded.programs[0].identity)
        kernel.unload(tuple(kernel.pins))
    wanted, packages = generation(1)
    again = kernel.load(wanted, packages).programs[0].identity
    assert again.id in {identity.id for identity in seen}
    assert again not in seen
    assert not kernel._runs(Identity(id=again.id, load_time=1))


def test_every_failing_primitive_of_a_load_leaves_nothing() -> None:
    wanted, packages = generation()
    whole = FakeKernel()
    whole.load(wanted, packages)
    for n in range(1, whole.mutations + 1):
        kernel = FakeKernel()
        kernel.fail_at(n, KernelError("injected", 5))
        with pytest.raises(KernelError, match="injected"):
            kernel.load(wanted, packages)
        assert (kernel.pins, kernel.programs, kernel.maps, kernel.descriptors) == ({}, {}, {}, set())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_leaves_exactly_what_is_pinned(when: str) -> None:
    wanted, packages = generation()
    whole = FakeKernel()
    whole.load(wanted, packages)
    for n in range(1, whole.mutations + 1):
        kernel = FakeKernel()
        kernel.crash_at(n, when="before" if when == "before" else "after")
        with pytest.raises(Crash):
            kernel.load(wanted, packages)
        with pytest.raises(Crash):
            kernel.unload(())
        kernel.restart()
        assert len(kernel.pins) == kernel.faults.log.count("pin")
        pinned = {number for kind, number in kernel.pins.values() if kind is PinKind.PROGRAM}
        assert pinned | {map_.slot for map_ in kernel.maps.values() if map_.slot is not None} == set(kernel.programs)
        kernel.unload(tuple(kernel.pins))
        assert (kernel.programs, kernel.maps) == ({}, {})


def test_a_crash_between_link_and_pin_detaches() -> None:
    kernel = FakeKernel()
    kernel.add_interface("eth0")
    wanted, packages = generation()
    first = kernel.load(wanted, packages).programs[0].identity
    point = kernel.point("eth0", HookKind.XDP)
    kernel.crash_at(1)
    step = Attach(point=point, generation=wanted.name, kind=AttachKind.XDP_LINK, reason="", pin="links/x")
    with pytest.raises(Crash):
        attach_one(kernel, step, first)
    kernel.restart()
    assert kernel.links == {}
    assert kernel.run_packet(point).members == ()


def test_on_change_sees_the_machine_after_every_primitive() -> None:
    seen: list[int] = []
    kernel = FakeKernel(on_change=lambda kernel: seen.append(len(kernel.pins)))
    owned = eth0(kernel)
    assert len(seen) == kernel.mutations
    assert seen[-1] == len(kernel.pins)
    assert kernel.run_packet(owned.point).members == WHOLE


def test_an_unpinned_array_lives_as_long_as_the_process_and_can_be_pinned_again() -> None:
    kernel = FakeKernel()
    owned = eth0(kernel)
    path = f"gen/{owned.generation}/n00"
    number = kernel.pins[path][1]
    kernel.unpin(path)
    assert kernel.run_packet(owned.point).members == WHOLE
    kernel.repin(path, PinKind.MAP, Identity(id=number))
    kernel.restart()
    assert kernel.run_packet(owned.point).members == WHOLE
    kernel.unpin(path)
    assert kernel.run_packet(owned.point).broken
    assert kernel.violations == []


def test_frozen_arrays_and_declared_entries_cannot_be_changed() -> None:
    kernel = FakeKernel()
    owned = eth0(kernel)
    for name in ("n00", "c00_00"):
        with pytest.raises(KernelError, match="frozen"):
            kernel.poke_map(f"gen/{owned.generation}/{name}", b"port", b"0000")


def test_a_tcx_hook_that_was_emptied_starts_at_revision_1_again() -> None:
    kernel = FakeKernel()
    kernel.add_interface("eth0")
    point = kernel.point("eth0", HookKind.TC_EGRESS)
    for _ in range(2):
        assert kernel.read_hook(point).revision == 1
        foreign = kernel.attach_foreign_tcx(point, via="prog")
        assert kernel.read_hook(point).revision == 2
        kernel.remove(point, foreign)
    assert kernel.read_hook(point).revision == 1


def test_foreign_links_go_with_their_process_and_programs_by_netlink_stay() -> None:
    kernel = FakeKernel()
    for name in ("eth0", "eth1"):
        kernel.add_interface(name)
    link, netlink = kernel.point("eth0", HookKind.XDP), kernel.point("eth1", HookKind.XDP)
    kernel.attach_foreign_xdp(link, via="link")
    kernel.attach_foreign_xdp(netlink, via="netlink", mode="native")
    kernel.exit_foreign_processes()
    assert kernel.read_hook(link).attachments == ()
    assert [seen.mode for seen in kernel.read_hook(netlink).attachments] == ["native"]


def test_somebody_detaches_replaces_and_steals() -> None:
    kernel = FakeKernel()
    owned = eth0(kernel, kind=HookKind.TC_INGRESS)
    first = kernel.first_program(owned.generation)
    replaced = kernel.replace(owned.point, kernel.attachments(owned.point)[0])
    assert replaced.link_id == owned.link_id
    assert not is_alive(kernel, owned, first)
    kernel.remove(owned.point, replaced)
    assert kernel.snapshot(Scope()).links[owned.link_id or 0].ifindex == 0
    kernel.steal(f"gen/{owned.generation}/p00")
    assert kernel.first_program(owned.generation) != first
    assert kernel.violations == []


def test_a_reboot_leaves_interfaces_and_nothing_of_ours() -> None:
    kernel = FakeKernel()
    owned = eth0(kernel)
    before = kernel.boot_id()
    kernel.reboot()
    seen = kernel.snapshot(Scope())
    assert kernel.boot_id() != before
    assert (seen.pins, seen.programs, seen.links) == ((), {}, {})
    assert seen.hooks[owned.point].attachments == ()


@pytest.mark.parametrize("over", [False, True])
def test_another_bpffs_hides_or_ends_what_was_pinned(over: bool) -> None:
    kernel = FakeKernel()
    owned = eth0(kernel)
    before = kernel.snapshot(Scope()).bpffs_id
    kernel.remount_bpffs(over=over)
    seen = kernel.snapshot(Scope())
    assert seen.bpffs_id != before
    assert seen.pins == ()
    assert bool(seen.hooks[owned.point].attachments) is over


def test_a_detached_generation_leaves_the_hook_empty() -> None:
    kernel = FakeKernel()
    owned = eth0(kernel)
    step = Detach(
        point=owned.point,
        kind=owned.kind,
        generation=owned.generation,
        reason="",
        pin=owned.pin,
        link_id=owned.link_id,
    )
    detach_one(kernel, step)
    kernel.drain()
    kernel.unload(tuple(kernel.pins))
    assert (kernel.links, kernel.programs, kernel.maps, kernel.violations) == ({}, {}, {}, [])
