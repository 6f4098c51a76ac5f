# SPDX-License-Identifier: Apache-2.0
"""The strict readers of SSH signatures and commits never crash and never take two spellings for one signature."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import SignatureError
from reconciler.trust._commits import parse_commit
from reconciler.trust._sshsig import read_signature

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGIN, END = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def mpint(value: int) -> bytes:
    return string(value.to_bytes(value.bit_length() // 8 + 1, "big"))


def armoured(blob: bytes, width: int = 70) -> bytes:
    text = base64.b64encode(blob)
    return b"\n".join([BEGIN, *(text[at : at + width] for at in range(0, len(text), width)), END, b""])


def signature(
    key: bytes,
    inner: bytes,
    namespace: bytes = b"git",
    algorithm: bytes = b"sha512",
    version: int = 1,
    reserved: bytes = b"",
) -> bytes:
    head = b"SSHSIG" + struct.pack(">I", version)
    return head + b"".join(map(string, (key, namespace, reserved, algorithm, inner)))


ED25519_KEY = string(b"ssh-ed25519") + string(b"k" * 32)
ED25519 = string(b"ssh-ed25519") + string(b"r" * 32 + b"s" * 31 + b"\0")
MODULUS = (1 << 2047) | 1
RSA_KEY = string(b"ssh-rsa") + mpint(65537) + mpint(MODULUS)
RSA = string(b"rsa-sha2-512") + string(b"\0" * 255 + b"\1")
EC_KEY = string(b"ecdsa-sha2-nistp256") + string(b"nistp256") + string(b"\4" + b"p" * 64)
EC = string(b"ecdsa-sha2-nistp256") + string(mpint(1 << 255) + mpint(5))
SK_KEY = string(b"sk-ssh-ed25519@openssh.com") + string(b"k" * 32) + string(b"ssh:")
SK = string(b"sk-ssh-ed25519@openssh.com") + string(b"r" * 32 + b"\0" * 32) + b"\1" + b"\0\0\0\7"
GOOD = {
    "ed25519": signature(ED25519_KEY, ED25519),
    "sha256": signature(ED25519_KEY, ED25519, algorithm=b"sha256"),
    "rsa": signature(RSA_KEY, RSA),
    "ecdsa": signature(EC_KEY, EC),
    "sk": signature(SK_KEY, SK),
}


@pytest.mark.parametrize("name", GOOD)
def test_well_formed_signatures_are_read(name: str) -> None:
    read = read_signature(armoured(GOOD[name]))
    assert read.key in GOOD[name]
    assert read.fingerprint.startswith("SHA256:")


BAD = {
    "version": signature(ED25519_KEY, ED25519, version=2),
    "namespace": signature(ED25519_KEY, ED25519, namespace=b"file"),
    "reserved": signature(ED25519_KEY, ED25519, reserved=b"x"),
    "hash": signature(ED25519_KEY, ED25519, algorithm=b"sha1"),
    "magic": b"SSHSIH" + GOOD["ed25519"][6:],
    "trailing byte": GOOD["ed25519"] + b"\0",
    "truncated": GOOD["ed25519"][:-1],
    "empty": b"",
    "trailing byte in the key": signature(ED25519_KEY + b"\0", ED25519),
    "short key": signature(string(b"ssh-ed25519") + string(b"k" * 31), ED25519),
    "trailing byte in the inner signature": signature(ED25519_KEY, ED25519 + b"\0"),
    "short scalar": signature(ED25519_KEY, string(b"ssh-ed25519") + string(b"r" * 63)),
    "unreduced scalar": signature(ED25519_KEY, string(b"ssh-ed25519") + string(b"r" * 32 + b"\xff" * 32)),
    "unreduced scalar of a security key": signature(
        SK_KEY, string(b"sk-ssh-ed25519@openssh.com") + string(b"\xff" * 64) + b"\1\0\0\0\7"
    ),
    "security key without a counter": signature(SK_KEY, SK[:-5]),
    "another type": signature(ED25519_KEY, EC),
    "dsa": signature(string(b"ssh-dss") + string(b"x"), ED25519),
    "certificate": signature(string(b"ssh-ed25519-cert-v01@openssh.com") + string(b"x"), ED25519),
    "rsa with sha1": signature(RSA_KEY, string(b"ssh-rsa") + string(b"\1" * 256)),
    "short rsa signature": signature(RSA_KEY, string(b"rsa-sha2-512") + string(b"\1" * 255)),
    "short rsa key": signature(string(b"ssh-rsa") + mpint(65537) + mpint((1 << 1023) | 1), RSA),
    "rsa key with needless zeros": signature(string(b"ssh-rsa") + string(b"\0\0\0\3") + mpint(MODULUS), RSA),
    "ecdsa with needless zeros": signature(
        EC_KEY, string(b"ecdsa-sha2-nistp256") + string(mpint(7) + string(b"\0\0\5"))
    ),
    "negative ecdsa": signature(EC_KEY, string(b"ecdsa-sha2-nistp256") + string(mpint(7) + string(b"\xff"))),
    "zero ecdsa": signature(EC_KEY, string(b"ecdsa-sha2-nistp256") + string(mpint(7) + string(b""))),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_signatures_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_signature(armoured(BAD[name]))


@pytest.mark.parametrize(
    "armour",
    [
        armoured(GOOD["ed25519"], 64),
        armoured(GOOD["ed25519"], 76),
        armoured(GOOD["ed25519"])[:-1],
        armoured(GOOD["ed25519"]) + b"\n",
        b"\n" + armoured(GOOD["ed25519"]),
        armoured(GOOD["ed25519"]) * 2,
        armoured(GOOD["ed25519"]).replace(b"\n", b"\r\n"),
        armoured(GOOD["ed25519"]).replace(b"=", b""),
        BEGIN + b"\n" + b"A" * 20_000 + b"\n" + END + b"\n",
        b"",
    ],
)
def test_other_armour_is_refused(armour: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_signature(armour)


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_changed_signature_is_refused_or_another_one(name: str, data: st.DataObject) -> None:
    blob = bytearray(GOOD[name])
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = read_signature(armoured(bytes(blob)))
    except ValueError:
        return
    # Every byte is one of a field that means something: key, signature and hash say the whole blob again.
    fields = list(split(bytes(blob[10:])))
    assert fields[:4] == [read.key, b"git", b"", read.hash_algorithm.encode()]
    assert signature(fields[0], fields[4], algorithm=fields[3]) == bytes(blob)


def split(data: bytes) -> Iterator[bytes]:
    while data:
        size = 4 + int.from_bytes(data[:4], "big")
        yield data[4:size]
        data = data[size:]


@given(st.binary(max_size=300))
def test_noise_is_refused_and_never_crashes(noise: bytes) -> None:
    for armour in (noise, armoured(noise), armoured(b"SSHSIG\0\0\0\1" + noise)):
        with pytest.raises(ValueError, match="expected"):
            read_signature(armour)


COMMIT = (
    b"tree " + b"1" * 40 + b"\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\ngpgsig "
    + armoured(GOOD["ed25519"]).rstrip(b"\n").replace(b"\n", b"\n ") + b"\n\nmessage\n"
)  # fmt: skip


@given(st.data())
def test_a_changed_commit_is_refused_or_another_payload(data: st.DataObject) -> None:
    honest = parse_commit(COMMIT, commit_id(COMMIT))
    raw = bytearray(COMMIT)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    altered = bytes(raw)
    try:
        parsed = parse_commit(altered, commit_id(altered))
        read_signature(parsed.armour)
    except (SignatureError, ValueError):
        return
    if altered != COMMIT:
        assert (parsed.payload, parsed.armour) != (honest.payload, honest.armour)


def commit_id(raw: bytes) -> str:
    return hashlib.sha1(b"commit %d\0" % len(raw) + raw).hexdigest()
