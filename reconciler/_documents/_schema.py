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
import json
import re
from typing import TYPE_CHECKING, Any

from reconciler._documents._yaml import MAX_FINDINGS, Document, escape
from reconciler._resources import resource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonschema.exceptions import ValidationError

    from reconciler.errors import Diagnostic
    from reconciler.model import Json

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
def schema_of(kind: str) -> dict[str, Any]:
    """The schema of a kind (`Chain`, `Repository`, `Package`, `Config`, `Tolerations`) as JSON values."""
    schema: dict[str, Any] = json.loads(resource("schema", f"v1alpha1/{kind.lower()}.schema.json"))
    return schema


@functools.cache
def _validator(kind: str) -> Any:
    # jsonschema takes 60 ms to import: commands that read no document should not pay for it.
    from jsonschema import Draft202012Validator, validators  # noqa: PLC0415

    def is_integer(_checker: object, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    strict = validators.extend(
        Draft202012Validator,
        validators={"pattern": _pattern},
        type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", is_integer),
    )
    return strict(schema_of(kind))


def _pattern(_validator: object, pattern: str, value: object, _schema: object) -> Iterator[ValidationError]:
    from jsonschema.exceptions import ValidationError  # noqa: PLC0415

    if isinstance(value, str) and not re.fullmatch(pattern.removeprefix("^").removesuffix("$"), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def validate(document: Document, kind: str) -> tuple[Diagnostic, ...]:
    """All findings of a document against the schema of `kind`, in the order of the file.

    What the reader of the YAML found broken is passed over: it is reported already.
    """
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
    rule, limit, value = error.validator, error.validator_value, error.instance
    if rule == "required":
        # jsonschema gives one error per missing field, but names it only in its message.
        missing = [name for name in limit if name not in value and f"'{name}' is a required" in error.message]
        if pointer in document.incomplete:
            return []
        return [document.finding(f"expected the field {name!r}, got none; add it", pointer) for name in missing]
    if rule == "additionalProperties":
        return [_unknown(document, key, pointer, error.schema) for key in value if _is_extra(key, error.schema)]
    if "propertyNames" in error.absolute_schema_path:
        message = f"expected {_words(error.schema)} as key, got {show(value)}"
        return [document.finding(message, f"{pointer}/{escape(str(value))}", at_key=True)]
    return [document.finding(_message(str(rule), limit, value, error.schema), pointer)]


def _is_extra(key: str, schema: Any) -> bool:
    return key not in schema.get("properties", {})


def _unknown(document: Document, key: str, pointer: str, schema: Any) -> Diagnostic:
    known = sorted(schema.get("properties", {}))
    close = difflib.get_close_matches(key[:_SHOWN], known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    message = f"expected a known field, got {show(key)}; {hint}"
    return document.finding(message, f"{pointer}/{escape(key)}", at_key=True)


def _words(schema: Any) -> str:
    expected = schema.get("x-expected")
    return expected if isinstance(expected, str) else f"text like {schema.get('pattern', '…')}"


def _message(rule: str, limit: Any, value: Json, schema: Any) -> str:
    got = show(value)
    match rule:
        case "type":
            names = limit if isinstance(limit, list) else [limit]
            wanted = schema.get("x-expected") or " or ".join(_TYPES[name] for name in names)
            quotes = "; put it in quotes" if names == ["string"] and not isinstance(value, (dict, list)) else ""
            return f"expected {wanted}, got {_typed(value)}{quotes if value is not None else ''}"
        case "enum":
            return f"expected {one_of(limit)}, got {got}{_similar(value, limit)}"
        case "const":
            return f"expected {show(limit)}, got {got}"
        case "pattern":
            return f"expected {_words(schema)}, got {got}"
        case "minimum":
            return f"expected at least {limit}, got {got}"
        case "maximum":
            return f"expected at most {limit}, got {got}"
        case "minLength":
            return f"expected {schema.get('x-expected') or f'at least {limit} characters'}, got {got}"
        case "maxLength":
            return f"expected at most {limit} characters, got {len(str(value))}"
        case "minItems" | "minProperties":
            return f"expected at least {_count(limit)}, got {len(value)}"  # type: ignore[arg-type]  # a list or mapping
        case "maxItems" | "maxProperties":
            return f"expected at most {_count(limit)}, got {len(value)}"  # type: ignore[arg-type]  # a list or mapping
        case "uniqueItems":
            return "expected each item once, got one twice; remove it"
        case "not":
            return f"expected {schema.get('x-expected') or 'something else'}, got {got}"
        case _:
            return f"expected a value that satisfies {rule!r}, got {got}"


def _count(limit: int) -> str:
    return f"{limit} item" if limit == 1 else f"{limit} items"


def _similar(value: Json, limit: list[Any]) -> str:
    close = difflib.get_close_matches(str(value)[:_SHOWN], [str(item) for item in limit], n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_of(values: list[Any] | tuple[Any, ...]) -> str:
    """`values` as a phrase: "'a'" or "'a', 'b' or 'c'"."""
    shown = [show(value) for value in values]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def show(value: Json) -> str:
    """`value` as it appears in a message: quoted, on one line, cut where it is long."""
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
