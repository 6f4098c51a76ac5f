# SPDX-License-Identifier: Apache-2.0
"""What a pass does not know: whether an interrupted change was healthy, and what could not be read."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.model import HookKind, Support
from reconciler.state import unproven
from tests.sim.fake_kernel import ALL_FEATURES, FakeKernel
from tests.sim.host import Host, chain, member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reconciler.kernel import Scope
    from reconciler.model import Snapshot

EVERYWHERE = {"type": "xdp", "interfaces": ["eth*"]}


# --- a change that was interrupted before it was judged ----------------------------------------------------


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A TCP port that refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def sick(port: int) -> Any:
    """The chain with another rate, and a health check that does not hold."""
    tcp = [{"connect": f"127.0.0.1:{port}", "within": "1s"}]
    return chain("edge", member(params={"rate": 3}), health={"source": False, "tcp": tcp})


def die_after(host: Host, primitive: str) -> None:
    """The next pass is killed right after it did this."""
    for number in range(1, 60):
        if host.crash(number) and host.kernel.faults.log[-1] == primitive:
            return
    pytest.fail(f"no pass got as far as {primitive}")


def rate(host: Host) -> str:
    """The rate that is loaded for eth0, as the inventory tells."""
    (owned,) = host.inventory().attachments
    (loaded,) = (each for each in host.inventory().generations if each.name == owned.generation)
    return loaded.programs[0].settings["rate"]


def test_a_change_that_was_killed_before_its_health_check_is_judged_by_the_next_process(
    edge: Host, closed_port: int
) -> None:
    before = edge.applied
    edge.origin.commit(sick(closed_port))
    die_after(edge, "link-update")
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("RolledBack", 6)
    assert result.retry_now
    assert edge.applied == before
    edge.apply()
    assert rate(edge).startswith("100 ")
    assert edge.apply().status.reason == "RolledBack"
    assert edge.applied == before


def test_a_healthy_change_that_was_killed_is_applied_by_the_next_process(edge: Host) -> None:
    head = edge.origin.commit(chain("edge", member(params={"rate": 3})))
    die_after(edge, "link-update")
    result = edge.apply()
    assert result.outcome is not None
    assert result.outcome.done[0].step == "check-health"
    assert edge.applied == head
    assert rate(edge).startswith("3 ")


def test_only_hooks_that_were_taken_and_not_committed_are_unproven() -> None:
    point = {"kind": "xdp", "netns_inode": 4, "ifindex": 2, "netns": "host", "interface": "eth0"}
    taken = {"boot": "b", "event": "intent", "steps": [{"step": "switch", "point": point}]}
    other = {"boot": "b", "event": "intent", "steps": [{"step": "load"}]}
    committed = {"boot": "b", "event": "committed"}
    assert unproven("b", (other, taken)) == {"xdp_4_2"}
    assert unproven("b", (taken, committed)) == frozenset()
    assert unproven("b", (taken, committed, taken)) == {"xdp_4_2"}
    assert unproven("of another boot", (taken,)) == frozenset()


# --- what could not be read --------------------------------------------------------------------------------


def blind(host: Host, monkeypatch: pytest.MonkeyPatch, see: Callable[[Snapshot], Snapshot]) -> None:
    """Snapshots lack what `see` takes out of them, and say so."""
    real = host.kernel.snapshot

    def snapshot(scope: Scope) -> Snapshot:
        return replace(see(real(scope)), complete=False)

    monkeypatch.setattr(host.kernel, "snapshot", snapshot)


def nothing(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, interfaces=(), hooks={})


def test_a_commit_is_not_adopted_while_hooks_cannot_be_read(
    make_host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host("eth0", "eth1", "eth2")
    host.set_source(minimum_commit=host.origin.commit(chain(hook=EVERYWHERE)))
    assert host.apply().status.reason == "Applied"
    before, inventory = host.applied, host.inventory()
    host.origin.commit(chain(hook={"type": "xdp", "interfaces": ["eth0"]}))
    with monkeypatch.context() as patch:
        blind(host, patch, nothing)
        result = host.apply()
        assert (result.status.reason, result.transient) == ("KernelRefused", True)
        host.repair()
    assert host.applied == before
    assert host.inventory() == inventory
    assert host.apply().status.exit_code == 4
    assert host.runs("eth2") == ["ratelimit"]


def test_a_hook_that_could_not_be_read_is_not_taken_for_an_empty_one(
    edge: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    point, before, inventory = edge.kernel.point("eth0", HookKind.XDP), edge.fingerprint(), edge.inventory()
    with monkeypatch.context() as patch:
        blind(edge, patch, lambda seen: replace(seen, hooks={p: s for p, s in seen.hooks.items() if p != point}))
        result = edge.repair()
    assert result.status.reason == "HookContested"
    assert edge.fingerprint() == before
    assert edge.inventory() == inventory
    assert edge.repair().status.reason == "InSync"


# --- qdiscs ------------------------------------------------------------------------------------------------


def test_undo_leaves_a_qdisc_that_somebody_made_meanwhile(make_host: Callable[..., Host]) -> None:
    host = make_host(features=replace(ALL_FEATURES, tcx=Support.NO))
    point, device = host.kernel.point("eth0", HookKind.TC_INGRESS), host.kernel.device("eth0")

    def hurry(kernel: FakeKernel) -> None:
        kernel.on_change = None
        kernel.add_foreign_qdisc(point, "clsact")

    host.kernel.on_change = hurry
    hook = {"type": "tc", "direction": "ingress", "interfaces": ["eth0"]}
    tcp = [{"connect": "127.0.0.1:1", "within": "1s"}]
    used = member("flowcount")
    host.set_source(minimum_commit=host.origin.commit(chain("edge", used, hook=hook, health={"tcp": tcp})))
    assert host.apply().status.reason == "RolledBack"
    assert host.kernel.attachments(point) == ()
    assert device.qdisc == "clsact"
