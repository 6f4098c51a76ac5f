# SPDX-License-Identifier: Apache-2.0
"""Validation by JSON Schema, with findings for people.

The schemas in `schema/v1alpha1/` are the users' contract and the only place where a field is declared. They branch with
`if`/`then` on one field (`kind`, `type`) and never with `oneOf`, so every error that jsonschema gives is about one
value and one rule. Two things differ from a plain draft 2020-12 validator, both stricter: an `integer` is written
without a point, and a `pattern` between `^` and `$` matches the whole text (in Python `$` also matches before a last
line feed). `x-expected` says in words what a pattern means.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from reconciler._documents._accept import Acceptor
from reconciler._documents._yaml import MAX_FINDINGS, Document, escape
from reconciler._resources import resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

    from reconciler.errors import Diagnostic
    from reconciler.model import Json

Schema: TypeAlias = dict[str, Any]

API_VERSION = "reconciler/v1alpha1"

_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}
_SHOWN = 60
"""Characters of a value that a message shows."""


@functools.cache
def schema_of(kind: str) -> Schema:
    """The schema of a kind (`Chain`, `Repository`, `Package`, `Config`, `Tolerations`) as JSON values."""
    schema: Schema = json.loads(resource("schema", f"v1alpha1/{kind.lower()}.schema.json"))
    return schema


@functools.cache
def _acceptor(kind: str) -> Acceptor:
    return Acceptor(schema_of(kind))


@functools.cache
def _validator(kind: str) -> Validator:
    # jsonschema takes 30 to 60 ms to import: only who wrote something wrong pays for it.
    from jsonschema import Draft202012Validator, validators  # noqa: PLC0415

    def is_integer(_checker: object, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    extend: Callable[..., type[Draft202012Validator]] = validators.extend
    strict = extend(
        Draft202012Validator,
        validators={"pattern": _pattern, "uniqueItems": _unique_items},
        type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", is_integer),
    )
    return strict(schema_of(kind))


def _pattern(_validator: object, pattern: str, value: object, _schema: object) -> Iterator[ValidationError]:
    from jsonschema.exceptions import ValidationError  # noqa: PLC0415

    if isinstance(value, str) and not re.fullmatch(pattern.removeprefix("^").removesuffix("$"), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _unique_items(_validator: object, _limit: object, value: object, _schema: object) -> Iterator[ValidationError]:
    # jsonschema compares every two items where they cannot be sorted.
    from jsonschema.exceptions import ValidationError  # noqa: PLC0415

    if isinstance(value, list) and len({json.dumps(item, sort_keys=True) for item in value}) < len(value):
        yield ValidationError("repeated items")


def validate(document: Document, kind: str) -> tuple[Diagnostic, ...]:
    """All findings of a document against the schema of `kind`, in the order of the file.

    What the reader of the YAML found broken is passed over: it is reported already.
    """
    if _acceptor(kind).accepts(document.value):
        return ()
    findings: list[Diagnostic] = []
    for error in _validator(kind).iter_errors(document.value):
        pointer = "".join(f"/{escape(str(part))}" for part in error.absolute_path)
        if not document.within_broken(pointer):
            findings += _explain(document, error, pointer)
        if len(findings) > MAX_FINDINGS:
            break
    unique = dict.fromkeys(findings)
    return tuple(sorted(unique, key=lambda finding: (finding.line or 0, finding.column or 0))[:MAX_FINDINGS])


def _explain(document: Document, error: ValidationError, pointer: str) -> list[Diagnostic]:
    rule = str(error.validator)
    # What broke a rule, the rule's value and the schema around it; the rule decides about their types.
    value: Any = error.instance
    limit: Any = error.validator_value
    schema: Schema = dict(error.schema) if isinstance(error.schema, dict) else {}
    if rule == "required":
        # jsonschema gives one error per missing field, but names it only in its message.
        missing = [name for name in limit if name not in value and error.message.startswith(f"{name!r} ")]
        if pointer in document.incomplete:
            return []
        return [document.finding(f"expected the field {name!r}, got none; add it", pointer) for name in missing]
    if rule == "additionalProperties":
        known = schema.get("properties", {})
        # Only as many as are shown: what somebody may have meant takes time to find.
        extra = itertools.islice((key for key in value if key not in known), MAX_FINDINGS)
        return [_unknown(document, f"{pointer}/{escape(key)}", key, known) for key in extra]
    if "propertyNames" in error.absolute_schema_path:
        message = f"expected {_words(schema)} as key, got {show(value)}"
        return [document.finding(message, f"{pointer}/{escape(str(value))}", at_key=True)]
    return [document.finding(f"expected {_RULES[rule](limit, value, schema)}", pointer)]


def _unknown(document: Document, pointer: str, key: str, known: Schema) -> Diagnostic:
    close = difflib.get_close_matches(key[:_SHOWN], known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known))}"
    return document.finding(f"expected a known field, got {show(key)}; {hint}", pointer, at_key=True)


# --- one function per rule: what was expected, and what was got ---------------------------------------------


def _words(schema: Schema) -> str:
    return str(schema.get("x-expected") or f"text that matches {schema.get('pattern')}")


def _wrong_type(limit: str | list[str], value: Json, schema: Schema) -> str:
    names = limit if isinstance(limit, list) else [limit]
    wanted = schema.get("x-expected") or " or ".join(_TYPES[name] for name in names)
    # Numbers, true and false are text once they are quoted.
    hint = "; put it in quotes" if names == ["string"] and isinstance(value, (bool, int, float)) else ""
    return f"{wanted}, got {_typed(value)}{hint}"


def _not_one_of(limit: list[Json], value: Json, _schema: Schema) -> str:
    close = difflib.get_close_matches(str(value)[:_SHOWN], [str(item) for item in limit], n=1, cutoff=0.7)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{one_of(limit)}, got {show(value)}{hint}"


def _not_const(limit: Json, value: Json, _schema: Schema) -> str:
    return f"{show(limit)}, got {show(value)}"


def _no_match(_limit: str, value: Json, schema: Schema) -> str:
    return f"{_words(schema)}, got {show(value)}"


def _too_short(limit: int, value: Json, schema: Schema) -> str:
    return f"{schema.get('x-expected') or f'at least {limit} characters'}, got {show(value)}"


def _too_long(limit: int, value: str, _schema: Schema) -> str:
    return f"at most {limit} characters, got {len(value)}"


def _too_few(limit: int, value: list[Json], _schema: Schema) -> str:
    return f"at least {_count(limit)}, got {len(value)}"


def _too_many(limit: int, value: list[Json], _schema: Schema) -> str:
    return f"at most {_count(limit)}, got {len(value)}"


def _too_low(limit: float, value: Json, _schema: Schema) -> str:
    return f"at least {limit}, got {show(value)}"


def _too_high(limit: float, value: Json, _schema: Schema) -> str:
    return f"at most {limit}, got {show(value)}"


def _repeated(_limit: bool, _value: Json, _schema: Schema) -> str:  # noqa: FBT001 - the rule's value
    return "each item once, got one twice; remove it"


_RULES: dict[str, Callable[[Any, Any, Schema], str]] = {
    "type": _wrong_type,
    "enum": _not_one_of,
    "const": _not_const,
    "pattern": _no_match,
    "minLength": _too_short,
    "maxLength": _too_long,
    "minItems": _too_few,
    "maxItems": _too_many,
    "maxProperties": _too_many,
    "minimum": _too_low,
    "maximum": _too_high,
    "uniqueItems": _repeated,
}
"""The rules that our schemas use, besides those that `_explain` looks at itself; a test compares."""


def _count(limit: int) -> str:
    return f"{limit} item" if limit == 1 else f"{limit} items"


def one_of(values: list[Any] | tuple[Any, ...]) -> str:
    """`values` as a phrase: "'a'" or "'a', 'b' or 'c'"."""
    shown = [show(value) for value in values]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def show(value: Json) -> str:
    """`value` as it appears in a message: quoted, on one line, cut where it is long, without a URL's credentials."""
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            value = re.sub(r"://.*@", "://…@", value, flags=re.DOTALL)
            return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…")
        case _:
            return str(value)


def _typed(value: Json) -> str:
    match value:
        case str():
            return f"the text {show(value)}"
        case bool() | None | dict() | list():
            return show(value)
        case _:
            return f"the number {value}"
