# SPDX-License-Identifier: Apache-2.0
"""What the host remembers between passes: the watermark, refusals, and what operators decided."""

from __future__ import annotations

from dataclasses import dataclass

STATE_VERSION = 1
"""Version of source.json and control.json; a newer one is refused, an older one is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """A commit as this host verified it.

    Attributes:
        at: RFC 3339, when this host recorded it.
        author_time: seconds since the epoch, as the committer claims; for display only.
    """

    id: str
    signer: str = ""
    subject: str = ""
    author_time: int = 0
    at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a commit that the source advertises is not adopted.

    Attributes:
        final: judging the same commit again under the same policy would end the same way.
    """

    commit: str
    reason: str
    message: str
    at: str
    exit_code: int = 1
    final: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFailure:
    """Why the source could not be asked at the last try; gone with the next answer."""

    reason: str
    message: str
    at: str
    exit_code: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """What this host knows of its source; `applied` is the watermark.

    Attributes:
        applied: the watermark, the last commit applied or that changed nothing here: only its descendants are taken.
        state_digest: of the DesiredState that `applied` gave on this host.
        context: digest of policy, labels and configuration under which `seen` was last judged.
        contact: RFC 3339, when the source last answered.
    """

    version: int = STATE_VERSION
    applied: CommitRecord | None = None
    state_digest: str | None = None
    seen: str | None = None
    context: str = ""
    refusal: Refusal | None = None
    failure: SourceFailure | None = None
    contact: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspension:
    """No new commits until `until` (RFC 3339); repair goes on."""

    until: str
    reason: str
    by: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Somebody with root takes one advertised head against history, once."""

    commit: str
    reason: str
    by: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """A state that was taken back here; not tried again under the same policy and kernel release."""

    state_digest: str
    policy: str
    kernel: str
    commit: str
    message: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRecord:
    """What operators decided on this host.

    Attributes:
        confirmed: digest of the one plan that may exceed the guardrail.
        torn_down: everything was taken off; nothing is attached until `resume`.
    """

    version: int = STATE_VERSION
    suspension: Suspension | None = None
    acceptance: Acceptance | None = None
    quarantine: tuple[Quarantine, ...] = ()
    confirmed: str | None = None
    torn_down: bool = False
