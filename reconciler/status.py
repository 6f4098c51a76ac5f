# SPDX-License-Identifier: Apache-2.0
"""From what a pass saw and did to one verdict, and to the words, events and metrics that show it.

Pure. Every pass ends with exactly one reason code; when several things are wrong, `EXIT_PRECEDENCE` decides which one
is the verdict, and the others stay visible as findings. Text from outside is stripped of control characters here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping  # noqa: TC003  # msgspec reads the annotations of Status
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from reconciler.errors import ExitCode
from reconciler.model import (
    CommitRecord,
    Drift,
    DriftKind,
    Guard,
    Refusal,
    Suspension,
)

EXIT_PRECEDENCE: Final = (
    ExitCode.SIGNATURE,
    ExitCode.GUARDRAIL,
    ExitCode.ROLLED_BACK,
    ExitCode.ERROR,
    ExitCode.SUSPENDED,
    ExitCode.STALE,
    ExitCode.CHANGES,
    ExitCode.OK,
)
"""Which exit code wins when several apply."""

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
    "Unsigned": "sign what the message names, and push a new commit on top",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be, with the exit code that it alone would give."""

    reason: str
    message: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """What ends next: a certificate, a key's window or a trust root; `at` is RFC 3339."""

    what: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The report of one pass, as saved and shown.

    Attributes:
        at: RFC 3339, end of the pass.
        reason: the one reason code.
        findings: everything that is wrong, worst first.
        seconds: how long the pass took.
    """

    host: str
    at: str
    reason: str
    exit_code: int
    message: str
    version: int = 1
    mode: str = "audit"
    applied: CommitRecord | None = None
    seen: str | None = None
    refusal: Refusal | None = None
    contact: str | None = None
    next_poll: str | None = None
    suspension: Suspension | None = None
    chains: int = 0
    chains_pending: int = 0
    hooks: int = 0
    drift: tuple[Drift, ...] = ()
    pending: tuple[Drift, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    expiry: Expiry | None = None
    policy: str = ""
    state_digest: str = ""
    plan_digest: str = ""
    steps: int = 0
    guard: Guard = field(default_factory=Guard)
    expedited: bool = False
    drained_by: str = ""
    gaps: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def verdict(findings: Iterable[Finding]) -> Finding | None:
    """The finding that names the pass, None when there is none."""
    order = {int(code): rank for rank, code in enumerate(EXIT_PRECEDENCE)}
    return min(findings, key=lambda finding: order[finding.exit_code], default=None)


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


def render(status: Status, now: datetime) -> str:
    """At most 12 lines of 80 columns."""
    lines = [_fit(line) for line in _lines(status, now)]
    return "\n".join(lines[:STATUS_LINES])


def _fit(line: str) -> str:
    line = clean(line, 400)
    return line if len(line) <= STATUS_WIDTH else line[: STATUS_WIDTH - 1] + "…"


def _lines(status: Status, now: datetime) -> Iterator[str]:
    late = overdue(status, now)
    match status.exit_code:
        case ExitCode.OK:
            word = "WAS IN SYNC" if late else "IN SYNC"
        case ExitCode.CHANGES:
            word = "NOT IN SYNC"
        case _:
            word = "ATTENTION"
    yield f"{word}  {status.host}  {status.reason}: {status.message}"
    applied = status.applied
    if applied is None:
        yield "applied    nothing yet"
    else:
        yield f"applied    {applied.id[:12]} {applied.subject}"
        yield f"           signed by {applied.signer or 'nobody'}, applied {age(applied.at, now)} ago"
    if status.refusal is not None:
        yield f"refused    {status.refusal.commit[:12]} {status.refusal.reason}: {status.refusal.message}"
    contact = f"last answered {age(status.contact, now)} ago" if status.contact else "never answered"
    yield f"source     {contact}{_poll(status, now)}"
    suspended = f", suspended until {status.suspension.until}: {status.suspension.reason}" if status.suspension else ""
    yield f"mode       secure mode {status.mode}, policy {status.policy[:12]}{suspended}"
    synced = status.chains - status.chains_pending
    hooks = f"{status.hooks} hook{'' if status.hooks == 1 else 's'}"
    digest = f", state {status.state_digest[:12]}" if status.state_digest else ""
    yield f"chains     {synced} of {status.chains} in sync on {hooks}{digest}"
    drift = [*status.drift, *status.pending]
    if drift:
        yield f"drift      {len(drift)}: {drift[0].where}: {drift[0].message}"
    foreign = sum(item.kind is DriftKind.FOREIGN for item in drift)
    stuck = sum(item.kind is DriftKind.NOT_REMOVABLE for item in drift)
    yield f"foreign    {foreign} programs, {stuck} not removable"
    if status.expiry is not None:
        yield f"expires    {status.expiry.what} at {status.expiry.at}"
    if late and status.exit_code in (ExitCode.OK, ExitCode.CHANGES):
        yield f"next       no pass for {age(status.at, now)}: start the agent, or `reconciler apply`"
    else:
        yield f"next       {next_step(status)}"


def overdue(status: Status, now: datetime) -> bool:
    """Whether the next poll should have been long ago: then no agent runs, and the report may be of another time."""
    return status.next_poll is not None and _until(status.next_poll, now) < -OVERDUE


def _until(moment: str, now: datetime) -> float:
    """Seconds from now to an RFC 3339 moment; 0 if it cannot be read."""
    try:
        return (datetime.fromisoformat(moment) - now).total_seconds()
    except ValueError:
        return 0.0


def _poll(status: Status, now: datetime) -> str:
    if status.next_poll is None:
        return ""
    seconds = _until(status.next_poll, now)
    if seconds < 0:
        return f", next poll was due {age(status.next_poll, now)} ago"
    return f", next poll in {age(now.isoformat(), now + timedelta(seconds=seconds))}"


def next_step(status: Status) -> str:
    """The one thing to do now."""
    if status.reason in NEXT_STEPS:
        return NEXT_STEPS[status.reason]
    if status.exit_code == 0:
        return "nothing to do"
    if status.exit_code == ExitCode.CHANGES:
        return "`reconciler plan` shows what is pending and why"
    return "see the message above; `reconciler history` shows what happened"


# --- metrics -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One family in Prometheus' text format; samples are (labels, value)."""

    name: str
    help: str
    kind: str
    samples: tuple[tuple[Mapping[str, str], float], ...]


def metrics(status: Status, counters: Iterable[tuple[str, str, Mapping[str, tuple[int, int]]]]) -> tuple[Metric, ...]:
    """The metric values of a pass.

    Args:
        counters: (chain, member, counter name to (packets, bytes)) from the stats maps.
    """
    contact = datetime.fromisoformat(status.contact).timestamp() if status.contact else 0.0
    at = datetime.fromisoformat(status.at).timestamp()
    drift = [*status.drift, *status.pending]
    packets: list[tuple[Mapping[str, str], float]] = []
    octets: list[tuple[Mapping[str, str], float]] = []
    for chain, member, values in counters:
        for verdict_name, (count, size) in values.items():
            labels = {"chain": chain, "member": member, "verdict": verdict_name}
            packets.append((labels, count))
            octets.append((labels, size))
    return (
        _gauge(
            "reconciler_in_sync", "1 when the last pass found or made everything as declared", status.exit_code == 0
        ),
        Metric(
            name="reconciler_pass_reason",
            help="the reason code of the last pass",
            kind="gauge",
            samples=(({"reason": status.reason}, 1.0),),
        ),
        _gauge("reconciler_exit_code", "the exit code that the last pass stands for", status.exit_code),
        _gauge("reconciler_pass_timestamp_seconds", "when the last pass ended", at),
        _gauge("reconciler_pass_duration_seconds", "how long the last pass took", status.seconds),
        _gauge("reconciler_source_contact_timestamp_seconds", "when the source last answered, 0 for never", contact),
        _gauge("reconciler_chains", "chains declared for this host", status.chains),
        _gauge("reconciler_chains_pending", "chains that wait for a hook", status.chains_pending),
        _gauge("reconciler_hooks", "hooks that run chains of ours", status.hooks),
        Metric(
            name="reconciler_drift",
            help="differences from the declared state, by kind",
            kind="gauge",
            samples=tuple(({"kind": kind.value}, float(sum(d.kind is kind for d in drift))) for kind in DriftKind),
        ),
        _gauge("reconciler_suspended", "1 while new commits are suspended", status.suspension is not None),
        _gauge("reconciler_expedited", "1 when the last pass used expedited grace periods", status.expedited),
        Metric(
            name="reconciler_packets_total",
            help="packets by member and verdict",
            kind="counter",
            samples=tuple(packets),
        ),
        Metric(
            name="reconciler_bytes_total", help="bytes by member and verdict", kind="counter", samples=tuple(octets)
        ),
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return Metric(name=name, help=text, kind="gauge", samples=(({}, float(value)),))


def render_metrics(families: Iterable[Metric]) -> str:
    """Prometheus text format 0.0.4."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
        for labels, value in family.samples:
            inner = ",".join(f'{key}="{_label(text)}"' for key, text in sorted(labels.items()))
            number = int(value) if float(value).is_integer() else value
            lines.append(f"{family.name}{{{inner}}} {number}" if inner else f"{family.name} {number}")
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return clean(text).replace("\\", "\\\\").replace('"', '\\"')


def event(kind: str, at: datetime, **fields: object) -> dict[str, object]:
    """One JSON-lines event; strings are cleaned."""
    cleaned = {key: clean(value, 2000) if isinstance(value, str) else value for key, value in fields.items()}
    return {"time": at.isoformat(), "event": kind, **cleaned}


def later(now: datetime, seconds: float) -> str:
    """RFC 3339 of a moment `seconds` from now, whole seconds."""
    return (now + timedelta(seconds=seconds)).isoformat(timespec="seconds")
