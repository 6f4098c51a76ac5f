# SPDX-License-Identifier: Apache-2.0
"""Every case of tests/cases/review: what the review says, nothing about no change, and all formats hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from reconciler import review
from reconciler._resources import resource
from reconciler.review import RULES, Family
from tests.cases.review_case import Case, make

FOLDER = Path(__file__).parent / "review"
FILES = sorted(FOLDER.glob("*.yaml"))
SHELL = {"RV006"}
"""Raised from what Git says; `conflict` stands for it here."""


SCHEMA = Draft202012Validator(json.loads(resource("schema", "review-v1.schema.json")))
SARIF = Draft7Validator(json.loads((FOLDER.parents[1] / "data" / "sarif" / "sarif-schema-2.1.0.json").read_bytes()))


def words(made: review.Review) -> str:
    """Everything that a review says, as one text."""
    lines = [line for line, _ in review.render_text(made)]
    return "\n".join(lines)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_review(path: Path) -> None:
    case = Case.read(path)
    made = case.make()
    said = words(made)
    assert sorted({finding.id for finding in made.open}) == sorted(case.data["expect"]), said
    silent = sorted({finding.id for finding in made.findings if finding.acknowledged is not None})
    assert silent == sorted(case.data.get("acknowledged", [])), said
    assert [part for part in case.data.get("says", []) if part not in said] == [], said
    assert [part for part in case.data.get("unsaid", []) if part in said] == [], said
    if "chains" in case.data:
        assert [f"{chain.change} {chain.name}" for chain in made.chains] == case.data["chains"]
    if "hooks" in case.data:
        found = [
            f"{cohort.name}: {hook.hook}: {', '.join(f'{kind} {who}' for kind, who in hook.changes)}"
            for cohort in made.cohorts
            for hook in cohort.hooks
        ]
        assert found == case.data["hooks"]
    assert not set(case.data.get("looks-like", [])) & {finding.id for finding in made.findings}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_documents_are_as_their_schemas_say(path: Path) -> None:
    made = Case.read(path).make()
    text = review.to_json(made)
    assert [error.message for error in SCHEMA.iter_errors(json.loads(text))] == []
    assert review.from_json(text.encode(), file="review.json") == made
    sarif = json.loads(review.to_json_text(review.render_sarif(made, version="1.0.0")))
    assert [error.message for error in SARIF.iter_errors(sarif)] == []
    assert len(sarif["runs"][0]["results"]) == len(made.findings)


def test_the_schema_of_reviews_is_one_and_refuses_what_is_none() -> None:
    schema = json.loads(resource("schema", "review-v1.schema.json"))
    Draft202012Validator.check_schema(schema)
    document = json.loads(review.to_json(Case.read(FILES[0]).make()))
    for key in document:
        assert not SCHEMA.is_valid({name: value for name, value in document.items() if name != key}), key
    assert not SCHEMA.is_valid(document | {"version": 2})
    assert not SCHEMA.is_valid(document | {"findings": [{"id": "RV001"}]})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_does_not_change_is_not_told(path: Path) -> None:
    """Of both sides of each case: compared with themselves nothing changes; only standing faults are told."""
    for side in Case.read(path).sides:
        made = make(side, side)
        assert made.chains == ()
        assert not any(cohort.changed or cohort.hooks for cohort in made.cohorts)
        standing = {"RV001", "RV002", "RV009", "RV043", "RV052", "RV055", "RV056"}
        assert {finding.id for finding in made.findings} <= standing, words(made)


def shuffled(value: Any) -> Any:
    """Equal JSON values with all keys in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_formatting_does_not_matter(path: Path) -> None:
    case = Case.read(path)
    base, head = case.sides
    try:
        written = {file: json.dumps(shuffled(json.loads(data))).encode() for file, data in head.tree.files.items()}
    except ValueError:
        return  # a case about a file that cannot be read
    head.tree = review.Tree(name=head.tree.name, files=written)
    again = case.make_of(base, head)
    assert [(each.id, each.message) for each in again.findings] == [
        (each.id, each.message) for each in case.make().findings
    ]
    assert again.chains == case.make().chains


def test_there_are_enough_cases() -> None:
    assert len(FILES) >= 60


def test_every_finding_has_a_case_and_every_weakening_a_look_alike() -> None:
    cases = [Case.read(path).data for path in FILES]
    raised = {each for case in cases for each in (*case["expect"], *case.get("acknowledged", []))}
    assert RULES.keys() - raised == set()
    alike = {each for case in cases for each in case.get("looks-like", [])}
    assert {rule.id for rule in RULES.values() if rule.family is Family.WEAKER} - alike == set()
