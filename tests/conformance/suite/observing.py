# SPDX-License-Identifier: Apache-2.0
"""Features, namespaces, interfaces, grace periods."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from reconciler.errors import KernelError
from reconciler.kernel import Scope
from reconciler.model import (
    AttachKind,
    HookKind,
    Support,
)
from tests.conformance.lab import (
    Scene,
    first,
)
from tests.conformance.suite._common import assert_runs
from tests.single import is_alive

if TYPE_CHECKING:
    from tests.conformance.lab import Lab


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
    assert is_alive(lab.kernel, scene.owned, first(scene.loaded))
    assert_runs(lab, scene.point, scene.loaded)
