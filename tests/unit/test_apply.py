# SPDX-License-Identifier: Apache-2.0
"""The failure contract of `apply`, step by step, on the fake kernel (tests/properties has it at random)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import apply
from reconciler.config import SecureConfig, SecureMode
from reconciler.errors import DrainError, HealthError, KernelError, StaleError, StateError, VerifierError
from reconciler.model import DriftKind, Features, HookKind, Support, XdpMode
from tests.sim.fake_kernel import ALL_FEATURES
from tests.sim.world import NullJournal, World, desired, fake_world, member, tc_chain, xdp_chain

if TYPE_CHECKING:
    from reconciler.model import DesiredState, Outcome

CLSACT = replace(ALL_FEATURES, tcx=Support.NO)
FIREWALL = member("firewall", program="firewall_xdp")
IO = KernelError("a system call", 5, "input/output error")


def limited(rate: int = 1, **fields: Any) -> DesiredState:
    return desired(xdp_chain("edge", member("ratelimit", params={"rate": rate}), FIREWALL, **fields))


def members(world: World, interface: str = "eth0", kind: HookKind = HookKind.XDP) -> list[str]:
    trace = world.fake.run_packet(world.fake.point(interface, kind))
    assert not trace.broken
    return [name for _, name in trace.members]


def running(world: World) -> World:
    world.converge(limited(interfaces=("eth0",)))
    return world


# --- undo --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [ALL_FEATURES, CLSACT], ids=["tcx", "clsact"])
def test_wherever_everything_starts_to_fail_no_packet_sees_half_a_chain(features: Features) -> None:
    """Undoing fails, too: a generation that a hook could not be taken from must stay whole."""
    hooks: dict[str, Any] = {"interfaces": ("eth*",)}
    first = desired(tc_chain("edge", member("flowcount"), member("firewall", program="firewall_ingress"), **hooks))
    flows = member("flowcount", params={"by_port": False})
    second = desired(tc_chain("edge", member("firewall", program="firewall_ingress"), flows, **hooks))
    struck = 0
    for number in range(1, 200):
        world = fake_world("eth0", "eth1", features=features)
        world.converge(first)
        world.fake.fail_at(number, IO, onwards=True)
        outcome = world.converge(second)
        world.fake.faults.clear()
        assert world.fake.violations == [], number
        if outcome.failed is None and not outcome.survivors:
            break
        struck += 1
        world.settle(second)
        assert members(world, "eth1", HookKind.TC_INGRESS) == ["firewall", "flowcount"]
        assert world.fake.violations == [], number
    assert struck > 20


def test_a_hook_that_cannot_be_put_back_keeps_its_new_generation_and_both_errors_are_told() -> None:
    world = running(fake_world("eth0"))
    world.health.error = HealthError("not healthy")
    made = world.plan(limited(2))

    def changed(kernel: object) -> None:
        if world.fake.faults.log[-1] == "drain":
            world.fake.fail_on("link-update", IO)

    world.fake.on_change = changed
    outcome = world.execute(made)
    assert outcome.failed is not None
    assert outcome.failed.message == "not healthy"
    assert [failure.step.step for failure in outcome.undo_failures] == ["switch", "load"]
    assert members(world) == ["ratelimit", "firewall"]
    assert world.fake.violations == []
    assert len(outcome.inventory.generations) == 2
    assert outcome.inventory.leftovers == ()
    world.fake.on_change = world.health.error = None
    world.settle(limited())


def test_what_an_undo_leaves_over_is_remembered_and_removed_later() -> None:
    world = running(fake_world("eth0"))
    world.health.error = HealthError("not healthy")
    made = world.plan(limited(2))
    world.fake.on_change = lambda kernel: (
        kernel.fail_on("unpin", IO) if kernel.faults.log[-1] == "link-update" else None
    )
    outcome = world.execute(made)
    assert [failure.step.step for failure in outcome.undo_failures] == ["load"]
    assert outcome.inventory.leftovers
    world.fake.on_change = world.health.error = None
    world.settle(limited())
    assert world.inventory.leftovers == ()
    assert all(path in world.fake.pins for generation in world.inventory.generations for path in _pins(generation))


def _pins(generation: Any) -> list[str]:
    return [each.pin for each in (*generation.programs, *generation.maps)]


def test_a_change_of_mode_is_undone_with_both_gaps_told() -> None:
    world = running(fake_world("eth0"))
    world.health.error = HealthError("not healthy")
    outcome = world.execute(world.plan(limited(2, mode=XdpMode.GENERIC)))
    assert [step.step for step in outcome.undone] == ["change-mode", "load"]
    assert outcome.gaps["eth0 xdp"] == pytest.approx(0.016)
    assert outcome.expedited  # or packets pass for longer
    assert world.fake.rcu_expedited == 0
    (attachment,) = world.fake.attachments(world.fake.point("eth0", HookKind.XDP))
    assert attachment.mode == "native"
    assert outcome.inventory.attachments[0].mode == "native"
    assert world.fake.violations == []
    world.health.error = None
    assert world.plan(limited()).steps == ()


def test_a_displaced_occupant_does_not_come_back_and_its_gap_is_told() -> None:
    world = fake_world("eth0")
    point = world.fake.point("eth0", HookKind.XDP)
    world.fake.attach_foreign_xdp(point)
    world.secure = SecureConfig(mode=SecureMode.ENFORCE)
    world.health.error = HealthError("not healthy")
    outcome = world.converge(limited())
    assert outcome.failed is not None
    assert world.fake.attachments(point) == ()
    assert outcome.gaps == {"eth0 xdp": pytest.approx(0.008)}
    assert outcome.expedited
    assert world.fake.rcu_expedited == 0


def test_a_filter_that_is_taken_back_takes_its_qdisc_along() -> None:
    world = fake_world("eth0", features=CLSACT)
    world.health.error = HealthError("not healthy")
    state = desired(tc_chain("edge", member("flowcount")))
    outcome = world.converge(state)
    assert outcome.failed is not None
    assert outcome.inventory.empty
    assert world.fake.device("eth0").qdisc == "none"
    assert world.fake.pins == {}


def test_a_switched_filter_is_put_back_and_still_knows_whose_qdisc_it_is() -> None:
    world = fake_world("eth0", features=CLSACT)
    world.converge(desired(tc_chain("edge", member("flowcount"))))
    world.health.error = HealthError("not healthy")
    outcome = world.converge(desired(tc_chain("edge", member("flowcount", params={"by_port": False}))))
    assert outcome.undone
    assert outcome.inventory.attachments[0].made_qdisc
    world.health.error = None
    world.settle(desired())
    assert world.fake.device("eth0").qdisc == "none"


def test_an_attachment_that_failed_half_way_is_waited_for_before_its_programs_go() -> None:
    world = fake_world("eth0")
    made = world.plan(limited())
    world.fake.on_change = lambda kernel: kernel.fail_on("pin", IO) if kernel.faults.log[-1] == "link-create" else None
    outcome = world.execute(made)
    assert outcome.failed is not None
    assert outcome.failed.step.step == "attach"
    assert "drain" in world.fake.faults.log
    assert world.fake.violations == []
    assert world.fake.pins == {}


# --- before and after the point of no return ---------------------------------------------------------------


def test_after_the_point_of_no_return_what_cannot_be_removed_survives() -> None:
    world = running(fake_world("eth0", "eth1"))
    world.fake.fail_on("unpin", IO)
    outcome = world.converge(limited(2))
    assert outcome.failed is None
    assert outcome.committed
    assert [survivor.kind for survivor in outcome.survivors] == [DriftKind.ORPHANED]
    world.settle(limited(2))
    world.fake.fail_on("link-detach", IO)
    outcome = world.converge(desired())
    assert {survivor.where for survivor in outcome.survivors} == {"eth0 xdp"}
    assert members(world) == ["ratelimit", "firewall"]
    world.settle(desired())
    assert world.fake.pins == {}


def test_without_a_grace_period_after_a_detach_nothing_is_unloaded() -> None:
    world = running(fake_world("eth0"))
    world.fake.fail_on("drain", DrainError("drain", 95, "no way of waiting"))
    outcome = world.converge(desired())
    assert members(world) == []
    assert any("stays" in survivor.message for survivor in outcome.survivors)
    assert world.fake.violations == []
    world.settle(desired())
    assert world.fake.pins == {}


def test_an_eviction_that_fails_is_not_removable_one_that_lost_a_race_is_stale() -> None:
    world = running(fake_world("eth0"))
    world.fake.attach_foreign_tcx(world.fake.point("eth0", HookKind.TC_INGRESS))
    world.secure = SecureConfig(mode=SecureMode.ENFORCE)
    world.fake.fail_on("link-detach", IO)
    (survivor,) = world.converge(limited()).survivors
    assert (survivor.kind, survivor.critical) == (DriftKind.NOT_REMOVABLE, True)
    world.fake.fail_on("link-detach", StaleError("detach", 2, "gone"))
    outcome = world.converge(limited())
    assert outcome.survivors == ()
    assert outcome.stale_hooks[0].startswith("eth0 tc-ingress:")


# --- a repair is for each hook by itself -------------------------------------------------------------------


def broken(world: World) -> None:
    """Both hooks lost their program."""
    for owned in world.inventory.attachments:
        (attachment,) = world.fake.attachments(owned.point)
        world.fake.remove(owned.point, attachment)


def both() -> DesiredState:
    return desired(
        xdp_chain("a", member("ratelimit"), interfaces=("eth0",)), xdp_chain("b", FIREWALL, interfaces=("eth1",))
    )


def test_a_repair_that_fails_on_one_hook_stands_on_the_other() -> None:
    world = fake_world("eth0", "eth1")
    world.converge(both())
    broken(world)
    world.fake.fail_on("link-create", IO)
    outcome = world.converge(both())
    assert outcome.failed is None
    assert [failure.step.step for failure in outcome.skipped] == ["attach"]
    assert sorted(len(members(world, name)) for name in ("eth0", "eth1")) == [0, 1]
    world.settle(both())


def test_a_repair_that_cannot_load_one_generation_loads_the_other() -> None:
    world = fake_world("eth0", "eth1")
    world.converge(both())
    world.fake.reboot()
    world.restart()
    world.fake.fail_on("prog-load", VerifierError("BPF_PROG_LOAD", 13, "invalid mem access", "log"))
    outcome = world.converge(both())
    (failure,) = outcome.skipped
    assert (failure.reason, failure.disposition) == ("VerifierRejected", "stalled")
    assert sorted(len(members(world, name)) for name in ("eth0", "eth1")) == [0, 1]
    world.settle(both())
    assert world.fake.violations == []


def test_a_change_that_fails_on_one_hook_is_undone_on_all() -> None:
    world = fake_world("eth0", "eth1")
    world.fake.on_change = lambda kernel: (
        kernel.fail_on("link-create", IO) if kernel.faults.log[-1] == "link-create" else None
    )
    outcome = world.converge(both())
    assert outcome.failed is not None
    assert outcome.skipped == ()
    assert world.fake.pins == {}


# --- the journal -------------------------------------------------------------------------------------------


@dataclass
class FullDisk(NullJournal):
    """A journal that fails at one kind of record."""

    event: str = ""

    def journal(self, boot_id: str, event: str, *, force: bool = True, **fields: object) -> None:
        if event == self.event:
            raise StateError("cannot append to journal: No space left on device")
        super().journal(boot_id, event, force=force, **fields)


def execute(world: World, event: str, state: DesiredState) -> Outcome:
    made = world.plan(state)
    journal = FullDisk(event=event)
    outcome = apply.execute(made, kernel=world.kernel, packages=world.packages, journal=journal, checks=world.health)
    world.inventory = outcome.inventory
    return outcome


def test_one_record_names_all_of_a_batch_before_the_first_of_it() -> None:
    world = fake_world("eth0", "eth1", "eth2")
    seen: list[list[str]] = []

    def changed(kernel: Any) -> None:
        if kernel.faults.log[-1] == "link-create":
            announced = [record["steps"] for record in world.journal.records if record["event"] == "intent"][-1]
            seen.append([step["pin"] for step in announced])

    world.fake.on_change = changed
    made = world.plan(limited(interfaces=("eth*",)))
    world.execute(made)
    pins = [f"links/{world.fake.point(name, HookKind.XDP).key}" for name in ("eth0", "eth1", "eth2")]
    assert seen == [pins] * 3


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_step_in_the_middle_of_a_batch_that_only_repairs_keeps_no_other_from_it(which: int) -> None:
    world = fake_world("eth0", "eth1", "eth2")
    state = limited(interfaces=("eth*",))
    world.converge(state)
    for name in ("eth0", "eth1", "eth2"):
        point = world.fake.point(name, HookKind.XDP)
        world.fake.remove(point, *world.fake.attachments(point))
    world.fake.fail_at(3 + 2 * which - 1, IO)  # after three unpins, each attach is a link and its pin
    outcome = world.converge(state)
    assert outcome.failed is None
    assert [failure.step.step for failure in outcome.skipped] == ["attach"]
    bare = [name for name in ("eth0", "eth1", "eth2") if not members(world, name)]
    assert bare == [f"eth{which - 1}"]
    world.settle(state)


def test_nothing_is_begun_that_cannot_be_journaled() -> None:
    world = running(fake_world("eth0"))
    count = world.fake.mutations
    with pytest.raises(StateError):
        execute(world, "begin", limited(2))
    assert world.fake.mutations == count


@pytest.mark.parametrize("event", ["intent", "loaded", "committed"])
def test_a_journal_that_fails_on_the_way_undoes_everything(event: str) -> None:
    world = running(fake_world("eth0"))
    pins = dict(world.fake.pins)
    outcome = execute(world, event, limited(2))
    assert outcome.failed is not None
    assert outcome.failed.reason == "StateUnavailable"
    assert outcome.undo_failures == ()
    assert world.fake.pins == pins
    assert world.fake.violations == []


def test_an_undo_needs_no_journal() -> None:
    world = running(fake_world("eth0"))
    pins = dict(world.fake.pins)
    world.health.error = HealthError("not healthy")
    outcome = execute(world, "undo", limited(2))
    assert outcome.undo_failures == ()
    assert world.fake.pins == pins


# --- grace periods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "count", "expedited"),
    [
        (ALL_FEATURES, apply.EXPEDITE_FROM, True),
        (ALL_FEATURES, 2, False),
        (replace(ALL_FEATURES, expedite=Support.NO), apply.EXPEDITE_FROM, False),
    ],
)
def test_first_attaches_are_expedited_for_many_hooks_only(features: Features, count: int, expedited: bool) -> None:
    world = fake_world(*(f"eth{number}" for number in range(count)), features=features)
    outcome = world.converge(limited(interfaces=("eth*",)))
    assert outcome.expedited is expedited
    assert world.fake.rcu_expedited == 0
