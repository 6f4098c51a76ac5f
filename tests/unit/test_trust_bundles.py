# SPDX-License-Identifier: Apache-2.0
"""Bundles that the real cosign wrote (tests/data/sigstore), each also against another signer, artifact or root."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import policy, trust
from reconciler.config import IdentityRule, KeyRule, Revoked
from reconciler.errors import ConfigError, IdentityError, SignatureError, TrustError
from tests.signed_packages import Key

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.config import SignerRule
    from reconciler.model import Signer

DATA = Path(__file__).parent.parent / "data" / "sigstore"
ARTIFACT = (DATA / "artifact.txt").read_bytes()
ROOTS = {
    "one": (DATA / "trusted-root.json").read_bytes(),
    "two": (DATA / "trusted-root-other-stack.json").read_bytes(),
}
SIGNED = json.loads((DATA / "made.json").read_text())
SIGNED_AT = datetime.fromisoformat(SIGNED["at"])
NOW = SIGNED_AT + timedelta(days=1)

ISSUER = "http://127.0.0.1:18001"
OTHER_ISSUER = "http://127.0.0.1:18011"
ALICE = "alice@example.org"


def bundle(name: str) -> bytes:
    return (DATA / f"{name}.sigstore.json").read_bytes()


def public_key(name: str) -> bytes:
    return (DATA / f"{name}.pub").read_bytes()


def key_rule(name: str = "key-p256", **fields: Any) -> KeyRule:
    return KeyRule(**{"name": "release key", "packages": ("*",), "key_pem": public_key(name), **fields})


def identity_rule(identity: str = ALICE, issuer: str = ISSUER, root: str = "one", **fields: Any) -> IdentityRule:
    rule = {"name": "release bot", "packages": ("*",), "identity": identity, "issuer": issuer, "root": root}
    return IdentityRule(**{**rule, **fields})


def verify(
    data: bytes,
    *rules: SignerRule,
    artifact: bytes = ARTIFACT,
    package: str = "demo",
    now: datetime = NOW,
    roots: dict[str, bytes] | None = None,
) -> Signer:
    known = ROOTS if roots is None else roots
    return trust.verify_package(artifact, data, package=package, rules=rules, roots=known, now=now)


def refused(data: bytes, *rules: SignerRule, error: type[TrustError] = SignatureError, **fields: Any) -> str:
    with pytest.raises(TrustError) as raised:
        verify(data, *rules, **fields)
    assert type(raised.value) is error, raised.value
    return str(raised.value)


def altered(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    fields = json.loads(data)
    change(fields)
    return json.dumps(fields).encode()


CASES = [
    pytest.param("key-p256", key_rule(), id="key"),
    pytest.param("key-ed25519", key_rule("key-ed25519"), id="ed25519"),
    pytest.param("key-p256-log", key_rule(root="one", tlog="required"), id="key with log and timestamp"),
    pytest.param("alice", identity_rule(), id="keyless"),
    pytest.param("alice-first-entry", identity_rule(), id="keyless, first entry of the log"),
    pytest.param("bob", identity_rule("bob@example.org"), id="another identity"),
    pytest.param("alice-other-issuer", identity_rule(issuer=OTHER_ISSUER), id="another issuer"),
    pytest.param("alice-other-stack", identity_rule(root="two"), id="another root"),
]


# --- what real clients wrote is accepted -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_a_bundle_of_cosign_is_accepted(name: str, rule: SignerRule) -> None:
    signer = verify(bundle(name), rule)
    assert signer.name == rule.name
    if isinstance(rule, KeyRule):
        assert (signer.identity, signer.issuer) == (trust.fingerprint(rule.key_pem), "key")
    else:
        assert (signer.identity, signer.issuer) == (rule.identity, rule.issuer)


def test_a_key_is_called_by_the_digest_of_its_der() -> None:
    der = ["openssl", "pkey", "-pubin", "-in", str(DATA / "key-p256.pub"), "-outform", "DER"]
    digest = subprocess.run(
        ["openssl", "dgst", "-sha256", "-binary"], input=subprocess.check_output(der), capture_output=True, check=True
    ).stdout
    assert len(digest) == 32
    text = subprocess.run(["base64", "-w0"], input=digest, capture_output=True, check=True).stdout.decode()
    assert trust.fingerprint(public_key("key-p256")) == "SHA256:" + text.rstrip("=")


# --- the same with one thing altered -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_an_altered_artifact_is_refused(name: str, rule: SignerRule) -> None:
    refused(bundle(name), rule, artifact=ARTIFACT + b"\n")
    refused(bundle(name), rule, artifact=b"")


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_an_altered_artifact_is_refused_without_a_message_digest_too(name: str, rule: SignerRule) -> None:
    def drop(fields: dict[str, Any]) -> None:
        fields["messageSignature"].pop("messageDigest")

    refused(altered(bundle(name), drop), rule, artifact=ARTIFACT + b"\n")


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_an_altered_signature_is_refused(name: str, rule: SignerRule) -> None:
    def change(fields: dict[str, Any]) -> None:
        text = fields["messageSignature"]["signature"]
        fields["messageSignature"]["signature"] = text[:20] + ("A" if text[20] != "A" else "B") + text[21:]

    refused(altered(bundle(name), change), rule)


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_a_message_digest_of_something_else_is_refused(name: str, rule: SignerRule) -> None:
    def change(fields: dict[str, Any]) -> None:
        digest = "A" * 43 + "="
        fields["messageSignature"]["messageDigest"] = {"algorithm": "SHA2_256", "digest": digest}

    refused(altered(bundle(name), change), rule)


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_another_signer_is_refused(name: str, rule: SignerRule) -> None:
    if isinstance(rule, KeyRule):
        refused(bundle(name), replace(rule, key_pem=Key.make().public))
        refused(bundle(name), replace(rule, key_pem=Key.make("ed25519").public))
        return
    message = refused(bundle(name), replace(rule, identity="carol@example.org"), error=IdentityError)
    assert rule.identity in message
    assert rule.issuer in message
    refused(bundle(name), replace(rule, issuer="https://accounts.example.org"), error=IdentityError)
    refused(bundle(name), replace(rule, identity=rule.identity + ".evil"), error=IdentityError)
    refused(bundle(name), replace(rule, identity=rule.identity[1:]), error=IdentityError)
    refused(bundle(name), replace(rule, root="two" if rule.root == "one" else "one"))


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_rules_for_other_packages_do_not_count(name: str, rule: SignerRule) -> None:
    other = replace(rule, packages=("other", "demo-*"))
    assert "'demo'" in refused(bundle(name), other, error=IdentityError)
    assert verify(bundle(name), replace(rule, packages=("other", "de*"))).name == rule.name


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_without_rules_nobody_may_sign(name: str, rule: SignerRule) -> None:
    refused(bundle(name), error=IdentityError)


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_the_policy_decides_whether_a_key_or_a_certificate_counts(name: str, rule: SignerRule) -> None:
    other: SignerRule = identity_rule() if isinstance(rule, KeyRule) else key_rule()
    refused(bundle(name), other, error=IdentityError)
    assert verify(bundle(name), other, rule).name == rule.name


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_a_signature_moved_into_the_other_mode_is_refused(name: str, rule: SignerRule) -> None:
    """A bundle cannot choose to be verified more easily."""

    def swap(fields: dict[str, Any]) -> None:
        material = fields["verificationMaterial"]
        if isinstance(rule, KeyRule):
            material.pop("publicKey")
            material["certificate"] = json.loads(bundle("alice"))["verificationMaterial"]["certificate"]
        else:
            material.pop("certificate")
            material["publicKey"] = {"hint": ""}

    refused(altered(bundle(name), swap), identity_rule(), key_rule())


def test_the_first_rule_that_allows_gives_the_name() -> None:
    data = bundle("alice")
    first, second = identity_rule("bob@example.org", name="first"), identity_rule("*@example.org", name="second")
    assert verify(data, first, second).name == "second"
    assert verify(data, second, identity_rule(name="third")).name == "second"
    assert verify(data, identity_rule(root="two"), second).name == "second"


@pytest.mark.parametrize(
    ("pattern", "identity", "expected"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", "aa", False),
        ("*", "alice@example.org", True),
        ("*", "", True),
        ("*", "a/b", False),
        ("*@example.org", "alice@example.org", True),
        ("*@example.org", "alice@example.org.evil", False),
        ("alice@example.*", "alice@example.org/x", False),
        ("alice@example.org", "alice@exampleXorg", False),
        ("https://example.org/*/ci@refs/tags/v*", "https://example.org/repo/ci@refs/tags/v1.2", True),
        ("https://example.org/*/ci@refs/tags/v*", "https://example.org/a/b/ci@refs/tags/v1", False),
        ("https://example.org/*/ci@refs/tags/v*", "https://example.org/repo/ci@refs/heads/main", False),
        ("a*b*a", "aba", True),
        ("a*b*a", "ab", False),
        ("aa*aa", "aaa", False),
        ("a*bc*bc", "abcbc", True),
        ("a*bc*bc", "abc", False),
        ("a\n", "a", False),
        ("a", "a\n", False),
        ("[ab]?", "a1", False),
    ],
)
def test_globs_of_identities_are_anchored_and_stop_at_slashes(pattern: str, identity: str, expected: bool) -> None:
    assert policy.matches_identity(pattern, identity) is expected


def test_a_hostile_identity_cannot_make_a_glob_slow() -> None:
    assert not policy.matches_identity("*a" * 40 + "b", "a" * 200_000)


# --- logs, times, roots ------------------------------------------------------------------------------------


def test_a_rule_that_demands_a_log_refuses_a_bundle_without_one() -> None:
    assert "log" in refused(bundle("key-p256"), key_rule(root="one", tlog="required"))
    assert "trusted root" in refused(bundle("key-p256-log"), key_rule(tlog="required"))
    assert verify(bundle("key-p256"), key_rule(root="one")).issuer == "key"


def test_a_log_entry_that_proves_nothing_is_ignored_only_by_rules_without_a_root() -> None:
    def change(fields: dict[str, Any]) -> None:
        entry = fields["verificationMaterial"]["tlogEntries"][0]
        entry["inclusionProof"]["rootHash"] = "A" * 43 + "="

    data = altered(bundle("key-p256-log"), change)
    assert verify(data, key_rule()).issuer == "key"
    refused(data, key_rule(root="one"))


def test_an_entry_about_another_signature_is_refused() -> None:
    stolen = json.loads(bundle("key-p256-log"))["verificationMaterial"]

    def change(fields: dict[str, Any]) -> None:
        fields["verificationMaterial"] |= {"tlogEntries": stolen["tlogEntries"]}

    assert "something else" in refused(altered(bundle("key-p256"), change), key_rule(root="one", tlog="required"))
    refused(altered(bundle("alice"), change), identity_rule())


def test_a_timestamp_over_another_signature_is_refused() -> None:
    stolen = json.loads(bundle("bob"))["verificationMaterial"]["timestampVerificationData"]

    def change(fields: dict[str, Any]) -> None:
        fields["verificationMaterial"]["timestampVerificationData"] = stolen

    refused(altered(bundle("alice"), change), identity_rule())
    refused(altered(bundle("key-p256-log"), change), key_rule(root="one"))


def test_a_certificate_without_a_verified_time_or_a_log_entry_is_refused() -> None:
    for name in ("timestampVerificationData", "tlogEntries"):
        fields = json.loads(bundle("alice"))
        fields["verificationMaterial"].pop(name)
        refused(json.dumps(fields).encode(), identity_rule())


def test_without_a_verified_time_the_log_must_be_valid_today() -> None:
    data = altered(
        bundle("key-p256-log"), lambda fields: fields["verificationMaterial"].pop("timestampVerificationData")
    )
    root = json.loads(ROOTS["one"])
    root["tlogs"][0]["publicKey"]["validFor"]["end"] = (SIGNED_AT + timedelta(days=2)).isoformat()
    roots = {"one": json.dumps(root).encode()}
    assert verify(data, key_rule(root="one", tlog="required"), roots=roots).issuer == "key"
    later = NOW + timedelta(days=2)
    refused(data, key_rule(root="one", tlog="required"), roots=roots, now=later)
    assert verify(bundle("key-p256-log"), key_rule(root="one", tlog="required"), roots=roots, now=later).issuer == "key"


def test_two_log_entries_are_refused() -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["verificationMaterial"]["tlogEntries"] *= 2

    refused(altered(bundle("alice"), change), identity_rule())
    refused(altered(bundle("key-p256-log"), change), key_rule())


def test_the_window_of_a_key_is_about_verified_times() -> None:
    data = bundle("key-p256-log")
    day = timedelta(days=1)
    inside = key_rule(root="one", not_before=SIGNED_AT - day, not_after=SIGNED_AT + day)
    assert verify(data, inside).not_after == (SIGNED_AT + day).isoformat()
    assert verify(data, inside, now=NOW + timedelta(days=3650)).name == inside.name
    for half in (key_rule(root="one", not_before=SIGNED_AT - day), key_rule(root="one", not_after=SIGNED_AT + day)):
        assert verify(data, half).name == inside.name
    refused(data, key_rule(root="one", not_after=SIGNED_AT - day), error=IdentityError)
    refused(data, key_rule(root="one", not_before=SIGNED_AT + day), error=IdentityError)


def test_a_window_means_nothing_without_a_verified_time() -> None:
    window: dict[str, Any] = {"not_after": NOW + timedelta(days=365)}
    assert "verified signing time" in refused(bundle("key-p256"), key_rule(**window))
    assert "verified signing time" in refused(bundle("key-p256"), key_rule(root="one", **window))
    assert "verified signing time" in refused(bundle("key-p256-log"), key_rule(**window))


@pytest.mark.parametrize(
    ("name", "rule"), [case for case in CASES if case.values[0] not in ("key-p256", "key-ed25519")]
)
def test_a_signature_from_the_future_is_refused(name: str, rule: SignerRule) -> None:
    assert "clock" in refused(bundle(name), rule, now=SIGNED_AT - timedelta(days=1))


@pytest.mark.parametrize("kind", ["tlogs", "ctlogs", "certificateAuthorities", "timestampAuthorities"])
def test_material_that_ended_before_the_signature_does_not_count(kind: str) -> None:
    def root(**window: str) -> dict[str, bytes]:
        fields = json.loads(ROOTS["one"])
        for each in fields[kind]:
            (each.get("publicKey") or each)["validFor"] = {"start": "2020-01-01T00:00:00Z", **window}
        return {"one": json.dumps(fields).encode()}

    early = (SIGNED_AT - timedelta(hours=1)).isoformat()
    late = (SIGNED_AT + timedelta(hours=1)).isoformat()
    refused(bundle("alice"), identity_rule(), roots=root(end=early))
    refused(bundle("alice"), identity_rule(), roots=root(start=late))
    assert verify(bundle("alice"), identity_rule(), roots=root(end=late)).identity == ALICE
    # What was signed while it was valid stays signed.
    assert verify(bundle("alice"), identity_rule(), roots=root(end=late), now=NOW + timedelta(days=9999)).name
    if kind in ("tlogs", "timestampAuthorities"):
        refused(bundle("key-p256-log"), key_rule(root="one"), roots=root(end=early))


@pytest.mark.parametrize("kind", ["tlogs", "ctlogs", "certificateAuthorities", "timestampAuthorities"])
def test_a_root_that_lost_one_kind_of_material_accepts_nothing(kind: str) -> None:
    fields = json.loads(ROOTS["one"])
    fields[kind] = []
    refused(bundle("alice"), identity_rule(), roots={"one": json.dumps(fields).encode()})


@pytest.mark.parametrize("root", [b"", b"{}", b"[]", b"null", b"\xff", b'{"tlogs": 1}', ROOTS["one"][:-20]])
def test_a_damaged_root_accepts_nothing(root: bytes) -> None:
    refused(bundle("alice"), identity_rule(), roots={"one": root})
    refused(bundle("key-p256-log"), key_rule(root="one"), roots={"one": root})


def test_a_root_that_is_not_configured_accepts_nothing() -> None:
    assert "'one'" in refused(bundle("alice"), identity_rule(), roots={})
    assert "'one'" in refused(bundle("key-p256-log"), key_rule(root="one"), roots={})


def test_the_end_of_a_root_is_that_of_the_kind_that_ends_first() -> None:
    assert trust.trust_root_end(ROOTS["one"]) == datetime.fromisoformat(SIGNED["timestampAuthorityEnds"])
    fields = json.loads(ROOTS["one"])
    ends = datetime(2030, 1, 1, tzinfo=UTC)
    log = fields["tlogs"][0]
    log["publicKey"]["validFor"]["end"] = ends.isoformat()
    assert trust.trust_root_end(json.dumps(fields).encode()) == ends
    goes_on = json.loads(json.dumps(log))
    goes_on["publicKey"]["validFor"].pop("end")
    fields["tlogs"].append(goes_on)
    assert trust.trust_root_end(json.dumps(fields).encode()) == trust.trust_root_end(ROOTS["one"])


def test_a_root_without_ends_never_ends_and_junk_is_said() -> None:
    assert trust.trust_root_end(b"{}") is None
    for junk in (
        b"",
        b"[1]",
        b'{"tlogs": [1]}',
        b'{"certificateAuthorities": [{"certChain": {"certificates": [{}]}}]}',
    ):
        with pytest.raises(ConfigError):
            trust.trust_root_end(junk)


# --- form --------------------------------------------------------------------------------------------------


def test_an_attestation_is_no_signature_of_a_package() -> None:
    data = bundle("key-p256-attestation")
    assert "dsseEnvelope" in json.loads(data)
    assert "attestation" in refused(data, key_rule())

    def both(fields: dict[str, Any]) -> None:
        fields["messageSignature"] = json.loads(bundle("key-p256"))["messageSignature"]

    refused(altered(data, both), key_rule())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"1",
        b'"text"',
        b"{}",
        b"\xff\xfe{}",
        b"[" * 200_000,
        b'{"a":' * 40_000,
        b'{"mediaType": NaN}',
        b'{"mediaType": 1.5}',
        b'{"mediaType": ' + b"9" * 10_000 + b"}",
        b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}',
        b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":[],"messageSignature":{}}',
        b'{"SchemaVersion":1,"base64Signature":"MEU=","cert":""}',
    ],
)
def test_what_is_no_bundle_is_a_bad_signature_and_nothing_else(data: bytes) -> None:
    refused(data, key_rule(), identity_rule())


def test_other_versions_of_the_format_are_refused() -> None:
    for version in ("0.1", "0.2", "0.4"):
        fields = json.loads(bundle("key-p256"))
        fields["mediaType"] = f"application/vnd.dev.sigstore.bundle+json;version={version}"
        assert "v0.3" in refused(json.dumps(fields).encode(), key_rule())


@pytest.mark.parametrize("number", [b"1.5", b"1e3", b"NaN", b"-Infinity"])
def test_a_number_that_is_no_integer_is_refused(number: bytes) -> None:
    data = bundle("key-p256").rstrip()
    assert "integers only" in refused(data[:-1] + b', "more": ' + number + b"}", key_rule())


def test_a_key_that_is_there_twice_is_refused() -> None:
    text = bundle("key-p256").decode()
    twice = text.replace('"mediaType"', '"messageSignature":{},"mediaType"', 1)
    assert "twice" in refused(twice.encode(), key_rule())


def test_base64_has_one_spelling() -> None:
    text = json.loads(bundle("key-ed25519"))["messageSignature"]["signature"]
    assert text.endswith("Q==")
    data = altered(bundle("key-ed25519"), lambda fields: fields["messageSignature"].update(signature=text[:-3] + "R=="))
    assert "canonical" in refused(data, key_rule("key-ed25519"))
    data = altered(bundle("key-ed25519"), lambda fields: fields["messageSignature"].update(signature=text + "\n"))
    refused(data, key_rule("key-ed25519"))


def test_a_bundle_with_both_or_neither_kind_of_material_is_refused() -> None:
    certificate = json.loads(bundle("alice"))["verificationMaterial"]["certificate"]
    data = altered(bundle("key-p256"), lambda fields: fields["verificationMaterial"].update(certificate=certificate))
    refused(data, key_rule(), identity_rule())
    data = altered(bundle("key-p256"), lambda fields: fields["verificationMaterial"].pop("publicKey"))
    refused(data, key_rule(), identity_rule())


def test_a_bundle_that_is_too_large_is_not_parsed() -> None:
    data = bundle("key-p256") + b" " * trust.MAX_BUNDLE_BYTES
    assert "at most" in refused(data, key_rule())


def test_too_many_timestamps_are_refused() -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"] *= 33

    assert "timestamps" in refused(altered(bundle("alice"), change), identity_rule())


def test_other_message_digests_are_refused() -> None:
    digest = {"algorithm": "SHA2_512", "digest": "A" * 43 + "="}
    data = altered(bundle("key-p256"), lambda fields: fields["messageSignature"].update(messageDigest=digest))
    assert "SHA2_512" in refused(data, key_rule())


def test_hosts_with_plain_keys_do_not_load_sigstore() -> None:
    code = (
        "import sys; from tests.unit.test_trust_bundles import *;"
        "verify(bundle('key-p256-log'), key_rule());"
        "assert not {'sigstore', 'pydantic', 'rfc3161_client'} & set(sys.modules), 'loaded without need'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# --- revocation --------------------------------------------------------------------------------------------


def test_revoked_digests_keys_and_identities_are_named() -> None:
    by_key, by_identity = verify(bundle("key-p256"), key_rule()), verify(bundle("alice"), identity_rule())
    digest = "sha256:" + "0" * 64
    nothing = Revoked()
    assert trust.check_revoked(nothing, digest=digest, signer=by_key) is None
    assert trust.check_revoked(Revoked(digests=frozenset({digest})), digest=digest) == f"the digest {digest} is revoked"
    keys = Revoked(keys=frozenset({by_key.identity}))
    assert by_key.identity in str(trust.check_revoked(keys, digest=digest, signer=by_key))
    assert trust.check_revoked(keys, digest=digest, signer=by_identity) is None
    identities = Revoked(identities=frozenset({ALICE}))
    assert ALICE in str(trust.check_revoked(identities, digest=digest, signer=by_identity))
    assert trust.check_revoked(identities, digest=digest, signer=by_key) is None
    assert trust.check_revoked(identities, digest=digest) is None
