# SPDX-License-Identifier: Apache-2.0
"""Matching agrees with fnmatch, and intersection with trying every short text."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from reconciler._documents import GlobError, parse_glob

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
