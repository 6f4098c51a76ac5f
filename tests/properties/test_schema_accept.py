# SPDX-License-Identifier: Apache-2.0
"""The quick answer to "does this document fit its schema?" is the one that jsonschema gives."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler._documents import read_documents, schema_of
from reconciler._documents._accept import Acceptor
from reconciler._documents._schema import _acceptor, _validator

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted(ROOT.glob("examples/policy/**/*.yaml")),
    *sorted(ROOT.glob("examples/host/*.yaml")),
    *sorted(ROOT.glob("policies/**/*.yaml")),
    *sorted(ROOT.glob("bpf/*/package.yaml")),
]
REPLACEMENTS: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.0, 1.5, 2**63, 1e300, float("nan"), float("inf")),
    *("", "x", "xdp", "tc", "a\n", "a" * 5000, "sha256:" + "0" * 64, "1.0.0", "10.0.0.0/8", "eth*", "1h", "é"),
    *([], {}, [1, 1], [1, 1.0], [True, 1], ["a", "a"], [{"a": 1}, {"a": 1}], {"name": "x"}, {"type": "xdp"}),
]


def _documents() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for path in FILES:
        documents, findings = read_documents(path.read_bytes(), file=path.name)
        assert not findings
        values: list[Any] = [document.value for document in documents]
        found += [(value["kind"], value) for value in values]
    return found


DOCUMENTS = _documents()


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, item in below for found in _places(item, (*place, key)))]


def _change(document: Any, draw: st.DrawFn) -> Any:
    """One thing is replaced, removed, doubled or added somewhere."""
    *parents, last = draw(st.sampled_from(_places(document)[1:]))
    around = document
    for key in parents:
        around = around[key]
    match draw(st.sampled_from(["replace", "remove", "double", "add"])):
        case "replace":
            around[last] = copy.deepcopy(draw(st.sampled_from(REPLACEMENTS)))
        case "remove":
            del around[last]
        case "double" if isinstance(around, list) and len(around) < 20:
            around *= draw(st.sampled_from([2, 40]))
        case _:
            target = around[last] if isinstance(around[last], dict) else document
            name = draw(st.sampled_from(["zz", "", "name", "type", "mode", "*", "a b"]))
            target[name] = copy.deepcopy(draw(st.sampled_from(REPLACEMENTS)))
    return document


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, Any]:
    kind, original = draw(st.sampled_from(DOCUMENTS))
    document = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        if not isinstance(document, dict) or len(_places(document)) < 2:
            break
        document = _change(document, draw)
    return draw(st.sampled_from([kind] * 9 + ["Chain"])), document


def test_every_kind_is_among_the_documents() -> None:
    assert {kind for kind, _ in DOCUMENTS} == {"Chain", "Repository", "Package", "Config", "Tolerations"}


@pytest.mark.parametrize(("kind", "document"), DOCUMENTS)
def test_what_is_right_needs_no_second_look(kind: str, document: Any) -> None:
    assert _acceptor(kind).accepts(document)


@settings(max_examples=300)
@given(changed())
def test_both_say_the_same_about_a_document_that_was_changed(case: tuple[str, Any]) -> None:
    kind, document = case
    assert _acceptor(kind).accepts(document) == (next(_validator(kind).iter_errors(document), None) is None)


@pytest.mark.parametrize("value", REPLACEMENTS)
def test_both_say_the_same_about_what_is_no_document(value: Any) -> None:
    assert not _acceptor("Chain").accepts(value)
    assert next(_validator("Chain").iter_errors(value), None) is not None


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "string"}]},
        {"type": "object", "patternProperties": {}},
        {"if": {"required": ["a"]}, "then": {}},
        {"if": {"required": ["a"], "properties": {"a": {"const": 1}}}, "then": {}},
    ],
)
def test_a_rule_that_is_not_known_here_is_no_rule_that_is_passed_over(schema: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError):
        Acceptor(schema)


def test_each_definition_compiles() -> None:
    for kind in ("Chain", "Repository", "Package", "Config", "Tolerations"):
        schema = schema_of(kind)
        for definition in schema["$defs"].values():
            Acceptor({**definition, "$defs": schema["$defs"]})
