# SPDX-License-Identifier: Apache-2.0
"""What a pass does to the kernel: guardrail, health, rollback, quarantine, lost races, secure mode, interfaces."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import reconcile
from reconciler.config import Guardrail, SecureMode, Toleration
from reconciler.errors import KernelError, StaleError, VerifierError
from reconciler.model import DriftKind, HookKind, Support
from tests.sim.fake_kernel import ALL_FEATURES, FakeKernel
from tests.sim.host import Host, chain, member, orphans, tree

if TYPE_CHECKING:
    from collections.abc import Callable

FIREWALL = member("firewall", program="firewall_xdp")
EVERYWHERE = {"type": "xdp", "interfaces": ["eth*"]}


def two() -> Any:
    return chain("edge", member(), FIREWALL)


def cut_off(host: Host) -> None:
    """From the first switch or attachment on, the source is out of reach."""

    def changed(kernel: FakeKernel) -> None:
        if kernel.faults.log[-1] in {"link-update", "link-create"} and host.origin.path.exists():
            host.origin.vanish()

    host.kernel.on_change = changed


def empty(host: Host, **request: Any) -> None:
    result = host.apply(**request)
    assert result.plan is not None
    assert result.plan.steps == ()


# --- guardrail ---------------------------------------------------------------------------------------------


@pytest.fixture
def wide(make_host: Callable[..., Host]) -> Host:
    """A host with a chain of two members on four interfaces."""
    made = make_host("eth0", "eth1", "eth2", "eth3")
    made.set_source(minimum_commit=made.origin.commit(chain("edge", member(), FIREWALL, hook=EVERYWHERE)))
    assert made.apply().status.reason == "Applied"
    return made


def test_a_commit_that_removes_too_much_needs_a_confirmation_of_exactly_that_plan(wide: Host) -> None:
    before, watermark = wide.fingerprint(), wide.applied
    head = wide.origin.commit(chain("edge", member(), hook={"type": "xdp", "interfaces": ["eth0"]}))
    for _ in range(2):
        result = wide.apply()
        assert (result.status.reason, result.status.exit_code) == ("GuardrailRefused", 4)
        assert "7 of 8" in result.status.message
        assert wide.fingerprint() == before
        assert wide.applied == watermark
    other = wide.apply(confirm="0" * 64).status
    assert (other.exit_code, "confirmed was another plan, 00000" in other.message) == (4, True)
    wide.detach("eth1")
    assert wide.repair().status.exit_code == 4
    assert wide.runs("eth1") == ["ratelimit", "firewall"]
    shown = wide.plan()
    assert shown.plan is not None
    assert shown.plan.digest in shown.status.message
    assert shown.status.guard.exceeded
    result = wide.apply(confirm=shown.plan.digest)
    assert result.status.reason == "Applied"
    assert wide.applied == head
    assert [wide.runs(name) for name in ("eth0", "eth1")] == [["ratelimit"], []]
    empty(wide)


def test_a_confirmation_is_for_one_plan(wide: Host) -> None:
    wide.origin.commit(chain("edge", member(), hook={"type": "xdp", "interfaces": ["eth0"]}))
    wide.apply()
    shown = wide.plan()
    assert shown.plan is not None
    wide.origin.commit(chain("edge", FIREWALL, hook={"type": "xdp", "interfaces": ["eth3"]}))
    assert wide.apply(confirm=shown.plan.digest).status.exit_code == 4
    assert wide.runs("eth1") == ["ratelimit", "firewall"]


def test_a_count_is_a_limit_of_its_own(wide: Host) -> None:
    wide.configure(guardrail=Guardrail(count=1, share=1.0))
    wide.origin.commit(chain("edge", member(), FIREWALL, hook={"type": "xdp", "interfaces": ["eth[0-2]"]}))
    result = wide.apply()
    assert result.status.exit_code == 4
    assert "2 of 8" in result.status.message
    wide.configure(guardrail=Guardrail(count=2, share=1.0))
    assert wide.apply().status.reason == "Applied"


def test_a_host_that_no_chain_selects_says_so_with_its_labels(make_host: Callable[..., Host]) -> None:
    made = make_host("eth0")
    made.configure(labels={"role": "edgy"})
    made.set_source(minimum_commit=made.origin.commit(chain("edge", member(), hosts={"matchLabels": {"role": "edge"}})))
    for status in (made.plan().status, made.apply().status):
        assert (status.reason, status.chains) == ("InSync", 0)
        assert status.message.startswith("no chain of this commit selects this host (")
        assert status.message.endswith("labels role=edgy)")


def test_interfaces_that_went_away_are_no_removal(wide: Host) -> None:
    for name in ("eth1", "eth2", "eth3"):
        wide.kernel.remove_interface(name)
    wide.origin.commit(chain("edge", member(params={"rate": 3}), FIREWALL, hook=EVERYWHERE))
    assert wide.apply().status.reason == "Applied"


def test_an_empty_set_of_chains_is_refused_unless_the_repository_allows_it(wide: Host) -> None:
    before = wide.fingerprint()
    wide.origin.commit(files=tree())
    result = wide.apply()
    assert (result.status.reason, result.status.exit_code) == ("InvalidManifest", 1)
    assert wide.fingerprint() == before
    allowed = {"reconciler.yaml": tree()["reconciler.yaml"] + b"spec: {allowEmpty: true}\n"}
    wide.origin.commit(files=allowed)
    result = wide.apply()
    assert result.status.exit_code == 4
    assert "8 of 8" in result.status.message
    shown = wide.plan()
    assert shown.plan is not None
    assert wide.apply(confirm=shown.plan.digest).status.reason == "Applied"
    assert wide.kernel.pins == {}


def test_other_labels_take_programs_off_only_within_the_guardrail(wide: Host) -> None:
    wide.origin.commit(chain("edge", member(), FIREWALL, hook=EVERYWHERE, hosts={"matchLabels": {"role": "edge"}}))
    assert wide.apply().status.exit_code == 0
    before = wide.fingerprint()
    wide.configure(labels={"role": "db"})
    for request in ({}, {"poll": False}):
        assert wide.apply(**request).status.exit_code == 4
        assert wide.fingerprint() == before
    wide.configure(labels={"role": "edge"})
    assert wide.apply().status.exit_code == 0


# --- health ------------------------------------------------------------------------------------------------


def test_a_commit_that_cuts_the_host_off_is_taken_back_and_quarantined(edge: Host) -> None:
    watermark = edge.applied
    cut_off(edge)
    head = edge.origin.commit(two())
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("RolledBack", 6)
    assert head[:12] in result.status.message
    assert sum(edge.clock.slept) >= edge.config.source.confirm_timeout - 1
    assert edge.runs() == ["ratelimit"]
    assert edge.applied == watermark
    assert edge.kernel.violations == []
    assert orphans(edge) == []
    (entry,) = edge.parts().state.control().quarantine
    assert (entry.commit, entry.kernel) == (head, edge.release)
    edge.kernel.on_change = None
    edge.origin.return_()
    for request in ({}, {"poll": False}, {}):
        edge.restart()
        result = edge.apply(**request)
        assert result.status.exit_code == 6
        assert result.outcome is None
        assert edge.runs() == ["ratelimit"]


def rolled_back(host: Host) -> None:
    cut_off(host)
    host.origin.commit(two())
    assert host.apply().status.exit_code == 6
    host.kernel.on_change = None
    host.origin.return_()


def test_the_same_state_in_a_newer_commit_is_not_tried_again(edge: Host) -> None:
    rolled_back(edge)
    files = {**tree(two()), "chains/README.md": b"what it is"}
    head = edge.origin.commit(files=files)
    primitives = edge.kernel.mutations
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("Quarantined", 6)
    assert edge.kernel.mutations == primitives
    assert edge.applied != head


def test_a_commit_that_fixes_it_supersedes(edge: Host) -> None:
    rolled_back(edge)
    head = edge.origin.commit(
        chain("edge", member(), member("firewall", program="firewall_xdp", params={"default_verdict": "ALLOW"}))
    )
    assert edge.apply().status.reason == "Applied"
    assert edge.applied == head
    empty(edge)


@pytest.mark.parametrize("change", ["policy", "kernel", "accept"])
def test_a_quarantine_ends_with_what_it_was_bound_to(edge: Host, change: str) -> None:
    rolled_back(edge)
    head = edge.origin.repository.head()
    assert head is not None
    match change:
        case "policy":
            edge.secure(SecureMode.OFF)
        case "kernel":
            edge.release = "6.19.0-test"
            edge.restart()
        case _:
            assert edge.accept(head).status.reason == "Applied"
    edge.apply()
    assert edge.runs() == ["ratelimit", "firewall"]
    assert edge.applied == head


def test_a_repair_is_never_taken_back_for_a_source_that_is_away(edge: Host) -> None:
    edge.detach()
    cut_off(edge)
    result = edge.apply()
    assert result.status.reason == "Applied"
    assert edge.runs() == ["ratelimit"]
    assert edge.parts().state.control().quarantine == ()


def test_a_change_while_the_source_was_not_asked_does_not_wait_for_it(edge: Host) -> None:
    labelled = chain("extra", FIREWALL, priority=200, hosts={"matchLabels": {"role": "db"}})
    edge.origin.commit(chain(), labelled)
    edge.apply()
    edge.origin.vanish()
    edge.configure(labels={"role": "db"})
    edge.apply()
    assert edge.runs() == ["ratelimit", "firewall"]
    assert edge.clock.slept == []
    empty(edge)


def test_a_state_that_was_taken_back_is_not_enforced_as_the_last_good_one(edge: Host) -> None:
    labelled = chain("extra", FIREWALL, priority=200, hosts={"matchLabels": {"role": "db"}})
    edge.origin.commit(chain(), labelled)
    edge.apply()
    edge.configure(labels={"role": "db"})
    cut_off(edge)
    assert edge.apply().status.exit_code == 6
    edge.kernel.on_change = None
    edge.origin.return_()
    primitives = edge.kernel.mutations
    for request in ({"poll": False}, {}, {"poll": False}):
        assert edge.apply(**request).status.exit_code == 6
        assert edge.kernel.mutations == primitives
        assert edge.runs() == ["ratelimit"]


def test_tcp_checks_are_waited_for_and_decide(edge: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check = {"source": False, "tcp": [{"connect": f"127.0.0.1:{port}", "within": "2s"}]}
        edge.origin.commit({**two(), "spec": {**two()["spec"], "health": check}})
        assert edge.apply().status.reason == "Applied"
    edge.origin.commit(chain("edge", member(params={"rate": 5}), FIREWALL, health=check))
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("RolledBack", 6)
    assert f"127.0.0.1:{port}" in result.status.message
    assert edge.runs() == ["ratelimit", "firewall"]


def test_a_share_of_packets_that_is_too_high_decides(edge: Host) -> None:
    health = {"source": False, "stats": [{"member": "ratelimit", "counter": "passed", "below": "50%", "over": "10s"}]}
    edge.origin.commit(chain("edge", member(params={"rate": 5}), health=health))
    assert edge.apply().status.reason == "Applied"  # no packets, nothing to object to

    def traffic(seconds: float) -> None:
        edge.clock.seconds += seconds
        edge.runs()

    edge.clock.sleep = traffic  # type: ignore[method-assign]
    edge.origin.commit(chain("edge", member(params={"rate": 6}), health=health))
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("RolledBack", 6)
    assert "100.0%" in result.status.message


def test_a_link_that_somebody_takes_off_in_between_is_noticed(edge: Host) -> None:
    def changed(kernel: FakeKernel) -> None:
        if kernel.faults.log[-1] == "drain":
            kernel.on_change = None
            edge.detach()

    edge.kernel.on_change = changed
    edge.origin.commit(chain("edge", member(params={"rate": 5})))
    watermark = edge.applied
    assert (edge.apply().status.reason, edge.applied) == ("Stale", watermark)
    edge.repair()
    assert edge.runs() == ["ratelimit"]
    assert orphans(edge) == []
    # It was not the commit's doing, so it is tried again.
    assert edge.apply().status.reason == "Applied"
    assert edge.applied != watermark


def test_links_that_cannot_be_looked_at_after_a_switch_blame_no_commit(
    edge: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise KernelError("open pin", 30, "Read-only file system")

    edge.origin.commit(chain("edge", member(params={"rate": 5})))
    with monkeypatch.context() as patch:
        patch.setattr(edge.kernel, "not_alive", refuse)
        assert edge.apply().status.reason == "KernelRefused"
    assert edge.apply().status.reason == "Applied"


# --- what the kernel refuses -------------------------------------------------------------------------------


def test_a_program_that_the_verifier_rejects_attaches_nothing_and_is_not_tried_again(edge: Host) -> None:
    before = edge.fingerprint()
    log = "0: (b7) r0 = 0\nR1 invalid mem access"
    edge.kernel.fail_on("prog-load", VerifierError("BPF_PROG_LOAD firewall_xdp", 13, "invalid mem access", log))
    edge.origin.commit(two())
    result = edge.apply()
    assert result.status.reason == "VerifierRejected"
    assert result.status.exit_code == 1
    assert edge.fingerprint() == before
    primitives = edge.kernel.mutations
    for request in ({}, {"poll": False}):
        result = edge.apply(**request)
        assert result.status.reason == "VerifierRejected"
        assert edge.kernel.mutations == primitives


def test_a_race_that_is_lost_while_a_mode_changes_takes_no_commit_back(make_host: Callable[..., Host]) -> None:
    host = make_host("eth0", "eth1")
    host.set_source(minimum_commit=host.origin.commit(chain("edge", member(), hook=EVERYWHERE)))
    host.apply()
    host.origin.commit(chain("edge", member(), hook={**EVERYWHERE, "mode": "generic"}))
    host.kernel.fail_on("link-create", StaleError("BPF_LINK_CREATE xdp", 19, "no such device"))
    result = host.apply()
    assert result.status.reason == "Applied"
    assert [host.attachment(name).mode for name in ("eth0", "eth1")] == ["generic", "generic"]
    assert host.emitted("rolled-back") == []
    assert orphans(host) == []


def test_a_mode_that_a_driver_does_not_have_is_not_tried_again(make_host: Callable[..., Host]) -> None:
    host = make_host("eth0")
    host.kernel.add_interface("eth1", native=False)
    host.set_source(minimum_commit=host.origin.commit(chain("edge", member(), hook=EVERYWHERE)))
    host.apply()
    before = host.fingerprint()
    host.origin.commit(chain("edge", member(params={"rate": 3}), hook={**EVERYWHERE, "mode": "native"}))
    result = host.apply()
    assert result.status.reason == "NotSupported"
    assert host.runs() == host.runs("eth1") == ["ratelimit"]
    assert not result.transient
    primitives = host.kernel.mutations
    for request in ({}, {"poll": False}):
        result = host.apply(**request)
        assert result.status.reason == "NotSupported"
        assert host.kernel.mutations == primitives
    assert [host.attachment(name).mode for name in ("eth0", "eth1")] == ["native", "generic"]
    assert before != ()


def test_a_program_that_a_new_kernel_rejects_keeps_no_other_from_its_hook(make_host: Callable[..., Host]) -> None:
    host = make_host("eth0", "eth1", "eth2")
    chains = [
        chain(name, used, hook={"type": "xdp", "interfaces": [interface]})
        for name, used, interface in (("a", member(), "eth0"), ("b", FIREWALL, "eth1"), ("c", member(), "eth2"))
    ]
    host.set_source(minimum_commit=host.origin.commit(*chains))
    assert host.apply().status.reason == "Applied"
    host.reboot()
    host.kernel.fail_on("prog-load", VerifierError("BPF_PROG_LOAD", 13, "invalid mem access", "log"))
    result = host.apply()
    assert (result.status.reason, result.status.exit_code) == ("VerifierRejected", 1)
    assert not result.transient
    assert [len(host.runs(name)) for name in ("eth0", "eth1", "eth2")].count(1) == 2
    assert host.emitted("not-repaired")
    assert host.apply().status.exit_code == 0
    assert [host.runs(name) for name in ("eth0", "eth1", "eth2")] == [["ratelimit"], ["firewall"], ["ratelimit"]]
    assert host.kernel.violations == []


def test_an_interface_that_cannot_take_a_program_keeps_no_other_from_its_repair(make_host: Callable[..., Host]) -> None:
    host = make_host("eth0")
    native = chain("edge", member(), hook={**EVERYWHERE, "mode": "native"})
    host.set_source(minimum_commit=host.origin.commit(native))
    assert host.apply().status.reason == "Applied"
    host.kernel.add_interface("eth1", native=False)
    host.detach()
    for _ in range(2):
        result = host.repair()
        assert (result.status.reason, result.status.exit_code) == ("NotSupported", 1)
        assert host.runs() == ["ratelimit"]
        assert host.runs("eth1") == []
    assert orphans(host) == []


def test_what_fails_for_a_while_is_tried_again(edge: Host) -> None:
    before = edge.fingerprint()
    edge.kernel.fail_on("map-create", KernelError("BPF_MAP_CREATE", 12, "cannot allocate memory"))
    head = edge.origin.commit(two())
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("KernelRefused", 1)
    assert result.transient
    assert edge.fingerprint() == before
    assert edge.apply().status.reason == "Applied"
    assert edge.applied == head


def test_a_lost_race_is_observed_again_in_the_same_pass_with_the_same_gates(edge: Host) -> None:
    raced: list[int] = []

    def changed(kernel: FakeKernel) -> None:
        if kernel.faults.log[-1] == "prog-load" and not raced:
            raced.append(1)
            kernel.fail_on("link-update", StaleError("BPF_LINK_UPDATE", 1, "expected another program"))

    edge.kernel.on_change = changed
    head = edge.origin.commit(chain("edge", member(params={"rate": 5})))
    result = edge.apply()
    assert result.status.reason == "Applied"
    assert result.outcome is not None
    assert [step.step for step in result.outcome.done].count("check-health") == 2
    assert edge.applied == head
    empty(edge)


def test_a_lost_race_does_not_spare_a_commit_its_health_check(edge: Host) -> None:
    raced: list[int] = []

    def changed(kernel: FakeKernel) -> None:
        last = kernel.faults.log[-1]
        if last == "prog-load" and not raced:
            raced.append(1)
            kernel.fail_on("link-update", StaleError("BPF_LINK_UPDATE", 1, "expected another program"))
        elif last == "link-update" and edge.origin.path.exists():
            edge.origin.vanish()

    edge.kernel.on_change = changed
    watermark = edge.applied
    edge.origin.commit(two())
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("RolledBack", 6)
    assert edge.runs() == ["ratelimit"]
    assert edge.applied == watermark


def test_a_hook_that_is_always_raced_for_is_reported_and_stops_nothing_elsewhere(edge: Host) -> None:
    everywhere = chain("edge", member(params={"rate": 5}), hook=EVERYWHERE)
    stale = StaleError("BPF_LINK_UPDATE", 1, "expected another program")
    for _ in range(9):
        edge.kernel.fail_on("link-update", stale)
    head = edge.origin.commit(everywhere)
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("HookContested", 2)
    assert result.retry_now
    assert edge.runs("eth1") == ["ratelimit"]
    assert edge.applied == head
    edge.kernel.faults.clear()
    assert edge.repair().status.exit_code == 0
    empty(edge)


# --- secure mode -------------------------------------------------------------------------------------------


def test_audit_says_what_is_foreign_and_enforce_evicts_it(edge: Host) -> None:
    point = edge.kernel.point("eth1", HookKind.TC_INGRESS)
    edge.kernel.attach_foreign_tcx(point, name="spy")
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("ForeignPrograms", 2)
    assert "spy" in result.status.message
    edge.secure(SecureMode.ENFORCE)
    result = edge.repair()
    assert result.status.exit_code == 0
    assert edge.kernel.attachments(point) == ()
    assert [record["where"] for record in edge.emitted("evicted")] == ["eth1 tc-ingress"]
    assert "evicted" in edge.history()


def test_evictions_are_limited_and_the_rest_is_still_said(edge: Host) -> None:
    point = edge.kernel.point("eth1", HookKind.TC_INGRESS)
    for number in range(3):
        edge.kernel.attach_foreign_tcx(point, name=f"spy{number}")
    edge.secure(SecureMode.ENFORCE, max_evictions=1)
    for left in (2, 1):
        result = edge.repair()
        assert (result.status.reason, result.status.exit_code) == ("ForeignPrograms", 2)
        assert len(edge.kernel.attachments(point)) == left
        assert sum(drift.kind is DriftKind.FOREIGN for drift in result.status.drift) == left
    assert edge.repair().status.exit_code == 0


def test_a_lost_race_allows_no_further_evictions_in_the_same_pass(edge: Host) -> None:
    point = edge.kernel.point("eth1", HookKind.TC_INGRESS)
    for number in range(6):
        edge.kernel.attach_foreign_tcx(point, name=f"spy{number}")
    edge.secure(SecureMode.ENFORCE, max_evictions=2)
    edge.kernel.fail_on("link-detach", StaleError("BPF_LINK_DETACH", 2, "it is another one now"))
    result = edge.repair()
    assert result.status.reason == "ForeignPrograms"
    assert len(edge.emitted("evicted")) == 2
    assert len(edge.kernel.attachments(point)) == 4


def test_what_cannot_be_removed_is_said_and_tried_again(edge: Host) -> None:
    point = edge.kernel.point("eth1", HookKind.TC_INGRESS)
    edge.kernel.attach_foreign_tcx(point, name="spy")
    edge.secure(SecureMode.ENFORCE)
    edge.kernel.fail_on("link-detach", KernelError("BPF_LINK_DETACH", 1, "operation not permitted"))
    result = edge.repair()
    assert result.status.exit_code == 2
    assert DriftKind.NOT_REMOVABLE in {drift.kind for drift in result.status.drift}
    assert any(drift.critical for drift in result.status.drift)
    assert edge.emitted("survivor")
    assert edge.repair().status.exit_code == 0


def test_a_foreign_program_that_moves_is_no_program_that_cannot_be_removed(edge: Host) -> None:
    point = edge.kernel.point("eth1", HookKind.TC_INGRESS)
    edge.kernel.attach_foreign_tcx(point, name="spy")
    edge.secure(SecureMode.ENFORCE)
    edge.kernel.fail_on("link-detach", StaleError("BPF_LINK_DETACH", 2, "it is another one now"))
    result = edge.repair()
    assert result.status.exit_code == 0
    assert edge.emitted("survivor") == []
    assert edge.kernel.attachments(point) == ()


def test_without_a_commit_that_was_ever_verified_nothing_is_evicted(host: Host) -> None:
    point = host.kernel.point("eth0", HookKind.TC_INGRESS)
    host.kernel.attach_foreign_tcx(point, name="spy")
    host.secure(SecureMode.ENFORCE)
    host.origin.commit(chain())
    for request in ({}, {"poll": False}):
        assert host.apply(**request).status.exit_code != 0
        assert len(host.kernel.attachments(point)) == 1


def test_suspended_hosts_go_on_evicting_and_after_a_teardown_nothing_is_evicted(edge: Host) -> None:
    point = edge.kernel.point("eth1", HookKind.TC_INGRESS)
    edge.secure(SecureMode.ENFORCE)
    reconcile.suspend(edge.parts(), seconds=3600, reason="INC-1", by="test")
    edge.kernel.attach_foreign_tcx(point, name="spy")
    assert edge.apply().status.reason == "Suspended"
    assert edge.kernel.attachments(point) == ()
    reconcile.teardown(edge.parts(), by="test")
    edge.kernel.attach_foreign_tcx(point, name="spy")
    for request in ({}, {"poll": False}):
        assert edge.apply(**request).status.reason == "TornDown"
    assert len(edge.kernel.attachments(point)) == 1


def test_an_occupied_hook_is_pending_in_audit_and_displaced_in_enforce(make_host: Callable[..., Host]) -> None:
    host = make_host("eth0", "eth1")
    host.kernel.attach_foreign_xdp(host.kernel.point("eth0", HookKind.XDP), name="old")
    commit = host.origin.commit(chain("edge", member(), hook=EVERYWHERE))
    host.set_source(minimum_commit=commit)
    result = host.apply()
    assert result.status.exit_code == 2
    assert [drift.kind for drift in result.status.pending] == [DriftKind.OCCUPIED]
    assert host.runs("eth1") == ["ratelimit"]
    assert host.runs() == ["old"]
    assert host.applied == commit
    host.secure(SecureMode.ENFORCE)
    result = host.repair()
    assert result.status.exit_code == 0
    assert host.runs() == ["ratelimit"]
    assert list(result.status.gaps) == ["eth0 xdp"]


def test_a_tolerated_occupant_stays(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.kernel.attach_foreign_xdp(host.kernel.point("eth0", HookKind.XDP), name="friend")
    host.set_source(minimum_commit=host.origin.commit(chain()))
    rule = Toleration(name="friend", why="test", owner="test", program_name="friend")
    host.secure(SecureMode.ENFORCE, tolerations=(rule,))
    for _ in range(2):
        assert host.apply().status.reason == "HookOccupied"
        assert host.runs() == ["friend"]


# --- interfaces and namespaces -----------------------------------------------------------------------------


def test_interfaces_that_come_go_and_change_their_names_are_followed(make_host: Callable[..., Host]) -> None:
    host = make_host("eth0")
    host.set_source(minimum_commit=host.origin.commit(chain("edge", member(), hook=EVERYWHERE)))
    host.apply()
    host.kernel.add_interface("eth7")
    assert host.repair().status.reason == "Applied"
    assert host.runs("eth7") == ["ratelimit"]
    host.kernel.rename_interface("eth7", "eth8")
    empty(host, poll=False)
    host.kernel.rename_interface("eth8", "wan8")
    host.repair()
    assert host.runs("wan8") == []
    host.kernel.recreate_interface("eth0")
    host.repair()
    assert host.runs() == ["ratelimit"]
    host.kernel.remove_interface("eth0")
    result = host.repair()
    assert result.status.reason == "HookAbsent"
    assert {path.split("/")[0] for path in host.kernel.pins} == {"state"}
    assert host.kernel.violations == []


def test_a_namespace_that_does_not_exist_yet_is_pending(make_host: Callable[..., Host]) -> None:
    host = make_host("eth0")
    there = {"type": "xdp", "interfaces": ["veth0"], "netns": "blue"}
    host.set_source(minimum_commit=host.origin.commit(chain(), chain("blue", FIREWALL, hook=there)))
    assert host.apply().status.reason == "HookAbsent"
    assert host.runs() == ["ratelimit"]
    host.kernel.add_namespace("blue")
    host.kernel.add_interface("veth0", netns="blue")
    assert host.repair().status.reason == "Applied"
    assert host.runs("veth0", netns="blue") == ["firewall"]


def test_a_chain_leaves_a_namespace_that_lost_its_name_whole(make_host: Callable[..., Host]) -> None:
    host = make_host("eth0")
    host.kernel.add_namespace("blue")
    host.kernel.add_interface("veth0", netns="blue")
    there = {"type": "xdp", "interfaces": ["veth0"], "netns": "blue"}
    both = chain("blue", FIREWALL, member("ratelimit"), hook=there)
    host.set_source(minimum_commit=host.origin.commit(chain(), both))
    assert host.apply().status.reason == "Applied"
    point = host.kernel.point("veth0", HookKind.XDP, netns="blue")
    del host.kernel.namespaces["blue"]
    for _ in range(2):
        assert host.repair().status.reason == "HookAbsent"
        assert not host.kernel.run_packet(point).broken
    assert host.kernel.violations == []
    assert orphans(host) == []


def test_what_went_with_its_interface_leaves_the_records_too(make_host: Callable[..., Host]) -> None:
    host = make_host("eth0", "eth1", features=replace(ALL_FEATURES, tcx=Support.NO))
    wanted = chain("in", member("flowcount"), hook={"type": "tc", "direction": "ingress", "interfaces": ["eth*"]})
    host.set_source(minimum_commit=host.origin.commit(wanted))
    host.apply()
    assert {owned.point.interface for owned in host.inventory().attachments} == {"eth0", "eth1"}
    host.kernel.remove_interface("eth1")  # a filter has no pin, so nothing is left to do
    result = host.repair()
    assert result.plan is not None
    assert result.plan.steps == ()
    assert {owned.point.interface for owned in host.inventory().attachments} == {"eth0"}


@pytest.mark.parametrize("first", ["ingress", "egress"])
def test_old_kernels_get_filters_and_leave_no_qdisc(make_host: Callable[..., Host], first: str) -> None:
    host = make_host("eth0", features=replace(ALL_FEATURES, tcx=Support.NO))
    chains = [
        chain(name, member("flowcount"), hook={"type": "tc", "direction": name, "interfaces": ["eth0"]})
        for name in sorted(("ingress", "egress"), key=lambda name: name != first)
    ]
    host.set_source(minimum_commit=host.origin.commit(*chains))
    host.configure(guardrail=Guardrail(share=1.0))
    host.apply()
    qdiscs = [host.kernel.device("eth0").qdisc]
    for wanted in (chains[0], chain()):
        host.origin.commit(wanted)
        host.apply()
        qdiscs.append(host.kernel.device("eth0").qdisc)
    assert qdiscs == ["clsact", "clsact", "none"]
