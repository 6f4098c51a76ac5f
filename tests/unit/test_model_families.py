# SPDX-License-Identifier: Apache-2.0
"""What a new kind of hook or type of program must not be forgotten in, where mypy cannot see it."""

from __future__ import annotations

import pytest

from reconciler._documents import schema_of
from reconciler.manifest import _chains
from reconciler.model import FAMILIES, HookKind, OnBroken, ProgramFamily, TcHook, XdpHook, family_of


def test_every_kind_of_hook_has_one_family_and_every_family_a_hook() -> None:
    kinds = [kind for family in FAMILIES.values() for kind in family.kinds]
    assert sorted(kinds) == sorted(HookKind)
    assert all(family.kinds for family in FAMILIES.values())


def test_the_schemas_know_the_families() -> None:
    hooks = schema_of("Chain")["$defs"]["hook"]
    programs = schema_of("Package")["properties"]["spec"]["properties"]["programs"]["items"]
    assert hooks["properties"]["type"]["enum"] == list(_chains.HOOKS) == list(FAMILIES)
    assert len(hooks["allOf"]) == len(FAMILIES)
    assert programs["properties"]["type"]["enum"] == list(FAMILIES)
    assert programs["properties"]["hooks"]["maxItems"] == len(HookKind)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_names_of_verdicts(family: ProgramFamily) -> None:
    assert set(family.broken) == set(OnBroken)
    assert set(family.broken.values()) <= set(family.verdicts.values())
    for spelling, number in family.spellings.items():
        name = family.verdict(spelling)
        assert name is not None
        assert family.verdicts[name] == number
    assert family.verdict("no such verdict") is None


def test_drop_and_pass_work_on_every_hook() -> None:
    for kind in HookKind:
        assert {"drop", "pass"} <= set(family_of(kind).spellings)


def test_hooks_of_one_kind_share_the_same_fields() -> None:
    assert list(XdpHook(interfaces=("a",)).shared) == ["mode"]
    directions = [TcHook(direction=way, interfaces=("a",)).shared for way in ("ingress", "egress")]
    assert directions == [{"end": "next"}, {"end": "next"}]
