# SPDX-License-Identifier: Apache-2.0
"""Signing with a key: what is written verifies, what cannot sign is said."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from reconciler import trust
from reconciler.errors import InputError, SignatureError
from tests.signed_packages import Key

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_what_a_key_signs_verifies_with_that_key_only(kind: str) -> None:
    key, other = Key.make(kind), Key.make(kind)
    bundle = trust.sign(b"artifact", key.private)
    rules = (other.rule("other"), key.rule("mine"))
    signer = trust.verify_package(b"artifact", bundle, package="demo", rules=rules, roots={}, now=NOW)
    assert (signer.name, signer.identity) == ("mine", key.fingerprint)
    for artifact, allowed in ((b"artifact", other), (b"Artifact", key), (b"", key)):
        with pytest.raises(SignatureError):
            trust.verify_package(artifact, bundle, package="demo", rules=(allowed.rule(),), roots={}, now=NOW)


def test_a_refusal_names_the_key_that_the_bundle_claims() -> None:
    key, other = Key.make(), Key.make()
    bundle = trust.sign(b"artifact", key.private)
    with pytest.raises(SignatureError, match="one of the keys other") as raised:
        trust.verify_package(b"artifact", bundle, package="demo", rules=(other.rule("other"),), roots={}, now=NOW)
    assert key.fingerprint in str(raised.value)


def test_a_claimed_key_that_is_no_fingerprint_is_not_repeated() -> None:
    fields = json.loads(trust.sign(b"artifact", Key.make().private))
    fields["verificationMaterial"]["publicKey"]["hint"] = "\x1b[31mtrusted key"
    with pytest.raises(SignatureError) as raised:
        trust.verify_package(
            b"artifact", json.dumps(fields).encode(), package="demo", rules=(Key.make().rule(),), roots={}, now=NOW
        )
    assert "trusted" not in str(raised.value)


def test_a_bundle_is_what_sigstore_calls_v0_3() -> None:
    fields = json.loads(trust.sign(b"artifact", Key.make().private))
    assert fields["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert set(fields) == {"mediaType", "verificationMaterial", "messageSignature"}
    assert set(fields["verificationMaterial"]) == {"publicKey"}


def test_openssl_agrees_with_a_p256_signature(tmp_path: Path) -> None:
    key = Key.make()
    fields = json.loads(trust.sign(b"artifact", key.private))
    (tmp_path / "key.pub").write_bytes(key.public)
    (tmp_path / "artifact").write_bytes(b"artifact")
    signature = subprocess.run(
        ["base64", "-d"], input=fields["messageSignature"]["signature"].encode(), capture_output=True, check=True
    ).stdout
    (tmp_path / "signature").write_bytes(signature)
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pub", "-signature", "signature", "artifact"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == b"Verified OK\n"


def test_an_encrypted_key_needs_its_password() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(b"secret")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    assert json.loads(trust.sign(b"artifact", pem, b"secret"))["mediaType"]
    for password in (None, b"wrong"):
        with pytest.raises(InputError, match="password"):
            trust.sign(b"artifact", pem, password)


def test_other_keys_are_refused_by_name() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for call in (lambda: trust.sign(b"artifact", private), lambda: trust.load_public_key(public)):
        with pytest.raises(InputError, match="secp384r1"):
            call()
    rsa = subprocess.run(["openssl", "genrsa", "2048"], capture_output=True, check=True).stdout
    with pytest.raises(InputError, match="RSA"):
        trust.sign(b"artifact", rsa)


@pytest.mark.parametrize("pem", [b"", b"junk", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_junk_is_no_key(pem: bytes) -> None:
    with pytest.raises(InputError, match="PEM"):
        trust.load_public_key(pem)
    with pytest.raises(InputError, match="PEM"):
        trust.sign(b"artifact", pem)


def test_a_rule_whose_key_is_damaged_stops_no_other_rule() -> None:
    key = Key.make()
    bundle = trust.sign(b"artifact", key.private)
    damaged = Key(b"", b"junk").rule("damaged")
    signer = trust.verify_package(b"artifact", bundle, package="demo", rules=(damaged, key.rule()), roots={}, now=NOW)
    assert signer.name == "key"
    with pytest.raises(SignatureError, match="damaged"):
        trust.verify_package(b"artifact", bundle, package="demo", rules=(damaged,), roots={}, now=NOW)
