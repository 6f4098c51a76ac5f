# SPDX-License-Identifier: Apache-2.0
"""Trusted roots (trusted_root.json): which of their material counts at a given time, and when they end.

sigstore-python enforces the validity windows of timestamp authorities only; a log key or an authority that was ended
in the root file before the signature was made is still believed. So the root is pruned here before sigstore sees it.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from reconciler.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Fields: TypeAlias = dict[str, Any]

KEY_KINDS: Final = {"tlogs": "transparency log", "ctlogs": "certificate transparency log"}
AUTHORITY_KINDS: Final = {
    "certificateAuthorities": "certificate authority",
    "timestampAuthorities": "timestamp authority",
}

_ALWAYS: Final = {"start": "1970-01-01T00:00:00Z"}
"""What replaces a window that was checked here: sigstore would compare it with the clock of this host instead."""


def root_at(root: Fields, logged: Sequence[datetime], stamped: Sequence[datetime]) -> Fields:
    """The part of a trusted root whose validity covers every one of these times; windows are closed intervals.

    The times are those that a bundle *claims*. sigstore verifies the same values later, or does not use them at all,
    so a false claim can only leave less material than a true one.

    Args:
        logged: times by the transparency log.
        stamped: times by timestamp authorities.
    """
    every = [*logged, *stamped]
    pruned = dict(root)
    for kind in KEY_KINDS:
        pruned[kind] = [
            {**each, "publicKey": {**each["publicKey"], "validFor": _ALWAYS}}
            for each in root.get(kind, [])
            if _covers(each["publicKey"].get("validFor"), every)
        ]
    for kind, times in (("certificateAuthorities", every), ("timestampAuthorities", stamped)):
        pruned[kind] = [
            {**each, "validFor": _ALWAYS} for each in root.get(kind, []) if _covers(each.get("validFor"), times)
        ]
    return pruned


def trust_root_end(root: bytes) -> datetime | None:
    """When this root stops being able to verify new signatures; None if never.

    That is the first day on which one kind of its material (logs, authorities) has no member left. Members that
    ended while another of their kind goes on are how roots are rotated, and do not count.

    Raises:
        ConfigError: not a trusted_root.json.
    """
    try:
        fields = json.loads(root)
        return min((end for kind in (*KEY_KINDS, *AUTHORITY_KINDS) if (end := _kind_end(fields, kind))), default=None)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"expected a sigstore trusted_root.json, got something else: {error}") from error


def _kind_end(root: Fields, kind: str) -> datetime | None:
    ends = [_member_end(each) for each in root.get(kind, [])]
    return None if None in ends else max((end for end in ends if end is not None), default=None)


def _member_end(member: Fields) -> datetime | None:
    return min(_ends(member), default=None)


def _ends(member: Fields) -> Iterator[datetime]:
    window = member.get("validFor") or member.get("publicKey", {}).get("validFor") or {}
    if window.get("end"):
        yield read_time(window["end"])
    certificates = member.get("certChain", {}).get("certificates", [])
    if not certificates:
        return
    from cryptography import x509  # noqa: PLC0415  # 16 ms and 2.4 MiB, which hosts without trust roots never pay

    for each in certificates:
        yield x509.load_der_x509_certificate(base64.b64decode(each["rawBytes"])).not_valid_after_utc


def _covers(window: Fields | None, times: Iterable[datetime]) -> bool:
    if not window:
        return True
    start = read_time(window["start"]) if window.get("start") else None
    end = read_time(window["end"]) if window.get("end") else None
    return all((start is None or start <= time) and (end is None or time <= end) for time in times)


def read_time(text: str) -> datetime:
    """An RFC 3339 time, aware."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
