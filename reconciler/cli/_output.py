# SPDX-License-Identifier: Apache-2.0
"""All printing: tables and JSON on stdout, progress and errors on stderr, everything from outside cleaned."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler._words import clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reconciler.errors import ReconcilerError
    from reconciler.model import Plan

PROGRESS_AFTER: Final = 1.0
"""Seconds after which work says that it goes on, on a terminal only."""

SIGNS: Final[dict[str, tuple[str, str | None]]] = {
    "add": ("+", "green"),
    "replace": ("~", "yellow"),
    "remove": ("-", "red"),
    "repair": ("≠", "cyan"),
    "evict": ("!", "magenta"),
    "keep": (" ", None),
}
"""Of each `model.ChangeKind`; a test compares."""


def say(text: str = "") -> None:
    """A line for people, or nothing but our own words and cleaned ones."""
    click.echo(text)


def note(text: str) -> None:
    """A line on stderr: progress and warnings."""
    click.echo(text, err=True)


def say_json(value: object) -> None:
    """`value` as indented JSON; control characters are escaped by the format itself."""
    from reconciler.model import to_builtins  # noqa: PLC0415  # tables need no encoder

    click.echo(json.dumps(to_builtins(value), indent=2, ensure_ascii=True))


def fail(error: ReconcilerError) -> int:
    """Print an error with all its findings; returns the exit code."""
    click.echo(f"{click.style('error', fg='red')}: {error.reason}", err=True)
    for finding in error.diagnostics():
        for line in str(finding).splitlines() or [""]:
            click.echo(f"  {clean(line, 2000)}", err=True)
    return int(error.exit_code)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell, two spaces between them; cells are cleaned."""
    cells = [[clean(str(cell), 120) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in [list(headers), *cells]) for index in range(len(headers))]
    for number, row in enumerate([list(headers), *cells]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say `what` on a terminal if it takes longer than a second; never when output is piped."""
    if not sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(PROGRESS_AFTER, lambda: click.echo(f"{what} …", err=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say_plan(plan: Plan | dict[str, Any]) -> None:
    """A plan as a reviewer reads it: changes, drift apart from them, what is pending, what the kernel forces."""
    from reconciler.model import to_builtins  # noqa: PLC0415

    raw = plan if isinstance(plan, dict) else {**to_builtins(plan), "digest": plan.digest}
    rows = [_change(change) for change in raw["changes"]]
    widths = [max((len(row[index]) for row in rows), default=0) for index in range(3)]
    for change, row in zip(raw["changes"], rows, strict=True):
        sign, colour = SIGNS[change["kind"]]
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        say("  " + click.style("  ".join([f"{sign} {cells[0]}", *cells[1:], row[3]]).rstrip(), fg=colour))
    for title, key in (("drift, not caused by a commit:", "drift"), ("pending:", "pending")):
        if raw[key]:
            say(title)
            for item in raw[key]:
                say(f"  {'! ' if item['critical'] else ''}{clean(item['where'])}: {clean(item['message'])}")
    for text in raw["notes"]:
        say(f"note: {clean(text)}")
    say(_summary(raw))


def _change(change: dict[str, Any]) -> tuple[str, str, str, str]:
    """Hook, member, package (before → after), and the rest, all cleaned."""
    who = f"{change['chain']}/{change['member']}" if change["chain"] else ""
    packages = [text for text in (change["before"], change["after"]) if text]
    package = packages[0] if len(set(packages)) == 1 else " → ".join(packages)
    detail = change["detail"] if change["kind"] != "keep" else "as it is (loaded again with the others)"
    return clean(change["where"]), clean(who), clean(package), clean(detail)


def _summary(raw: dict[str, Any]) -> str:
    if not raw["steps"]:
        return f"Plan: nothing to do ({len(raw['pending'])} pending)." if raw["pending"] else "Plan: nothing to do."
    counts = Counter(change["kind"] for change in raw["changes"])
    words = [f"{counts[kind]} to {kind}" for kind in SIGNS if counts[kind] and kind != "keep"]
    guard = raw["guard"]
    share = f", guardrail: {guard['removed']} of {guard['owned']} removed" if guard["removed"] else ""
    digest = raw["digest"] if guard["exceeded"] else raw["digest"][:16]  # whole where `apply --confirm` wants it
    return f"Plan: {', '.join(words) or 'clean-up only'} in {len(raw['steps'])} steps{share}. Digest {digest}"
