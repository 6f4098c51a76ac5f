# SPDX-License-Identifier: Apache-2.0
"""Matching agrees with fnmatch, and intersection with trying every short text."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler._documents import GlobError, _glob, parse_glob

ITEMS = st.sampled_from(["a", "b", "c", "*", "?", "[ab]", "[!a]", "[a-b]", "[!b-c]"])
GLOBS = st.lists(ITEMS, max_size=5).map("".join)
# Every text of up to five characters over the letters of the globs and one more.
TEXTS = ["".join(letters) for size in range(6) for letters in product("abcd", repeat=size)]


@given(GLOBS, st.text("abcd", max_size=8))
def test_matching_agrees_with_fnmatch(glob: str, text: str) -> None:
    assert parse_glob(glob).matches(text) == fnmatchcase(text, glob)


@given(GLOBS, GLOBS)
def test_globs_meet_exactly_if_a_text_matches_both(one: str, other: str) -> None:
    a, b = parse_glob(one), parse_glob(other)
    expected = any(a.matches(text) and b.matches(text) for text in TEXTS)
    assert a.intersects(b, longest=5) == expected
    assert b.intersects(a, longest=5) == expected


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_a_glob_or_an_error_and_matching_ends(glob: str, text: str) -> None:
    try:
        parsed = parse_glob(glob)
    except GlobError:
        return
    # No assertion about the answer: the first property says it. Two answers must agree.
    assert parsed.matches(text) == parse_glob(glob).matches(text)
    assert parsed.intersects(parsed, longest=60) == (parsed.shortest <= 60)


@given(GLOBS, st.lists(GLOBS, max_size=3))
def test_what_covers_a_glob_matches_all_that_it_matches(one: str, others: list[str]) -> None:
    a, rest = parse_glob(one), [parse_glob(other) for other in others]
    if a.covered_by(rest):
        assert all(any(other.matches(text) for other in rest) for text in TEXTS if a.matches(text))


@pytest.mark.parametrize(
    ("one", "others", "covered"),
    [
        ("eth*", ["e*"], True),
        ("eth[01]", ["eth?"], True),
        ("eth?", ["eth[a-z]", "eth[!a-z]"], True),
        ("*", ["a*", "[!a]*"], False),  # the empty text
        ("?*", ["a*", "[!a]*"], True),
        ("eth*", ["eth[0-9]"], False),
        ("eth*", [], False),
        ("eth0", ["eth*"], True),
    ],
)
def test_covering(one: str, others: list[str], covered: bool) -> None:
    assert parse_glob(one).covered_by(parse_glob(other) for other in others) is covered


def test_covering_that_takes_too_long_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = parse_glob("*b*"), parse_glob("*a?b*")
    assert narrow.covered_by([wide])
    monkeypatch.setattr(_glob, "_MAX_WALK", 2)
    assert not narrow.covered_by([wide])
