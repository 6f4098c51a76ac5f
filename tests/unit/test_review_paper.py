# SPDX-License-Identifier: Apache-2.0
"""A group that a change touches says what of it differs, whatever that is."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from reconciler.model import HostGroup, PaperPolicy, PaperSigner
from reconciler.review._paper import MAX_ENTRY, MAX_VALUE, SHOWN, group_differences

KEY = "SHA256:" + "A" * 43
CI = PaperSigner(name="ci", packages=("*",), identity="https://ci/main", issuer="https://tokens")
RELEASE = PaperSigner(name="release", packages=("*",), key=KEY)
GROUP = HostGroup(
    name="edge",
    labels={"role": "edge", "site": "fra"},
    count=40,
    interfaces={"host": ("eth0", "eth1"), "blue": ("eth0",)},
    features={"tcx": True},
    secure_mode="enforce",
    policy=PaperPolicy(id="a" * 12, signers=(CI, RELEASE), tolerations=("cilium",)),
    guardrail_share=0.5,
)
DIFFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"labels": {"role": "db", "rack": "7"}}, "labels + rack=7, role edge → db, - site=fra"),
    "count": ({"count": 20}, "count 40 → 20"),
    "names": ({"names": ("edge-1", "edge-2"), "count": 2}, "count 40 → 2; names + edge-1, + edge-2"),
    "interfaces": (
        {"interfaces": {"host": ("eth0", "eth2")}},
        "interfaces + eth2, - blue/eth0, - eth1",
    ),
    "features": ({"features": {"tcx": False, "btf": True}}, "features + btf=true, tcx true → false"),
    "secure_mode": ({"secure_mode": "audit"}, "secureMode enforce → audit"),
    "secure_mode gone": ({"secure_mode": None}, "secureMode enforce → not said"),
    "guardrail_count": ({"guardrail_count": 3}, "guardrail.count not said → 3"),
    "guardrail_share": ({"guardrail_share": 1.0}, "guardrail.share 50% → 100%"),
    "guardrail_share nearby": ({"guardrail_share": 0.504}, "guardrail.share 50% → 50.4%"),
}
POLICIES: dict[str, tuple[dict[str, Any], str]] = {
    "id": ({"id": "b" * 12}, f"policy.id {'a' * 12} → {'b' * 12}"),
    "signers": ({"signers": (RELEASE,)}, "policy.signers - ci (https://ci/main of https://tokens)"),
    "no signers": (
        {"signers": None},
        f"policy.signers said → not said; policy.signers - ci (https://ci/main of https://tokens), - release ({KEY})",
    ),
    "signers with one name": (
        {"signers": (CI, CI, RELEASE)},
        "policy.signers + ci (2) (https://ci/main of https://tokens)",
    ),
    "tolerations": ({"tolerations": ("libxdp",)}, "policy.tolerations + libxdp, - cilium"),
    "tolerations gone": (
        {"tolerations": None},
        "policy.tolerations said → not said; policy.tolerations - cilium",
    ),
    "no tolerations": ({"tolerations": ()}, "policy.tolerations - cilium"),
}
SIGNERS: dict[str, tuple[dict[str, Any], str]] = {
    "packages": ({"packages": ("a", "b")}, "packages * → a, b"),
    "key": (
        {"identity": None, "issuer": None, "key": KEY},
        f"signed by https://ci/main of https://tokens → {KEY}",
    ),
    "identity": ({"identity": "x"}, "signed by https://ci/main of https://tokens → x of https://tokens"),
    "issuer": ({"issuer": "y"}, "signed by https://ci/main of https://tokens → https://ci/main of y"),
    "root": ({"root": "hosts/root.json"}, "root not said → hosts/root.json"),
    "public_key": ({"public_key": "PEM"}, "publicKey not said → said"),
}


def said(after: HostGroup) -> str:
    return group_differences(GROUP, after)


@pytest.mark.parametrize(("change", "words"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_field_that_differs_is_named(change: dict[str, Any], words: str) -> None:
    assert said(replace(GROUP, **change)) == words


@pytest.mark.parametrize(("change", "words"), POLICIES.values(), ids=POLICIES)
def test_a_field_of_the_policy_that_differs_is_named(change: dict[str, Any], words: str) -> None:
    assert said(replace(GROUP, policy=replace(GROUP.policy, **change))) == words


@pytest.mark.parametrize(("change", "words"), SIGNERS.values(), ids=SIGNERS)
def test_what_differs_of_a_signer_is_named(change: dict[str, Any], words: str) -> None:
    policy = replace(GROUP.policy, signers=(replace(CI, **change), RELEASE))
    assert said(replace(GROUP, policy=policy)) == f"policy.signers ci: {words}"


def test_a_key_that_is_written_otherwise_is_a_difference() -> None:
    one, other = (
        replace(GROUP, policy=PaperPolicy(signers=(replace(RELEASE, public_key=text),))) for text in ("one", "two")
    )
    assert group_differences(one, other) == "policy.signers release: publicKey is written otherwise"
    nobody = replace(GROUP, policy=PaperPolicy(signers=(replace(RELEASE, key=None, public_key="damaged"),)))
    assert "→ a key that cannot be read" in group_differences(one, nobody)


def test_no_field_is_forgotten() -> None:
    """`name` is by which groups are compared, `file` where one stands, and nobody writes occupants down."""
    assert {field.name for field in fields(HostGroup)} - {"name", "file", "occupants", "policy"} <= DIFFERENCES.keys()
    assert {field.name for field in fields(PaperPolicy)} <= POLICIES.keys()
    assert {field.name for field in fields(PaperSigner)} - {"name"} <= SIGNERS.keys()


def test_nothing_differs() -> None:
    assert said(GROUP) == ""


def test_a_count_is_not_told_beside_names() -> None:
    one, other = (replace(GROUP, names=names, count=len(names)) for names in (("a",), ("a", "b")))
    assert group_differences(one, other) == "names + b"


def test_values_that_differ_behind_what_is_shown_are_told_all_the_same() -> None:
    policies = (PaperPolicy(signers=(replace(CI, identity="i" * 200 + end),)) for end in "ab")
    one, other = (replace(GROUP, policy=policy) for policy in policies)
    shown = "i" * (MAX_VALUE - 1)
    expected = f"policy.signers ci: signed by {shown}… → another that starts likewise"
    assert group_differences(one, other) == expected


def test_differences_are_bounded_whatever_the_change_brings() -> None:
    names = tuple(f"edge-{number:05}" for number in range(100_000))
    labels = {f"l{number}": "x" * 63 for number in range(64)}
    signers = tuple(replace(CI, name=f"s{number}", identity="i" * 1024) for number in range(256))
    policy = PaperPolicy(id="c" * 64, signers=signers, tolerations=tuple("abcdefgh"))
    words = said(replace(GROUP, names=names, labels=labels, policy=policy, secure_mode="off"))
    assert words.startswith("secureMode enforce → off; ")
    assert f"names {', '.join(f'+ {name}' for name in names[:SHOWN])} and {100_000 - SHOWN} more" in words
    assert len(words) < 11 * (SHOWN + 1) * MAX_ENTRY
