# SPDX-License-Identifier: Apache-2.0
"""Detaching what is ours, evicting what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest

from reconciler.errors import StaleError
from reconciler.model import (
    AttachKind,
    XdpMode,
)
from tests.conformance.lab import (
    Scene,
    detach_step,
    evict_step,
    first,
    pins_of,
    switch_step,
)
from tests.conformance.suite._common import eventually, only, programs_on
from tests.single import attach_one, detach_one, is_alive, switch_one

if TYPE_CHECKING:
    from reconciler.model import HookPoint, Snapshot
    from tests.conformance.lab import Lab


def test_detach_takes_all_of_it_and_can_be_repeated(lab: Lab) -> None:
    scene = Scene.make(lab)
    for _ in range(2):
        detach_one(lab.kernel, detach_step(scene.owned))
        state = lab.kernel.read_hook(scene.point)
        assert (state.attachments, state.clsact) == ((), "none")
        assert scene.owned.pin not in lab.pins()
    assert set(pins_of(scene.loaded)) <= lab.pins()
    assert not is_alive(lab.kernel, scene.owned, first(scene.loaded))


def test_detach_of_a_link_that_somebody_detached_removes_the_pin(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.tamper("detach", scene.owned)
    detach_one(lab.kernel, detach_step(scene.owned))
    assert scene.owned.pin not in lab.pins()
    assert eventually(lambda: scene.owned.link_id not in lab.look().links)


@only(AttachKind.XDP_LINK, AttachKind.TCX_LINK)
def test_a_pin_that_somebody_took_over_is_not_ours_to_remove(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.steal(scene.owned.pin or "")
    with pytest.raises(StaleError):
        detach_one(lab.kernel, detach_step(scene.owned))
    assert scene.owned.pin in lab.pins()
    with pytest.raises(StaleError):
        switch_one(lab.kernel, switch_step(scene.owned, scene.loaded, scene.loaded), first(scene.loaded))


def test_a_first_program_that_somebody_took_over_is_not_attached(lab: Lab) -> None:
    point, loaded = lab.place(), lab.load()
    step = lab.attach_step(point, loaded)
    lab.steal(loaded.programs[0].pin)
    with pytest.raises(StaleError):
        attach_one(lab.kernel, step, first(loaded))
    assert programs_on(lab, point) == []


def test_detach_where_the_interface_is_gone_removes_the_pin(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.remove_interface(scene.point.netns, scene.point.interface)
    detach_one(lab.kernel, detach_step(scene.owned))
    assert scene.owned.pin not in lab.pins()


def test_detach_where_the_namespace_is_gone_removes_the_pin(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.remove_namespace(scene.point.netns)
    detach_one(lab.kernel, detach_step(scene.owned))
    assert scene.owned.pin not in lab.pins()


@only(AttachKind.CLSACT_FILTER)
def test_the_qdisc_stays_while_somebody_uses_it(lab: Lab) -> None:
    scene = Scene.make(lab)
    foreign = lab.foreign_filter(scene.point)
    detach_one(lab.kernel, detach_step(scene.owned))
    state = lab.kernel.read_hook(scene.point)
    assert (state.clsact, state.attachments) == ("clsact", (foreign,))


@only(AttachKind.CLSACT_FILTER)
def test_a_filter_that_somebody_replaced_is_not_ours_to_detach(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.tamper("replace", scene.owned)
    before = lab.kernel.read_hook(scene.point).attachments
    with pytest.raises(StaleError):
        detach_one(lab.kernel, detach_step(scene.owned))
    assert lab.kernel.read_hook(scene.point).attachments == before


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
