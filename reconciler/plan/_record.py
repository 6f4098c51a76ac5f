# SPDX-License-Identifier: Apache-2.0
"""What a host looks like, as a file: everything that its plan depends on besides the commit and the packages.

With it the plan that a host would make is made elsewhere, step by step the same. Nothing secret is in it: no command
lines, no addresses, no keys; of maps only digests, and words for what a manifest declared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from reconciler import policy
from reconciler.config import Guardrail, SecureConfig
from reconciler.errors import InputError
from reconciler.model import (
    NOT_JSON,
    DesiredState,
    HookKind,
    HookState,
    HostFacts,
    Inventory,
    Occupant,
    Package,
    Plan,
    Snapshot,
    encode_json,
    to_builtins,
)
from reconciler.plan._make import PlanInput, make, required_namespaces
from reconciler.plan._observed import observe

RECORD_VERSION: Final = 1
"""A newer one is refused, an older one is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """One host at one moment.

    Attributes:
        at: RFC 3339, when it was recorded.
        policy: id of the host's policy, as `status` prints it.
        kernel: the kernel's release.
        applied: commit that was applied last, None when none was.
        applied_digest: state digest of it.
        earlier: another snapshot, in enforce mode: foreign programs must be in both.
        detach_revoked: `trust.onRevoked: detach`.
        unproven: keys of hooks that an interrupted pass took.
    """

    at: str
    facts: HostFacts
    policy: str
    kernel: str
    snapshot: Snapshot
    inventory: Inventory
    secure: SecureConfig
    guardrail: Guardrail
    applied: str | None = None
    applied_digest: str | None = None
    earlier: Snapshot | None = None
    detach_revoked: bool = False
    unproven: tuple[str, ...] = ()
    version: int = RECORD_VERSION


def encode_record(record: HostRecord) -> bytes:
    """JSON; equal records give equal bytes."""
    plain: dict[str, Any] = to_builtins(record)
    for name in ("snapshot", "earlier"):
        if plain[name] is not None:
            # Hooks are found by their own fields again; a mapping by point has no place in JSON.
            plain[name]["hooks"] = list(plain[name]["hooks"].values())
    return encode_json(plain)


def decode_record(data: bytes, *, file: str) -> HostRecord:
    """The record that a file holds.

    Raises:
        InputError: written by a newer version, or not a record.
    """
    try:
        raw = msgspec.json.decode(data)
    except NOT_JSON as error:
        raise InputError(f"{file}: expected a record of `reconciler observe --record`, got no JSON: {error}") from error
    version = raw.get("version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise InputError(f"{file}: expected a record of `reconciler observe --record`, got JSON without a version")
    if version > RECORD_VERSION:
        message = f"{file}: expected a record of at most format {RECORD_VERSION}, got format {version}"
        raise InputError(f"{message}; use a reconciler as new as the one that wrote it")
    try:
        hooks = {name: _take_hooks(raw[name]) for name in ("snapshot", "earlier") if raw.get(name) is not None}
        record = msgspec.convert(raw, type=HostRecord, str_keys=True)
    except (*NOT_JSON, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: expected a whole record, got a damaged one: {error}; record it again") from error
    snapshot = replace(record.snapshot, hooks=hooks["snapshot"])
    earlier = replace(record.earlier, hooks=hooks["earlier"]) if record.earlier is not None else None
    return replace(record, snapshot=snapshot, earlier=earlier)


def _take_hooks(raw: dict[str, Any]) -> Any:  # noqa: ANN401 - a mapping by point
    states = [msgspec.convert(each, type=HookState, str_keys=True) for each in raw["hooks"]]
    raw["hooks"] = {}
    return {state.point: state for state in states}


def occupants(record: HostRecord) -> tuple[Occupant, ...]:
    """What is not ours on the XDP hooks of a recorded host; each takes one program only."""
    current = observe(record.snapshot, record.inventory).current
    points = frozenset(point for point in record.snapshot.hooks if point.kind is HookKind.XDP)
    ours = {point: found.attachment for point, found in current.items()}
    return tuple(
        Occupant(
            netns=stranger.point.netns,
            interface=stranger.point.interface,
            program=stranger.program_name,
            tolerated_by=stranger.tolerated_by,
        )
        for stranger in policy.classify(record.snapshot, ours, record.secure, points)
        if stranger.point in points
    )


def plan_offline(record: HostRecord, desired: DesiredState, packages: dict[str, Package], state_digest: str) -> Plan:
    """The plan that the recorded host would make of `desired`.

    Raises:
        PlanError: the desired state cannot be honoured there.
        KernelError: the record is not complete.
    """
    names = required_namespaces(desired, record.secure, record.inventory)
    return make(
        PlanInput(
            desired=desired,
            packages=packages,
            snapshot=_within(record.snapshot, names),
            inventory=record.inventory,
            secure=record.secure,
            guardrail=record.guardrail,
            state_digest=state_digest,
            applied_digest=record.applied_digest,
            earlier=_within(record.earlier, names) if record.earlier is not None else None,
            detach_revoked=record.detach_revoked,
            unproven=frozenset(record.unproven),
        )
    )


def _within(snapshot: Snapshot, names: tuple[str, ...]) -> Snapshot:
    """What a snapshot of only these namespaces would have shown; the record holds all that have a name."""
    inodes = {name: inode for name, inode in snapshot.namespaces.items() if name in names}
    return replace(
        snapshot,
        interfaces=tuple(each for each in snapshot.interfaces if each.netns in inodes),
        hooks={point: state for point, state in snapshot.hooks.items() if point.netns in inodes},
        namespaces=inodes,
        missing=tuple(sorted(set(names) - inodes.keys())),
    )
