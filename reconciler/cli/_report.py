# SPDX-License-Identifier: Apache-2.0
"""The verbs that only read what the last passes wrote: status, history. They need no kernel and start fast."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from reconciler._words import exit_code
from reconciler.cli._output import note, say, say_json, table
from reconciler.cli._quick import state_directory
from reconciler.errors import ExitCode, StateError, StateVersionError
from reconciler.model import NOT_JSON
from reconciler.state import read_history, read_status
from reconciler.status import Status, clean, render

if TYPE_CHECKING:
    from reconciler.cli._group import Context

JUDGED: Final[dict[Any, str]] = {True: "yes", False: "no", None: ""}
"""Whether a state was reviewed; most records are about none."""


@click.command()
@click.option("--watch", is_flag=True, help="Show again every two seconds.")
@click.option(
    "--reviewed",
    type=click.Path(path_type=Path),
    help="JSON of a review: whether its state is the one that runs, and what differs.",
)
@click.pass_obj
def status(context: Context, *, watch: bool, reviewed: Path | None) -> int:
    """What the last pass found: verdict, commit, drift, and the next step.

    Exits with its code; with 7 if that is 0 or 2 and the next pass is overdue.
    """
    if reviewed is not None:
        return _compare(context, reviewed)
    while True:
        code = _status_once(context)
        if not watch:
            return code
        time.sleep(2)
        click.clear()


def _compare(context: Context, path: Path) -> int:
    """Exit 0 if what runs was reviewed, 2 if not."""
    from reconciler.cli._reviewed import compare  # noqa: PLC0415  # status alone needs nothing of it
    from reconciler.review import Running  # noqa: PLC0415

    current = _passed(context)
    host = Running(
        name=current.host,
        labels=context.config.labels,
        commit=current.applied.id if current.applied else "",
        state=current.state_digest,
        policy=current.policy,
        chains=current.chains,
    )
    same, sentences = compare(path, host)
    if context.output == "json":
        say_json({"reviewed": same, "state": host.state, "differences": sentences[1:]})
    else:
        for sentence in sentences:
            say(clean(sentence, 500))
    return ExitCode.OK if same else ExitCode.CHANGES


def _passed(context: Context) -> Status:
    current = _read(context)
    if current is None:
        raise StateError("expected a pass on this host before it is compared, got none; run `reconciler apply`")
    return current


def _status_once(context: Context) -> int:
    current = _read(context)
    if current is None:
        text = f"no pass yet on this host; run `reconciler apply` (state in {_state(context)})"
        if context.output == "json":
            say_json(None)
            note(text)
        else:
            say(text)
        return ExitCode.CHANGES
    now = datetime.now(UTC)
    if context.output == "json":
        say_json(current)
    else:
        say(render(current, now))
    return exit_code(current, now)


def _read(context: Context) -> Status | None:
    """The report of the last pass, None before the first."""
    data = read_status(Path(_state(context)))
    if data is None:
        return None
    try:
        raw = msgspec.json.decode(data)
        version = raw.get("version", 0) if isinstance(raw, dict) else 0
        if version > 1:
            raise StateVersionError(f"status.json: written in format {version}, this command reads up to 1")
        return msgspec.convert(raw, type=Status)
    except NOT_JSON as error:
        raise StateError(f"status.json: damaged ({error}); the next pass writes it again") from error


def _state(context: Context) -> str:
    """Where the state lies; the rest of the configuration may be one that the agent would not start with."""
    try:
        return state_directory(context.config_path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return context.config.paths.state  # or what is wrong with it


@click.command()
@click.option("--limit", "-n", default=20, show_default=True, help="Newest records.")
@click.option(
    "--reviewed",
    type=click.Path(path_type=Path),
    help="JSON of a review: which states were reviewed, and what of the newest differs.",
)
@click.pass_obj
def history(context: Context, *, limit: int, reviewed: Path | None) -> int:
    """What happened on this host, newest last. With --reviewed, exit 2 if what was applied last was not reviewed."""
    records = read_history(Path(context.config.paths.state))
    same = True
    sentences: tuple[str, ...] = ()
    if reviewed is not None:
        records, same, sentences = _judged(context, records, reviewed)
    shown = records[-limit:]
    if context.output == "json":
        say_json(shown)
    else:
        _history_table(shown, judged=reviewed is not None)
        for sentence in sentences:
            say(clean(sentence, 500))
    return ExitCode.OK if same else ExitCode.CHANGES


def _history_table(records: tuple[dict[str, Any], ...], *, judged: bool) -> None:
    rows = [
        (
            str(record.get("time", ""))[:19] + "Z",
            record.get("event", ""),
            str(record.get("commit", ""))[:12],
            str(record.get("state", ""))[:12],
            *([JUDGED[record.get("reviewed")]] if judged else []),
            _what(record),
        )
        for record in records
    ]
    table(("TIME", "EVENT", "COMMIT", "STATE", *(["REVIEWED"] if judged else []), "WHAT"), rows)


def _judged(
    context: Context, records: tuple[dict[str, Any], ...], path: Path
) -> tuple[tuple[dict[str, Any], ...], bool, tuple[str, ...]]:
    """The records, each state with whether it was reviewed and what differs; and both of the newest state."""
    from reconciler.cli._reviewed import load  # noqa: PLC0415  # history alone needs nothing of it
    from reconciler.review import Running, differences  # noqa: PLC0415

    current = _passed(context)
    made = load(path)
    told: list[dict[str, Any]] = []
    same = False
    sentences: tuple[str, ...] = ("expected a commit that was applied on this host, got none",)
    for record in records:
        if not record.get("state"):
            told.append(record)
            continue
        host = Running(
            name=current.host,
            labels=context.config.labels,
            commit=str(record.get("commit", "")),
            state=str(record["state"]),
            # Records of older versions say neither.
            policy=str(record.get("policy", current.policy)),
            chains=int(record.get("chains", current.chains)),
            verb="applied",
        )
        same, sentences = differences(made, host)
        told.append({**record, "reviewed": same, "differences": sentences[1:]})
    return tuple(told), same, sentences


def _what(record: dict[str, Any]) -> str:
    """One record in words; -o json has all of it."""
    parts = [str(record[key]) for key in ("reason", "subject", "message") if record.get(key)]
    if record.get("signer"):
        parts.append(f"signed by {record['signer']}")
    told = {"time", "event", "commit", "state", "reason", "subject", "message", "signer"}
    told |= {"policy", "chains", "reviewed", "differences"}
    rest = {key: value for key, value in record.items() if key not in told}
    parts += [
        f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in rest.items()
    ]
    return "; ".join(parts)
