# SPDX-License-Identifier: Apache-2.0
"""The fields of a kind, flat, as the schema declares them: what `explain` prints and the documentation lists."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reconciler._documents._schema import schema_of, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler._documents._schema import Schema
    from reconciler.model import Json

_ANY_VALUE = 4
"""A field that takes more than this many types takes any value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a kind.

    Attributes:
        path: with dots; `[]` stands for any item of a list, `*` for any key of a mapping; "" is the document itself.
        type: in words, with limits.
        required: the mapping around it must have it.
        default: as written in YAML, None when there is none.
        values: all that are allowed (of a list: in it), for a closed set.
        only_for: the value of `type` with which the field exists, None for always.
        depth: number of mappings and lists around it.
    """

    path: str
    type: str
    required: bool
    description: str
    default: str | None = None
    values: tuple[str, ...] = ()
    only_for: str | None = None
    depth: int = 0


@functools.cache
def fields_of(kind: str) -> tuple[Field, ...]:
    """All fields of a kind, parents before children, in the schema's order; the first is the document itself."""
    schema = schema_of(kind)
    root = Field(path="", type="a mapping", required=True, description=schema["description"])
    return (root, *_walk(schema, schema, "", 1, None))


def _walk(root: Schema, schema: Schema, path: str, depth: int, only_for: str | None) -> Iterator[Field]:
    required = frozenset(schema.get("required", []))
    for name, entry in schema.get("properties", {}).items():
        below = f"{path}.{name}" if path else name
        yield from _field(root, entry, below, depth, only_for, required=name in required)
    for branch in schema.get("allOf", []):
        kind = branch["if"]["properties"]["type"]["const"]
        then = _resolve(root, branch["then"])
        # `type` itself is listed once, where the branches part.
        rest = {**then, "properties": {name: entry for name, entry in then["properties"].items() if name != "type"}}
        yield from _walk(root, rest, path, depth, kind)
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict) and _resolve(root, extra).get("type") == "object":
        yield from _field(root, extra, f"{path}.*", depth, only_for, required=False)


def _field(
    root: Schema, entry: Schema, path: str, depth: int, only_for: str | None, *, required: bool
) -> Iterator[Field]:
    schema = _resolve(root, entry)
    yield Field(
        path=path,
        type=_type(root, schema),
        required=required,
        description=schema["description"],
        default=_yaml(schema["default"]) if "default" in schema else None,
        values=tuple(_yaml(value) for value in _resolve(root, schema.get("items", schema)).get("enum", [])),
        only_for=only_for,
        depth=depth,
    )
    if "items" in schema:
        yield from _walk(root, _resolve(root, schema["items"]), f"{path}[]", depth + 1, only_for)
    else:
        yield from _walk(root, schema, path, depth + 1, only_for)


def _resolve(root: Schema, entry: Schema) -> Schema:
    # What stands beside a reference is more exact than what it refers to.
    name = entry.get("$ref")
    return entry if name is None else {**root["$defs"][name.removeprefix("#/$defs/")], **entry}


def _type(root: Schema, schema: Schema) -> str:
    if "const" in schema:
        return show(schema["const"])
    kind = schema.get("type", "object")
    match kind:
        case list():
            return "any value but null" if len(kind) > _ANY_VALUE else " or ".join(kind)
        case "array":
            return _list(root, schema)
        case "object":
            return "mapping"
        case "string" if "enum" in schema:
            return " | ".join(_yaml(value) for value in schema["enum"])
        case "string":
            return str(schema.get("x-expected") or _text(schema))
        case "boolean":
            return "true or false"
        case _:
            limits = _limits(schema.get("minimum"), schema.get("maximum"))
            return f"{kind}{f' {limits}' if limits else ''}"


def _list(root: Schema, schema: Schema) -> str:
    items = _resolve(root, schema["items"])
    limits = _limits(schema.get("minItems"), schema.get("maxItems"))
    match items:
        case {"type": "object"}:
            each = "mappings"
        case {"enum": _}:
            each = "items of a set"
        case _:
            each = f"items, each {_type(root, items)}"
    return f"list of {limits} {each}"


def _text(schema: Schema) -> str:
    return f"text of at most {schema['maxLength']} characters" if "maxLength" in schema else "text"


def _limits(low: int | None, high: int | None) -> str:
    if low is not None:
        return f"{low} to {high}"
    return f"at most {high}" if high is not None else ""


def _yaml(value: Json) -> str:
    match value:
        case str():
            return value or '""'
        case list():
            return f"[{', '.join(_item(item) for item in value)}]"
        case dict():
            return "{}"
        case _:
            return show(value)


def _item(value: Any) -> str:  # noqa: ANN401 - an item of a default
    return f'"{value}"' if value == "*" else str(value)
