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
