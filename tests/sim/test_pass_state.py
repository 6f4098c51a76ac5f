# SPDX-License-Identifier: Apache-2.0
"""What a host remembers, and what happens when it is lost, damaged, newer, torn, or when the process dies."""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from reconciler import reconcile, state
from reconciler.config import CommitTrust, Guardrail, SecureMode
from reconciler.errors import KernelError, LockedError, StateError, StateVersionError
from reconciler.model import HookKind
from reconciler.state import _directory, open_state
from tests.command import reconciler
from tests.sim.host import Host, chain, member, orphans, tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECORDS = ("inventory.json", "source.json", "control.json")


def both() -> object:
    """A chain of two members on both interfaces."""
    hook = {"type": "xdp", "interfaces": ["eth*"]}
    return chain("edge", member(params={"rate": 9}), member("firewall", program="firewall_xdp"), hook=hook)


# --- lost, damaged, newer ----------------------------------------------------------------------------------


def lose(host: Host, name: str) -> None:
    host.close()
    host.file(name).unlink()


def damage(host: Host, name: str) -> None:
    host.close()
    host.file(name).write_bytes(b'{"version": 1, "boot_id": [')


def flip(host: Host, name: str) -> None:
    host.close()
    host.file(name).write_bytes(host.file(name).read_bytes().replace(b'":"', b'":"\xe9', 1))


@pytest.mark.parametrize("deed", [lose, damage, flip])
@pytest.mark.parametrize("name", ["inventory.json", "source.json"])
def test_lost_state_is_tampering_until_a_commit_is_accepted(
    edge: Host, deed: Callable[[Host, str], None], name: str
) -> None:
    edge.secure(SecureMode.ENFORCE)
    edge.kernel.attach_foreign_tcx(edge.kernel.point("eth0", HookKind.TC_INGRESS))
    head = edge.origin.commit(both())
    before = edge.fingerprint()
    deed(edge, name)
    for request in ({}, {"poll": False}, {"dry_run": True}, {}):
        edge.restart()
        result = edge.apply(**request)
        assert (result.status.reason, result.status.exit_code) == ("StateLost", 4), request
        assert edge.fingerprint() == before
    result = edge.accept(head)
    assert result.status.reason == "Applied"
    assert edge.runs() == ["ratelimit", "firewall"]
    assert edge.applied == head
    assert edge.apply().status.exit_code == 0
    assert orphans(edge) == []
    assert edge.kernel.violations == []
    edge.restart()
    assert edge.apply().status.exit_code == 0


def test_all_state_lost_after_a_reboot_starts_at_the_minimum(edge: Host) -> None:
    edge.reboot()
    for path in edge.directory.glob("*.json"):
        path.unlink()
    assert edge.apply().status.reason == "Applied"
    assert edge.runs() == ["ratelimit"]


@pytest.mark.parametrize("name", RECORDS)
def test_state_of_a_newer_agent_is_refused_and_kept(edge: Host, name: str) -> None:
    reconcile.resume(edge.parts(), by="test")
    edge.close()
    newer = json.loads(edge.file(name).read_bytes()) | {"version": 99, "more": {"of": "it"}}
    edge.file(name).write_text(json.dumps(newer))
    files = {each: edge.file(each).read_bytes() for each in RECORDS}
    edge.origin.commit(both())
    before = edge.fingerprint()
    for request in ({}, {"poll": False}, {"dry_run": True}):
        result = edge.apply(**request)
        assert (result.status.reason, result.status.exit_code) == ("StateTooNew", 1)
        assert edge.fingerprint() == before
        assert {each: edge.file(each).read_bytes() for each in RECORDS} == files
    if name != "source.json":  # a teardown asks for no commit
        with pytest.raises(StateVersionError):
            reconcile.teardown(edge.parts(), by="test")
        assert edge.fingerprint() == before


@pytest.mark.parametrize("name", RECORDS)
def test_state_of_an_older_agent_is_read(edge: Host, name: str) -> None:
    reconcile.resume(edge.parts(), by="test")
    edge.close()
    older = json.loads(edge.file(name).read_bytes()) | {"version": 0}
    for field in ("failure", "bpffs_id", "confirmed"):
        older.pop(field, None)
    edge.file(name).write_text(json.dumps(older))
    assert edge.apply().status.reason == "InSync"


def test_damaged_decisions_of_operators_change_nothing_and_are_replaced_by_the_next(edge: Host) -> None:
    edge.close()
    edge.file("control.json").write_bytes(b"{")
    watermark = edge.file("source.json").read_bytes()
    edge.detach()
    before = edge.fingerprint()
    result = edge.apply()
    assert result.status.exit_code == 1
    assert "control.json" in result.status.message
    assert edge.fingerprint() == before
    assert edge.file("source.json").read_bytes() == watermark
    reconcile.resume(edge.parts(), by="test")
    assert edge.apply().status.exit_code == 0
    assert edge.runs() == ["ratelimit"]


def test_an_inventory_of_another_boot_is_no_inventory(edge: Host) -> None:
    saved = edge.file("inventory.json").read_bytes()
    edge.reboot()
    assert edge.apply().status.reason == "Applied"
    edge.close()
    edge.file("inventory.json").write_bytes(saved)
    assert edge.apply().status.reason == "StateLost"


# --- a disk that takes nothing -----------------------------------------------------------------------------


def test_a_full_disk_is_an_error_and_touches_nothing(edge: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    edge.origin.commit(both())
    edge.parts()
    before, files = edge.fingerprint(), {each: edge.file(each).read_bytes() for each in RECORDS[:2]}

    def full(name: str, fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("reconciler.state._directory._write_all", full)
        result = edge.apply()
        assert (result.status.reason, result.status.exit_code) == ("StateUnavailable", 1)
        assert edge.fingerprint() == before
        assert {each: edge.file(each).read_bytes() for each in RECORDS[:2]} == files
    assert edge.apply().status.reason == "Applied"


@pytest.mark.parametrize("failing", [errno.ENOSPC, errno.EDQUOT])
def test_without_a_disk_nothing_is_repaired_or_evicted_and_no_old_report_is_shown(
    edge: Host, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    edge.secure(SecureMode.ENFORCE)
    assert edge.apply().status.exit_code == 0
    edge.detach()
    edge.kernel.attach_foreign_tcx(edge.kernel.point("eth0", HookKind.TC_INGRESS))
    before = edge.fingerprint()

    def refuse(*_: object) -> None:
        raise OSError(failing, os.strerror(failing))

    with monkeypatch.context() as patch:
        patch.setattr("reconciler.state._directory._write_all", refuse)
        result = edge.repair()
        assert (result.status.reason, result.status.exit_code) == ("StateUnavailable", 1)
        assert edge.fingerprint() == before
        with pytest.raises(StateError, match="could not write its report; check the disk"):
            state.read_status(edge.directory)
        with pytest.raises(StateError):
            reconcile.teardown(edge.parts(), by="test")
        assert edge.fingerprint() == before
    assert edge.repair().status.reason == "Applied"
    assert state.read_status(edge.directory) is not None
    assert edge.runs() == ["ratelimit"]


def test_no_decision_is_in_force_that_could_not_be_written_down(edge: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    older, head = edge.applied, edge.origin.commit(both())
    assert older is not None
    assert edge.apply().status.reason == "Applied"
    edge.origin.push(older)
    before = edge.fingerprint()

    def refuse(*_: object) -> None:
        raise StateError("cannot append to history.jsonl: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state.State, "append_history", refuse)
        for decide in (
            lambda: reconcile.accept(edge.parts(), older, reason="INC-1", by="test"),
            lambda: reconcile.suspend(edge.parts(), seconds=60, reason="INC-1", by="test"),
        ):
            with pytest.raises(StateError, match="history"):
                decide()
    result = edge.apply()
    assert (result.status.reason, result.status.suspension) == ("HistoryRewritten", None)
    assert (edge.fingerprint(), edge.applied) == (before, head)


@pytest.mark.parametrize("nth", range(1, 12))
def test_a_disk_that_fills_up_in_the_middle_leaves_one_of_both_states(
    edge: Host, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    edge.origin.commit(both())
    edge.parts()
    real, count = _directory._write_all, [0]

    def filling(name: str, fd: int, data: bytes) -> None:
        count[0] += 1
        if count[0] >= nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(name, fd, data)

    with monkeypatch.context() as patch:
        patch.setattr("reconciler.state._directory._write_all", filling)
        edge.apply()
    assert edge.runs() in (["ratelimit"], ["ratelimit", "firewall"])
    edge.restart()
    assert edge.apply().status.exit_code == 0
    assert edge.runs() == edge.runs("eth1") == ["ratelimit", "firewall"]
    assert orphans(edge) == []
    assert edge.kernel.violations == []


# --- the process dies --------------------------------------------------------------------------------------


def settled(host: Host, names: list[str]) -> None:
    result = host.apply()
    assert result.status.exit_code == 0, result.status
    assert host.runs() == names
    assert host.apply().plan.steps == ()  # type: ignore[union-attr]
    assert orphans(host) == []
    assert host.kernel.violations == []
    assert host.file("journal").exists() is False


@pytest.mark.parametrize(("when", "step"), [("after", 1), ("before", 3)])
def test_a_first_start_that_is_killed_anywhere_converges(make_host: Callable[..., Host], when: str, step: int) -> None:
    host = make_host()
    host.set_source(minimum_commit=host.origin.commit(chain(), key=None))
    host.trust(commits=CommitTrust(unsafe_allow_unsigned=True))
    deaths = 0
    while host.crash(step * deaths + 1, when=when):
        deaths += 1
        settled(host, ["ratelimit"])
        host.reboot()
        shutil.rmtree(host.directory)
    assert deaths > 5 / step


@pytest.mark.parametrize(("when", "step"), [("after", 1), ("before", 3)])
def test_an_update_that_is_killed_anywhere_converges(make_host: Callable[..., Host], when: str, step: int) -> None:
    host = make_host("eth0", "eth1")
    everywhere = {"type": "xdp", "interfaces": ["eth*"]}
    # Each goes from one interface to two, or back, and changes what runs there.
    one, two = chain("edge", member(params={"rate": 1})), chain("edge", member(params={"rate": 2}), hook=everywhere)
    host.set_source(minimum_commit=host.origin.commit(one, key=None))
    host.trust(commits=CommitTrust(unsafe_allow_unsigned=True))
    assert host.apply().status.reason == "Applied"
    deaths = 0
    trees = [host.origin.repository.tree(dict(tree(wanted))) for wanted in (two, one)]
    while True:
        host.origin.commit(files={}, tree=trees[deaths % 2], key=None)
        if not host.crash(step * deaths + 1, when=when):
            break
        assert host.runs() == ["ratelimit"]
        settled(host, ["ratelimit"])
        assert host.runs("eth1") == ["ratelimit"][deaths % 2 :]
        deaths += 1
    assert deaths > 10 / step


def test_a_crash_while_the_source_is_away_converges_on_the_last_good_commit(edge: Host) -> None:
    edge.origin.commit(both())
    assert edge.crash(12)
    edge.origin.vanish()
    edge.apply()
    assert edge.runs() == ["ratelimit"]
    assert orphans(edge) == []
    edge.origin.return_()
    settled(edge, ["ratelimit", "firewall"])


def test_a_crash_after_the_inventory_was_saved_is_no_matter(edge: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    edge.origin.commit(both())
    parts = edge.parts()

    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(parts.state, "clear_journal", die)
        with pytest.raises(Killed):
            reconcile.Pass(parts, reconcile.Request()).run()
    edge.restart()
    assert edge.file("journal").exists()
    settled(edge, ["ratelimit", "firewall"])


def test_a_crash_while_grace_periods_are_expedited_puts_them_back(make_host: Callable[..., Host]) -> None:
    host = make_host(*(f"eth{number}" for number in range(8)))
    host.set_source(minimum_commit=host.origin.commit(both()))
    assert host.crash(30)
    assert host.kernel.rcu_expedited == 1
    host.plan()
    assert host.apply().status.exit_code == 0
    assert host.kernel.rcu_expedited == 0


def test_expediting_that_cannot_be_ended_is_ended_by_the_next_pass(
    make_host: Callable[..., Host],
) -> None:
    host = make_host(*(f"eth{number}" for number in range(8)))
    host.set_source(minimum_commit=host.origin.commit(both()))
    host.kernel.stays_expedited = True
    status = host.apply().status
    assert (status.reason, status.exit_code) == ("Applied", 0)
    assert any("rcu_expedited could not be set back" in note for note in status.notes)
    assert host.kernel.rcu_expedited == 1
    host.kernel.stays_expedited = False
    assert host.apply().status.reason == "InSync"
    assert host.kernel.rcu_expedited == 0
    host.kernel.rcu_expedited = 1  # somebody else's
    assert host.apply().status.reason == "InSync"
    assert host.kernel.rcu_expedited == 1


def test_a_reboot_without_the_source_gives_the_last_good_state_back(edge: Host) -> None:
    edge.configure(guardrail=Guardrail(share=1.0))
    edge.origin.commit(both())
    edge.apply()
    edge.origin.commit(chain("edge", member(params={"rate": 1})))
    edge.origin.vanish()
    edge.reboot()
    assert edge.runs() == []
    result = edge.apply()
    assert edge.runs() == edge.runs("eth1") == ["ratelimit", "firewall"]
    assert result.status.exit_code == 1
    assert edge.repair().plan.steps == ()  # type: ignore[union-attr]
    edge.origin.return_()
    settled(edge, ["ratelimit"])


def test_a_crash_in_the_first_pass_after_a_reboot_converges(edge: Host) -> None:
    edge.reboot()
    for number in range(1, 30):
        if not edge.crash(number):
            break
        edge.kernel.violations.clear()
    settled(edge, ["ratelimit"])


# --- the journal -------------------------------------------------------------------------------------------


def test_a_torn_last_line_of_the_journal_hides_nothing_that_follows(host: Host) -> None:
    host.set_source(minimum_commit=host.origin.commit(chain()))
    assert host.crash(9)
    with host.file("journal").open("ab") as file:
        file.write(b'{"boot": "00000000-0000-4000-80')
    assert host.crash(9)
    events = [record["event"] for record in host.parts().state.journal_records()]
    assert events.count("begin") == 2
    settled(host, ["ratelimit"])


def test_a_torn_line_alone_is_ignored(host: Host) -> None:
    host.set_source(minimum_commit=host.origin.commit(chain()))
    host.directory.mkdir(parents=True)
    host.file("journal").write_bytes(b'{"boot": "000')
    settled(host, ["ratelimit"])


@pytest.mark.parametrize(
    "line",
    [
        {"event": "loaded", "result": {"name": 1}},
        {"event": "loaded"},
        {"event": "intent", "steps": [{"step": "attach", "point": 7}]},
        {"event": "intent", "steps": [5]},
    ],
)
def test_a_journal_that_makes_no_sense_is_tampering(edge: Host, line: dict[str, object]) -> None:
    before = edge.fingerprint()
    record = {"boot": edge.kernel.boot_id(), **line}
    edge.file("journal").write_text(json.dumps(record) + "\n")
    result = edge.apply()
    if line == {"event": "intent", "steps": [5]}:  # it names nothing, so nothing can be there because of it
        assert result.status.exit_code == 0
        return
    assert (result.status.reason, result.status.exit_code) == ("StateLost", 4)
    assert edge.fingerprint() == before


def test_a_history_and_a_status_that_cannot_be_written_stop_no_repair(edge: Host) -> None:
    for name in ("history.jsonl", "status.json"):
        edge.file(name).unlink()
        edge.file(name).mkdir()
    edge.detach()
    result = edge.repair()
    assert result.status.exit_code == 0
    assert edge.runs() == ["ratelimit"]
    assert any("history" in note for note in result.status.notes)


def test_a_host_that_was_only_ever_asked_to_repair_says_what_to_do(host: Host) -> None:
    result = host.repair()
    assert (result.status.reason, result.status.exit_code) == ("NothingApplied", 1)
    assert "reconciler apply" in result.status.message


# --- two of us ---------------------------------------------------------------------------------------------


def test_a_second_agent_is_refused(edge: Host) -> None:
    edge.parts()
    with pytest.raises(LockedError, match="another reconciler"):
        open_state(edge.directory)
    edge.close()
    open_state(edge.directory).close()


# --- suspend, teardown -------------------------------------------------------------------------------------


def test_a_suspended_host_repairs_and_takes_nothing_new_until_it_expires(edge: Host) -> None:
    edge.origin.commit(both())
    reconcile.suspend(edge.parts(), seconds=600, reason="INC-42", by="uid 0")
    for request in ({}, {"poll": False}):
        edge.detach()
        result = edge.apply(**request)
        assert (result.status.reason, result.status.exit_code) == ("Suspended", 5)
        assert "INC-42" in result.status.message
        assert edge.runs() == ["ratelimit"]
    edge.restart()
    edge.clock.seconds += 599
    assert edge.apply().status.exit_code == 5
    edge.clock.seconds += 1
    result = edge.apply()
    assert result.status.reason == "Applied"
    assert result.status.suspension is None
    assert edge.parts().state.control().suspension is None


def test_resume_ends_a_suspension_early(edge: Host) -> None:
    edge.origin.commit(both())
    reconcile.suspend(edge.parts(), seconds=600, reason="INC-42", by="uid 0")
    assert edge.plan().status.exit_code == 5
    reconcile.resume(edge.parts(), by="uid 0")
    assert edge.apply().status.reason == "Applied"
    assert edge.history() == ["applied", "suspended", "resumed", "applied"]


@pytest.mark.parametrize("duration", ["0s", "9999999d"])
def test_a_suspension_that_cannot_be_is_wrong_usage(
    edge: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, duration: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "apiVersion: reconciler/v1alpha1\nkind: Config\nmetadata: {name: lab}\n"
        f"spec: {{source: {{url: 'https://x/y'}}, paths: {{run: {tmp_path}}}}}\n"
    )
    monkeypatch.setattr("reconciler.cli._agent._parts", lambda _: nullcontext(edge.parts()))
    ran = reconciler("-c", file, "suspend", "--reason", "INC-1", "--for", duration)
    assert (ran.code, f"--for {duration}" in ran.err) == (64, True), ran
    assert edge.apply().status.reason == "InSync"
    assert reconciler("-c", file, "suspend", "--reason", "INC-1", "--for", "1h").code == 0
    assert edge.apply().status.reason == "Suspended"


def test_after_a_teardown_nothing_is_attached_until_resume(edge: Host) -> None:
    edge.origin.commit(both())
    edge.apply()
    edge.kernel.attach_foreign_tcx(edge.kernel.point("eth0", HookKind.TC_INGRESS))
    _, outcome = reconcile.teardown(edge.parts(), by="uid 0")
    assert outcome.failed is None
    assert edge.kernel.pins == {}
    assert edge.runs() == []
    assert len(edge.kernel.attachments(edge.kernel.point("eth0", HookKind.TC_INGRESS))) == 1
    for request in ({}, {"poll": False}):
        edge.restart()
        result = edge.apply(**request)
        assert (result.status.reason, result.status.exit_code) == ("TornDown", 5)
        assert edge.kernel.pins == {}
    reconcile.resume(edge.parts(), by="uid 0")
    assert edge.apply().status.reason == "ForeignPrograms"
    assert edge.runs() == ["ratelimit", "firewall"]
    assert edge.kernel.violations == []


@pytest.mark.parametrize("number", range(1, 14, 2))
def test_a_teardown_that_is_killed_can_be_asked_for_again(edge: Host, number: int) -> None:
    edge.origin.commit(both())
    edge.apply()
    edge.kernel.crash_at(number)
    with pytest.raises(BaseException, match="killed"):
        reconcile.teardown(edge.parts(), by="uid 0")
    edge.restart()
    reconcile.teardown(edge.parts(), by="uid 0")
    assert edge.kernel.pins == {}
    assert edge.runs() == []
    assert edge.kernel.violations == []


def test_a_teardown_works_without_any_state(edge: Host) -> None:
    edge.close()
    for path in edge.directory.glob("*.json"):
        path.unlink()
    reconcile.teardown(edge.parts(), by="uid 0")
    assert edge.kernel.pins == {}
    assert edge.runs() == []


def test_operators_can_decide_again_when_their_record_is_damaged(edge: Host) -> None:
    edge.close()
    edge.file("control.json").write_bytes(b"{")
    suspension = reconcile.suspend(edge.parts(), seconds=60, reason="again", by="uid 0")
    assert edge.parts().state.control().suspension == suspension


def test_what_a_teardown_could_not_remove_is_removed_by_the_next(edge: Host) -> None:
    edge.kernel.fail_on("link-detach", KernelError("BPF_LINK_DETACH", 5, "input/output error"))
    _, outcome = reconcile.teardown(edge.parts(), by="uid 0")
    assert outcome.survivors
    assert edge.runs() == ["ratelimit"]
    reconcile.teardown(edge.parts(), by="uid 0")
    assert edge.kernel.pins == {}
