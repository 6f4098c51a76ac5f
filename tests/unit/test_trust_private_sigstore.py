# SPDX-License-Identifier: Apache-2.0
"""What no real server would sign, by a sigstore in this process: each differs in one thing from what is accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from reconciler import trust
from reconciler.config import IdentityRule, KeyRule
from reconciler.errors import IdentityError, SignatureError, TrustError
from tests.private_sigstore import (
    IDENTITY,
    ISSUER,
    SIGNED_AT,
    START,
    Authority,
    Leaf,
    Log,
    PrivateSigstore,
    Stamper,
    der,
    fulcio,
    log_body,
    new_key,
    public_der,
    public_pem,
    text,
)

if TYPE_CHECKING:
    from datetime import datetime

    from reconciler.model import Signer

ARTIFACT = b"artifact"
NOW = SIGNED_AT + timedelta(days=1)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
RULE = IdentityRule(name="ci", packages=("*",), identity=IDENTITY, issuer=ISSUER, root="private")


@pytest.fixture(scope="module")
def sigstore() -> PrivateSigstore:
    return PrivateSigstore()


def leaf(sigstore: PrivateSigstore, **fields: Any) -> Leaf:
    return Leaf(**{"transparency": sigstore.transparency, **fields})


def verify(
    sigstore: PrivateSigstore,
    bundle: dict[str, Any],
    rule: IdentityRule | KeyRule = RULE,
    *,
    now: datetime = NOW,
    root: bytes | None = None,
) -> Signer:
    roots = {"private": sigstore.root() if root is None else root}
    data = json.dumps(bundle).encode()
    return trust.verify_package(ARTIFACT, data, package="demo", rules=(rule,), roots=roots, now=now)


def refused(
    sigstore: PrivateSigstore,
    bundle: dict[str, Any],
    *args: Any,
    error: type[TrustError] = SignatureError,
    **fields: Any,
) -> str:
    with pytest.raises(TrustError) as raised:
        verify(sigstore, bundle, *args, **fields)
    assert type(raised.value) is error, raised.value
    return str(raised.value)


def entry_of(bundle: dict[str, Any]) -> dict[str, Any]:
    (entry,) = bundle["verificationMaterial"]["tlogEntries"]
    assert isinstance(entry, dict)
    return entry


# --- accepted ----------------------------------------------------------------------------------------------


def test_a_log_entry_with_a_promise_is_a_verified_time(sigstore: PrivateSigstore) -> None:
    assert verify(sigstore, sigstore.bundle(ARTIFACT)).identity == IDENTITY


def test_a_log_entry_and_a_stamp_go_together(sigstore: PrivateSigstore) -> None:
    assert verify(sigstore, sigstore.bundle(ARTIFACT, stamped=SIGNED_AT + MINUTE)).issuer == ISSUER


def test_a_workflow_is_matched_by_a_glob(sigstore: PrivateSigstore) -> None:
    rule = replace(RULE, identity="https://ci.example.org/team/*/build@refs/tags/v*")
    assert verify(sigstore, sigstore.bundle(ARTIFACT), rule).name == "ci"
    refused(
        sigstore, sigstore.bundle(ARTIFACT), replace(RULE, identity="https://ci.example.org/*"), error=IdentityError
    )


def test_either_extension_may_name_the_issuer(sigstore: PrivateSigstore) -> None:
    for number in (1, 8):
        made = sigstore.bundle(ARTIFACT, leaf=leaf(sigstore, issuers={number: ISSUER}))
        assert verify(sigstore, made).issuer == ISSUER


def test_a_user_name_is_an_identity(sigstore: PrivateSigstore) -> None:
    name = x509.OtherName(fulcio(7), der(0x0C, b"alice!example.org"))
    made = sigstore.bundle(ARTIFACT, leaf=leaf(sigstore, names=(name,)))
    assert verify(sigstore, made, replace(RULE, identity="alice!example.org")).identity == "alice!example.org"


def test_a_key_with_a_log_entry_proves_its_time(sigstore: PrivateSigstore) -> None:
    key = new_key()
    rule = KeyRule(name="key", packages=("*",), key_pem=public_pem(key), root="private", tlog="required")
    window = replace(rule, not_before=SIGNED_AT - MINUTE, not_after=SIGNED_AT + MINUTE)
    assert verify(sigstore, sigstore.key_bundle(ARTIFACT, key), window).name == "key"
    late = sigstore.key_bundle(ARTIFACT, key, logged=SIGNED_AT + HOUR)
    assert verify(sigstore, late, rule).name == "key"
    refused(sigstore, late, window, error=IdentityError)


# --- times -------------------------------------------------------------------------------------------------


def test_a_signature_outside_of_the_certificate_is_refused(sigstore: PrivateSigstore) -> None:
    for at in (SIGNED_AT - HOUR, SIGNED_AT + HOUR):
        refused(sigstore, sigstore.bundle(ARTIFACT, logged=at))
        refused(sigstore, sigstore.bundle(ARTIFACT, stamped=at))


def test_a_stamp_does_not_heal_an_entry_without_a_promise_out_of_time(sigstore: PrivateSigstore) -> None:
    made = sigstore.bundle(ARTIFACT)
    entry_of(made).pop("inclusionPromise")
    refused(sigstore, made)
    stamped = sigstore.bundle(ARTIFACT, stamped=SIGNED_AT + HOUR)
    entry_of(stamped).pop("inclusionPromise")
    refused(sigstore, stamped)


def test_a_signature_of_next_year_is_refused_today(sigstore: PrivateSigstore) -> None:
    ahead = NOW + DAY * 365
    made = sigstore.bundle(ARTIFACT, issued=ahead, logged=ahead + MINUTE)
    assert "clock" in refused(sigstore, made)
    assert verify(sigstore, made, now=ahead + HOUR).name == "ci"
    assert verify(sigstore, made, now=ahead - MINUTE * 3).name == "ci"


def test_times_that_no_calendar_has_are_refused(sigstore: PrivateSigstore) -> None:
    for time in ("-1", str(2**62), str(2**70), "x", "1e9"):
        made = sigstore.bundle(ARTIFACT)
        entry_of(made)["integratedTime"] = time
        refused(sigstore, made)


def test_a_signature_before_the_material_began_is_refused(sigstore: PrivateSigstore) -> None:
    early = START - DAY
    refused(sigstore, sigstore.bundle(ARTIFACT, issued=early, logged=early + MINUTE))


# --- logs --------------------------------------------------------------------------------------------------


def test_a_promise_by_another_log_is_refused(sigstore: PrivateSigstore) -> None:
    made, other = sigstore.bundle(ARTIFACT), Log()
    body = log_body(ARTIFACT, b"", b"")
    promise = other.entry(body, SIGNED_AT)["inclusionPromise"]
    entry_of(made)["inclusionPromise"] = promise
    refused(sigstore, made)


def test_an_entry_of_another_log_is_refused(sigstore: PrivateSigstore) -> None:
    refused(sigstore, replace(sigstore, log=Log()).bundle(ARTIFACT))


def test_a_time_that_the_log_did_not_promise_is_refused(sigstore: PrivateSigstore) -> None:
    made = sigstore.bundle(ARTIFACT)
    entry_of(made)["integratedTime"] = str(int(entry_of(made)["integratedTime"]) + 1)
    refused(sigstore, made)


def test_a_proof_for_another_hash_is_refused(sigstore: PrivateSigstore) -> None:
    made = sigstore.bundle(ARTIFACT)
    entry_of(made)["inclusionProof"]["hashes"] = [text(bytes(32))]
    refused(sigstore, made)
    made = sigstore.bundle(ARTIFACT)
    entry_of(made)["inclusionProof"] = entry_of(sigstore.bundle(ARTIFACT))["inclusionProof"]
    refused(sigstore, made)


def test_an_entry_without_proof_or_checkpoint_is_refused(sigstore: PrivateSigstore) -> None:
    made = sigstore.bundle(ARTIFACT)
    entry_of(made).pop("inclusionProof")
    refused(sigstore, made)
    made = sigstore.bundle(ARTIFACT)
    entry_of(made)["inclusionProof"].pop("checkpoint")
    refused(sigstore, made)


def test_an_entry_about_another_signature_is_refused(sigstore: PrivateSigstore) -> None:
    made, other = sigstore.bundle(ARTIFACT), sigstore.bundle(ARTIFACT)
    made["verificationMaterial"]["tlogEntries"] = other["verificationMaterial"]["tlogEntries"]
    refused(sigstore, made)


def key_rule(key: ec.EllipticCurvePrivateKey) -> KeyRule:
    return KeyRule(name="key", packages=("*",), key_pem=public_pem(key), root="private", tlog="required")


@pytest.mark.parametrize("what", ["key", "artifact", "signature", "kind", "claimed kind", "extra"])
def test_an_entry_about_something_else_proves_nothing_for_a_key(sigstore: PrivateSigstore, what: str) -> None:
    key = new_key()
    made = sigstore.key_bundle(ARTIFACT, key)
    body = json.loads(log_body(ARTIFACT, b"signature", public_pem(key)))
    spec = body["spec"]
    spec["signature"]["content"] = made["messageSignature"]["signature"]
    match what:
        case "key":
            spec["signature"]["publicKey"]["content"] = text(public_pem(new_key()))
        case "artifact":
            spec["data"]["hash"]["value"] = "0" * 64
        case "signature":
            spec["signature"]["content"] = text(b"another")
        case "kind":
            body["kind"] = "intoto"
        case "claimed kind":
            body["apiVersion"] = "0.0.2"
        case _:
            body = [body]
    if what == "extra":
        made["verificationMaterial"]["tlogEntries"][0]["canonicalizedBody"] = text(json.dumps(body).encode())
    else:
        entry = sigstore.log.entry(json.dumps(body).encode(), SIGNED_AT)
        if what == "claimed kind":
            entry["kindVersion"]["version"] = "0.0.1"
        made["verificationMaterial"]["tlogEntries"] = [entry]
    refused(sigstore, made, key_rule(key))


def test_a_key_in_der_spelled_otherwise_is_the_same_key(sigstore: PrivateSigstore) -> None:
    key = new_key()
    made = sigstore.key_bundle(ARTIFACT, key)
    signed = made["messageSignature"]["signature"]
    body = json.loads(log_body(ARTIFACT, b"", public_pem(key).replace(b"\n", b"\r\n")))
    body["spec"]["signature"]["content"] = signed
    made["verificationMaterial"]["tlogEntries"] = [sigstore.log.entry(json.dumps(body).encode(), SIGNED_AT)]
    assert verify(sigstore, made, key_rule(key)).name == "key"
    assert trust.fingerprint(public_pem(key)) == verify(sigstore, made, key_rule(key)).identity
    assert public_der(key)


# --- stamps ------------------------------------------------------------------------------------------------


def test_a_stamp_of_another_authority_is_refused(sigstore: PrivateSigstore) -> None:
    other = replace(sigstore, stamper=Stamper())
    refused(sigstore, other.bundle(ARTIFACT, stamped=SIGNED_AT + MINUTE))
    key = new_key()
    refused(sigstore, other.key_bundle(ARTIFACT, key, stamped=SIGNED_AT), key_rule(key))


def test_one_bad_stamp_among_good_ones_is_refused(sigstore: PrivateSigstore) -> None:
    good = sigstore.bundle(ARTIFACT, stamped=SIGNED_AT + MINUTE)
    bad = replace(sigstore, stamper=Stamper()).bundle(ARTIFACT, stamped=SIGNED_AT + MINUTE)
    stamps = good["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"]
    stamps += bad["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"]
    refused(sigstore, good)


def test_a_stamp_while_the_root_knows_no_authority_is_refused(sigstore: PrivateSigstore) -> None:
    made = sigstore.bundle(ARTIFACT, stamped=SIGNED_AT + MINUTE)
    refused(sigstore, made, root=sigstore.root(timestampAuthorities=[]))


def test_an_authority_without_its_root_stamps_nothing(sigstore: PrivateSigstore) -> None:
    authorities = json.loads(sigstore.root())["timestampAuthorities"]
    del authorities[0]["certChain"]["certificates"][1]
    key = new_key()
    made = sigstore.key_bundle(ARTIFACT, key, stamped=SIGNED_AT)
    refused(sigstore, made, key_rule(key), root=sigstore.root(timestampAuthorities=authorities))


def test_material_without_a_window_is_always_valid(sigstore: PrivateSigstore) -> None:
    logs = json.loads(sigstore.root())["tlogs"]
    del logs[0]["publicKey"]["validFor"]
    assert verify(sigstore, sigstore.bundle(ARTIFACT), root=sigstore.root(tlogs=logs)).name == "ci"


def test_a_stamp_that_is_no_stamp_is_refused(sigstore: PrivateSigstore) -> None:
    for junk in (b"", b"junk", der(0x30), der(0x30, der(0x30, der(0x02, b"\0")))):
        made = sigstore.bundle(ARTIFACT, stamped=SIGNED_AT + MINUTE)
        stamps = made["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"]
        stamps[0]["signedTimestamp"] = text(junk)
        refused(sigstore, made)


# --- certificates ------------------------------------------------------------------------------------------


def test_another_authority_of_the_same_name_is_refused(sigstore: PrivateSigstore) -> None:
    other = replace(sigstore, authority=Authority.make("code signing root"))
    refused(sigstore, other.bundle(ARTIFACT, leaf=leaf(sigstore)))


def test_a_certificate_that_no_transparency_log_saw_is_refused(sigstore: PrivateSigstore) -> None:
    refused(sigstore, sigstore.bundle(ARTIFACT, leaf=leaf(sigstore, transparency=None)))
    refused(sigstore, sigstore.bundle(ARTIFACT, leaf=leaf(sigstore, transparency=new_key())))


def test_a_certificate_for_another_use_is_refused(sigstore: PrivateSigstore) -> None:
    usages = (ExtendedKeyUsageOID.SERVER_AUTH,)
    refused(sigstore, sigstore.bundle(ARTIFACT, leaf=leaf(sigstore, usages=usages)))


@pytest.mark.parametrize(
    "names",
    [
        (),
        (x509.UniformResourceIdentifier(IDENTITY), x509.RFC822Name("eve@example.org")),
        (x509.DNSName("ci.example.org"),),
        (x509.OtherName(fulcio(7), der(0x04, b"alice")),),
        (x509.OtherName(fulcio(99), der(0x0C, IDENTITY.encode())),),
    ],
    ids=["none", "two", "host", "user name of another type", "another name"],
)
def test_a_certificate_with_other_names_than_one_identity_is_refused(
    sigstore: PrivateSigstore, names: tuple[x509.GeneralName, ...]
) -> None:
    refused(sigstore, sigstore.bundle(ARTIFACT, leaf=leaf(sigstore, names=names)))


@pytest.mark.parametrize("issuers", [{}, {1: ISSUER, 8: "https://other.example.org"}, {1: ISSUER + "\n", 8: ISSUER}])
def test_a_certificate_without_one_issuer_is_refused(sigstore: PrivateSigstore, issuers: dict[int, str]) -> None:
    refused(sigstore, sigstore.bundle(ARTIFACT, leaf=leaf(sigstore, issuers=issuers)))


@pytest.mark.parametrize(
    "identity", [IDENTITY + "\n", IDENTITY + "/", "x" + IDENTITY, IDENTITY.upper(), "https://ci.example.org"]
)
def test_an_identity_is_matched_in_full(sigstore: PrivateSigstore, identity: str) -> None:
    names = (x509.UniformResourceIdentifier(identity),)
    refused(sigstore, sigstore.bundle(ARTIFACT, leaf=leaf(sigstore, names=names)), error=IdentityError)


def test_an_issuer_is_matched_exactly(sigstore: PrivateSigstore) -> None:
    for issuer in (ISSUER + "/", ISSUER + ".evil", "*", ""):
        refused(sigstore, sigstore.bundle(ARTIFACT), replace(RULE, issuer=issuer), error=IdentityError)


@pytest.mark.parametrize("kind", ["p384", "rsa", "ed25519"])
def test_other_kinds_of_keys_in_certificates_are_refused(sigstore: PrivateSigstore, kind: str) -> None:
    keys = {
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    refused(sigstore, sigstore.bundle(ARTIFACT, leaf=leaf(sigstore, key=keys[kind]())))


def test_a_certificate_cannot_become_another_key(sigstore: PrivateSigstore) -> None:
    made, other = sigstore.bundle(ARTIFACT), sigstore.bundle(ARTIFACT)
    made["verificationMaterial"]["certificate"] = other["verificationMaterial"]["certificate"]
    refused(sigstore, made)
