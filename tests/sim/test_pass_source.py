# SPDX-License-Identifier: Apache-2.0
"""Which commit counts: first start, history, signatures of commits, acceptance, a source that does not answer."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta

import pytest

from reconciler import reconcile
from reconciler.config import CommitTrust, SecureMode, Trust
from reconciler.errors import ExitCode, GuardrailError, SourceError, SuspendedError
from reconciler.model import AttachKind, HookKind
from reconciler.source import SourceMovedError
from tests.e2e.servers import allowed_signers
from tests.sim.host import START, Host, chain, keys, member, tree


def faster(rate: int = 7) -> object:
    """The chain of `edge`, changed."""
    return chain("edge", member(params={"rate": rate}))


def unchanged(host: Host, before: object) -> None:
    """Nothing in the kernel was touched."""
    assert host.fingerprint() == before
    assert host.kernel.violations == []


# --- first start -------------------------------------------------------------------------------------------


def test_a_first_start_without_a_minimum_takes_nothing(host: Host) -> None:
    host.origin.commit(chain())
    result = host.apply()
    assert (result.status.reason, result.status.exit_code) == ("NoMinimumCommit", 4)
    assert host.runs() == []
    assert host.applied is None
    assert host.kernel.pins == {}


def test_a_first_start_takes_any_head_only_when_told_that_this_is_unsafe(host: Host) -> None:
    commit = host.origin.commit(chain())
    assert host.apply().status.reason == "NoMinimumCommit"
    host.unsafe_first_use = True
    result = host.apply()
    assert result.status.reason == "Applied"
    assert any(note.startswith("unsafe") for note in result.status.notes)
    assert host.applied == commit
    host.unsafe_first_use = False
    assert host.apply().status.exit_code == 0


def test_an_empty_policy_allows_nothing_and_evicts_nothing(host: Host) -> None:
    whole = host.config.trust
    point = host.kernel.point("eth0", HookKind.TC_INGRESS)
    host.kernel.attach_foreign_tcx(point)
    host.secure(SecureMode.ENFORCE)
    host.set_source(minimum_commit=host.origin.commit(chain()))
    before = host.fingerprint()
    for policy, reason in (
        (Trust(), "SignerNotAllowed"),
        (replace(whole, commits=CommitTrust()), "SignerNotAllowed"),
        (replace(whole, commits=CommitTrust(unsafe_allow_unsigned=True), signers=()), "IdentityRefused"),
        (replace(whole, signers=()), "IdentityRefused"),
    ):
        host.configure(trust=policy)
        for request in ({}, {"poll": False}):
            result = host.apply(**request)
            assert (result.status.reason, result.status.exit_code) == (reason, 3)
            unchanged(host, before)
    assert host.applied is None
    host.configure(trust=whole)
    assert host.apply().status.reason == "Applied"
    assert host.kernel.attachments(point) == ()


def test_a_first_start_takes_the_minimum_or_what_descends_from_it(host: Host) -> None:
    old = host.origin.commit(chain())
    minimum = host.origin.commit(faster(3))
    head = host.origin.commit(faster(4))
    host.set_source(minimum_commit=minimum)
    host.origin.push(old)
    result = host.apply()
    assert (result.status.reason, result.status.exit_code) == ("HistoryRewritten", 4)
    assert host.runs() == []
    host.origin.push(head)
    assert host.apply().status.reason == "Applied"
    assert host.applied == head


def test_a_first_start_refuses_what_does_not_know_the_minimum(host: Host) -> None:
    host.origin.commit(chain())
    host.set_source(minimum_commit="0" * 40)
    result = host.apply()
    assert (result.status.reason, result.status.exit_code) == ("HistoryRewritten", 4)
    assert "cannot be compared" in result.status.message


def test_nothing_is_verified_before_it_is_newer_than_the_minimum(host: Host) -> None:
    minimum = host.origin.commit(chain())
    head = host.origin.commit(faster(), key=None)
    host.set_source(minimum_commit=minimum)
    result = host.apply()
    assert (result.status.reason, result.status.exit_code) == ("Unsigned", 3)
    assert head in result.status.message


# --- the watermark -----------------------------------------------------------------------------------------


def test_a_commit_that_changes_nothing_here_advances_the_watermark(edge: Host) -> None:
    before = edge.fingerprint()
    other = chain("db", hosts={"matchLabels": {"role": "db"}})
    head = edge.origin.commit(chain(), other)
    result = edge.apply()
    assert result.status.exit_code == 0
    assert result.outcome is None
    assert edge.applied == head
    unchanged(edge, before)


def test_a_second_pass_is_empty_and_asks_nothing_twice(edge: Host) -> None:
    for request in ({}, {"poll": False}, {"dry_run": True}):
        result = edge.apply(**request)
        assert result.status.reason == "InSync"
        assert result.plan is not None
        assert result.plan.steps == ()
    assert edge.history() == ["applied"]


def test_a_forced_push_to_an_older_signed_commit_is_refused(edge: Host) -> None:
    first = edge.applied
    assert first is not None
    edge.origin.commit(faster())
    second = edge.origin.commit(chain("edge", member(), member("firewall", program="firewall_xdp")))
    assert edge.apply().status.reason == "Applied"
    before = edge.fingerprint()
    edge.origin.push(first)
    for _ in range(2):
        result = edge.apply()
        assert (result.status.reason, result.status.exit_code) == ("HistoryRewritten", 4)
        assert "rewound" in result.status.message
        assert result.status.seen == first
        assert edge.applied == second
        unchanged(edge, before)
    assert edge.history().count("refused") == 1
    edge.origin.push(second)
    assert edge.apply().status.exit_code == 0


def test_back_and_forward_again_is_no_way_around(edge: Host) -> None:
    first = edge.applied
    assert first is not None
    second = edge.origin.commit(faster())
    edge.apply()
    edge.origin.push(first)
    assert edge.apply().status.exit_code == 4
    fork = edge.origin.commit(chain("edge", member(params={"rate": 1})))
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("HistoryRewritten", 4)
    assert "rewritten" in result.status.message
    assert edge.applied == second
    edge.origin.push(second)
    third = edge.origin.commit(faster(8))
    assert edge.apply().status.reason == "Applied"
    assert edge.applied == third
    assert fork != third


def test_an_unrelated_history_with_the_same_signer_is_refused(edge: Host) -> None:
    before = edge.fingerprint()
    edge.origin.commit(faster(), parents=())
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("HistoryRewritten", 4)
    unchanged(edge, before)


def test_a_merge_is_taken_when_its_first_parents_are_signed(edge: Host) -> None:
    base = edge.applied
    assert base is not None
    side = edge.origin.commit(faster(2), key=None, parents=(base,), ref=None)
    merge = edge.origin.commit(faster(2), parents=(base, side))
    assert edge.apply().status.reason == "Applied"
    assert edge.applied == merge


def test_a_merge_that_makes_the_watermark_a_side_line_verifies_its_new_first_parents(edge: Host) -> None:
    watermark = edge.applied
    assert watermark is not None
    other = edge.origin.commit(faster(2), key="mallory", parents=(), ref=None)
    edge.origin.commit(faster(3), parents=(other, watermark))
    result = edge.apply()
    assert result.status.exit_code == 3
    assert other in result.status.message
    assert edge.applied == watermark


def test_another_repository_with_the_same_signers_is_refused(edge: Host) -> None:
    edge.configure(source=replace(edge.config.source, repository="corp-edge"))
    assert edge.apply().status.exit_code == 0
    files = tree(faster())
    files["reconciler.yaml"] = files["reconciler.yaml"].replace(b"corp-edge", b"other")
    edge.origin.commit(files=files)
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("WrongRepository", 4)
    assert edge.runs() == ["ratelimit"]


# --- signatures --------------------------------------------------------------------------------------------


def test_an_unsigned_commit_in_the_middle_is_refused_by_name(edge: Host) -> None:
    before, watermark = edge.fingerprint(), edge.applied
    middle = edge.origin.commit(faster(2), key=None)
    edge.origin.commit(faster(3))
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("Unsigned", 3)
    assert middle in result.status.message
    assert edge.applied == watermark
    unchanged(edge, before)


def test_a_commit_by_somebody_else_is_refused(edge: Host) -> None:
    head = edge.origin.commit(faster(), key="mallory")
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("SignerNotAllowed", 3)
    assert head in result.status.message
    assert result.status.refusal is not None
    assert edge.emitted("refused")[-1]["commit"] == head


def test_a_refused_head_is_superseded_only_by_a_history_that_is_signed_throughout(edge: Host) -> None:
    watermark = edge.applied
    assert watermark is not None
    edge.origin.commit(faster(2), key="mallory")
    assert edge.apply().status.exit_code == 3
    edge.origin.commit(faster(3))
    assert edge.apply().status.exit_code == 3
    fixed = edge.origin.commit(faster(4), parents=(watermark,))
    assert edge.apply().status.reason == "Applied"
    assert edge.applied == fixed


def test_a_change_of_policy_judges_the_same_head_again(edge: Host) -> None:
    head = edge.origin.commit(faster(), key="mallory")
    assert edge.apply().status.exit_code == 3
    both = CommitTrust(allowed_signers=allowed_signers(alice=keys()["alice"], mallory=keys()["mallory"]))
    edge.trust(commits=both)
    result = edge.apply()
    assert result.status.reason == "Applied"
    assert result.status.applied is not None
    assert result.status.applied.signer == "mallory@example.com"
    assert edge.applied == head


def test_a_signer_that_leaves_the_policy_stops_nothing_that_runs(edge: Host) -> None:
    before = edge.fingerprint()
    edge.trust(commits=CommitTrust(allowed_signers=allowed_signers(mallory=keys()["mallory"])))
    for _ in range(2):
        assert edge.apply().status.exit_code == 3
        unchanged(edge, before)
    edge.detach()
    assert edge.repair().status.exit_code == 3
    assert edge.runs() == ["ratelimit"]


def test_allowed_signers_that_cannot_be_used_stop_no_repair(edge: Host) -> None:
    edge.trust(commits=CommitTrust(allowed_signers=b"this is no such file \x00\n"))
    edge.detach()
    result = edge.repair()
    assert result.status.exit_code != 0
    assert edge.runs() == ["ratelimit"]


def test_commits_by_anybody_are_taken_only_with_a_warning_in_each_pass(edge: Host) -> None:
    edge.trust(commits=CommitTrust(unsafe_allow_unsigned=True))
    head = edge.origin.commit(faster(), key=None)
    assert edge.apply().status.reason == "Applied"
    for request in ({}, {"poll": False}):
        notes = edge.apply(**request).status.notes
        assert any(note.startswith("unsafe") for note in notes), notes
    assert edge.applied == head


# --- accept ------------------------------------------------------------------------------------------------


def test_accept_takes_the_advertised_head_against_history_once_and_on_record(edge: Host) -> None:
    first = edge.applied
    assert first is not None
    second = edge.origin.commit(faster())
    edge.apply()
    edge.origin.push(first)
    assert edge.apply().status.exit_code == 4
    result = edge.accept(first, reason="the rate was wrong")
    assert result.status.reason == "Applied"
    assert edge.applied == first
    assert edge.history()[-2:] == ["accepted", "applied"]
    assert edge.parts().state.control().acceptance is None
    edge.origin.push(second)
    assert edge.apply().status.reason == "Applied"
    edge.origin.push(first)
    assert edge.apply().status.exit_code == 4


def test_accept_takes_an_unrelated_history_but_no_unsigned_commit_of_it(edge: Host) -> None:
    bad = edge.origin.commit(faster(2), key=None, parents=())
    head = edge.origin.commit(faster(3))
    result = edge.accept(head)
    assert result.status.exit_code == 3
    assert bad in result.status.message
    good = edge.origin.commit(faster(3), parents=())
    assert edge.accept(good).status.reason == "Applied"
    assert edge.applied == good


def test_an_acceptance_that_was_refused_is_spent(edge: Host) -> None:
    head = edge.origin.commit(faster(), key="mallory", parents=())
    assert edge.accept(head).status.exit_code == 3
    assert edge.parts().state.control().acceptance is None
    both = CommitTrust(allowed_signers=allowed_signers(alice=keys()["alice"], mallory=keys()["mallory"]))
    edge.trust(commits=both)
    assert edge.apply().status.reason == "HistoryRewritten"


def test_accept_takes_nothing_that_is_not_advertised_now(edge: Host) -> None:
    first = edge.applied
    assert first is not None
    edge.origin.commit(faster())
    edge.apply()
    with pytest.raises(GuardrailError, match="advertises now") as caught:
        edge.accept(first)
    assert caught.value.exit_code is ExitCode.GUARDRAIL
    assert edge.apply().status.exit_code == 0
    edge.origin.vanish()
    with pytest.raises(SourceError):
        edge.accept(first)
    assert edge.history() == ["applied", "applied"]


def test_accept_says_first_what_else_stands_in_its_way(edge: Host) -> None:
    head = edge.origin.commit(faster(), parents=())
    reconcile.suspend(edge.parts(), seconds=60, reason="work", by="uid 0")
    with pytest.raises(SuspendedError):
        edge.accept(head)
    reconcile.teardown(edge.parts(), by="uid 0")
    with pytest.raises(SuspendedError):
        edge.accept(head)
    reconcile.resume(edge.parts(), by="uid 0")
    assert edge.accept(head).status.reason == "Applied"


# --- a source that does not answer -------------------------------------------------------------------------


def test_without_a_source_the_last_good_commit_is_enforced_and_repaired(edge: Host) -> None:
    edge.origin.vanish()
    result = edge.apply()
    assert result.status.exit_code == 1
    assert result.transient
    edge.detach()
    result = edge.apply()
    assert edge.runs() == ["ratelimit"]
    assert result.status.exit_code == 1
    assert result.status.contact == START.isoformat(timespec="seconds")
    edge.origin.return_()
    assert edge.apply().status.exit_code == 0


def test_a_host_that_never_met_its_source_attaches_nothing(host: Host) -> None:
    host.origin.vanish()
    result = host.apply()
    assert result.status.exit_code == 1
    assert host.repair().status.exit_code == 1
    assert host.kernel.pins == {}


def test_a_deleted_branch_is_no_empty_set(edge: Host) -> None:
    before = edge.fingerprint()
    edge.origin.repository.git("update-ref", "-d", "refs/heads/main")
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("RefMissing", 1)
    unchanged(edge, before)


def test_a_source_that_is_silent_for_too_long_is_stale(edge: Host) -> None:
    edge.origin.vanish()
    limit = edge.config.source.stale_after
    edge.clock.seconds = limit - 1
    assert edge.apply().status.exit_code == 1
    edge.clock.seconds = limit + 1
    for request in ({}, {"poll": False}):
        result = edge.apply(**request)
        assert (result.status.reason, result.status.exit_code) == ("SourceStale", 7)
    edge.detach()
    assert edge.apply().status.exit_code == 7
    assert edge.runs() == ["ratelimit"]
    edge.origin.return_()
    assert edge.apply().status.exit_code == 0
    assert edge.repair().status.exit_code == 0


def test_a_refusal_outlives_a_source_that_went_silent(edge: Host) -> None:
    edge.origin.commit(faster(), key=None)
    assert edge.apply().status.exit_code == 3
    edge.origin.vanish()
    assert edge.apply().status.exit_code == 3
    edge.restart()
    assert edge.repair().status.exit_code == 3


def test_a_lost_local_repository_is_fetched_again(edge: Host) -> None:
    edge.close()
    shutil.rmtree(edge.file("git"))
    edge.detach()
    assert edge.apply().status.exit_code == 0
    assert edge.runs() == ["ratelimit"]


def test_a_clock_that_jumps_back_is_no_reason_to_stop(edge: Host) -> None:
    edge.clock.seconds = -timedelta(days=400).total_seconds()
    edge.detach()
    assert edge.apply().status.exit_code == 0
    assert edge.attachment().kind is AttachKind.XDP_LINK


def test_a_contact_by_a_clock_that_was_ahead_hides_no_source_that_went_silent(edge: Host) -> None:
    edge.clock.seconds = timedelta(days=4000).total_seconds()
    assert edge.apply().status.exit_code == 0
    edge.clock.seconds = 0
    assert edge.repair().status.exit_code == 0  # nothing is known against the source yet
    edge.origin.vanish()
    for request in ({}, {"poll": False}):
        assert edge.apply(**request).status.reason == "SourceStale"
    edge.origin.return_()
    assert edge.apply().status.exit_code == 0


def test_a_ref_that_moves_while_it_is_fetched_is_asked_for_again(edge: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    source = edge.parts().source
    real = source.fetch

    def moved(commit: str) -> None:
        raise SourceMovedError("the ref names another commit by now")

    edge.origin.commit(faster())
    with monkeypatch.context() as patch:
        patch.setattr(source, "fetch", moved)
        patch.setattr(source, "pull", lambda: source.fetch(source.resolve()))
        result = edge.apply()
        assert (result.status.reason, result.status.exit_code) == ("SourceMoved", 1)
        assert result.retry_now
        assert not result.transient
    assert source.fetch == real
    assert edge.apply().status.reason == "Applied"


def test_a_local_repository_that_fails_while_a_commit_is_judged_settles_nothing(
    edge: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(old: str, new: str) -> None:
        raise SourceError("cannot read the repository")

    edge.configure(labels={"role": "edge", "new": "label"})
    with monkeypatch.context() as patch:
        patch.setattr(edge.parts().source, "ancestry", broken)
        assert edge.apply().status.exit_code == 1
        edge.detach()
        edge.apply()
        assert edge.runs() == ["ratelimit"]
    assert edge.apply().status.exit_code == 0
    assert edge.parts().state.source().context != ""


def test_an_accepted_history_may_come_without_what_was_applied_before(edge: Host) -> None:
    head = edge.origin.commit(faster(), parents=())
    edge.close()
    shutil.rmtree(edge.file("git"))
    edge.origin.repository.git("reflog", "expire", "--expire=now", "--all")
    edge.origin.repository.git("gc", "--quiet", "--prune=now")
    result = edge.accept(head)
    assert result.status.reason == "Applied"
    assert edge.applied == head


# --- other hosts' files ------------------------------------------------------------------------------------


def test_a_broken_file_of_another_host_stops_nothing_here_ever(edge: Host) -> None:
    other = chain("db", hosts={"matchLabels": {"role": "db"}})
    edge.origin.commit(chain(), other)
    edge.apply()
    broken = tree(chain(), other)
    broken["chains/1.yaml"] = b"kind: Chain\nspec: [\n"
    head = edge.origin.commit(files=broken)
    assert edge.apply().status.exit_code == 0
    assert edge.applied == head
    edge.detach()
    assert edge.repair().status.exit_code == 0
    assert edge.runs() == ["ratelimit"]
    broken["chains/0.yaml"] = tree(faster())["chains/0.yaml"]
    later = edge.origin.commit(files=broken)
    assert edge.apply().status.reason == "Applied"
    assert edge.applied == later


def test_a_link_in_place_of_another_hosts_file_stops_nothing_here_ever(edge: Host) -> None:
    other = chain("db", hosts={"matchLabels": {"role": "db"}})
    edge.origin.commit(chain(), other)
    edge.apply()
    blob = edge.origin.repository.blob(b"/etc/passwd")
    linked = {**tree(chain()), "chains/1.yaml": ("120000", blob)}
    for number in range(2):
        files = {**linked, "README.md": str(number).encode()}
        head = edge.origin.commit(files=files)
        assert edge.apply().status.exit_code == 0
        assert edge.repair().status.exit_code == 0
        assert edge.applied == head


def test_an_invalid_file_of_this_host_refuses_the_commit_whole(edge: Host) -> None:
    before, watermark = edge.fingerprint(), edge.applied
    wrong = tree(faster())
    wrong["chains/0.yaml"] = wrong["chains/0.yaml"].replace(b'"priority": 100', b'"priority": "much"')
    edge.origin.commit(files=wrong)
    result = edge.apply()
    assert (result.status.reason, result.status.exit_code) == ("InvalidManifest", 1)
    assert "chains/0.yaml" in result.status.message
    assert edge.applied == watermark
    unchanged(edge, before)
    edge.origin.commit(faster())
    assert edge.apply().status.reason == "Applied"
