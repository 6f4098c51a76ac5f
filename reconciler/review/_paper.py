# SPDX-License-Identifier: Apache-2.0
"""What a change does to the fleet on paper: the fields of a group that differ, in few words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.model import HOST_NETNS
from reconciler.review._words import few

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from reconciler.model import HostGroup, PaperSigner

SHOWN: Final = 3
"""Differences of one field that are named; the others are counted."""
MAX_VALUE: Final = 100
"""Characters of a value that are shown: an identity of a workflow fits."""
MAX_ENTRY: Final = 240
"""Characters of one difference of a list or mapping."""


def group_differences(before: HostGroup, after: HostGroup) -> str:
    """Such as "secureMode enforce → audit; count 40 → 20; interfaces - eth1"; "" if nothing differs.

    What weighs most and cannot be long comes first, since formats cut long messages.
    """
    return "; ".join(_differences(before, after))


def _differences(before: HostGroup, after: HostGroup) -> Iterator[str]:
    yield from _value("secureMode", before.secure_mode, after.secure_mode)
    yield from _value("guardrail.count", before.guardrail_count, after.guardrail_count)
    yield from _value("guardrail.share", _share(before.guardrail_share), _share(after.guardrail_share))
    if not (before.names and after.names):
        yield from _value("count", before.count, after.count)
    old, new = before.policy, after.policy
    yield from _value("policy.id", old.id, new.id)
    yield from _said("policy.signers", old.signers, new.signers)
    yield from _said("policy.tolerations", old.tolerations, new.tolerations)
    yield from _named("policy.tolerations", _set(old.tolerations or (), new.tolerations or ()))
    yield from _named("policy.signers", _signers(old.signers or (), new.signers or ()))
    yield from _named("labels", _mapping(before.labels, after.labels))
    yield from _named("interfaces", _set(_interfaces(before), _interfaces(after)))
    yield from _named("features", _mapping(before.features, after.features))
    yield from _named("names", _set(before.names, after.names))


def _value(name: str, before: object, after: object) -> Iterator[str]:
    if before != after:
        old, new = _text(before), _text(after)
        yield f"{name} {old} → {new if old != new else 'another that starts likewise'}"


def _named(name: str, differences: Iterable[str]) -> Iterator[str]:
    found = [_cut(each, MAX_ENTRY) for each in differences]
    if found:
        yield f"{name} {few(found, SHOWN)}"


def _said(name: str, before: object, after: object) -> Iterator[str]:
    """Nothing said is not the same as an empty list."""
    if (before is None) != (after is None):
        yield f"{name} {'not said' if before is None else 'said'} → {'not said' if after is None else 'said'}"


def _mapping(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if old is None:
            yield f"+ {key}={_text(new)}"
        elif new is None:
            yield f"- {key}={_text(old)}"
        elif old != new:
            yield f"{key} {_text(old)} → {_text(new)}"


def _set(before: Iterable[str], after: Iterable[str]) -> Iterator[str]:
    old, new = frozenset(before), frozenset(after)
    yield from (f"+ {each}" for each in sorted(new - old))
    yield from (f"- {each}" for each in sorted(old - new))


def _interfaces(group: HostGroup) -> Iterator[str]:
    for netns, names in group.interfaces.items():
        yield from (name if netns == HOST_NETNS else f"{netns}/{name}" for name in names)


def _signers(before: tuple[PaperSigner, ...], after: tuple[PaperSigner, ...]) -> Iterator[str]:
    """Rules by name; of one that is on both sides, what differs."""
    old, new = _by_name(before), _by_name(after)
    yield from (f"+ {name} ({_who(new[name])})" for name in sorted(new.keys() - old.keys()))
    yield from (f"- {name} ({_who(old[name])})" for name in sorted(old.keys() - new.keys()))
    for name in sorted(old.keys() & new.keys()):
        one, other = old[name], new[name]
        parts = [
            *_value("packages", ", ".join(one.packages), ", ".join(other.packages)),
            *_value("signed by", _who(one), _who(other)),
            *_public_key(one, other),
            *_value("root", one.root, other.root),
        ]
        if parts:
            yield f"{name}: {', '.join(parts)}"


def _by_name(rules: tuple[PaperSigner, ...]) -> dict[str, PaperSigner]:
    """Rules may share a name; the second of them is "NAME (2)"."""
    found: dict[str, PaperSigner] = {}
    for rule in rules:
        number = sum(each.name == rule.name for each in found.values()) + 1
        found[rule.name if number == 1 else f"{rule.name} ({number})"] = rule
    return found


def _public_key(before: PaperSigner, after: PaperSigner) -> Iterator[str]:
    """Whether signatures can be verified; of another key the fingerprint is said already."""
    if before.key == after.key and before.public_key != after.public_key:
        old, new = ("not said" if rule.public_key is None else "said" for rule in (before, after))
        yield f"publicKey {old} → {new}" if old != new else "publicKey is written otherwise"


def _who(rule: PaperSigner) -> str:
    return rule.key or (f"{rule.identity} of {rule.issuer}" if rule.identity else "a key that cannot be read")


def _share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:g}%"


def _text(value: object) -> str:
    if value is None:
        return "not said"
    return _cut(str(value).lower() if isinstance(value, bool) else str(value), MAX_VALUE)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
