# SPDX-License-Identifier: Apache-2.0
"""A review out of a JSON document that somebody else may have made up."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler import review
from reconciler.errors import InputError
from reconciler.model import Acknowledgement
from reconciler.review import Cohort, Finding, HookChange, Line, Review
from reconciler.review._values import ChainChange
from tests.command import reconciler

if TYPE_CHECKING:
    from pathlib import Path

NASTY = "x`</details>\n# @everyone ![](http://evil) <script> [a](b) \x1b[31m \u202e click a href"
GOOD = Review(
    base="a" * 40,
    head="b" * 40,
    kind="merge",
    now="2026-01-02",
    findings=(
        Finding(id="RV001", message="m", chain="c", member="m", file="f", line=1, column=2, hosts=("h",)),
        Finding(id="RV002", message="n", acknowledged=Acknowledgement(finding="RV002", why="w", until="2026-12-31")),
    ),
    chains=(
        ChainChange(
            name="c",
            change="changed",
            file="f",
            hook="xdp on eth0",
            before=("a",),
            after=("b",),
            lines=(Line(what="w"),),
        ),
    ),
    cohorts=(
        Cohort(
            name="g",
            count=3,
            names=("h",),
            digest="d" * 64,
            before=None,
            secure_mode="audit",
            tolerations=("cilium",),
            hooks=(HookChange(hook="eth0 xdp", before=(), after=("c/b",), changes=(("add", "c/b"),)),),
        ),
    ),
    on_paper=True,
)


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(review.to_json(GOOD))
    return loaded


def load(value: object) -> Review:
    return review.from_json(json.dumps(value).encode(), file="review.json")


def test_what_was_written_is_read_again() -> None:
    assert load(document()) == GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected a review in format 1, got 2"),
        ({"kind": "evil"}, "Invalid enum value"),
        ({"base": 7}, "Expected `str`"),
        ({"findings": [{"id": "RV999", "message": "m"}]}, "expected ids of findings, got 'RV999'"),
        ({"findings": [{"id": "RV001"}]}, "missing required field `message`"),
        ({"hosts": [{"name": "g", "hooks": [{}]}]}, "'changes'"),
        ({"hosts": [7]}, "Expected `object`"),
        ({"chains": [{"name": "c", "change": "exploded", "file": "f", "hook": "h"}]}, "Invalid enum value"),
    ],
)
def test_what_is_no_review_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(document() | change)
    assert message in str(caught.value)
    assert str(caught.value).startswith("review.json: ")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"version": 1}', b"null"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        review.from_json(data, file="f")


def _poisoned(value: Any) -> Any:
    """Every text of a document that is free text, made hostile."""
    fixed = {"id", "kind", "change", "verdict", "severity", "family", "version"}
    match value:
        case dict():
            return {key: item if key in fixed else _poisoned(item) for key, item in value.items()}
        case list():
            return [_poisoned(item) for item in value]
        case str():
            return NASTY
        case _:
            return value


def test_hostile_texts_stay_text() -> None:
    made = load(_poisoned(document()))
    comment = review.render_markdown(made)
    bare = re.sub(r"`[^`\n]*`", "", re.sub(r"```mermaid\n.*?```", "", comment, flags=re.DOTALL))
    allowed = re.sub(r"</?(details|summary|code)>|<!-- reconciler-review -->", "", bare)
    assert not re.search(r"[<>@\[\]\x1b\u202e]|://|www[.]", allowed), allowed
    assert bare.count("<details>") == bare.count("</details>") > 0
    for picture in re.findall(r"```mermaid\n(.*?)```", comment, flags=re.DOTALL):
        assert not re.search(r"[<>@`\x1b]|://|\bclick a\b.*href=", picture)
        assert "\n# " not in picture
    assert "\x1b" not in "".join(line for line, _ in review.render_text(made))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5), st.data())
def test_any_value_in_any_place_is_read_or_refused(value: object, data: st.DataObject) -> None:
    made = document()
    key = data.draw(st.sampled_from(sorted(made)))
    if isinstance(made[key], list) and made[key] and data.draw(st.booleans()):
        inner = data.draw(st.sampled_from(made[key]))
        inner[data.draw(st.sampled_from(sorted(inner)))] = value
    else:
        made[key] = value
    try:
        read = load(made)
    except InputError:
        return
    assert len(review.render_markdown(read)) <= review.MAX_MARKDOWN
    review.render_text(read)
    review.render_sarif(read, version="1")


def test_the_command_shows_a_document_again(tmp_path: Path) -> None:
    file = tmp_path / "review.json"
    file.write_text(review.to_json(GOOD))
    shown = reconciler("review", "--from", file, "-o", "markdown")
    assert (shown.code, shown.out) == (0, review.render_markdown(GOOD))
    assert reconciler("review", "--from", file, "--fail-on", "high").code == 2
    assert reconciler("review", "--from", file, "HEAD~1", "HEAD").code == 64
    file.write_text("{}")
    assert reconciler("review", "--from", file).code == 1
