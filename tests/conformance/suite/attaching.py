# SPDX-License-Identifier: Apache-2.0
"""Attaching, and displacing on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest

from reconciler.errors import KernelError, NotSupportedError, OccupiedError, StaleError
from reconciler.model import (
    Attach,
    AttachKind,
    HookKind,
    Identity,
    PinKind,
    XdpMode,
)
from tests.conformance.lab import (
    OUR_HANDLE,
    OUR_PRIO,
    PARENTS,
    Scene,
    detach_step,
    first,
)
from tests.conformance.suite._common import SETTLE_SECONDS, assert_runs, eventually, only, programs_on
from tests.single import attach_one, detach_one, is_alive

if TYPE_CHECKING:
    from tests.conformance.lab import Lab


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
    assert is_alive(lab.kernel, owned, first(scene.loaded))


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
        attach_one(lab.kernel, step, first(loaded))
    assert lab.kernel.read_hook(point).attachments == (foreign,)
    assert step.pin not in lab.pins()


@only(AttachKind.CLSACT_FILTER)
def test_where_tcx_is_not_there_it_is_not_supported_and_not_seen(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    step = Attach(point=point, generation=loaded.name, kind=AttachKind.TCX_LINK, reason="test", pin="links/x")
    with pytest.raises(NotSupportedError):
        attach_one(lab.kernel, step, first(loaded))
    assert lab.kernel.read_hook(point).revision is None


@only(AttachKind.CLSACT_FILTER)
def test_foreign_filters_and_their_qdisc_stay(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    foreign = lab.foreign_filter(point)
    owned = lab.attach(point, loaded)
    assert not owned.made_qdisc
    assert programs_on(lab, point) == [first(loaded).id, foreign.program_id]
    detach_one(lab.kernel, detach_step(owned))
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
        attach_one(lab.kernel, step, first(loaded))
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
        attach_one(lab.kernel, step, Identity(id=planned.id, load_time=planned.load_time + 1))
    assert lab.kernel.read_hook(point).attachments == ()


def test_attaching_where_the_interface_is_gone_is_stale_and_leaves_nothing(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    step = lab.attach_step(point, loaded)
    lab.remove_interface(point.netns, point.interface)
    pins = lab.pins()
    with pytest.raises(StaleError):
        attach_one(lab.kernel, step, first(loaded))
    assert lab.pins() == pins


@only(AttachKind.XDP_LINK, AttachKind.TCX_LINK)
def test_attaching_to_a_taken_pin_leaves_nothing(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    with pytest.raises(KernelError):
        lab.attach(point, loaded, pin=loaded.programs[1].pin)
    assert eventually(lambda: lab.kernel.read_hook(point).attachments == ())


@only(AttachKind.XDP_LINK, AttachKind.TCX_LINK)
def test_a_batch_ends_at_the_first_step_that_fails(lab: Lab) -> None:
    loaded, points = lab.load(), [lab.place(name) for name in ("if0", "if1", "if2")]
    steps = [lab.attach_step(point, loaded) for point in points]
    others = {"somebody": first(loaded)} | {loaded.name: first(loaded)}
    steps[1] = replace(steps[1], generation="somebody")
    progress = lab.kernel.attach(steps, others)
    assert [owned.point for owned in progress.done] == points[:1]
    assert isinstance(progress.error, KernelError)
    assert [programs_on(lab, point) for point in points] == [[first(loaded).id], [], []]
    again = lab.kernel.attach([steps[0], steps[2]], others)
    assert again.done == ()
    assert again.error is not None
    rest = lab.kernel.attach([replace(steps[1], generation=loaded.name), steps[2]], others)
    assert rest.error is None
    everything = (*progress.done, *rest.done)
    assert lab.kernel.not_alive(everything, others) == ()
    gone = lab.kernel.detach([detach_step(owned) for owned in everything])
    assert (len(gone.done), gone.error) == (3, None)
    assert lab.kernel.not_alive(everything, others) == everything
