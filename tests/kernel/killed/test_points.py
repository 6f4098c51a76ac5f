# SPDX-License-Identifier: Apache-2.0
"""The points are all there are: what Python itself reports of a pass (sys.addaudithook) changes nothing outside of one.

The other tests of this folder strike at the points, so a change that is none would never be struck.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reconciler import reconcile
from reconciler.kernel._bpf import Cmd
from reconciler.kernel._bpf._call import _CHANGES
from tests.kernel import support
from tests.kernel.killed.host import Host, Scene
from tests.kernel.killed.process import forked, warmed

if TYPE_CHECKING:
    from collections.abc import Callable
    from functools import partial
    from pathlib import Path

    from tests.kernel.killed.host import Side

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = frozenset(
    f"os.{name}" for name in ("rename", "remove", "rmdir", "mkdir", "link", "symlink", "truncate", "chmod")
)

READING = {"ls-remote", "cat-file", "rev-parse", "rev-list", "merge-base", "version", "for-each-ref"}
"""What git may be asked outside of a point."""


READING_COMMANDS = {
    Cmd.MAP_LOOKUP_ELEM,
    Cmd.MAP_GET_NEXT_KEY,
    Cmd.MAP_LOOKUP_BATCH,
    Cmd.OBJ_GET,
    Cmd.PROG_TEST_RUN,
    Cmd.PROG_GET_NEXT_ID,
    Cmd.MAP_GET_NEXT_ID,
    Cmd.LINK_GET_NEXT_ID,
    Cmd.PROG_GET_FD_BY_ID,
    Cmd.MAP_GET_FD_BY_ID,
    Cmd.LINK_GET_FD_BY_ID,
    Cmd.OBJ_GET_INFO_BY_FD,
    Cmd.PROG_QUERY,
}
SOME = 50
"""Points of each of the passes, at least: it really did something."""


@dataclass
class Outside:
    """A strike that strikes nothing; `changes` is what happened while no point was under way in that thread."""

    changes: list[str] = field(default_factory=list)
    inside: int = 0
    _here: threading.local = field(default_factory=threading.local)

    def __call__(self, tell: Callable[[object], None], name: str, call: partial[Any]) -> Any:
        depth = getattr(self._here, "depth", 0)
        self._here.depth = depth + 1
        self.inside += 1
        try:
            return call()
        finally:
            self._here.depth = depth

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(self._here, "depth", 0) == 0 and (what := change(event, arguments)) is not None:
            self.changes.append(what)


def change(event: str, arguments: tuple[Any, ...]) -> str | None:
    """What an audit event changes outside of this process, if anything."""
    if event in CHANGING:
        return f"{event} {arguments[0]}"
    if event == "open":
        path, _, flags = arguments  # a number is a descriptor that is open already
        named = isinstance(path, str | bytes) and path != os.devnull
        return f"open {path!r}" if named and (flags or 0) & WRITING else None
    if event == "subprocess.Popen":
        words = [os.fsdecode(word) for word in arguments[1]]
        return None if READING & set(words) else " ".join(words)
    return None


def test_first_passes_changes_and_teardowns_change_nothing_outside_of_the_points(tmp_path: Path) -> None:
    def watched(work: Callable[[reconcile.Parts], str]) -> tuple[str, int, list[str]]:
        outside = Outside()

        def child() -> tuple[str, int, list[str]]:
            sys.addaudithook(outside.audit)  # which cannot be taken away again: only ever in a child
            with host.opened() as parts:
                reason = work(parts)
                parts.source.maintain()
            return reason, outside.inside, outside.changes

        found: tuple[str, int, list[str]] = forked(child, outside).value
        return found

    def one_pass(parts: reconcile.Parts) -> str:
        return reconcile.Pass(parts, reconcile.Request()).run().status.reason

    def torn_down(parts: reconcile.Parts) -> str:
        return "TornDown" if reconcile.teardown(parts, by="uid 0")[1].failed is None else "Error"

    with support.pin_directory() as pins, Scene() as scene:
        host = Host(tmp_path, scene, "tcx", pins)
        try:
            warmed(host.settle)
            forked(lambda: watched(torn_down))
            shutil.rmtree(host.directory)
            for expected, work in (("Applied", one_pass), ("Applied", one_pass), ("TornDown", torn_down)):
                reason, inside, changes = watched(work)
                assert reason == expected
                assert inside > SOME
                assert changes == [], "\n".join(changes)
                host.push("b")
        finally:
            host.close()


def test_every_command_of_bpf_either_changes_something_or_is_known_to_read() -> None:
    assert set(Cmd) - _CHANGES == READING_COMMANDS


# --- what is on the disk when -------------------------------------------------------------------------------


@dataclass
class OnDisk:
    """A strike that strikes nothing, and looks at what a power cut right there would leave of the records.

    Attributes:
        wrong: what would be missing or torn.
        journal: the journal as it was forced to the disk last.
        pinned: pins that were made while one looked.
    """

    directory: Path
    pins: Path
    journal: str = ""
    wrong: list[str] = field(default_factory=list)
    pinned: list[str] = field(default_factory=list)
    _dirty: set[str] = field(default_factory=set)
    _renamed: str = ""

    def __call__(self, tell: Callable[[object], None], name: str, call: partial[Any]) -> Any:
        verb, _, what = name.partition(" ")
        if self._renamed and name != "fsync state":
            self.wrong.append(f"{name} before the folder of {self._renamed} is synced")
        if verb == "rename" and what in self._dirty:
            self.wrong.append(f"{what} is renamed before it is synced")
        if name == "unlink journal" and "inventory.json" in self._dirty:
            self.wrong.append("the journal is removed before the inventory is synced")
        before = self._pins() if name == "bpf OBJ_PIN" else set()
        result = call()
        if name == "bpf OBJ_PIN":
            self._look(self._pins() - before)
        if verb in {"open", "write"}:
            self._dirty.add(what)
        elif verb == "fsync":
            self._dirty.discard(what)
            if what == "journal":
                self.journal = (self.directory / "journal").read_text()
        self._renamed = what if verb == "rename" and what.endswith(".json") else ""
        return result

    def _pins(self) -> set[str]:
        return {str(path.relative_to(self.pins)) for path in self.pins.rglob("*") if not path.is_dir()}

    def _look(self, made: set[str]) -> None:
        self.pinned += made
        self.wrong += [f"{pin} is pinned before the journal names it" for pin in made if f'"{pin}"' not in self.journal]


def test_what_is_made_is_named_on_the_disk_before_and_records_are_whole(tmp_path: Path) -> None:
    def watched() -> tuple[int, list[str]]:
        looking = OnDisk(host.directory, host.pins)

        def child() -> tuple[int, list[str]]:
            assert host.one_pass().status.exit_code == 0
            return len(looking.pinned), looking.wrong

        found: tuple[int, list[str]] = forked(child, looking).value
        return found

    with support.pin_directory() as pins, Scene() as scene:
        host = Host(tmp_path, scene, "tcx", pins)
        try:
            sides: tuple[Side, ...] = ("a", "b")
            for side in sides:
                host.push(side)
                pinned, wrong = watched()
                assert wrong == [], "\n".join(wrong)
                assert pinned > SOME // 2
        finally:
            host.close()
