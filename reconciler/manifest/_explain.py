# SPDX-License-Identifier: Apache-2.0
"""`explain`: what a field means, from the schemas."""

from __future__ import annotations

import difflib
import textwrap

from reconciler._documents import Field, fields_of
from reconciler.errors import InputError

KINDS = ("Repository", "Chain", "HostGroup", "Package", "PacketTest", "Config", "Tolerations")
_WIDTH = 80


def explain(field_path: str) -> str:
    """What a field means, its type, its default and the fields below it, as text of several lines.

    Args:
        field_path: `KIND`, `KIND.PATH` or just the end of a path: `chain.spec.hook.mode`, `hook.mode`. Case does not
            matter, and neither do `[]` and `*`: `chain.spec.members.name`.

    Raises:
        InputError: there is no such field, or several end like that.
    """
    wanted = _plain(field_path)
    places = [(kind, field) for kind in KINDS for field in fields_of(kind)]
    exact = [(kind, field) for kind, field in places if _plain(_name(kind, field)) == wanted]
    found = exact or [(kind, field) for kind, field in places if _plain(_name(kind, field)).endswith(f".{wanted}")]
    # `maps` and `maps.*` read the same; the mapping is meant, not one of its values.
    outer = {_plain(_name(kind, field)): _name(kind, field) for kind, field in reversed(found)}
    found = [(kind, field) for kind, field in found if _name(kind, field) in outer.values()]
    names = sorted(outer.values())
    if not names:
        close = _close(wanted, [_name(kind, field) for kind, field in places])
        message = f"expected a field such as chain.spec.hook, got {field_path!r}{close}"
        raise InputError(message)
    if len(names) > 1:
        message = f"expected one field, got {field_path!r}, which can be any of: {', '.join(names)}"
        raise InputError(message)
    kind = found[0][0]
    return _text(kind, [field for _, field in found])


def _plain(path: str) -> str:
    parts = path.lower().replace("[]", "").replace("/", ".").split(".")
    return ".".join(part for part in parts if part and part != "*")


def _name(kind: str, field: Field) -> str:
    return f"{kind}.{field.path}" if field.path else kind


def _close(wanted: str, names: list[str]) -> str:
    close = difflib.get_close_matches(wanted[:200], [_plain(name) for name in names], n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else f"; kinds are {', '.join(KINDS)}"


def _text(kind: str, fields: list[Field]) -> str:
    # A field of several hook types is declared once for each; the texts are alike.
    field = fields[0]
    lines = [f"{_name(kind, field)}", f"  {_facts(field)}"]
    types = [each.only_for for each in fields if each.only_for is not None]
    if types:
        lines.append(f"  only with type: {' or '.join(types)}")
    lines += ["", *textwrap.wrap(field.description, _WIDTH)]
    if field.values and field.type.startswith("list"):
        lines += ["", *textwrap.wrap(f"Values: {', '.join(field.values)}", _WIDTH)]
    below = _below(kind, field)
    if below:
        width = max(len(name) for name, _ in below)
        lines += ["", "Fields (* required):"]
        for name, description in below:
            first, *rest = textwrap.wrap(description, _WIDTH - width - 4)
            lines += [f"  {name:<{width}}  {first}", *(f"{'':{width + 4}}{line}" for line in rest)]
    return "\n".join(lines) + "\n"


def _facts(field: Field) -> str:
    default = f"; default {field.default}" if field.default is not None else ""
    return f"{field.type}; {'required' if field.required else 'optional'}{default}"


def _below(kind: str, field: Field) -> list[tuple[str, str]]:
    prefixes = ("",) if not field.path else (f"{field.path}.", f"{field.path}[].")
    found: dict[str, Field] = {}
    types: dict[str, list[str]] = {}
    for each in fields_of(kind):
        prefix = next((prefix for prefix in prefixes if each.path.startswith(prefix)), None)
        rest = each.path[len(prefix) :] if prefix is not None else ""
        if rest and "." not in rest and "[" not in rest:
            found.setdefault(rest, each)
            if each.only_for is not None and each.only_for != field.only_for:
                types.setdefault(rest, []).append(each.only_for)
    every = {only_for for names in types.values() for only_for in names}
    lines = []
    for name, each in found.items():
        # What every type has needs no word about types.
        some = types.get(name, [])
        note = f"[{' or '.join(some)}] " if some and set(some) != every else ""
        lines.append((f"{name}{'*' if each.required else ''}", f"{note}{each.description}"))
    return lines
