# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tests.command import reconciler


def test_a_field_is_explained() -> None:
    ran = reconciler("explain", "hook.mode")
    assert ran.code == 0
    assert ran.out.startswith("Chain.spec.hook.mode\n  auto | native | generic;")


def test_without_a_field_the_kinds_are_listed() -> None:
    ran = reconciler("explain")
    assert ran.code == 0
    assert {"Repository", "Chain", "Package", "Config", "Tolerations"} <= set(ran.out.split())


def test_an_unknown_field_is_an_error_that_helps() -> None:
    ran = reconciler("explain", "chain.spec.prioritty")
    assert ran.code == 1
    assert "did you mean" in ran.err
    assert ran.out == ""


def test_json_comes_before_and_after_the_verb() -> None:
    assert (
        reconciler("-o", "json", "explain", "hook.mode").json == reconciler("explain", "hook.mode", "-o", "json").json
    )


def test_wrong_usage_is_64() -> None:
    assert reconciler("explain", "--nonsense").code == 64
    assert reconciler("nonsense").code == 64
    assert reconciler("package", "nonsense").code == 64


def test_fields_of_one_type_of_hook_say_so() -> None:
    lines = reconciler("explain", "chain.spec.hook").out.splitlines()
    assert [line.split()[:2] for line in lines if "[" in line] == [
        ["mode", "[xdp]"],
        ["direction*", "[tc]"],
        ["end", "[tc]"],
    ]


def test_a_finding_of_a_review_is_explained() -> None:
    ran = reconciler("explain", "RV019")
    assert ran.code == 0
    assert ran.out.startswith(
        "RV019 limit raised\n  severity high, weaker\n\nRaised when: a limit goes in the direction"
    )
    assert "Why it matters: more gets through." in ran.out
    unknown = reconciler("explain", "RV999")
    assert (unknown.code, "expected a finding of a review (RV001 to RV" in unknown.err) == (1, True)
