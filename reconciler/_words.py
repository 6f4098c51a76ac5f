# SPDX-License-Identifier: Apache-2.0
"""What `status` says, in words: at most 12 lines of 80 columns, safe on a terminal.

Pure, and the one part of `status` that the verb needs: it imports next to nothing, because `reconciler status` is what
people and monitors start most often. A report is a `status.Status`, or the same read back from JSON (`Report`).
"""

from __future__ import annotations

import unicodedata
from datetime import datetime, timedelta

TYPE_CHECKING = False  # typing takes 4 ms to import
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Final, TypeAlias

    Report: TypeAlias = Any

STATUS_WIDTH: Final = 80
STATUS_LINES: Final = 12

OVERDUE: Final = 60.0
"""Seconds after the announced next poll from which on no agent seems to run; poll pauses and slow passes stay below."""

NEXT_STEPS: Final[Mapping[str, str]] = {
    "HistoryRewritten": "restore the branch, or `reconciler accept COMMIT --reason TEXT`",
    "NoMinimumCommit": "set source.minimumCommit on the host, then `reconciler apply`",
    "StateLost": "find out who did it, then `reconciler accept COMMIT --reason TEXT`",
    "StateTooNew": "install the newer agent again",
    "GuardrailRefused": "look at `reconciler plan`, then `reconciler apply --confirm DIGEST`",
    "BadSignature": "sign the commit or package with an allowed key, and push again",
    "Unsigned": "sign that very one, and push; a signed commit on top does not help",
    "SignerNotAllowed": "sign with an allowed key, or allow this one on the host",
    "SignatureKindRefused": "sign with an SSH key; merge by fast-forward or with a bot's key",
    "Revoked": "commit a version that is not revoked",
    "IdentityRefused": "sign with an allowed identity, or allow this one on the host",
    "RolledBack": "push a commit that fixes the chain; this state is quarantined",
    "Quarantined": "push a commit that fixes the chain; this state was rolled back",
    "Suspended": "`reconciler resume` when the work is done",
    "SourceStale": "check the Git server and this host's way to it",
    "HookOccupied": "detach the foreign program, or set secureMode.mode to enforce",
    "TornDown": "`reconciler resume` puts the chains back",
}
"""One thing to do next, by reason; everything else points to the message."""

OK: Final = 0
CHANGES: Final = 2
STALE: Final = 7
"""The two of `errors.ExitCode` that are told apart here; a test compares."""
FOREIGN: Final = "foreign"
NOT_REMOVABLE: Final = "not-removable"
"""The two of `model.DriftKind` that are counted; a test compares."""


def clean(text: str, limit: int = 300) -> str:
    """`text` from outside, safe on a terminal and in a log: no control, format or bidi characters, one line."""
    safe = "".join(" " if char in "\n\r\t\u2028\u2029" else char for char in text[: limit * 4])
    safe = "".join(char if unicodedata.category(char)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for char in safe)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def age(since: str, now: datetime) -> str:
    """How long ago, in one unit: "12s", "5m", "3h", "9d"."""
    try:
        seconds = int((now - datetime.fromisoformat(since)).total_seconds())
    except ValueError:
        return "?"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def render(status: Report, now: datetime) -> str:
    """At most 12 lines of 80 columns."""
    lines = [_fit(line) for line in _lines(status, now)]
    return "\n".join(lines[:STATUS_LINES])


def _fit(line: str) -> str:
    line = clean(line, 400)
    return line if len(line) <= STATUS_WIDTH else line[: STATUS_WIDTH - 1] + "…"


def _lines(status: Report, now: datetime) -> Iterator[str]:
    late = overdue(status, now)
    word = {OK: "WAS IN SYNC" if late else "IN SYNC", CHANGES: "NOT IN SYNC"}.get(status.exit_code, "ATTENTION")
    refused = status.refusal.commit if status.refusal is not None else ""
    message = status.message.replace(refused, refused[:12]) if len(refused) > 12 else status.message  # noqa: PLR2004
    yield f"{word}  {status.host}  {status.reason}: {message}"
    applied = status.applied
    if applied is None:
        yield "applied    nothing yet"
    else:
        yield f"applied    {applied.id[:12]} {applied.subject}"
        yield f"           signed by {applied.signer or 'nobody'}, applied {age(applied.at, now)} ago"
    if status.refusal is not None:
        yield from _refused(status.refusal)
    contact = f"last answered {age(status.contact, now)} ago" if status.contact else "never answered"
    yield f"source     {contact}{_poll(status, now)}"
    suspended = f", suspended until {status.suspension.until}: {status.suspension.reason}" if status.suspension else ""
    reviewed = f", reviewed for {status.reviewed_policy[:12]}" if status.reviewed_policy else ""
    yield f"mode       secure mode {status.mode}, policy {status.policy[:12]}{reviewed}{suspended}"
    synced = status.chains - status.chains_pending
    hooks = f"{status.hooks} hook{'' if status.hooks == 1 else 's'}"
    digest = f", state {status.state_digest[:12]}" if status.state_digest else ""
    yield f"chains     {synced} of {status.chains} in sync on {hooks}{digest}"
    drift = [*status.drift, *status.pending]
    if drift:
        yield f"drift      {len(drift)}: {drift[0].where}: {drift[0].message}"
    foreign = sum(item.kind == FOREIGN for item in drift)
    stuck = sum(item.kind == NOT_REMOVABLE for item in drift)
    yield f"foreign    {foreign} programs, {stuck} not removable"
    if status.warnings:
        yield f"warning    {len(status.warnings)}: {status.warnings[0].reason}: {status.warnings[0].message}"
    elif status.expiry is not None:
        yield f"expires    {status.expiry.what} at {status.expiry.at}"
    if late and status.exit_code in (OK, CHANGES):
        since = f"no pass for {age(status.at, now)}" if _until(status.at, now) <= 0 else f"a pass at {status.at}, ahead"
        yield f"next       {since}: start the agent, or `reconciler apply`"
    else:
        yield f"next       {next_step(status)}"


def _refused(refusal: Report) -> Iterator[str]:
    """Which commit and why, on up to two lines: it is what somebody must act on."""
    message = refusal.message.removeprefix(f"commit {refusal.commit}: ")
    text = clean(f"{refusal.commit[:12]} {refusal.reason}: {message}", 400)
    width = STATUS_WIDTH - 11
    cut = len(text) if len(text) <= width else text.rfind(" ", width // 2, width + 1)
    cut = cut if cut > 0 else width
    yield f"refused    {text[:cut]}"
    if text[cut:].strip():
        yield f"           {text[cut:].strip()}"


def exit_code(status: Report, now: datetime) -> int:
    """The pass's own; but where it found nothing that is worse, and the next one is overdue, nobody knows: STALE."""
    return STALE if overdue(status, now) and status.exit_code in (OK, CHANGES) else int(status.exit_code)


def overdue(status: Report, now: datetime) -> bool:
    """Whether the next poll should have been long ago: then no agent runs, and the report may be of another time.

    So may one from the future: a clock was wrong, and when its next poll is due nobody knows.
    """
    if _until(status.at, now) > OVERDUE:
        return True
    return status.next_poll is not None and _until(status.next_poll, now) < -OVERDUE


def _until(moment: str, now: datetime) -> float:
    """Seconds from now to an RFC 3339 moment; 0 if it cannot be read."""
    try:
        return (datetime.fromisoformat(moment) - now).total_seconds()
    except ValueError:
        return 0.0


def _poll(status: Report, now: datetime) -> str:
    if status.next_poll is None:
        return ""
    seconds = _until(status.next_poll, now)
    if seconds < 0:
        return f", next poll was due {age(status.next_poll, now)} ago"
    return f", next poll in {age(now.isoformat(), now + timedelta(seconds=seconds))}"


def next_step(status: Report) -> str:
    """The one thing to do now."""
    if status.reason in NEXT_STEPS:
        return NEXT_STEPS[status.reason]
    if status.exit_code == 0:
        return "nothing to do"
    if status.exit_code == CHANGES:
        return "`reconciler plan` shows what is pending and why"
    return "see the message above; `reconciler history` shows what happened"
