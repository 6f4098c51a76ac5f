# SPDX-License-Identifier: Apache-2.0
"""What a changed parameter or config map does, from what package.yaml declares about it and nothing else.

Both sides' declarations are asked, and whatever either of them calls weaker is weaker: so a commit cannot make its own
change look harmless by a new package that says otherwise. What nobody declared is shown raw, as unknown effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from reconciler.model import encode_json
from reconciler.review._coverage import PROTOCOLS, SHOWN, Coverage, coverage_of
from reconciler.review._values import Line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reconciler.model import Json, KeyKind, MapEntry, MapSpec, Member, PackageManifest, ParamSpec

MAX_TEXT: Final = 200
"""Characters of one value that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A finding of a chain before it is placed: `pointer` is where in the chain's document."""

    id: str
    message: str
    member: str = ""
    pointer: str = "/spec"


@dataclass(slots=True)
class Effects:
    """Lines and notes of one member, in the making."""

    member: str
    pointer: str
    lines: list[Line] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def note(self, rule: str, message: str, pointer: str = "") -> None:
        """A finding about this member; the same one is kept once."""
        note = Note(id=rule, message=message, member=self.member, pointer=self.pointer + pointer)
        if note not in self.notes:
            self.notes.append(note)


@dataclass(frozen=True, slots=True)
class Sided:
    """A member on one side, and what its package declares; no manifest where the package cannot be had."""

    member: Member
    manifest: PackageManifest | None

    def param(self, name: str) -> ParamSpec | None:
        """The declaration of a parameter."""
        return next((spec for spec in self.manifest.params if spec.name == name), None) if self.manifest else None

    def map(self, name: str) -> MapSpec | None:
        """The declaration of a map."""
        return next((spec for spec in self.manifest.maps if spec.name == name), None) if self.manifest else None

    def value(self, name: str) -> Json:
        """The value of a parameter that counts, None if only the object knows it."""
        spec = self.param(name)
        return self.member.params.get(name, spec.default if spec else None)


def compare_settings(before: Sided, after: Sided, effects: Effects) -> None:
    """Parameters and config maps of a member that is on both sides."""
    names = {*before.member.params, *after.member.params}
    if before.manifest is not None and after.manifest is not None:
        # Defaults count only where both are known: what cannot be read has not changed them.
        names |= {spec.name for side in (before.manifest, after.manifest) for spec in side.params}
    for name in sorted(names):
        _param(name, before, after, effects)
    for name in sorted({*before.member.maps, *after.member.maps}):
        _map(name, before, after, effects)
    _declarations(before, after, effects)


# --- parameters --------------------------------------------------------------------------------------------


def _param(name: str, before: Sided, after: Sided, effects: Effects) -> None:
    old, new = before.value(name), after.value(name)
    if encode_json(old) == encode_json(new):
        return
    specs = [spec for spec in (before.param(name), after.param(name)) if spec is not None]
    unit = next((spec.unit for spec in reversed(specs) if spec.unit), None)
    defaults = [text(spec.default) for spec in specs if spec.default is not None]
    detail = "; ".join(
        part for part in (unit or "", f"default {' → '.join(dict.fromkeys(defaults))}" if defaults else "") if part
    )
    effects.lines.append(Line(what=name, before=_shown(old), after=_shown(new), member=effects.member, detail=detail))
    pointer = f"/params/{name}"
    if before.manifest is not None and after.manifest is not None and before.param(name) is None and old is None:
        return  # a parameter of a new version, which never had another value
    change = f"{name} {text(old)} → {text(new)}{f' {unit}' if unit else ''}"
    judged = [_judge_param(spec, old, new) for spec in specs] or [UNKNOWN]
    for rule, words in judged:
        if rule is not None:
            effects.note(rule, f"{change}: {words}", pointer)


UNKNOWN: Final = ("RV040", "package.yaml does not say what it means, so its effect is unknown")
HARMLESS: Final = (None, "")


def _judge_param(spec: ParamSpec, old: Json, new: Json) -> tuple[str | None, str]:
    """The finding of a changed parameter under one declaration, and its words."""
    if spec.verdicts:
        effects = [spec.verdicts.get(text(value)) for value in (old, new)]
        if None in effects:
            return UNKNOWN
        return ("RV027", "from deny to allow") if effects == ["deny", "allow"] else HARMLESS
    if spec.meaning in ("allow", "deny") and spec.kind is not None:
        was, now = (coverage_of(spec.kind, [value]) for value in (old, new))
        if was is None or now is None:
            return UNKNOWN
        return _judge_coverage(spec.meaning, was, now)
    if spec.weakens is None:
        return UNKNOWN
    direction = _direction(old, new)
    if direction is None:
        return UNKNOWN
    if direction != spec.weakens:
        return HARMLESS
    words = f"{spec.weakens} lets more through, says the package"
    return ("RV019" if spec.meaning == "limit" else "RV020"), words


def _judge_coverage(meaning: str, was: Coverage, now: Coverage) -> tuple[str | None, str]:
    if meaning == "allow":
        gained = now.minus(was)
        return HARMLESS if gained.empty else ("RV017", f"{gained.words()} is now allowed")
    lost = was.minus(now)
    return HARMLESS if lost.empty else ("RV018", f"{lost.words()} is no longer denied")


def _direction(old: Json, new: Json) -> str | None:
    if not isinstance(old, int | float) or not isinstance(new, int | float):
        return None
    return "higher" if new > old else "lower"


# --- maps --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entries:
    """Entries of a map on both sides, by canonical key; order and spelling of YAML are gone."""

    before: Mapping[bytes, MapEntry]
    after: Mapping[bytes, MapEntry]

    @property
    def added(self) -> list[MapEntry]:
        return [self.after[key] for key in sorted(self.after.keys() - self.before.keys())]

    @property
    def removed(self) -> list[MapEntry]:
        return [self.before[key] for key in sorted(self.before.keys() - self.after.keys())]

    @property
    def changed(self) -> list[tuple[MapEntry, MapEntry]]:
        both = sorted(self.before.keys() & self.after.keys())
        pairs = [(self.before[key], self.after[key]) for key in both]
        return [(old, new) for old, new in pairs if encode_json(old.value) != encode_json(new.value)]


def _by_key(entries: Iterable[MapEntry]) -> dict[bytes, MapEntry]:
    return {encode_json(entry.key): entry for entry in entries}


def _map(name: str, before: Sided, after: Sided, effects: Effects) -> None:
    entries = _Entries(_by_key(before.member.maps.get(name, ())), _by_key(after.member.maps.get(name, ())))
    if not (entries.added or entries.removed or entries.changed):
        return
    specs = [spec for spec in (before.map(name), after.map(name)) if spec is not None]
    effects.lines.append(
        Line(
            what=name,
            before=_entries(len(entries.before)),
            after=_entries(len(entries.after)),
            member=effects.member,
            detail=_difference(entries, specs[-1] if specs else None),
        )
    )
    pointer = f"/maps/{name}/entries"
    asked: list[MapSpec | None] = [*specs] or [None]
    for spec in asked:
        for rule, words in _judge_map(spec, entries, before, after):
            effects.note(rule, f"{name}: {words}", pointer)


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def _difference(entries: _Entries, spec: MapSpec | None) -> str:
    parts = []
    for sign, found in (("+", entries.added), ("-", entries.removed)):
        shown = ", ".join(f"{key_words(spec, entry.key)} = {text(entry.value)}" for entry in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        parts += [f"{sign} {shown}{more}"] if found else []
    changed = entries.changed
    shown = ", ".join(
        f"{key_words(spec, old.key)}: {text(old.value)} → {text(new.value)}" for old, new in changed[:SHOWN]
    )
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return "; ".join([*parts, *([f"~ {shown}{more}"] if changed else [])])


def _judge_map(spec: MapSpec | None, entries: _Entries, before: Sided, after: Sided) -> list[tuple[str, str]]:
    """Every finding of a changed map under one declaration."""
    match spec.meaning if spec is not None else None:
        case "allow" | "deny" as meaning:
            assert spec is not None  # noqa: S101 - it has a meaning
            return _judge_set(meaning, spec, entries)
        case "limit":
            assert spec is not None  # noqa: S101 - it has a meaning
            return _judge_limits(spec, entries, before, after)
        case "verdict":
            assert spec is not None  # noqa: S101 - it has a meaning
            return _judge_verdicts(spec, entries)
        case _:
            return [("RV040", f"{_counts(entries)}; {UNKNOWN[1]}")]


def _counts(entries: _Entries) -> str:
    counts = ((len(entries.added), "added"), (len(entries.removed), "removed"), (len(entries.changed), "changed"))
    return ", ".join(f"{count} {word}" for count, word in counts if count)


def _judge_set(meaning: str, spec: MapSpec, entries: _Entries) -> list[tuple[str, str]]:
    """Keys as a set: what is allowed more, or denied less; values do not matter."""
    was = coverage_of(spec.key, [entry.key for entry in entries.before.values()]) if spec.key else None
    now = coverage_of(spec.key, [entry.key for entry in entries.after.values()]) if spec.key else None
    if was is None or now is None:
        # Not countable: each key stands for itself.
        weaker = entries.added if meaning == "allow" else entries.removed
        if not weaker:
            return []
        keys = _keys(spec, weaker)
        return (
            [("RV017", f"{keys} is now allowed")] if meaning == "allow" else [("RV018", f"{keys} is no longer denied")]
        )
    rule, words = _judge_coverage(meaning, was, now)
    if rule is None:
        return []
    if meaning == "deny" and (rest := _rest(spec.key, entries, was.minus(now))):
        words += f"; the rest of {rest} still is"
    return [(rule, words)]


def _rest(kind: KeyKind | None, entries: _Entries, lost: Coverage) -> str:
    """Prefixes of before that are lost in part only."""
    if kind != "cidr":
        return ""
    partly = []
    for entry in entries.before.values():
        whole = coverage_of(kind, [entry.key])
        if whole is not None and not (left := whole.minus(lost)).empty and left != whole:
            partly.append(text(entry.key))
        if len(partly) > SHOWN:
            break
    return ", ".join(partly[:SHOWN]) + (" and more" if len(partly) > SHOWN else "")


def _keys(spec: MapSpec | None, entries: list[MapEntry]) -> str:
    shown = ", ".join(key_words(spec, entry.key) for entry in entries[:SHOWN])
    return shown + (f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else "")


def _judge_limits(spec: MapSpec, entries: _Entries, before: Sided, after: Sided) -> list[tuple[str, str]]:
    found = []
    if entries.removed:
        covered = (
            coverage_of(spec.key, [entry.key for entry in entries.removed])
            if spec.key in ("port", "protocol")
            else None
        )
        keys = covered.words() if covered is not None else _keys(spec, entries.removed)
        found.append(("RV019", f"{keys} is no longer limited"))
    raised, unknown = [], []
    # An entry whose value is 0 changes with the parameter that it stands for, which is told of the parameter itself.
    for old, new in entries.changed:
        was, now = (
            side.value(spec.zero_is) if spec.zero_is and entry.value == 0 else entry.value
            for side, entry in ((before, old), (after, new))
        )
        direction = _direction(was, now)
        if direction is None or spec.weakens is None:
            unknown.append(new)
        elif was != now and direction == spec.weakens:
            raised.append(f"{key_words(spec, new.key)}: {text(was)} → {text(now)}")
    if raised:
        more = f" and {len(raised) - SHOWN} more" if len(raised) > SHOWN else ""
        found.append(
            ("RV019", f"{', '.join(raised[:SHOWN])}{more}: {spec.weakens} lets more through, says the package")
        )
    if unknown:
        found.append(
            ("RV040", f"{_keys(spec, unknown)}: changed, and package.yaml does not say which direction weakens")
        )
    return found


def _judge_verdicts(spec: MapSpec, entries: _Entries) -> list[tuple[str, str]]:
    def effect(entry: MapEntry) -> str | None:
        return spec.verdicts.get(text(entry.value))

    found = []
    for rule, chosen, words in (
        ("RV017", [each for each in entries.added if effect(each) == "allow"], "is now allowed"),
        ("RV018", [each for each in entries.removed if effect(each) == "deny"], "is no longer denied"),
        (
            "RV027",
            [new for old, new in entries.changed if effect(old) == "deny" and effect(new) == "allow"],
            "goes from deny to allow",
        ),
        (
            "RV040",
            [
                *(each for each in (*entries.added, *entries.removed) if effect(each) is None),
                *(new for old, new in entries.changed if None in (effect(old), effect(new))),
            ],
            "has a value that package.yaml does not explain, so its effect is unknown",
        ),
    ):
        if chosen:
            found.append((rule, f"{_keys(spec, chosen)} {words}"))
    return found


# --- declarations ------------------------------------------------------------------------------------------


def _declarations(before: Sided, after: Sided, effects: Effects) -> None:
    if before.manifest is None or after.manifest is None or before.manifest.name != after.manifest.name:
        return
    for old in before.manifest.params:
        new = after.param(old.name)
        said = (old.meaning, old.kind, old.weakens, dict(old.verdicts))
        if new is not None and any(said) and said != (new.meaning, new.kind, new.weakens, dict(new.verdicts)):
            effects.note("RV026", f"package.yaml says something else than before about the parameter {old.name}")
    for each in before.manifest.maps:
        later = after.map(each.name)
        if later is not None and any(_said(each)) and _said(each) != _said(later):
            effects.note("RV026", f"package.yaml says something else than before about the map {each.name}")


def _said(spec: MapSpec) -> tuple[object, ...]:
    return (spec.meaning, spec.key, dict(spec.key_fields), dict(spec.verdicts), spec.weakens, spec.zero_is)


# --- words -------------------------------------------------------------------------------------------------


def text(value: Json) -> str:
    """A value of a manifest on one line."""
    if value is None:
        return "the object's own"
    shown = value if isinstance(value, str) else encode_json(value).decode()
    return shown if len(shown) <= MAX_TEXT else f"{shown[: MAX_TEXT - 1]}…"


def _shown(value: Json) -> str | None:
    return None if value is None else text(value)


def key_words(spec: MapSpec | None, key: Json) -> str:
    """A key with what package.yaml says that it is, such as "port 443" or "zone 1, TCP, port 443"."""
    if spec is None:
        return text(key)
    if isinstance(key, dict) and spec.key_fields:
        return ", ".join(_part(spec.key_fields.get(name), name, value) for name, value in sorted(key.items()))
    return _part(spec.key, "", key) if spec.key in ("port", "protocol") else text(key)


def _part(kind: KeyKind | None, name: str, value: Json) -> str:
    if kind == "protocol" and isinstance(value, int) and value in PROTOCOLS:
        return PROTOCOLS[value]
    label = kind if kind in ("port", "protocol") else name
    return f"{label} {text(value)}" if label else text(value)
