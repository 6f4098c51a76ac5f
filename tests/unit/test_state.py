# SPDX-License-Identifier: Apache-2.0
"""The state directory: atomic records, an honest journal, a history that stays bounded, one writer."""

from __future__ import annotations

import json
import os
import stat
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.errors import LockedError, StateError, StateVersionError
from reconciler.model import (
    AttachKind,
    ChangeMode,
    CommitRecord,
    ControlRecord,
    HookKind,
    HookPoint,
    Identity,
    Inventory,
    OwnedAttachment,
    Quarantine,
    SourceRecord,
    Suspension,
    Switch,
    XdpMode,
    to_builtins,
)
from reconciler.state import State, candidate, open_state, read_file, read_history, read_status, recover
from reconciler.state import _directory as module
from tests.sim.world import desired, fake_world, member, tc_chain, xdp_chain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POINT = HookPoint(kind=HookKind.XDP, netns_inode=1, ifindex=2, netns="host", interface="eth0")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = open_state(tmp_path / "state")
    yield made
    made.close()


def owned_inventory() -> Inventory:
    """What a real pass owns: links, filters, generations with every role of map."""
    world = fake_world("eth0")
    chains = desired(xdp_chain("edge", member("ratelimit"), member("firewall")), tc_chain("count", member("flowcount")))
    world.converge(chains)
    return world.inventory


# --- records -----------------------------------------------------------------------------------------------


def test_what_was_saved_is_read_as_it_was(state: State) -> None:
    inventory = owned_inventory()
    source = SourceRecord(applied=CommitRecord(id="a" * 40, signer="alice", subject="x"), seen="b", contact="c")
    control = ControlRecord(
        suspension=Suspension(until="u", reason="r", by="b", at="a"),
        quarantine=(Quarantine(state_digest="d", policy="p", kernel="k", commit="c", message="m", at="a"),),
        torn_down=True,
    )
    assert (state.inventory(), state.has_source, state.source(), state.control()) == (
        None,
        False,
        SourceRecord(),
        ControlRecord(),
    )
    state.save_inventory(inventory)
    state.save_source(source)
    state.save_control(control)
    state.save_status(b"{}")
    assert (state.inventory(), state.has_source, state.source(), state.control()) == (inventory, True, source, control)
    assert read_status(state.directory) == b"{}"


def test_files_are_for_root_only(state: State) -> None:
    state.save_inventory(Inventory(boot_id="b"))
    state.journal("b", "begin")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in state.directory.iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE(state.directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"{}",
        b'{"version": "1"}',
        b'{"version": 1}',
        b'{"version": 1, "boot_id": 5}',
        b"\xff",
        b'{"version": 1, "boot_id": "a\xff"}',
        b'{"version": 1, "boot_id": ' + b"[" * 100_000,
    ],
)
def test_a_damaged_record_is_an_error_that_names_the_file(state: State, data: bytes) -> None:
    (state.directory / "inventory.json").write_bytes(data)
    with pytest.raises(StateError, match=r"inventory\.json") as caught:
        state.inventory()
    assert not isinstance(caught.value, StateVersionError)


def test_a_record_that_the_disk_does_not_give_is_an_error_that_names_the_file(state: State) -> None:
    (state.directory / "control.json").mkdir()
    with pytest.raises(StateError, match=r"control\.json: Is a directory"):
        state.control()


def test_a_newer_record_is_refused_whatever_it_holds(state: State) -> None:
    (state.directory / "source.json").write_bytes(b'{"version": 2, "applied": "another shape"}')
    with pytest.raises(StateVersionError, match="install the newer agent"):
        state.source()


def test_fields_of_a_later_format_of_the_same_version_are_passed_over(state: State) -> None:
    (state.directory / "source.json").write_bytes(b'{"version": 1, "seen": "x", "more": 1}')
    assert state.source().seen == "x"


def test_a_record_is_replaced_whole_or_not_at_all(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    state.save_source(SourceRecord(seen="old"))

    def torn(name: str, fd: int, data: bytes) -> None:
        os.write(fd, data[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_all", torn)
        with pytest.raises(StateError, match="No space left"):
            state.save_source(SourceRecord(seen="new"))
        with pytest.raises(StateError, match="No space left"):
            state.journal("b", "x")
    assert state.source().seen == "old"
    state.save_source(SourceRecord(seen="new"))
    assert state.source().seen == "new"


def test_links_in_place_of_files_are_not_followed(state: State, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"{}")
    for name in ("inventory.json", "journal", ".source.json.new"):
        (state.directory / name).symlink_to(tmp_path / "secret")
    with pytest.raises(StateError):
        state.inventory()
    with pytest.raises(StateError):
        state.journal("b", "x")
    with pytest.raises(StateError):
        state.save_source(SourceRecord())
    assert (tmp_path / "secret").read_bytes() == b"{}"


def test_a_file_that_is_far_too_large_is_not_ours(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STATE_BYTES", 10)
    (state.directory / "source.json").write_bytes(b"x" * 11)
    with pytest.raises(StateError, match="at most 10 bytes"):
        read_file(state.directory / "source.json")


# --- the lock ----------------------------------------------------------------------------------------------


def test_there_is_one_writer(state: State) -> None:
    with pytest.raises(LockedError, match="another reconciler"):
        open_state(state.directory)
    state.close()
    state.close()
    with closing(open_state(state.directory, wait=True)) as second:
        assert second.inventory() is None


def test_a_directory_that_cannot_be_used_says_which(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="file"):
        open_state(tmp_path / "file" / "state")


# --- the journal -------------------------------------------------------------------------------------------


def test_the_journal_keeps_order_survives_a_torn_line_and_is_cleared(state: State) -> None:
    state.clear_journal()
    assert state.journal_records() == ()
    state.journal("b", "one", n=1)
    state.close()
    with (state.directory / "journal").open("ab") as file:
        file.write(b'{"boot": "b", "ev')
    with closing(open_state(state.directory)) as again:
        again.journal("b", "two")
        again.journal("b", "three")
        assert [record["event"] for record in again.journal_records()] == ["one", "two", "three"]
        again.clear_journal()
        assert again.journal_records() == ()
        assert not (again.directory / "journal").exists()


def test_lines_that_are_no_records_are_passed_over(state: State) -> None:
    (state.directory / "journal").write_bytes(b'[]\n7\n{"event": "x"}\n\n\xff\n{"event": "\xff"}\n' + b"[" * 100_000)
    assert state.journal_records() == ({"event": "x"},)


def test_a_journal_that_cannot_be_removed_is_an_error(state: State) -> None:
    (state.directory / "journal").mkdir()
    with pytest.raises(StateError, match="journal"):
        state.clear_journal()


# --- the history -------------------------------------------------------------------------------------------


def test_the_history_is_rotated_once_and_read_in_order(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HISTORY_BYTES", 100)
    for number in range(30):
        state.append_history({"number": number, "filling": "x" * 10})
    found = [record["number"] for record in read_history(state.directory)]
    assert found == list(range(found[0], 30))
    assert 3 <= len(found) < 12


def test_a_line_of_history_that_a_kill_tore_swallows_none_that_follows(state: State) -> None:
    state.append_history({"number": 1})
    with (state.directory / "history.jsonl").open("ab") as file:
        file.write(b'{"number": 2, "mess')
    state.append_history({"number": 3})
    assert [record["number"] for record in read_history(state.directory)] == [1, 3]


def test_a_history_that_cannot_be_written_is_an_error(state: State) -> None:
    (state.directory / "history.jsonl").mkdir()
    with pytest.raises(StateError, match="history"):
        state.append_history({})


# --- recovery ----------------------------------------------------------------------------------------------


def recorded(event: str, boot: str = "b", **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = to_builtins({"boot": boot, "event": event, **fields})
    assert json.loads(json.dumps(found)) == found
    return found


def test_what_a_dead_process_may_have_made_is_ours() -> None:
    before = owned_inventory()
    world = fake_world("eth0")
    made = world.plan(desired(xdp_chain("edge", member("ratelimit")), tc_chain("count", member("flowcount"))))
    records = [recorded("begin"), *(recorded("intent", steps=[step]) for step in made.steps)]
    records.append(recorded("loaded", results=before.generations))
    found = recover(Inventory(boot_id="b"), tuple(records))
    assert found.generations == before.generations
    assert [owned.point.key for owned in found.attachments] == [owned.point.key for owned in before.attachments]
    assert {owned.pin for owned in found.attachments} == {owned.pin for owned in before.attachments}
    other = tuple(record | {"boot": "another"} for record in records)
    assert recover(Inventory(boot_id="b"), other).empty


@pytest.mark.parametrize("damage", [{"results": 5}, {"results": [{"name": "x"}]}, {}])
def test_a_whole_record_that_is_none_of_ours_is_damage(damage: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="journal"):
        recover(Inventory(boot_id="b"), (recorded("loaded", **damage),))


def test_a_change_keeps_what_is_known_of_the_hook() -> None:
    before = OwnedAttachment(
        point=POINT,
        kind=AttachKind.XDP_LINK,
        generation="old",
        pin="links/x",
        link_id=7,
        mode="native",
        made_qdisc=True,
    )
    switch = Switch(
        point=POINT,
        generation="new",
        old="old",
        program=Identity(id=1),
        kind=AttachKind.XDP_LINK,
        reason="",
        pin="links/x",
        link_id=7,
    )
    mode = ChangeMode(
        point=POINT,
        generation="new",
        old="old",
        pin="links/x",
        link_id=7,
        mode=XdpMode.GENERIC,
        old_mode=XdpMode.NATIVE,
        reason="",
    )
    for step in (switch, mode):
        found = candidate(step, before)
        assert (found.generation, found.link_id, found.made_qdisc) == ("new", 7, True)
        (again,) = recover(
            Inventory(boot_id="b", attachments=(before,)), (recorded("intent", steps=[step]),)
        ).attachments
        assert again == found
    assert candidate(switch).link_id is None
