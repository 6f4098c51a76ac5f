# SPDX-License-Identifier: Apache-2.0
"""Whatever is declared, whatever others do, wherever it fails or dies: the next passes converge, and nobody is hurt."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from reconciler.config import SecureConfig, SecureMode, Toleration
from reconciler.errors import KernelError
from reconciler.kernel import Scope
from reconciler.model import (
    AttachKind,
    DesiredState,
    Detach,
    Evict,
    Features,
    HookKind,
    Snapshot,
    Support,
    Unload,
    XdpMode,
)
from tests.sim._objects import Crash
from tests.sim.world import World, desired, fake_world, member, tc_chain, xdp_chain

if TYPE_CHECKING:
    from reconciler.model import Attachment, Chain, HookPoint, Plan

RATED = ("ratelimit",)
INTERFACES = ("eth0", "eth1", "wan0")
CLSACT_ONLY = Features(
    xdp_link=Support.YES,
    tcx=Support.NO,
    clsact=Support.YES,
    btf=Support.YES,
    expedite=Support.YES,
    drain=("membarrier", "map-in-map"),
)

EXAMPLES = int(os.environ.get("RECONCILER_EXAMPLES", "40"))
"""Per property; more of them for a long look."""

bounded = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def chains(draw: st.DrawFn, number: int) -> Chain:
    """A chain on XDP or tc, with one to three members."""
    interfaces = tuple(
        draw(st.lists(st.sampled_from(["eth0", "eth1", "wan0", "eth*", "*"]), min_size=1, max_size=2, unique=True))
    )
    priority = 10 * (number + 1)
    if draw(st.booleans()):
        packages = draw(st.lists(st.sampled_from(["ratelimit", "firewall"]), min_size=1, max_size=3))
        members = [
            member(
                package, name=f"m{index}", params={"rate": draw(st.integers(1, 3))} if package == "ratelimit" else {}
            )
            for index, package in enumerate(packages)
        ]
        return xdp_chain(f"chain{number}", *members, interfaces=interfaces, priority=priority)
    packages = draw(st.lists(st.sampled_from(["flowcount", "firewall"]), min_size=1, max_size=3))
    direction = draw(st.sampled_from(["ingress", "egress"]))
    members = [
        member(package, name=f"m{index}", program=None if package == "flowcount" else f"firewall_{direction}")
        for index, package in enumerate(packages)
    ]
    return tc_chain(f"chain{number}", *members, direction=direction, interfaces=interfaces, priority=priority)


@st.composite
def states(draw: st.DrawFn) -> DesiredState:
    """Zero to three chains of one host."""
    return desired(*(draw(chains(number)) for number in range(draw(st.integers(0, 3)))))


features = st.sampled_from([None, CLSACT_ONLY])


def world_with(found: Features | None, **options: object) -> World:
    """A host with three interfaces, and ids that come back soon."""
    given_features = {} if found is None else {"features": found}
    return fake_world(*INTERFACES, id_limit=4096, **given_features, **options)


def whole(world: World) -> None:
    """No packet sees half a chain, nothing was unloaded under packets in flight."""
    assert world.fake.violations == []


def members_on(world: World, interface: str, kind: HookKind) -> tuple[tuple[str, str], ...]:
    """What a packet sees on a hook."""
    return world.fake.run_packet(world.fake.point(interface, kind)).members


def qdiscs(world: World) -> list[str]:
    """What sits in the place of clsact on every interface."""
    return [device.qdisc for device in world.fake.devices.values()]


def owned_pins(snapshot: Snapshot) -> set[str]:
    return {pin.path for pin in snapshot.pins}


@bounded
@given(first=states(), second=states(), found=features)
def test_every_change_converges_in_one_pass_and_a_second_is_empty(
    first: DesiredState, second: DesiredState, found: Features | None
) -> None:
    world = world_with(found)
    for state in (first, second, first):
        outcome = world.converge(state)
        assert outcome.failed is None
        assert world.plan(state).steps == ()
        whole(world)
    world.converge(desired())
    assert owned_pins(world.kernel.snapshot(Scope())) == set()
    assert set(qdiscs(world)) == {"none"}
    assert world.inventory.empty


@bounded
@given(state=states(), found=features)
def test_packets_see_exactly_the_declared_members_in_order(state: DesiredState, found: Features | None) -> None:
    world = world_with(found)
    world.converge(state)
    for interface in INTERFACES:
        for kind in HookKind:
            wanted = [
                (chain.name, entry.name)
                for chain in sorted(state.chains, key=lambda chain: chain.priority)
                if chain.hook.kind is kind and any(_glob(pattern, interface) for pattern in chain.hook.interfaces)
                for entry in chain.members
            ]
            assert list(members_on(world, interface, kind)) == wanted


def _glob(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else pattern == name


@bounded
@given(first=states(), second=states(), found=features, data=st.data())
def test_a_failure_at_any_point_undoes_the_pass_or_keeps_it_and_the_next_converges(
    first: DesiredState, second: DesiredState, found: Features | None, data: st.DataObject
) -> None:
    world = world_with(found)
    world.converge(first)
    before = {(i, k): members_on(world, i, k) for i in INTERFACES for k in HookKind}
    point = data.draw(st.integers(1, 60), label="primitive that fails")
    world.fake.fail_at(point, KernelError("injected", 5, "input/output error"))
    outcome = world.converge(second)
    world.fake.faults.clear()
    whole(world)
    if outcome.failed is not None and not outcome.undo_failures:
        after = {(i, k): members_on(world, i, k) for i in INTERFACES for k in HookKind}
        assert after == before
    world.settle(second)
    whole(world)


@bounded
@given(first=states(), second=states(), found=features, data=st.data())
def test_a_crash_at_any_point_leaves_nothing_behind_after_the_next_passes(
    first: DesiredState, second: DesiredState, found: Features | None, data: st.DataObject
) -> None:
    world = world_with(found)
    world.converge(first)
    point = data.draw(st.integers(1, 80), label="primitive at which it dies")
    world.fake.crash_at(point, when=data.draw(st.sampled_from(["before", "after"])))
    with contextlib.suppress(Crash):
        world.converge(second)
    world.restart()
    whole(world)
    again = data.draw(st.sampled_from([first, second]), label="wanted afterwards")
    world.settle(again)
    whole(world)
    fresh = world_with(found)
    fresh.settle(again)
    assert len(owned_pins(world.kernel.snapshot(Scope()))) == len(owned_pins(fresh.kernel.snapshot(Scope())))
    assert qdiscs(world) == qdiscs(fresh)
    assert [members_on(world, i, k) for i in INTERFACES for k in HookKind] == [
        members_on(fresh, i, k) for i in INTERFACES for k in HookKind
    ]
    world.settle(desired())
    assert set(qdiscs(world)) == {"none"}


@bounded
@given(state=states(), found=features, data=st.data())
def test_whatever_somebody_does_to_ours_is_mended(
    state: DesiredState, found: Features | None, data: st.DataObject
) -> None:
    world = world_with(found)
    world.converge(state)
    assume(world.inventory.attachments)
    for _ in range(data.draw(st.integers(1, 3))):
        _tamper(world, data)
    world.settle(state)
    whole_now = {str(o.point): members_on(world, o.point.interface, o.point.kind) for o in world.inventory.attachments}
    fresh = world_with(found)
    fresh.settle(state)
    assert whole_now == {
        str(o.point): members_on(fresh, o.point.interface, o.point.kind) for o in fresh.inventory.attachments
    }


def _tamper(world: World, data: st.DataObject) -> None:
    owned = data.draw(st.sampled_from(world.inventory.attachments), label="victim")
    ours = None
    with contextlib.suppress(KernelError):
        state = world.kernel.read_hook(owned.point)
        ours = next((a for a in state.attachments if a.link_id == owned.link_id and a.filter == owned.filter), None)
    match data.draw(st.sampled_from(["detach", "replace", "unpin", "recreate"]), label="deed"):
        case "detach" if ours is not None:
            world.fake.remove(owned.point, ours)
        case "replace" if ours is not None:
            world.fake.replace(owned.point, ours)
        case "unpin":
            paths = sorted(pin.path for pin in world.kernel.snapshot(Scope()).pins)
            if paths:
                world.fake.unpin(data.draw(st.sampled_from(paths), label="pin"))
        case "recreate":
            names = {device.name for device in world.fake.devices.values()}
            name = data.draw(st.sampled_from(sorted(names)))
            world.fake.recreate_interface(name)
        case _:
            pass


@bounded
@given(state=states(), found=features, data=st.data())
def test_enforce_evicts_exactly_the_foreign_ones_and_never_a_tolerated_one(
    state: DesiredState, found: Features | None, data: st.DataObject
) -> None:
    world = world_with(found)
    tolerated = Toleration(name="friend", why="test", owner="test", program_name="friend*")
    strangers = data.draw(
        st.lists(
            st.tuples(st.sampled_from(INTERFACES), st.sampled_from(list(HookKind)), st.booleans()),
            max_size=4,
            unique=True,
        )
    )
    made = []
    for interface, kind, friendly in strangers:
        point = world.fake.point(interface, kind)
        name = "friend" if friendly else "foe"
        with contextlib.suppress(KernelError):
            made.append((point, _foreign(world, point, name, found), friendly))
    world.secure = SecureConfig(mode=SecureMode.AUDIT, tolerations=(tolerated,), max_evictions=100)
    world.settle(state)
    for point, attachment, _ in made:
        assert attachment in world.kernel.read_hook(point).attachments
    world.secure = replace(world.secure, mode=SecureMode.ENFORCE)
    plan = world.plan(state)
    assert not any(_touches_friend(world, plan, point, attachment) for point, attachment, friendly in made if friendly)
    world.settle(state)
    for point, attachment, friendly in made:
        assert (attachment in world.kernel.read_hook(point).attachments) == friendly


def _foreign(world: World, point: HookPoint, name: str, found: Features | None) -> Attachment:
    if point.kind is HookKind.XDP:
        return world.fake.attach_foreign_xdp(point, name=name, mode="native")
    if found is None:
        return world.fake.attach_foreign_tcx(point, name=name)
    return world.fake.add_foreign_filter(point, name=name)


def _touches_friend(world: World, plan: Plan, point: HookPoint, attachment: Attachment) -> bool:
    for step in plan.steps:
        if isinstance(step, Evict) and step.point == point and step.attachment == attachment:
            return True
        if isinstance(step, Detach) and step.point == point and step.link_id == attachment.link_id is not None:
            return True
        if getattr(step, "displace", None) == attachment and getattr(step, "point", None) == point:
            return True
    return False


@bounded
@given(first=states(), second=states())
def test_a_hook_that_never_settles_stops_nothing_elsewhere(first: DesiredState, second: DesiredState) -> None:
    world = world_with(None)
    world.converge(first)
    point = world.fake.point("eth0", HookKind.XDP)
    before = members_on(world, "eth0", HookKind.XDP)
    world.fake.unsettled.add(point)
    world.converge(second)
    assert members_on(world, "eth0", HookKind.XDP) == before
    whole(world)
    fresh = world_with(None)
    fresh.converge(second)
    for interface in INTERFACES:
        for kind in HookKind:
            if (interface, kind) != ("eth0", HookKind.XDP):
                assert members_on(world, interface, kind) == members_on(fresh, interface, kind)


def test_a_reboot_gives_the_last_good_state_back() -> None:
    world = world_with(None)
    state = desired(xdp_chain("edge", member("ratelimit"), member("firewall"), interfaces=("eth*",)))
    world.converge(state)
    world.fake.reboot()
    world.restart()
    world.settle(state)
    assert members_on(world, "eth1", HookKind.XDP) == (("edge", "ratelimit"), ("edge", "firewall"))


def test_a_change_of_mode_is_a_declared_gap() -> None:
    world = world_with(None)
    world.converge(desired(xdp_chain("edge", member("ratelimit"))))
    state = desired(xdp_chain("edge", member("ratelimit"), mode=XdpMode.GENERIC))
    plan = world.plan(state)
    assert any("gap" in note for note in plan.notes)
    outcome = world.execute(plan)
    assert outcome.failed is None
    assert list(outcome.gaps) == ["eth0 xdp"]
    (attachment,) = world.kernel.read_hook(world.fake.point("eth0", HookKind.XDP)).attachments
    assert attachment.mode == "generic"
    assert attachment.kind is AttachKind.XDP_LINK


@pytest.mark.parametrize("way", ["membarrier", "none"])
def test_without_a_grace_period_the_old_generation_stays(way: str) -> None:
    world = world_with(None)
    world.converge(desired(xdp_chain("edge", member("ratelimit"))))
    if way == "none":
        world.fake.fail_on("drain", KernelError("drain", 95, "no grace period", reason="DrainFailed"))
    plan = world.plan(desired(xdp_chain("edge", member("ratelimit", params={"rate": 7}))))
    assert any(isinstance(step, Unload) for step in plan.steps)
    outcome = world.execute(plan)
    whole(world)
    assert (outcome.failed is not None) == (way == "none")
