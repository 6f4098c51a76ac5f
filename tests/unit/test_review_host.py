# SPDX-License-Identifier: Apache-2.0
"""Whether what runs is what was reviewed, and what differs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reconciler.review import Cohort, Review, Running, differences

POLICY = "5" * 64
STATE = "a" * 64
EDGE = Cohort(
    name="edge", count=3, names=(), digest=STATE, before=None, policy="5" * 12, labels={"role": "edge"}, chains=2
)
REVIEW = Review(base="b" * 40, head="c" * 40, kind="commits", now="2026-06-01", cohorts=(EDGE,), on_paper=True)
HOST = Running(name="edge-1", labels={"role": "edge"}, commit="c" * 40, state=STATE, policy=POLICY, chains=2)


def test_the_state_that_was_reviewed_is_recognised() -> None:
    assert differences(REVIEW, HOST) == (True, ("runs state aaaaaaaaaaaa, as reviewed for edge",))


@pytest.mark.parametrize(
    ("host", "review", "sentence"),
    [
        ({"commit": "d" * 40}, {}, "the review is of commit cccccccccccc, here dddddddddddd is applied"),
        ({"commit": ""}, {}, "the review is of commit cccccccccccc, here none is applied"),
        ({"labels": {"role": "db"}}, {}, "no group of the review describes edge-1 with the labels role=db"),
        ({"labels": {}}, {}, "no group of the review describes edge-1 with the labels none"),
        ({"chains": 3}, {}, "for edge state aaaaaaaaaaaa was reviewed, with 2 chains; here are 3"),
        (
            {"labels": {"role": "edge", "site": "fra"}},
            {},
            "this host has labels that edge does not have, and chains may select by them: site=fra",
        ),
        ({}, {"cohorts": (replace(EDGE, digest=None),)}, "the review could not tell the state of edge"),
        (
            {"policy": "6" * 64},
            {},
            "edge was reviewed for policy 555555555555, here is 666666666666",
        ),
    ],
)
def test_what_differs_is_said(host: dict[str, Any], review: dict[str, Any], sentence: str) -> None:
    same, sentences = differences(replace(REVIEW, **review), replace(HOST, state="e" * 64, **host))
    assert not same
    assert sentences[0] == "runs state eeeeeeeeeeee, which was not reviewed"
    assert sentence in sentences


def test_a_cohort_with_names_describes_these_hosts_only() -> None:
    named = replace(EDGE, names=("edge-2",), count=1)
    _, sentences = differences(replace(REVIEW, cohorts=(named,)), replace(HOST, state="e" * 64))
    assert "no group of the review describes edge-1 with the labels role=edge" in sentences
