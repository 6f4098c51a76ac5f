# SPDX-License-Identifier: Apache-2.0
"""Switching, and interfaces and namespaces that change meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest

from reconciler.errors import StaleError
from reconciler.model import (
    AttachKind,
    ChangeMode,
    XdpMode,
)
from tests.conformance.lab import (
    Scene,
    detach_step,
    first,
    pins_of,
    switch_step,
)
from tests.conformance.suite._common import SETTLE_SECONDS, assert_runs, eventually, only, programs_on
from tests.single import detach_one, is_alive, switch_one

if TYPE_CHECKING:
    from reconciler.model import LoadedGeneration
    from tests.conformance.lab import Lab


def test_a_switch_keeps_the_attachment_and_changes_the_program(lab: Lab) -> None:
    scene = Scene.make(lab)
    assert_runs(lab, scene.point, scene.loaded)
    new = lab.load(text="b", reuse=True)
    owned = switch_one(lab.kernel, switch_step(scene.owned, scene.loaded, new), first(new))
    assert owned == replace(scene.owned, generation=new.name, made_qdisc=owned.made_qdisc)
    (here,) = lab.kernel.read_hook(scene.point).attachments
    assert (here.program_id, here.link_id, here.filter) == (first(new).id, owned.link_id, owned.filter)
    assert is_alive(lab.kernel, owned, first(new))
    assert not is_alive(lab.kernel, owned, first(scene.loaded))
    lab.kernel.drain()
    lab.kernel.unload(tuple(set(pins_of(scene.loaded)) - set(pins_of(new))))
    assert_runs(lab, scene.point, new)


def test_a_switch_back_restores(lab: Lab) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    owned = switch_one(lab.kernel, switch_step(scene.owned, scene.loaded, new), first(new))
    back = switch_one(lab.kernel, switch_step(owned, new, scene.loaded), first(scene.loaded))
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
        switch_one(lab.kernel, step, first(new))
    assert programs_on(lab, scene.point) == [first(scene.loaded).id]


def test_a_switch_to_another_program_than_the_planned_one_is_stale(lab: Lab) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    with pytest.raises(StaleError):
        switch_one(lab.kernel, switch_step(scene.owned, scene.loaded, new), first(scene.loaded))
    assert programs_on(lab, scene.point) == [first(scene.loaded).id]


@pytest.mark.parametrize("how", ["detach", "replace"])
def test_a_switch_of_what_somebody_tampered_with_is_stale(lab: Lab, how: Literal["detach", "replace"]) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    lab.tamper(how, scene.owned)
    before = lab.kernel.read_hook(scene.point).attachments
    with pytest.raises(StaleError):
        switch_one(lab.kernel, switch_step(scene.owned, scene.loaded, new), first(new))
    assert lab.kernel.read_hook(scene.point).attachments == before
    assert not is_alive(lab.kernel, scene.owned, first(scene.loaded))


@only(AttachKind.XDP_LINK, AttachKind.TCX_LINK)
def test_a_switch_of_a_link_without_its_pin_is_stale(lab: Lab) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    lab.unpin(scene.owned.pin or "")
    with pytest.raises(StaleError):
        switch_one(lab.kernel, switch_step(scene.owned, scene.loaded, new), first(new))
    assert eventually(lambda: programs_on(lab, scene.point) == [])


def test_a_switch_on_an_interface_that_vanished_is_stale(lab: Lab) -> None:
    scene = Scene.make(lab)
    new = lab.load(text="b", reuse=True)
    lab.remove_interface(scene.point.netns, scene.point.interface)
    with pytest.raises(StaleError):
        switch_one(lab.kernel, switch_step(scene.owned, scene.loaded, new), first(new))


@only(AttachKind.TCX_LINK, AttachKind.CLSACT_FILTER)
def test_a_switch_leaves_foreign_programs(lab: Lab) -> None:
    point, old = lab.place(), lab.load()
    foreign = lab.foreign(point)
    owned = lab.attach(point, old)
    new = lab.load(text="b", reuse=True)
    switch_one(lab.kernel, switch_step(owned, old, new), first(new))
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


@only(AttachKind.XDP_LINK, AttachKind.TCX_LINK)
def test_a_link_whose_interface_is_gone_is_defunct(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.remove_interface(scene.point.netns, scene.point.interface)
    seen = lab.look(scene.point.netns)
    assert seen.links[scene.owned.link_id or 0].ifindex == 0
    assert scene.owned.pin in {pin.path for pin in seen.pins}
    assert scene.point not in seen.hooks
    assert not is_alive(lab.kernel, scene.owned, first(scene.loaded))
    lab.kernel.unload((scene.owned.pin or "",))
    assert scene.owned.pin not in lab.pins()


def test_attachments_follow_a_renamed_interface(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.rename(scene.point.netns, "if0", "renamed.100")
    renamed = lab.point(scene.point.netns, "renamed.100")
    assert (renamed, renamed.key) == (scene.point, scene.point.key)
    assert programs_on(lab, scene.point) == [first(scene.loaded).id]
    assert is_alive(lab.kernel, scene.owned, first(scene.loaded))
    new = lab.load(text="b", reuse=True)
    switch_one(lab.kernel, switch_step(scene.owned, scene.loaded, new), first(new))
    detach_one(lab.kernel, detach_step(replace(scene.owned, generation=new.name)))
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
    assert not is_alive(lab.kernel, replace(owned, point=one), first(loaded))
    lab.attach(one, loaded)
    detach_one(lab.kernel, detach_step(owned))
    assert (programs_on(lab, one), programs_on(lab, two)) == ([first(loaded).id], [])


def test_what_is_in_a_namespace_that_went_is_gone(lab: Lab) -> None:
    scene = Scene.make(lab)
    lab.remove_namespace(scene.point.netns)
    assert eventually(lambda: not is_alive(lab.kernel, scene.owned, first(scene.loaded)))
    seen = lab.look(scene.point.netns)
    assert seen.missing == (scene.point.netns,)
    assert scene.point not in seen.hooks
