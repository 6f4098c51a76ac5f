# SPDX-License-Identifier: Apache-2.0
"""Whether a value fits a schema, quickly: yes or no, without a word why not.

Nearly every document is fine, and for those importing and running jsonschema (30 ms and 2 MiB, then 2 ms for each
chain) finds nothing. So a schema is compiled into nested functions once, and what they accept is accepted; everything
else goes to jsonschema, which has the last word and says what is wrong. Only the keywords that our schemas use are
known here, and an unknown one is an error: a schema cannot come to mean less than it says. A test compares both on
every rule and on generated documents.

Invariant: what is accepted here is accepted by jsonschema with the strict rules of `_schema`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Schema: TypeAlias = dict[str, Any]
Test: TypeAlias = "Callable[[Any], bool]"

ANNOTATIONS: Final = frozenset({"$defs", "$schema", "default", "description", "examples", "title", "x-expected"})
"""Keywords that decide nothing."""

_TOGETHER: Final = frozenset({"additionalProperties", "properties", "then"})
"""Keywords that are looked at together with another one."""

_TYPES: Final[dict[str, Test]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


class Acceptor:
    """The compiled form of one schema; `accepts` is its only use."""

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self._named: dict[str, Test] = {}
        self.accepts: Test = self._compile(schema)

    def _compile(self, schema: Schema | bool) -> Test:  # noqa: FBT001 - a schema that takes all, or nothing
        if isinstance(schema, bool):
            return lambda _: schema
        tests = tuple(self._tests(schema))
        if len(tests) == 1:
            return tests[0]

        def every(value: object) -> bool:
            # Not all(…): a generator for each value of a document takes longer than the tests.
            for test in tests:  # noqa: SIM110
                if not test(value):
                    return False
            return True

        return every

    def _tests(self, schema: Schema) -> Iterator[Test]:
        if "properties" in schema or "additionalProperties" in schema:
            yield self._fields(schema)
        for keyword, limit in schema.items():
            if keyword in ANNOTATIONS or keyword in _TOGETHER:
                continue
            if keyword in _SIMPLE:
                yield _SIMPLE[keyword](limit)
                continue
            match keyword:
                case "$ref":
                    yield self._reference(limit)
                case "allOf":
                    yield from [self._compile(each) for each in limit]
                case "if":
                    yield self._condition(limit, schema["then"])
                case "items":
                    yield _items(self._compile(limit))
                case "propertyNames":
                    yield _keys(self._compile(limit))
                case _:
                    raise NotImplementedError(f"the keyword {keyword!r} of a schema")

    def _fields(self, schema: Schema) -> Test:
        known = {name: self._compile(each) for name, each in schema.get("properties", {}).items()}
        other = self._compile(schema.get("additionalProperties", True))

        def fields(value: object) -> bool:
            if isinstance(value, dict):
                for name, item in value.items():
                    if not known.get(name, other)(item):
                        return False
            return True

        return fields

    def _reference(self, reference: str) -> Test:
        # Looked up when used: a definition may refer to itself.
        name = reference.removeprefix("#/$defs/")
        definition = self._root["$defs"][name]

        def test(value: object) -> bool:
            if name not in self._named:
                self._named[name] = self._compile(definition)
            return self._named[name](value)

        return test

    def _condition(self, condition: Schema, consequence: Schema) -> Test:
        # A condition must be decided exactly, not only strictly: one that is wrongly false would skip a rule.
        constants = [each.get("const") for each in condition.get("properties", {}).values()]
        if set(condition) != {"required", "properties"} or not all(isinstance(each, str) for each in constants):
            raise NotImplementedError(f"the condition {condition!r} of a schema")
        holds, then = self._compile(condition), self._compile(consequence)
        return lambda value: not holds(value) or then(value)


def _same(value: object, item: object) -> bool:
    # In Python True == 1, in JSON not.
    return type(value) is type(item) and value == item


def _type(limit: str | list[str]) -> Test:
    tests = [_TYPES[name] for name in ([limit] if isinstance(limit, str) else limit)]
    return tests[0] if len(tests) == 1 else lambda value: any(test(value) for test in tests)


def _pattern(pattern: str) -> Test:
    matches = re.compile(pattern.removeprefix("^").removesuffix("$")).fullmatch
    return lambda value: not isinstance(value, str) or matches(value) is not None


def _size(kind: type[str | list[Any] | Schema], low: int, high: float) -> Test:
    return lambda value: not isinstance(value, kind) or low <= len(value) <= high


def _number(low: float, high: float) -> Test:
    return lambda value: not _TYPES["number"](value) or low <= value <= high


def _unique(_limit: bool) -> Test:  # noqa: FBT001 - the keyword's value, which is never false in our schemas
    return lambda value: (
        not isinstance(value, list) or len({json.dumps(item, sort_keys=True) for item in value}) == len(value)
    )


_SIMPLE: Final[dict[str, Callable[[Any], Test]]] = {
    "type": _type,
    "enum": lambda limit: lambda value: any(_same(value, item) for item in limit),
    "const": lambda limit: lambda value: _same(value, limit),
    "pattern": _pattern,
    "minLength": lambda limit: _size(str, limit, float("inf")),
    "maxLength": lambda limit: _size(str, 0, limit),
    "minItems": lambda limit: _size(list, limit, float("inf")),
    "maxItems": lambda limit: _size(list, 0, limit),
    "maxProperties": lambda limit: _size(dict, 0, limit),
    "minimum": lambda limit: _number(limit, float("inf")),
    "maximum": lambda limit: _number(float("-inf"), limit),
    "uniqueItems": _unique,
    "required": lambda limit: lambda value: not isinstance(value, dict) or all(name in value for name in limit),
}
"""Keywords that need only their own value."""


def _items(test: Test) -> Test:
    return lambda value: not isinstance(value, list) or all(test(item) for item in value)


def _keys(test: Test) -> Test:
    return lambda value: not isinstance(value, dict) or all(test(key) for key in value)
