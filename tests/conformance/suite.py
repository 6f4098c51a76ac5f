# SPDX-License-Identifier: Apache-2.0
"""What the `Kernel` protocol promises, as tests that take a `lab`.

A module that provides a `lab` fixture runs all of it with `from tests.conformance.suite import *`.
"""

from __future__ import annotations

import errno
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

import pytest

from reconciler.errors import KernelError, NotSupportedError, OccupiedError, StaleError, VerifierError
from reconciler.kernel import Scope
from reconciler.model import (
    Attach,
    AttachKind,
    ChangeMode,
    HookKind,
    Identity,
    MapRole,
    PinKind,
    Support,
    XdpMode,
)
from tests.conformance.lab import (
    OUR_HANDLE,
    OUR_PRIO,
    PARENTS,
    Scene,
    Way,
    detach_step,
    evict_step,
    first,
    pins_of,
    switch_step,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.model import HookPoint, LoadedGeneration, Snapshot
    from tests.conformance.lab import Lab

Test = TypeVar("Test", bound="Callable[..., None]")

SETTLE_SECONDS = 5.0
"""How long counters and freed objects may take: packets on a veth and references in the kernel go asynchronously."""


def only(*kinds: AttachKind) -> Callable[[Test], Test]:
    """This test says nothing about other ways of attaching."""

    def mark(test: Test) -> Test:
        test.ways = [way for way in Way if way.attach_kind in kinds]  # type: ignore[attr-defined]  # read below
        return test

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test once for each way of attaching that it is about."""
    if "lab" in metafunc.fixturenames:
        ways = getattr(metafunc.function, "ways", list(Way))
        metafunc.parametrize("lab", ways, indirect=True, ids=[str(way) for way in ways])


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SETTLE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def seen_by(lab: Lab, loaded: LoadedGeneration) -> dict[str, int]:
    return {stats.member: stats.counters["seen"][0] for stats in lab.kernel.stats(loaded)}


def assert_runs(lab: Lab, point: HookPoint, loaded: LoadedGeneration, count: int = 5) -> None:
    """Packets through the hook are counted by every member of the generation."""
    before = seen_by(lab, loaded)
    lab.send(point, count)
    assert before.keys() == {program.member for program in loaded.programs}
    assert eventually(lambda: all(now >= before[name] + count for name, now in seen_by(lab, loaded).items()))


def programs_on(lab: Lab, point: HookPoint) -> list[int]:
    return [seen.program_id for seen in lab.kernel.read_hook(point).attachments]


# === features, namespaces, interfaces ======================================================================


def test_features_are_probed_and_stay(lab: Lab) -> None:
    features = lab.kernel.features()
    assert lab.kernel.features() == features
    assert features.tcx is (Support.NO if lab.way.attach_kind is AttachKind.CLSACT_FILTER else Support.YES)
    assert features.clsact is Support.YES
    assert lab.look().features == features
    assert lab.look().boot_id == lab.kernel.boot_id() != ""


def test_a_snapshot_shows_the_interfaces_of_the_wanted_namespaces(lab: Lab) -> None:
    one, two = lab.namespace(), lab.namespace()
    ifindex = lab.interface(one, "if0")
    seen = lab.look(one)
    (here,) = [each for each in seen.interfaces if each.name == "if0"]
    assert (here.netns, here.netns_inode, here.ifindex) == (one, seen.namespaces[one], ifindex)
    assert {each.netns for each in lab.look(one, two).interfaces} == {one, two}
    assert {point.kind for point in seen.hooks if point.interface == "if0"} == set(HookKind)
    assert seen.complete


def test_a_namespace_that_does_not_exist_is_missing(lab: Lab) -> None:
    one = lab.namespace()
    seen = lab.look(one, "no-such-namespace")
    assert seen.missing == ("no-such-namespace",)
    assert set(seen.namespaces) == {one}


def test_an_empty_hook_is_empty_and_settled(lab: Lab) -> None:
    state = lab.kernel.read_hook(lab.place())
    assert (state.attachments, state.settled, state.clsact) == ((), True, "none")
    assert state.revision == (1 if lab.way.attach_kind is AttachKind.TCX_LINK else None)


def test_a_hook_whose_interface_is_gone_is_enodev(lab: Lab) -> None:
    point = lab.place()
    lab.remove_interface(point.netns, point.interface)
    with pytest.raises(KernelError) as caught:
        lab.kernel.read_hook(point)
    assert caught.value.errno == errno.ENODEV


def test_only_wanted_interfaces_are_read_in_detail_and_always_ours(lab: Lab) -> None:
    netns = lab.namespace()
    for name in ("if0", "if1", "other0"):
        lab.interface(netns, name)
    lab.attach(lab.point(netns, "other0"), lab.load())
    seen = lab.kernel.snapshot(Scope(namespaces=(netns,), interfaces={netns: ("if*",)}))
    assert {each.name for each in seen.interfaces} >= {"if0", "if1", "other0"}
    assert {point.interface for point in seen.hooks} == {"if0", "if1", "other0"}
    none = lab.kernel.snapshot(Scope(namespaces=(netns,), interfaces={netns: ()}))
    assert {point.interface for point in none.hooks} == {"other0"}


# === loading ===============================================================================================


def test_load_pins_exactly_the_named_paths(lab: Lab) -> None:
    before = lab.pins()
    loaded = lab.load()
    assert lab.pins() - before == set(pins_of(loaded))
    assert all(pin.kind is PinKind.PROGRAM for pin in lab.look().pins if "/p" in pin.path)
    assert lab.kernel.first_program(loaded.name) == first(loaded)


def test_load_tells_what_it_made(lab: Lab) -> None:
    wanted, packages = lab.generation()
    loaded = lab.kernel.load(wanted, packages)
    seen = lab.look()
    assert (loaded.name, loaded.digest, loaded.kind) == (wanted.name, wanted.digest, lab.way.kind)
    assert [(each.chain, each.member, each.pin) for each in loaded.programs] == [
        (each.chain, each.member, each.pin) for each in wanted.members
    ]
    assert [(each.pin, each.role, each.name) for each in loaded.maps] == [
        (use.pin, use.role, use.name) for member in wanted.members for use in member.maps
    ]
    ids = {pin.path: pin.id for pin in seen.pins}
    assert [each.id for each in loaded.maps] == [ids[each.pin] for each in loaded.maps]
    for each in loaded.programs:
        assert ids[each.pin] == each.identity.id
        assert seen.programs[each.identity.id].identity == each.identity
        assert seen.programs[each.identity.id].type == ("xdp" if lab.way.kind is HookKind.XDP else "tc")


def test_members_are_joined_filled_and_frozen(lab: Lab) -> None:
    loaded = lab.load(3)
    maps = lab.look().maps
    slots = [maps[each.id].slot for each in loaded.maps if each.role is MapRole.NEXT]
    assert slots == [loaded.programs[1].identity.id, loaded.programs[2].identity.id, None]
    assert all(maps[each.id].frozen for each in loaded.maps if each.role in {MapRole.NEXT, MapRole.CONFIG})
    assert not any(maps[each.id].frozen for each in loaded.maps if each.role in {MapRole.STATE, MapRole.STATS})


def test_the_content_of_config_maps_is_told(lab: Lab) -> None:
    one, same, other = lab.load(text="a"), lab.load(text="a", number=1, reuse=True), lab.load(text="b", reuse=True)
    seen = lab.look().maps
    contents = []
    for loaded in (one, same, other):
        configs = [each for each in loaded.maps if each.role is MapRole.CONFIG]
        assert [each.content for each in configs] == [seen[each.id].content for each in configs]
        contents.append([each.content for each in configs])
    assert contents[0] == contents[1] != contents[2]
    assert all(each.content is None for each in one.maps if each.role is not MapRole.CONFIG)


def test_nobody_changes_tail_calls_and_declared_entries(lab: Lab) -> None:
    loaded = lab.load()
    assert {lab.write_to_map(each.pin) for each in loaded.maps if each.role is MapRole.NEXT} == {errno.EPERM}
    assert {lab.write_to_map(each.pin) for each in loaded.maps if each.role is MapRole.CONFIG} == {errno.EPERM}
    assert {lab.write_to_map(each.pin) for each in loaded.maps if each.role is MapRole.STATE} == {0}


def test_reuse_carries_state_and_stats_over_and_nothing_else(lab: Lab) -> None:
    old, new = lab.load(), lab.load(text="b", reuse=True)
    for before, after in zip(old.maps, new.maps, strict=True):
        kept = before.role in {MapRole.STATE, MapRole.STATS}
        assert (before.id == after.id, before.pin == after.pin) == (kept, kept)


def test_reuse_of_a_map_that_is_gone_fails_and_leaves_nothing(lab: Lab) -> None:
    before = lab.pins()
    with pytest.raises(KernelError):
        lab.load(reuse=True)
    assert lab.pins() == before


def test_a_taken_path_fails_and_leaves_nothing(lab: Lab) -> None:
    loaded = lab.load()
    before, identity = lab.pins(), lab.kernel.first_program(loaded.name)
    with pytest.raises(KernelError):
        lab.load()
    assert lab.pins() == before
    assert lab.kernel.first_program(loaded.name) == identity


def test_a_rejected_member_fails_with_its_log_and_leaves_nothing(lab: Lab) -> None:
    before = lab.pins()
    programs = set(lab.look().programs)
    wanted, packages = lab.generation(broken=True)
    with pytest.raises(VerifierError) as caught:
        lab.kernel.load(wanted, packages)
    assert "invalid" in caught.value.log
    assert lab.pins() == before
    assert eventually(lambda: set(lab.look().programs) <= programs)
    with pytest.raises(KernelError):
        lab.kernel.first_program(wanted.name)


def test_a_package_that_is_not_there_fails_and_leaves_nothing(lab: Lab) -> None:
    before = lab.pins()
    wanted, _ = lab.generation()
    with pytest.raises(KernelError):
        lab.kernel.load(wanted, {})
    assert lab.pins() == before


def test_unload_removes_and_does_not_mind_what_is_gone(lab: Lab) -> None:
    before = lab.pins()
    loaded = lab.load()
    lab.kernel.unload((*pins_of(loaded), "gen/never_0/p00"))
    assert lab.pins() == before
    ids = {each.identity.id for each in loaded.programs}
    assert eventually(lambda: not ids & set(lab.look().programs))
    lab.kernel.unload(pins_of(loaded))
    lab.load()


# === attaching =============================================================================================


def test_what_is_attached_is_seen(lab: Lab) -> None:
    scene = Scene.make(lab)
    owned, seen = scene.owned, lab.look(scene.point.netns)
    state = seen.hooks[scene.point]
    (here,) = state.attachments
    assert state == lab.kernel.read_hook(scene.point)
    assert state.settled
    assert (here.kind, here.program_id) == (lab.way.attach_kind, first(scene.loaded).id)
    assert (owned.kind, owned.generation, owned.point) == (here.kind, scene.loaded.name, scene.point)
    assert (owned.link_id, owned.filter, owned.mode) == (here.link_id, here.filter, here.mode)
    assert owned.gap is None
    assert owned.mode == (lab.way.mode.value if lab.way.kind is HookKind.XDP else None)
    assert lab.kernel.attachment_alive(owned, first(scene.loaded))


@only(AttachKind.XDP_LINK, AttachKind.TCX_LINK)
def test_a_link_is_pinned_and_known(lab: Lab) -> None:
    scene = Scene.make(lab)
    seen = lab.look(scene.point.netns)
    assert [pin.id for pin in seen.pins if (pin.path, pin.kind) == (scene.owned.pin, PinKind.LINK)] == [
        scene.owned.link_id
    ]
    link = seen.links[scene.owned.link_id or 0]
    assert (link.type, link.program_id) == (lab.way.attach_kind.split("-")[0], first(scene.loaded).id)
    assert link.ifindex == scene.point.ifindex


@only(AttachKind.CLSACT_FILTER)
def test_a_filter_makes_and_remembers_the_qdisc(lab: Lab) -> None:
    scene = Scene.make(lab)
    assert scene.owned.made_qdisc
    assert scene.owned.filter is not None
    assert (scene.owned.filter.prio, scene.owned.filter.handle) == (OUR_PRIO, OUR_HANDLE)
    assert scene.owned.filter.parent == PARENTS[scene.point.kind]
    assert lab.kernel.read_hook(scene.point).clsact == "clsact"
    assert lab.kernel.read_hook(scene.point).attachments[0].direct_action


def test_packets_pass_every_member(lab: Lab) -> None:
    scene = Scene.make(lab)
    assert_runs(lab, scene.point, scene.loaded)
    (stats, _) = lab.kernel.stats(scene.loaded)
    assert set(stats.counters) == {"seen", "passed", "dropped", "redirected", "aborted", "broken"}
    assert stats.counters["broken"] == (0, 0)
    assert stats.counters["seen"][1] >= 5 * 60


def test_one_generation_serves_many_interfaces(lab: Lab) -> None:
    netns = lab.namespace()
    lab.interface(netns, "if0")
    lab.interface(netns, "if1")
    loaded = lab.load()
    for name in ("if0", "if1"):
        lab.attach(lab.point(netns, name), loaded)
    for name in ("if0", "if1"):
        assert_runs(lab, lab.point(netns, name), loaded)


@pytest.mark.parametrize("via", ["link", "netlink"])
@pytest.mark.parametrize("mode", [XdpMode.NATIVE, XdpMode.GENERIC])
@only(AttachKind.XDP_LINK)
def test_an_occupied_xdp_hook_stays_as_it_is(lab: Lab, via: Literal["link", "netlink"], mode: XdpMode) -> None:
    point, loaded = lab.place(), lab.load()
    foreign = lab.foreign_xdp(point, via, mode)
    pins = lab.pins()
    with pytest.raises(OccupiedError):
        lab.attach(point, loaded)
    assert lab.kernel.read_hook(point).attachments == (foreign,)
    assert lab.pins() == pins


@pytest.mark.parametrize("via", ["link", "netlink"])
@pytest.mark.parametrize("mode", [XdpMode.NATIVE, XdpMode.GENERIC])
@only(AttachKind.XDP_LINK)
def test_a_foreign_occupant_is_displaced_by_the_switch(
    lab: Lab, via: Literal["link", "netlink"], mode: XdpMode
) -> None:
    point, loaded = lab.place(), lab.load()
    foreign = lab.foreign_xdp(point, via, mode)
    owned = lab.attach(point, loaded, displace=foreign)
    (here,) = lab.kernel.read_hook(point).attachments
    assert (here.kind, here.program_id, here.link_id) == (AttachKind.XDP_LINK, first(loaded).id, owned.link_id)
    assert here.mode == lab.way.mode
    assert owned.gap is not None
    assert 0 <= owned.gap < SETTLE_SECONDS
    assert_runs(lab, point, loaded)


@pytest.mark.parametrize("via", ["link", "netlink"])
@only(AttachKind.XDP_LINK)
def test_another_occupant_than_the_planned_one_is_not_displaced(lab: Lab, via: Literal["link", "netlink"]) -> None:
    point, loaded = lab.place(), lab.load()
    planned = lab.foreign_xdp(point, via, lab.way.mode)
    lab.remove_foreign(point, planned)
    other = lab.foreign_xdp(point, via, lab.way.mode)
    with pytest.raises(StaleError):
        lab.attach(point, loaded, displace=planned)
    assert lab.kernel.read_hook(point).attachments == (other,)


@only(AttachKind.XDP_LINK)
def test_displacing_an_occupant_that_went_by_itself_is_stale(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    planned = lab.foreign_xdp(point, "netlink", lab.way.mode)
    lab.remove_foreign(point, planned)
    with pytest.raises(StaleError):
        lab.attach(point, loaded, displace=planned)
    assert lab.kernel.read_hook(point).attachments == ()


@only(AttachKind.XDP_LINK)
def test_auto_takes_native_where_the_driver_can(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    assert lab.attach(point, loaded, mode=XdpMode.AUTO).mode == "native"
    loopback = lab.point(point.netns, "lo")
    assert lab.attach(loopback, loaded, mode=XdpMode.AUTO).mode == "generic"


@only(AttachKind.XDP_LINK)
def test_native_where_the_driver_cannot_is_not_supported(lab: Lab) -> None:
    point, loaded = lab.point(lab.namespace(), "lo"), lab.load()
    with pytest.raises(NotSupportedError):
        lab.attach(point, loaded, mode=XdpMode.NATIVE)
    assert lab.kernel.read_hook(point).attachments == ()


@pytest.mark.parametrize("via", ["link", "prog"])
@only(AttachKind.TCX_LINK)
def test_we_run_before_foreign_tcx_programs_and_leave_them(lab: Lab, via: Literal["link", "prog"]) -> None:
    point, loaded = lab.place(), lab.load()
    foreign = lab.foreign_tcx(point, via, "head")
    lab.attach(point, loaded)
    attachments = lab.kernel.read_hook(point).attachments
    assert [each.program_id for each in attachments] == [first(loaded).id, foreign.program_id]
    assert attachments[1] == foreign


@only(AttachKind.TCX_LINK)
def test_another_revision_is_stale(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    step = lab.attach_step(point, loaded)
    foreign = lab.foreign_tcx(point, "link")
    with pytest.raises(StaleError):
        lab.kernel.attach(step, first(loaded))
    assert lab.kernel.read_hook(point).attachments == (foreign,)
    assert step.pin not in lab.pins()


@only(AttachKind.CLSACT_FILTER)
def test_where_tcx_is_not_there_it_is_not_supported_and_not_seen(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    step = Attach(point=point, generation=loaded.name, kind=AttachKind.TCX_LINK, reason="test", pin="links/x")
    with pytest.raises(NotSupportedError):
        lab.kernel.attach(step, first(loaded))
    assert lab.kernel.read_hook(point).revision is None


@only(AttachKind.CLSACT_FILTER)
def test_foreign_filters_and_their_qdisc_stay(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    foreign = lab.foreign_filter(point)
    owned = lab.attach(point, loaded)
    assert not owned.made_qdisc
    assert programs_on(lab, point) == [first(loaded).id, foreign.program_id]
    lab.kernel.detach(detach_step(owned))
    assert lab.kernel.read_hook(point).attachments == (foreign,)


@only(AttachKind.CLSACT_FILTER)
def test_a_filter_that_is_taken_is_not_overwritten(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    foreign = lab.foreign_filter(point, prio=OUR_PRIO, handle=OUR_HANDLE)
    with pytest.raises(KernelError):
        lab.attach(point, loaded)
    assert lab.kernel.read_hook(point).attachments == (foreign,)


@only(AttachKind.CLSACT_FILTER)
def test_a_foreign_ingress_qdisc_is_left_alone(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    step = lab.attach_step(point, loaded)
    lab.foreign_ingress_qdisc(point)
    assert lab.kernel.read_hook(point).clsact == "ingress"
    with pytest.raises(OccupiedError):
        lab.kernel.attach(step, first(loaded))
    state = lab.kernel.read_hook(point)
    assert (state.clsact, state.attachments) == ("ingress", ())


@only(AttachKind.TCX_LINK)
def test_clsact_filters_are_seen_behind_tcx(lab: Lab) -> None:
    scene = Scene.make(lab)
    filters = [lab.foreign_filter(scene.point, prio=prio) for prio in (300, 200)]
    state = lab.kernel.read_hook(scene.point)
    assert [each.program_id for each in state.attachments] == [
        first(scene.loaded).id,
        filters[1].program_id,
        filters[0].program_id,
    ]
    assert state.clsact == "clsact"


def test_attaching_another_program_than_the_planned_one_is_stale(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    step = lab.attach_step(point, loaded)
    planned = first(loaded)
    with pytest.raises(StaleError):
        lab.kernel.attach(step, Identity(id=planned.id, load_time=planned.load_time + 1))
    assert lab.kernel.read_hook(point).attachments == ()


def test_attaching_where_the_interface_is_gone_is_stale_and_leaves_nothing(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    step = lab.attach_step(point, loaded)
    lab.remove_interface(point.netns, point.interface)
    pins = lab.pins()
    with pytest.raises(StaleError):
        lab.kernel.attach(step, first(loaded))
    assert lab.pins() == pins


@only(AttachKind.XDP_LINK, AttachKind.TCX_LINK)
def test_attaching_to_a_taken_pin_leaves_nothing(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    with pytest.raises(KernelError):
        lab.attach(point, loaded, pin=loaded.programs[1].pin)
    assert eventually(lambda: lab.kernel.read_hook(point).attachments == ())


# === switching =============================================================================================


def test_a_switch_keeps_the_attachment_and_changes_the_program(lab: Lab) -> None:
    scene = Scene.make(lab)
    assert_runs(lab, scene.point, scene.loaded)
    new = lab.load(text="b", reuse=True)
    owned = lab.kernel.switch(switch_step(scene.owned, scene.loaded, new), first(new))
    assert owned == replace(scene.owned, generation=new.name, made_qdisc=owned.made_qdisc)
    (here,) = lab.kernel.read_hook(scene.point).attachments
    assert (here.program_id, here.link_id, here.filter) == (first(new).id, owned.link_id, owned.filter)
    assert lab.kernel.attachment_alive(owned, first(new))
    assert not lab.kernel.attachment_alive(owned, first(scene.loaded))
    lab.kernel.drain()
    lab.kernel.unload(tuple(set(pins_of(scene.loaded)) - set(pins_of(new))))
    assert_runs(lab, scene.point, new)


def test_a_switch_back_restores(lab: Lab) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    owned = lab.kernel.switch(switch_step(scene.owned, scene.loaded, new), first(new))
    back = lab.kernel.switch(switch_step(owned, new, scene.loaded), first(scene.loaded))
    assert (back.generation, back.link_id, back.filter) == (
        scene.loaded.name,
        scene.owned.link_id,
        scene.owned.filter,
    )
    assert programs_on(lab, scene.point) == [first(scene.loaded).id]


def test_a_switch_from_another_program_is_stale(lab: Lab) -> None:
    scene = Scene.make(lab)
    new, third = lab.load(text="b", reuse=True), lab.load(text="c", reuse=True)
    step = replace(switch_step(scene.owned, scene.loaded, new), program=first(third))
    with pytest.raises(StaleError):
        lab.kernel.switch(step, first(new))
    assert programs_on(lab, scene.point) == [first(scene.loaded).id]


def test_a_switch_to_another_program_than_the_planned_one_is_stale(lab: Lab) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    with pytest.raises(StaleError):
        lab.kernel.switch(switch_step(scene.owned, scene.loaded, new), first(scene.loaded))
    assert programs_on(lab, scene.point) == [first(scene.loaded).id]


@pytest.mark.parametrize("how", ["detach", "replace"])
def test_a_switch_of_what_somebody_tampered_with_is_stale(lab: Lab, how: Literal["detach", "replace"]) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    lab.tamper(how, scene.owned)
    before = lab.kernel.read_hook(scene.point).attachments
    with pytest.raises(StaleError):
        lab.kernel.switch(switch_step(scene.owned, scene.loaded, new), first(new))
    assert lab.kernel.read_hook(scene.point).attachments == before
    assert not lab.kernel.attachment_alive(scene.owned, first(scene.loaded))


@only(AttachKind.XDP_LINK, AttachKind.TCX_LINK)
def test_a_switch_of_a_link_without_its_pin_is_stale(lab: Lab) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    lab.unpin(scene.owned.pin or "")
    with pytest.raises(StaleError):
        lab.kernel.switch(switch_step(scene.owned, scene.loaded, new), first(new))
    assert eventually(lambda: programs_on(lab, scene.point) == [])


def test_a_switch_on_an_interface_that_vanished_is_stale(lab: Lab) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    lab.remove_interface(scene.point.netns, scene.point.interface)
    with pytest.raises(StaleError):
        lab.kernel.switch(switch_step(scene.owned, scene.loaded, new), first(new))


@only(AttachKind.TCX_LINK, AttachKind.CLSACT_FILTER)
def test_a_switch_leaves_foreign_programs(lab: Lab) -> None:
    point, old = lab.place(), lab.load()
    foreign = lab.foreign(point)
    owned = lab.attach(point, old)
    new = lab.load(text="b", reuse=True)
    lab.kernel.switch(switch_step(owned, old, new), first(new))
    assert programs_on(lab, point) == [first(new).id, foreign.program_id]


@pytest.mark.parametrize("target", [XdpMode.NATIVE, XdpMode.GENERIC])
@only(AttachKind.XDP_LINK)
def test_a_change_of_mode_is_a_measured_gap(lab: Lab, target: XdpMode) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    step = change_mode_step(scene, new, target)
    owned, gap = lab.kernel.change_mode(step, first(new))
    (here,) = lab.kernel.read_hook(scene.point).attachments
    assert (here.mode, here.program_id, here.link_id) == (target.value, first(new).id, owned.link_id)
    assert (owned.mode, owned.pin, owned.generation) == (target.value, scene.owned.pin, new.name)
    assert 0 < gap < SETTLE_SECONDS
    assert [pin.id for pin in lab.look().pins if pin.path == owned.pin] == [owned.link_id]
    assert_runs(lab, scene.point, new)


@only(AttachKind.XDP_LINK)
def test_a_change_of_mode_of_a_detached_link_is_stale(lab: Lab) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    lab.tamper("detach", scene.owned)
    with pytest.raises(StaleError):
        lab.kernel.change_mode(change_mode_step(scene, new, XdpMode.GENERIC), first(new))


def change_mode_step(scene: Scene, new: LoadedGeneration, mode: XdpMode) -> ChangeMode:
    return ChangeMode(
        point=scene.point,
        generation=new.name,
        old=scene.loaded.name,
        pin=scene.owned.pin or "",
        link_id=scene.owned.link_id or 0,
        mode=mode,
        old_mode=XdpMode(scene.owned.mode or ""),
        reason="test",
    )


# === detaching =============================================================================================


def test_detach_takes_all_of_it_and_can_be_repeated(lab: Lab) -> None:
    scene = Scene.make(lab)
    for _ in range(2):
        lab.kernel.detach(detach_step(scene.owned))
        state = lab.kernel.read_hook(scene.point)
        assert (state.attachments, state.clsact) == ((), "none")
        assert scene.owned.pin not in lab.pins()
    assert set(pins_of(scene.loaded)) <= lab.pins()
    assert not lab.kernel.attachment_alive(scene.owned, first(scene.loaded))


def test_detach_of_a_link_that_somebody_detached_removes_the_pin(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.tamper("detach", scene.owned)
    lab.kernel.detach(detach_step(scene.owned))
    assert scene.owned.pin not in lab.pins()
    assert eventually(lambda: scene.owned.link_id not in lab.look().links)


@only(AttachKind.XDP_LINK, AttachKind.TCX_LINK)
def test_a_pin_that_somebody_took_over_is_not_ours_to_remove(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.steal(scene.owned.pin or "")
    with pytest.raises(StaleError):
        lab.kernel.detach(detach_step(scene.owned))
    assert scene.owned.pin in lab.pins()
    with pytest.raises(StaleError):
        lab.kernel.switch(switch_step(scene.owned, scene.loaded, scene.loaded), first(scene.loaded))


def test_a_first_program_that_somebody_took_over_is_not_attached(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    step = lab.attach_step(point, loaded)
    lab.steal(loaded.programs[0].pin)
    with pytest.raises(StaleError):
        lab.kernel.attach(step, first(loaded))
    assert programs_on(lab, point) == []


def test_detach_where_the_interface_is_gone_removes_the_pin(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.remove_interface(scene.point.netns, scene.point.interface)
    lab.kernel.detach(detach_step(scene.owned))
    assert scene.owned.pin not in lab.pins()


def test_detach_where_the_namespace_is_gone_removes_the_pin(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.remove_namespace(scene.point.netns)
    lab.kernel.detach(detach_step(scene.owned))
    assert scene.owned.pin not in lab.pins()


@only(AttachKind.CLSACT_FILTER)
def test_the_qdisc_stays_while_somebody_uses_it(lab: Lab) -> None:
    scene = Scene.make(lab)
    foreign = lab.foreign_filter(scene.point)
    lab.kernel.detach(detach_step(scene.owned))
    state = lab.kernel.read_hook(scene.point)
    assert (state.clsact, state.attachments) == ("clsact", (foreign,))


@only(AttachKind.CLSACT_FILTER)
def test_a_filter_that_somebody_replaced_is_not_ours_to_detach(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.tamper("replace", scene.owned)
    before = lab.kernel.read_hook(scene.point).attachments
    with pytest.raises(StaleError):
        lab.kernel.detach(detach_step(scene.owned))
    assert lab.kernel.read_hook(scene.point).attachments == before


# === evicting ==============================================================================================


@pytest.mark.parametrize("via", ["link", "netlink"])
@pytest.mark.parametrize("mode", [XdpMode.NATIVE, XdpMode.GENERIC])
@only(AttachKind.XDP_LINK)
def test_a_foreign_xdp_program_is_evicted_and_then_it_is_stale(
    lab: Lab, via: Literal["link", "netlink"], mode: XdpMode
) -> None:
    point = lab.place()
    foreign = lab.foreign_xdp(point, via, mode)
    kind = AttachKind.XDP_LINK if via == "link" else AttachKind.XDP_NETLINK
    assert (foreign.kind, foreign.mode, foreign.link_id is None) == (kind, mode.value, via == "netlink")
    assert_evicts(lab, point, lab.look(point.netns))


@pytest.mark.parametrize("via", ["link", "prog"])
@only(AttachKind.TCX_LINK)
def test_a_foreign_tcx_program_is_evicted_and_ours_stays(lab: Lab, via: Literal["link", "prog"]) -> None:
    scene = Scene.make(lab)
    foreign = lab.foreign_tcx(scene.point, via, "head")
    kind = AttachKind.TCX_LINK if via == "link" else AttachKind.TCX_PROG
    assert (foreign.kind, foreign.link_id is None) == (kind, via == "prog")
    assert_evicts(lab, scene.point, lab.look(scene.point.netns))
    assert programs_on(lab, scene.point) == [first(scene.loaded).id]


@only(AttachKind.CLSACT_FILTER, AttachKind.TCX_LINK)
def test_a_foreign_filter_is_evicted_and_ours_stays(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.foreign_filter(scene.point)
    assert_evicts(lab, scene.point, lab.look(scene.point.netns), index=1)
    assert programs_on(lab, scene.point) == [first(scene.loaded).id]


def assert_evicts(lab: Lab, point: HookPoint, seen: Snapshot, *, index: int = 0) -> None:
    foreign = seen.hooks[point].attachments[index]
    step = evict_step(seen, point, foreign)
    lab.kernel.evict(step)
    assert foreign not in lab.kernel.read_hook(point).attachments
    with pytest.raises(StaleError):
        lab.kernel.evict(step)


def test_another_occupant_than_the_planned_one_is_not_evicted(lab: Lab) -> None:
    point = lab.place()
    planned = lab.foreign(point)
    step = evict_step(lab.look(point.netns), point, planned)
    lab.remove_foreign(point, planned)
    other = lab.foreign(point)
    with pytest.raises(StaleError):
        lab.kernel.evict(step)
    assert lab.kernel.read_hook(point).attachments == (other,)


def test_a_recycled_program_id_is_not_evicted(lab: Lab) -> None:
    point = lab.place()
    foreign = lab.foreign(point)
    step = evict_step(lab.look(point.netns), point, foreign)
    older = replace(step, program=replace(step.program, load_time=step.program.load_time - 1))
    with pytest.raises(StaleError):
        lab.kernel.evict(older)
    assert lab.kernel.read_hook(point).attachments == (foreign,)


# === pins ==================================================================================================


def test_a_pin_that_somebody_removed_is_made_again(lab: Lab) -> None:
    scene = Scene.make(lab)
    array = next(each for each in scene.loaded.maps if each.role is MapRole.NEXT)
    program = scene.loaded.programs[0]
    wanted = [(array.pin, PinKind.MAP, Identity(id=array.id)), (program.pin, PinKind.PROGRAM, program.identity)]
    for path, kind, identity in wanted:
        lab.unpin(path)
        assert path not in lab.pins()
        lab.kernel.repin(path, kind, identity)
        assert {pin.id for pin in lab.look().pins if (pin.path, pin.kind) == (path, kind)} == {identity.id}
    assert_runs(lab, scene.point, scene.loaded)


def test_pinning_what_is_gone_is_stale(lab: Lab) -> None:
    loaded = lab.load()
    program = loaded.programs[0]
    lab.kernel.unload(pins_of(loaded))
    assert eventually(lambda: program.identity.id not in lab.look().programs)
    with pytest.raises(StaleError):
        lab.kernel.repin(program.pin, PinKind.PROGRAM, program.identity)


def test_pinning_another_program_of_that_id_is_stale(lab: Lab) -> None:
    loaded = lab.load()
    program = loaded.programs[0]
    older = replace(program.identity, load_time=program.identity.load_time - 1)
    lab.unpin(loaded.programs[1].pin)
    with pytest.raises(StaleError):
        lab.kernel.repin(loaded.programs[1].pin, PinKind.PROGRAM, older)


# === interfaces and namespaces that change =================================================================


@only(AttachKind.XDP_LINK, AttachKind.TCX_LINK)
def test_a_link_whose_interface_is_gone_is_defunct(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.remove_interface(scene.point.netns, scene.point.interface)
    seen = lab.look(scene.point.netns)
    assert seen.links[scene.owned.link_id or 0].ifindex == 0
    assert scene.owned.pin in {pin.path for pin in seen.pins}
    assert scene.point not in seen.hooks
    assert not lab.kernel.attachment_alive(scene.owned, first(scene.loaded))
    lab.kernel.unload((scene.owned.pin or "",))
    assert scene.owned.pin not in lab.pins()


def test_attachments_follow_a_renamed_interface(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.rename(scene.point.netns, "if0", "renamed.100")
    renamed = lab.point(scene.point.netns, "renamed.100")
    assert (renamed, renamed.key) == (scene.point, scene.point.key)
    assert programs_on(lab, scene.point) == [first(scene.loaded).id]
    assert lab.kernel.attachment_alive(scene.owned, first(scene.loaded))
    new = lab.load(text="b", reuse=True)
    lab.kernel.switch(switch_step(scene.owned, scene.loaded, new), first(new))
    lab.kernel.detach(detach_step(replace(scene.owned, generation=new.name)))
    assert programs_on(lab, renamed) == []


def test_equal_ifindexes_of_two_namespaces_are_told_apart(lab: Lab) -> None:
    one, two = lab.place(), lab.place()
    assert one.ifindex == two.ifindex
    assert one != two
    loaded = lab.load()
    owned = lab.attach(two, loaded)
    seen = lab.look(one.netns, two.netns)
    assert seen.hooks[one].attachments == ()
    assert [each.program_id for each in seen.hooks[two].attachments] == [first(loaded).id]
    assert not lab.kernel.attachment_alive(replace(owned, point=one), first(loaded))
    lab.attach(one, loaded)
    lab.kernel.detach(detach_step(owned))
    assert (programs_on(lab, one), programs_on(lab, two)) == ([first(loaded).id], [])


def test_what_is_in_a_namespace_that_went_is_gone(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.remove_namespace(scene.point.netns)
    assert eventually(lambda: not lab.kernel.attachment_alive(scene.owned, first(scene.loaded)))
    seen = lab.look(scene.point.netns)
    assert seen.missing == (scene.point.netns,)
    assert scene.point not in seen.hooks


# === grace periods =========================================================================================


def test_draining_says_how(lab: Lab) -> None:
    assert lab.kernel.drain() in lab.kernel.features().drain


def test_expediting_is_taken_back(lab: Lab) -> None:
    before = lab.kernel.grace_setting()
    with lab.kernel.expedite() as took:
        assert took in {True, False}
    assert lab.kernel.grace_setting() == before


def test_closing_detaches_nothing(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.kernel.close()
    lab.kernel.close()
    lab.next_process()
    assert lab.kernel.attachment_alive(scene.owned, first(scene.loaded))
    assert_runs(lab, scene.point, scene.loaded)
