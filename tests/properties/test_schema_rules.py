# SPDX-License-Identifier: Apache-2.0
"""Every rule of every schema, broken one at a time: the quick answer and jsonschema's are the same, and both say no.

Documents are made from the schemas themselves, with every field in them, so a new field is tried as soon as it is
declared. A rule that no broken document is refused for would be one that somebody forgot to look at.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st

from reconciler._documents import schema_of
from reconciler._documents._accept import ANNOTATIONS
from reconciler._documents._schema import _acceptor, _validator
from reconciler.manifest import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Schema = dict[str, Any]
MAX_DEPTH = 12
"""Of values that may hold themselves."""
SAMPLES: list[Any] = [None, True, False, 0, 1, -1, 1.0, 1.5, float("nan"), 2**70, "x", "", [], [None], {}, {"a": 1}]
STRUCTURE = {"$ref", "allOf", "if", "then", "items", "properties", "propertyNames", "additionalProperties"}
"""Keywords that hold other schemas; `additionalProperties: false` is a rule of its own."""
TEXT = {"pattern", "minLength", "maxLength"}
"""Rules about text alone, where a value may be something else too."""
quick = settings(
    database=None,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],
    max_examples=200,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Maker:
    """Makes a document with all fields; `turn` decides between alternatives."""

    root: Schema
    turn: int
    made: dict[str, str] = field(default_factory=dict)

    def resolve(self, schema: Schema) -> tuple[Schema, str]:
        """A schema without reference, and the definition's name if it was one."""
        name = schema.get("$ref", "").removeprefix("#/$defs/")
        return ({**self.root["$defs"][name], **schema} if name else schema), name

    def value(self, schema: Schema, depth: int = 0) -> Any:
        schema, _ = self.resolve(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][self.turn % len(schema["enum"])]
        types = schema.get("type", "object")
        kind = types if isinstance(types, str) else types[self.turn % len(types)]
        if depth > MAX_DEPTH and not isinstance(types, str):
            kind = "integer" if "integer" in types else "string"
        match kind:
            case "object":
                return self.fields(schema, depth)
            case "array":
                return [self.value(schema["items"], depth + 1)] if "items" in schema else [1]
            case "string":
                return self.text(schema)
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "boolean":
                return True
            case _:
                return None

    def fields(self, schema: Schema, depth: int) -> dict[str, Any]:
        made = {name: self.value(each, depth + 1) for name, each in schema.get("properties", {}).items()}
        branches = schema.get("allOf", [])
        if branches:
            branch = branches[self.turn % len(branches)]
            then, _ = self.resolve(branch["then"])
            kind = {name: each["const"] for name, each in branch["if"]["properties"].items()}
            made = {**self.fields({**then, "allOf": []}, depth), **kind}
        other = schema.get("additionalProperties")
        if isinstance(other, dict):
            made[self.text(schema.get("propertyNames", {}))] = self.value(other, depth + 1)
        return made

    def text(self, schema: Schema) -> str:
        schema, _ = self.resolve(schema)
        low, high = schema.get("minLength", 0), schema.get("maxLength", 1 << 20)
        pattern: str | None = schema.get("pattern")
        if pattern is None:
            return "a" * max(1, int(low))
        if pattern not in self.made:
            texts: st.SearchStrategy[str] = st.from_regex(pattern, fullmatch=True)
            self.made[pattern] = find(
                texts, lambda text: low <= len(text) <= high and not text.endswith("\n"), settings=quick
            )
        return self.made[pattern]


@dataclass(frozen=True)
class Rule:
    """One keyword of a schema, and a place in the document that it is about; `key`: a key there and not the value."""

    where: str
    keyword: str
    limit: Any
    path: tuple[Any, ...]
    key: bool = False


def keywords(schema: Schema) -> Iterator[tuple[str, Any]]:
    """What a schema asks of a value itself."""
    for keyword, limit in schema.items():
        if keyword not in ANNOTATIONS and (keyword not in STRUCTURE or limit is False) and limit != []:
            yield keyword, limit


def written(maker: Maker, schema: Schema, where: str, done: set[str]) -> Iterator[tuple[str, str]]:
    """Every rule that stands in a schema."""
    schema, name = maker.resolve(schema)
    if name in done:
        return
    where = f"#{name}" if name else where
    done |= {name} - {""}
    yield from ((where, keyword) for keyword, _ in keywords(schema))
    below = [(f"{where}/{key}", each) for key, each in schema.get("properties", {}).items()]
    below += [(f"{where}/items", schema["items"])] if "items" in schema else []
    below += [(f"{where}/then", branch["then"]) for branch in schema.get("allOf", [])]
    if isinstance(schema.get("additionalProperties"), dict):
        below.append((f"{where}/*", schema["additionalProperties"]))
    for place, each in below:
        yield from written(maker, each, place, done)
    if "propertyNames" in schema:
        names, _ = maker.resolve(schema["propertyNames"])
        yield from ((f"{where}/propertyNames", keyword) for keyword, _ in keywords(names) if keyword != "type")


def rules(maker: Maker, schema: Schema, value: Any, where: str, path: tuple[Any, ...] = ()) -> Iterator[Rule]:
    """Every rule that a document is held to."""
    schema, name = maker.resolve(schema)
    where = f"#{name}" if name else where
    yield from (Rule(where, keyword, limit, path) for keyword, limit in keywords(schema))
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from rules(maker, schema["items"], item, f"{where}/items", (*path, index))
    if isinstance(value, dict):
        yield from _rules_of_fields(maker, schema, value, where, path)


def _rules_of_fields(
    maker: Maker, schema: Schema, value: dict[str, Any], where: str, path: tuple[Any, ...]
) -> Iterator[Rule]:
    known, other = schema.get("properties", {}), schema.get("additionalProperties")
    for name, item in value.items():
        if name in known:
            yield from rules(maker, known[name], item, f"{where}/{name}", (*path, name))
        elif isinstance(other, dict):
            yield from rules(maker, other, item, f"{where}/*", (*path, name))
    if "propertyNames" in schema:
        names, _ = maker.resolve(schema["propertyNames"])
        for keyword, limit in keywords(names):
            yield Rule(f"{where}/propertyNames", keyword, limit, path, key=True)
    for branch in schema.get("allOf", []):
        if all(value.get(key) == each["const"] for key, each in branch["if"]["properties"].items()):
            yield from rules(maker, branch["then"], value, f"{where}/then", path)


AROUND = ("{}\n", "\n{}", "{} ", " {}", "{}\0", "{}\u0661", "\uff41{}", "{}/", "{}é", "{}\r", "{}\x85", "{0}\n{0}")


def _not_one_of(options: list[Any], _value: Any) -> list[Any]:
    text = [change for each in map(str, options) for change in (f"{each}\n", f" {each}", each.upper(), each[:-1])]
    return [*text, *([each] for each in options), *SAMPLES]


BREAK: dict[str, Callable[[Any, Any], list[Any]]] = {
    "type": lambda _, value: [*SAMPLES, [value], {"a": value}],
    "enum": _not_one_of,
    "const": lambda limit, value: _not_one_of([limit], value),
    "pattern": lambda _, value: [
        *(around.format(value) for around in AROUND),
        *("", "\n", "\u0661", "*", "a b", "A" * 5000),
    ],
    "minLength": lambda limit, _: ["a" * (limit - 1)],
    "maxLength": lambda limit, value: [value + value[-1] * (limit + 1 - len(value)), "é" * (limit + 1)],
    "minItems": lambda limit, value: [value[: limit - 1]],
    "maxItems": lambda limit, value: [[*value, *([value[0]] * (limit + 1 - len(value)))]],
    "uniqueItems": lambda _, value: [[value[0], copy.deepcopy(value[0])]],
    "minimum": lambda limit, _: [limit - 1, limit - 0.5, -(2**63), float("-inf"), float("nan")],
    "maximum": lambda limit, _: [limit + 1, limit + 0.5, 2**64, float("inf"), float("nan")],
    "maxProperties": lambda limit, value: [{**value, **{f"k{number}": 1 for number in range(limit + 1)}}],
    "required": lambda limit, value: [{key: value[key] for key in value if key != name} for name in limit],
    "additionalProperties": lambda _, value: [
        {**value, name: next(iter(value.values()), 1)}
        for name in ("zz", "", "Name", "name ", "$ref")
        if name not in value
    ],
}
"""Values that break a rule, most of them only just; from the rule's value and a good one."""


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a document with another value somewhere."""
    if not path:
        return value
    made = copy.copy(document)
    made[path[0]] = put(document[path[0]], path[1:], value)
    return made


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        document = document[part]
    return document


def variants(rule: Rule, document: Any) -> Iterator[Any]:
    value = at(document, rule.path)
    if not rule.key:
        yield from (put(document, rule.path, each) for each in BREAK[rule.keyword](rule.limit, value))
        return
    name = [*value][-1]
    for each in BREAK[rule.keyword](rule.limit, name):
        if isinstance(each, str):
            yield put(document, rule.path, {**value, each: value[name]})


def documents(kind: str) -> Iterator[tuple[Maker, Any]]:
    made: dict[str, str] = {}
    for turn in range(8):
        maker = Maker(schema_of(kind), turn, made)
        yield maker, maker.value(maker.root)


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_is_held_to_by_both(kind: str) -> None:
    accepts, valid = _acceptor(kind).accepts, _validator(kind).is_valid
    refused: set[tuple[str, str]] = set()
    for maker, document in documents(kind):
        assert accepts(document), next(_validator(kind).iter_errors(document), None)
        assert valid(document)
        for rule in rules(maker, maker.root, document, ""):
            text = rule.key or isinstance(at(document, rule.path), str)
            if (rule.where, rule.keyword) in refused or (rule.keyword in TEXT and not text):
                continue
            for changed in variants(rule, document):
                # What is only refused here goes to jsonschema, which has the last word.
                assert not accepts(changed) or valid(changed), (rule, json.dumps(changed)[:2000])
                if not valid(changed):
                    refused.add((rule.where, rule.keyword))
    maker, _ = next(documents(kind))
    assert {*written(maker, maker.root, "", set())} - refused == set()
