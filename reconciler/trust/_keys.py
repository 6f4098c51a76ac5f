# SPDX-License-Identifier: Apache-2.0
"""Signatures by a plain key: sigstore bundles v0.3 with `publicKey`, written and verified with `cryptography` alone.

sigstore-python cannot verify these (its issue 1244). The hint in a bundle is opaque and decides nothing; the policy says
which key counts. Only P-256 with SHA-256 and Ed25519 are accepted: what real cosign writes and what is proven here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from reconciler.errors import ConfigError, SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAX_BUNDLE: Final = 4 * 2**20
"""Bytes; sigstore's largest conformance bundle has 16 kB, and some hostile ones cost seconds beyond this."""
MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_MEDIA_TYPES: Final = (MEDIA_TYPE, "application/vnd.dev.sigstore.bundle+json;version=0.3")


def load_public_key(pem: bytes) -> EllipticCurvePublicKey | Ed25519PublicKey:
    """A P-256 or Ed25519 public key.

    Raises:
        ConfigError: anything else.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # 100 ms that unsigned verbs need not pay
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("expected a public key in PEM form, got something else") from error
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ConfigError(f"expected a P-256 or Ed25519 key, got {type(key).__name__}")


def load_private_key(pem: bytes, password: bytes | None) -> EllipticCurvePrivateKey | Ed25519PrivateKey:
    """A P-256 or Ed25519 private key; its content is never part of an error.

    Raises:
        ConfigError: anything else, or a wrong password.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("expected a private key in PEM form (and its password, if it has one)") from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ConfigError(f"expected a P-256 or Ed25519 key, got {type(key).__name__}")


def fingerprint(public_key_pem: bytes) -> str:
    """SHA256: and the unpadded base64 of the sha256 over the key's SubjectPublicKeyInfo, as `trust.revoked.keys` has it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(spki(public_key_pem)).digest()).decode().rstrip("=")


def spki(public_key_pem: bytes) -> bytes:
    """The key's SubjectPublicKeyInfo, DER."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    return load_public_key(public_key_pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign(artifact: bytes, key_pem: bytes, *, password: bytes | None = None) -> bytes:
    """A bundle v0.3 over `artifact`, as `cosign sign-blob --bundle` with a key writes it, without a log entry.

    Raises:
        ConfigError: not a P-256 or Ed25519 private key.
    """
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    key = load_private_key(key_pem, password)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(artifact, ec.ECDSA(hashes.SHA256()))
    else:
        signature = key.sign(artifact)
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _b64(hashlib.sha256(public).digest())}},
        "messageSignature": {
            "messageDigest": {"algorithm": "SHA2_256", "digest": _b64(hashlib.sha256(artifact).digest())},
            "signature": _b64(signature),
        },
    }
    return json.dumps(bundle, separators=(",", ":")).encode() + b"\n"


def read_bundle(data: bytes) -> dict[str, Any]:
    """A bundle as JSON, with what every kind of bundle must have.

    Raises:
        SignatureError: too large, not JSON, another media type, or not a signature over a message.
    """
    if len(data) > MAX_BUNDLE:
        raise SignatureError(f"expected a bundle of at most {MAX_BUNDLE} bytes, got {len(data)}")
    try:
        bundle = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SignatureError("expected a sigstore bundle in JSON, got something else") from error
    if not isinstance(bundle, dict) or bundle.get("mediaType") not in _MEDIA_TYPES:
        raise SignatureError("expected a sigstore bundle v0.3; sign with `reconciler package sign` or cosign 3")
    if "dsseEnvelope" in bundle:
        raise SignatureError("expected a signature over the archive itself, got an attestation (use sign-blob)")
    if not isinstance(bundle.get("verificationMaterial"), dict) or not isinstance(bundle.get("messageSignature"), dict):
        raise SignatureError("expected verificationMaterial and messageSignature in the bundle, got none")
    return bundle


def verify_with_key(artifact: bytes, bundle: dict[str, Any], key_pem: bytes) -> bytes:
    """Check the signature over `artifact`; returns it. What the bundle claims besides is not trusted.

    Raises:
        SignatureError: no valid signature of this key over exactly these bytes.
    """
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    material = bundle["verificationMaterial"]
    if not isinstance(material.get("publicKey"), dict) or {"certificate", "x509CertificateChain"} & material.keys():
        raise SignatureError("expected a bundle signed with a key, as the policy says, got one with a certificate")
    message = bundle["messageSignature"]
    signature = unb64(message.get("signature"), "messageSignature.signature")
    claimed = message.get("messageDigest")
    if claimed is not None:
        _check_digest(claimed, artifact)
    key = load_public_key(key_pem)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, artifact, ec.ECDSA(hashes.SHA256()))
        else:
            key.verify(signature, artifact)
    except InvalidSignature:
        raise SignatureError("expected a signature of the allowed key over exactly these bytes, got another") from None
    return signature


def _check_digest(claimed: object, artifact: bytes) -> None:
    if not isinstance(claimed, dict) or claimed.get("algorithm") != "SHA2_256":
        raise SignatureError("expected a SHA2_256 message digest in the bundle, got another")
    if unb64(claimed.get("digest"), "messageDigest.digest") != hashlib.sha256(artifact).digest():
        raise SignatureError("expected a bundle over these bytes, got one over others (its message digest differs)")


def unb64(value: object, where: str) -> bytes:
    """Canonical base64 text of a bundle. Raises SignatureError."""
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        data = None
    if data is None or _b64(data) != value:
        raise SignatureError(f"{where}: expected base64, got something else")
    return data


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
