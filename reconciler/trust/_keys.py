# SPDX-License-Identifier: Apache-2.0
"""Keys that sign packages: reading them, naming them by fingerprint, signing and checking.

P-256 (ECDSA over SHA-256) and Ed25519 only: those are the two that cosign writes and that were tested against it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from reconciler.errors import InputError

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

BUNDLE_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""What cosign 3.x writes (sigstore's protobuf-specs, Bundle.media_type)."""

_KINDS: Final = "a P-256 or Ed25519 key"


def load_public_key(pem: bytes) -> PublicKey:
    """The key of a PEM file (SubjectPublicKeyInfo).

    Raises:
        InputError: not PEM, not a public key, or of another kind; `reason` is "InvalidKey".
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        message = f"expected {_KINDS} in PEM (BEGIN PUBLIC KEY), got something else: {error}"
        raise InputError(message, reason="InvalidKey") from error
    if isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    raise InputError(f"expected {_KINDS}, got {_kind(key)}; make one with `reconciler init`", reason="InvalidKey")


def key_der(key: PublicKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: PublicKey | bytes) -> str:
    """How a key is called: "SHA256:" and the unpadded base64 of sha256 over its SubjectPublicKeyInfo (DER).

    Args:
        key: a key, or its PEM.

    Raises:
        InputError: the PEM holds no key that may sign packages.
    """
    loaded = load_public_key(key) if isinstance(key, bytes) else key
    return "SHA256:" + base64.b64encode(hashlib.sha256(key_der(loaded)).digest()).decode().rstrip("=")


def is_signature(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is by `key` over exactly `message`."""
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def sign(artifact: bytes, key_pem: bytes, password: bytes | None = None) -> bytes:
    """Signs an archive with a key: a sigstore bundle v0.3 (JSON), without a log entry or a timestamp.

    Args:
        key_pem: private key, P-256 or Ed25519 (PKCS#8 or, for P-256, SEC 1).
        password: of the key, if it is encrypted.

    Raises:
        InputError: the key cannot be read or is of another kind; `reason` is "InvalidKey".
    """
    try:
        key = serialization.load_pem_private_key(key_pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        message = f"expected {_KINDS} in PEM and, if it is encrypted, its password; got: {error}"
        raise InputError(message, reason="InvalidKey") from error
    if isinstance(key, ed25519.Ed25519PrivateKey):
        signature = key.sign(artifact)
    elif isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        signature = key.sign(artifact, ec.ECDSA(hashes.SHA256()))
    else:
        raise InputError(f"expected {_KINDS}, got {_kind(key)}; make one with `reconciler init`", reason="InvalidKey")
    digest = hashlib.sha256(artifact).digest()
    # cosign's hint, too, is the digest of the key; nobody decides by it.
    hint = hashlib.sha256(key_der(key.public_key())).digest()
    bundle = {
        "mediaType": BUNDLE_MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": base64.b64encode(hint).decode()}},
        "messageSignature": {
            "messageDigest": {"algorithm": "SHA2_256", "digest": base64.b64encode(digest).decode()},
            "signature": base64.b64encode(signature).decode(),
        },
    }
    return json.dumps(bundle, separators=(",", ":")).encode() + b"\n"


def _kind(key: object) -> str:
    curve = getattr(key, "curve", None)
    return f"an elliptic curve key on {curve.name}" if curve is not None else f"a {type(key).__name__}"
