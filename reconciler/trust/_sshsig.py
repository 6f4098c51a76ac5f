# SPDX-License-Identifier: Apache-2.0
"""Reads SSH signatures (OpenSSH's PROTOCOL.sshsig) and refuses every spelling but one.

A commit's id covers its signature, but the signature does not cover itself: whoever can write the same signature in a
second way makes a second commit id that verifies, without a key, and a host that applied it would refuse every honest
successor. So the armour must equal its own re-encoding, every length must be exact, and an Ed25519 scalar must be
reduced (OpenSSH 9.2 accepts S + L; tested). ECDSA stays malleable by its nature: (r, -s) verifies too.

Nothing is verified here; that is ssh-keygen's part.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

BEGIN: Final = b"-----BEGIN SSH SIGNATURE-----"
END: Final = b"-----END SSH SIGNATURE-----"
WIDTH: Final = 70
"""Columns of base64 as ssh-keygen writes them (sshbuf_dtob64 with wrapping, OpenSSH 9.2)."""
MAX_ARMOUR: Final = 16 << 10
"""Bytes; an RSA-16384 signature with its key takes about 6 KiB."""
MIN_RSA_BITS: Final = 2048
NAMESPACE: Final = b"git"

_MAGIC: Final = b"SSHSIG"
_VERSION: Final = 1
_HASHES: Final = (b"sha512", b"sha256")
_ED25519_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
"""RFC 8032, section 5.1; its section 5.1.7 demands S < L."""
_ED25519_KEY: Final = 32
_ED25519_SIGNATURE: Final = 64
_RSA: Final = b"ssh-rsa"
_SK_ED25519: Final = b"sk-ssh-ed25519@openssh.com"
_SK_ECDSA: Final = b"sk-ecdsa-sha2-nistp256@openssh.com"
# Key type to the signature types that go with it; SHA-1 (ssh-rsa), DSA and certificates are not among them.
_SIGNATURES: Final[dict[bytes, tuple[bytes, ...]]] = {
    b"ssh-ed25519": (b"ssh-ed25519",),
    b"ecdsa-sha2-nistp256": (b"ecdsa-sha2-nistp256",),
    b"ecdsa-sha2-nistp384": (b"ecdsa-sha2-nistp384",),
    b"ecdsa-sha2-nistp521": (b"ecdsa-sha2-nistp521",),
    _RSA: (b"rsa-sha2-512", b"rsa-sha2-256"),
    _SK_ED25519: (_SK_ED25519,),
    _SK_ECDSA: (_SK_ECDSA,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SshSignature:
    """A well-formed signature, not verified.

    Attributes:
        key_type: for example "ssh-ed25519".
        key: the public key in wire format.
        fingerprint: "SHA256:" and unpadded base64, as ssh-keygen prints it.
        hash_algorithm: what the message is hashed with, "sha512" or "sha256".
        signature: the inner signature in wire format, of a type that fits the key.
    """

    key_type: str
    key: bytes
    fingerprint: str
    hash_algorithm: str
    signature: bytes


def read_signature(armour: bytes) -> SshSignature:
    """The signature in `armour`, which ends with the END line and a newline.

    Raises:
        ValueError: it is not an SSH signature for git in its one canonical form; says what is wrong.
    """
    blob = _unarmour(armour)
    reader = Reader(blob)
    if reader.take(len(_MAGIC)) != _MAGIC:
        raise ValueError("expected the magic SSHSIG")
    if (version := reader.uint32()) != _VERSION:
        raise ValueError(f"expected version {_VERSION}, got {version}")
    key = reader.string()
    namespace, reserved, algorithm, signature = (reader.string() for _ in range(4))
    reader.end("the signature")
    if namespace != NAMESPACE:
        raise ValueError(f"expected the namespace 'git', got {namespace[:40]!r}")
    if reserved:
        raise ValueError("expected the reserved field to be empty")
    if algorithm not in _HASHES:
        raise ValueError(f"expected the hash sha512 or sha256, got {algorithm[:40]!r}")
    key_type, rsa_bytes = _check_key(key)
    _check_signature(key_type, rsa_bytes, signature)
    return SshSignature(
        key_type=key_type.decode("ascii"),
        key=key,
        fingerprint=fingerprint(key),
        hash_algorithm=algorithm.decode("ascii"),
        signature=signature,
    )


def fingerprint(key: bytes) -> str:
    """How ssh-keygen prints a key in wire format."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode("ascii").rstrip("=")


def _unarmour(armour: bytes) -> bytes:
    if len(armour) > MAX_ARMOUR:
        raise ValueError(f"expected at most {MAX_ARMOUR} bytes of armour, got {len(armour)}")
    lines = armour.split(b"\n")
    if lines[0] != BEGIN or lines[-1] != b"" or END not in lines:
        raise ValueError("expected the armour of an SSH signature")
    try:
        blob = base64.b64decode(b"".join(lines[1 : lines.index(END)]), validate=True)
    except binascii.Error as error:
        raise ValueError(f"expected base64 ({error})") from error
    text = base64.b64encode(blob)
    wrapped = [text[start : start + WIDTH] for start in range(0, len(text), WIDTH)]
    if b"\n".join([BEGIN, *wrapped, END, b""]) != armour:
        raise ValueError("expected the armour exactly as ssh-keygen writes it; it was wrapped or encoded again")
    return blob


def _check_key(key: bytes) -> tuple[bytes, int]:
    # The key's type, and for RSA the length of the modulus in bytes.
    reader = Reader(key)
    key_type = reader.string()
    if key_type not in _SIGNATURES:
        kinds = ", ".join(name.decode("ascii") for name in _SIGNATURES)
        raise ValueError(f"expected a key of type {kinds}, got {key_type[:60]!r} (certificates are not accepted)")
    modulus = 0
    if key_type == _RSA:
        reader.mpint("the exponent")
        modulus = reader.mpint("the modulus")
        if modulus.bit_length() < MIN_RSA_BITS:
            raise ValueError(f"expected an RSA key of at least {MIN_RSA_BITS} bits, got {modulus.bit_length()}")
    elif key_type in (b"ssh-ed25519", _SK_ED25519):
        if len(reader.string()) != _ED25519_KEY:
            raise ValueError(f"expected an Ed25519 key of {_ED25519_KEY} bytes")
    else:
        reader.string()
        reader.string()
    if key_type in (_SK_ED25519, _SK_ECDSA):
        reader.string()  # the application, "ssh:" by default; part of the key, so the allowed signers decide
    reader.end("the key")
    return key_type, (modulus.bit_length() + 7) // 8


def _check_signature(key_type: bytes, rsa_bytes: int, signature: bytes) -> None:
    reader = Reader(signature)
    signature_type, blob = reader.string(), reader.string()
    if signature_type not in _SIGNATURES[key_type]:
        raise ValueError(f"expected a signature that fits the key {key_type!r}, got {signature_type[:60]!r}")
    if key_type in (_SK_ED25519, _SK_ECDSA):
        reader.take(5)  # flags and counter: the security key signs them
    reader.end("the inner signature")
    if key_type in (b"ssh-ed25519", _SK_ED25519):
        if len(blob) != _ED25519_SIGNATURE or int.from_bytes(blob[32:], "little") >= _ED25519_ORDER:
            raise ValueError("expected an Ed25519 signature with a reduced scalar (RFC 8032, 5.1.7)")
    elif key_type == _RSA:
        if len(blob) != rsa_bytes:
            raise ValueError(f"expected an RSA signature of {rsa_bytes} bytes, got {len(blob)}")
    else:
        numbers = Reader(blob)
        numbers.mpint("r")
        numbers.mpint("s")
        numbers.end("the ECDSA signature")


def is_canonical_key(kind: bytes, key: bytes) -> bool:
    """Whether `key` is a public key of type `kind` in the one form that `read_signature` accepts."""
    try:
        return _check_key(key)[0] == kind
    except ValueError:
        return False


class Reader:
    """RFC 4251, section 5, without any tolerance: each method takes one value, and raises ValueError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        part = self._data[self._position : self._position + size]
        if len(part) != size:
            raise ValueError(f"expected {size} more bytes, got {len(part)}")
        self._position += size
        return part

    def uint32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        return self.take(self.uint32())

    def mpint(self, name: str) -> int:
        data = self.string()
        value = int.from_bytes(data, "big", signed=True)
        if value <= 0 or len(data) != value.bit_length() // 8 + 1:
            raise ValueError(f"expected {name} as a positive number without needless zeros")
        return value

    def end(self, name: str) -> None:
        if self._position != len(self._data):
            raise ValueError(f"expected {name} to end, got {len(self._data) - self._position} more bytes")
