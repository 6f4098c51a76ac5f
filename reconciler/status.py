# SPDX-License-Identifier: Apache-2.0
"""From what a pass saw and did to one verdict, and to the words, events and metrics that show it.

Pure. Every pass ends with exactly one reason code; when several things are wrong, `EXIT_PRECEDENCE` decides which one
is the verdict, and the others stay visible as findings. Text from outside is stripped of control characters here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping  # noqa: TC003  # msgspec reads the annotations of Status
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from reconciler._words import NEXT_STEPS, STATUS_LINES, STATUS_WIDTH, age, clean, next_step, render
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


WARNINGS: Final = ("ExpiresSoon", "Expired", "DiskNearlyFull")
"""Reasons of warnings; each is a label of the metric even while it has no sample above 0."""


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
        reviewed_policy: another policy id that the repository's HostGroup gives for this host; "" when they agree.
        warnings: what is not wrong yet; they change neither reason nor exit code.
        disk_free: share of the state directory's file system, 0..1.
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
    warnings: tuple[Finding, ...] = ()
    disk_free: float | None = None
    expiry: Expiry | None = None
    policy: str = ""
    reviewed_policy: str = ""
    state_digest: str = ""
    plan_digest: str = ""
    steps: int = 0
    guard: Guard = field(default_factory=Guard)
    expedited: bool = False
    gaps: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def verdict(findings: Iterable[Finding]) -> Finding | None:
    """The finding that names the pass, None when there is none."""
    order = {int(code): rank for rank, code in enumerate(EXIT_PRECEDENCE)}
    return min(findings, key=lambda finding: order[finding.exit_code], default=None)


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
        Metric(
            name="reconciler_warnings",
            help="what will hurt before long, by reason",
            kind="gauge",
            samples=tuple(
                ({"reason": reason}, float(sum(each.reason == reason for each in status.warnings)))
                for reason in WARNINGS
            ),
        ),
        Metric(
            name="reconciler_expiry_timestamp_seconds",
            help="when the next certificate, key window or trust root ends",
            kind="gauge",
            samples=tuple(({}, moment) for moment in _moments(status.expiry)),
        ),
        Metric(
            name="reconciler_disk_free_ratio",
            help="free share of the file system of the state directory",
            kind="gauge",
            samples=(({}, status.disk_free),) if status.disk_free is not None else (),
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


def _moments(expiry: Expiry | None) -> Iterator[float]:
    with suppress(ValueError):  # a report of another version may say it otherwise
        if expiry is not None:
            yield datetime.fromisoformat(expiry.at).timestamp()


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


__all__ = [
    "EXIT_PRECEDENCE",
    "NEXT_STEPS",
    "STATUS_LINES",
    "STATUS_WIDTH",
    "Expiry",
    "Finding",
    "Metric",
    "Status",
    "age",
    "clean",
    "event",
    "later",
    "metrics",
    "next_step",
    "render",
    "render_metrics",
    "verdict",
]
