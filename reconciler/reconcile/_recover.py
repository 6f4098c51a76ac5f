# SPDX-License-Identifier: Apache-2.0
"""What is ours at the start of a pass, after whatever happened since the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reconciler.errors import StateError, StateVersionError, TamperError
from reconciler.kernel import Scope
from reconciler.model import ControlRecord, Inventory, SourceRecord
from reconciler.state import recover, unproven

if TYPE_CHECKING:
    from reconciler.model import Outcome
    from reconciler.reconcile._parts import Parts


def load_source(parts: Parts, control: ControlRecord) -> SourceRecord:
    """The watermark; a damaged one counts as lost once somebody accepted a commit.

    Raises:
        TamperError: it is damaged.
        StateVersionError: a newer agent wrote it.
    """
    try:
        return parts.state.source()
    except StateVersionError:
        raise
    except StateError as error:
        if control.acceptance is not None:
            return SourceRecord()
        raise TamperError(f"{error}; nothing is attached, detached or evicted until then") from error


def recover_inventory(parts: Parts, control: ControlRecord) -> tuple[Inventory, frozenset[str]]:
    """What is ours, and the keys of hooks that an interrupted pass took and did not live to judge.

    Raises:
        TamperError: state is gone or damaged while pins of ours are in the kernel.
        StateVersionError: a newer agent wrote the state.
    """
    state, boot = parts.state, parts.kernel.boot_id()
    empty = Inventory(boot_id=boot)
    accepted = control.acceptance is not None
    damage, taken = "", frozenset[str]()
    try:
        records = state.journal_records()
        _restore_grace(parts, records, boot)
        taken = unproven(boot, records)
        saved = state.inventory()
        begun = any(entry.get("event") == "begin" and entry.get("boot") == boot for entry in records)
        if saved is not None and saved.boot_id == boot:
            if saved.empty or state.has_source or accepted:
                return recover(saved, records), taken
            damage = "source.json is gone: nobody knows which commit was applied"
        elif begun and state.has_source:
            return recover(empty, records), taken
    except StateVersionError:
        raise
    except StateError as error:
        damage = str(error)
    pins = parts.kernel.snapshot(Scope(namespaces=())).pins
    if accepted or not pins:
        return empty, taken
    raise TamperError(
        f"expected records of the {len(pins)} objects that are pinned as ours, got none"
        f"{f' ({damage})' if damage else ''}; nothing is attached, detached or evicted until "
        "`reconciler accept COMMIT --reason TEXT`"
    )


def owe_grace(parts: Parts, outcome: Outcome) -> bool:
    """Put on record what rcu_expedited read before, where it could not be written back: the next pass does."""
    if outcome.unrestored is not None:
        parts.state.journal(parts.kernel.boot_id(), "expedite", before=outcome.unrestored)
    return outcome.unrestored is not None


def _restore_grace(parts: Parts, records: tuple[dict[str, Any], ...], boot: str) -> None:
    for entry in records:
        before = entry.get("before")
        if entry.get("event") == "expedite" and entry.get("boot") == boot and isinstance(before, int):
            parts.kernel.restore_grace(before)
