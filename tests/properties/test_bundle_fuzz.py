# SPDX-License-Identifier: Apache-2.0
"""Bundles that anybody may have written: verified by the one who signed, or refused; nothing else.

Every bundle that is accepted after an alteration must have kept what was verified: the signature, the artifact's digest
and the certificate. What may differ is what nobody decides by (a hint, an index, a key id).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler import trust
from reconciler.errors import TrustError
from tests.unit.test_trust_bundles import ARTIFACT, NOW, ROOTS, bundle, identity_rule, key_rule

if TYPE_CHECKING:
    from reconciler.model import Signer

EXAMPLES = settings(max_examples=250)

RULES = (key_rule(root="one", tlog="required"), identity_rule())
BUNDLES = {name: bundle(name) for name in ("key-p256-log", "alice")}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["0", "-1", "1", "AAAA", "=", "9" * 30, "\0", "SHA2_256", "hashedrekord", "0.0.1", "dsse"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
)


def verify(data: bytes, artifact: bytes = ARTIFACT) -> Signer | None:
    try:
        return trust.verify_package(artifact, data, package="demo", rules=RULES, roots=ROOTS, now=NOW)
    except TrustError:
        return None


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    match value:
        case dict():
            for key, item in value.items():
                found += places(item, (*path, key))
        case list():
            for index, item in enumerate(value):
                found += places(item, (*path, index))
        case _:
            pass
    return found


PLACES = {name: places(json.loads(data)) for name, data in BUNDLES.items()}


def decided(fields: dict[str, Any]) -> object:
    """What an acceptance rests on."""
    material = fields["verificationMaterial"]
    digest = fields["messageSignature"].get("messageDigest")
    return fields["messageSignature"]["signature"], digest or None, material.get("certificate")


@EXAMPLES
@given(
    data=st.one_of(
        st.binary(max_size=300), st.text(max_size=300).map(str.encode), values.map(json.dumps).map(str.encode)
    )
)
def test_junk_is_refused(data: bytes) -> None:
    assert verify(data) is None


@EXAMPLES
@given(
    name=st.sampled_from(sorted(BUNDLES)),
    choice=st.integers(0, 10_000),
    change=st.one_of(values, st.just("__remove__"), st.just("__twice__"), st.just("__flip__")),
)
def test_an_altered_value_is_refused_or_decides_nothing(name: str, choice: int, change: object) -> None:
    fields = json.loads(BUNDLES[name])
    path = PLACES[name][choice % len(PLACES[name])]
    parent: Any = fields
    for step in path[:-1]:
        parent = parent[step]
    old = parent[path[-1]]
    if change == "__remove__":
        del parent[path[-1]]
    elif change == "__twice__":
        parent[path[-1]] = [old, old] if not isinstance(old, list) else old + old
    elif change == "__flip__" and isinstance(old, str) and old:
        at = choice % len(old)
        parent[path[-1]] = old[:at] + ("A" if old[at] != "A" else "B") + old[at + 1 :]
    else:
        parent[path[-1]] = change
    signer = verify(json.dumps(fields).encode())
    if signer is not None:
        assert signer == verify(BUNDLES[name])
        before, after = decided(json.loads(BUNDLES[name])), decided(fields)
        assert isinstance(before, tuple)
        assert isinstance(after, tuple)
        assert (after[0], after[2]) == (before[0], before[2])
        assert after[1] in (None, before[1])
        assert verify(json.dumps(fields).encode(), ARTIFACT + b"x") is None


@EXAMPLES
@given(name=st.sampled_from(sorted(BUNDLES)), data=st.data())
def test_altered_bytes_are_refused_or_decide_nothing(name: str, data: st.DataObject) -> None:
    good = BUNDLES[name]
    place = data.draw(st.integers(0, len(good) - 1))
    altered = good[:place] + data.draw(st.binary(max_size=4)) + good[place + data.draw(st.integers(0, 4)) :]
    signer = verify(altered)
    if signer is not None:
        assert signer == verify(good)
        assert verify(altered, ARTIFACT + b"x") is None


@EXAMPLES
@given(artifact=st.binary(max_size=200))
def test_no_other_artifact_is_accepted(artifact: bytes) -> None:
    for data in BUNDLES.values():
        assert (verify(data, artifact) is None) == (artifact != ARTIFACT)
