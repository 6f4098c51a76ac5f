# SPDX-License-Identifier: Apache-2.0
"""Reads a bundle's outer form: bounded, strict, without believing anything it says.

Only bundles v0.3 that sign the artifact itself (a `messageSignature`) are package signatures. A DSSE envelope signs a
*statement*: "any valid attestation about these bytes" is not "released by", so it is refused here, whoever made it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from reconciler.errors import SignatureError

Fields: TypeAlias = dict[str, Any]

MAX_BUNDLE_BYTES: Final = 256 << 10
"""Bytes of a bundle. The largest of sigstore's conformance suite is 16 kB; a checkpoint of 19 MB with a million
signature lines keeps sigstore busy for 3.8 s and is then accepted."""

MAX_TIMESTAMPS: Final = 32
"""Signed timestamps of one bundle: sigstore's MAX_ALLOWED_TIMESTAMP."""

MEDIA_TYPES: Final = (
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
)

_SHA256_BYTES: Final = 32
_HINT: Final = re.compile(r"([A-Za-z0-9+/]{43})=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle's parts; nothing in it is verified.

    Attributes:
        fields: the whole bundle as JSON, with what protobuf JSON leaves out (zeros, empty lists) filled in.
        digest: sha256 that the bundle claims for the artifact, if it does.
        hint: fingerprint of the key that made it, as cosign's bundles claim; for messages only.
        timestamps: RFC 3161 responses, DER.
    """

    fields: Fields
    signature: bytes
    digest: bytes | None
    hint: str | None
    entries: tuple[Fields, ...]
    timestamps: tuple[bytes, ...]
    certificate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """Whom a certificate names."""

    identity: str
    issuer: str


def read_bundle(data: bytes) -> Bundle:
    """The parts of a bundle.

    Raises:
        SignatureError: too large, not JSON, or not a bundle v0.3 with a message signature. Other exceptions
            may leave this function when types are not as expected; its caller turns all of them into this one.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise SignatureError(f"expected a bundle of at most {MAX_BUNDLE_BYTES} bytes, got {len(data)}")
    fields = json.loads(data.decode(), object_pairs_hook=_unique, parse_float=_refuse, parse_constant=_refuse)
    return bundle_of(_fields(fields, "bundle"))


def bundle_of(fields: Fields) -> Bundle:
    """The parts of a bundle that was JSON; errors are those of `read_bundle`."""
    media_type = fields.get("mediaType")
    if media_type not in MEDIA_TYPES:
        message = f"expected a sigstore bundle v0.3, got the media type {str(media_type)[:80]!r}"
        raise SignatureError(f"{message}; sign with cosign 3.x, or 2.x with --new-bundle-format")
    if "dsseEnvelope" in fields:
        raise SignatureError(
            "expected a signature of the archive itself, got a DSSE envelope (an attestation); "
            "sign with `cosign sign-blob` or `reconciler package sign`"
        )
    message_signature = _fields(fields.get("messageSignature"), "messageSignature")
    material = _fields(fields.get("verificationMaterial"), "verificationMaterial")
    if ("certificate" in material) == ("publicKey" in material):
        raise SignatureError("expected either a certificate or a publicKey in the bundle, got both or neither")
    key = None if "certificate" in material else _fields(material["publicKey"], "publicKey")
    return Bundle(
        fields=fields,
        signature=_bytes(message_signature.get("signature"), "messageSignature.signature"),
        digest=_digest(message_signature.get("messageDigest")),
        hint=_hint(key or {}),
        entries=_entries(material),
        timestamps=_timestamps(material),
        certificate=key is None,
    )


def _entries(material: Fields) -> tuple[Fields, ...]:
    # sigstore_models demands what protobuf JSON leaves out: the first entry of a log has index 0 and no hashes.
    entries = _list(material.setdefault("tlogEntries", []), "tlogEntries")
    for entry in entries:
        _fields(entry, "tlogEntries").setdefault("logIndex", "0")
        if "inclusionProof" in entry:
            proof = _fields(entry["inclusionProof"], "inclusionProof")
            proof.setdefault("logIndex", "0")
            proof.setdefault("hashes", [])
    if len(entries) > 1:
        raise SignatureError(f"expected at most one log entry, got {len(entries)}")
    return tuple(entries)


def _timestamps(material: Fields) -> tuple[bytes, ...]:
    data = _fields(material.get("timestampVerificationData") or {}, "timestampVerificationData")
    stamps = _list(data.get("rfc3161Timestamps", []), "rfc3161Timestamps")
    if len(stamps) > MAX_TIMESTAMPS:
        raise SignatureError(f"expected at most {MAX_TIMESTAMPS} timestamps, got {len(stamps)}")
    return tuple(
        _bytes(_fields(each, "rfc3161Timestamps").get("signedTimestamp"), "signedTimestamp") for each in stamps
    )


def _hint(key: Fields) -> str | None:
    found = _HINT.fullmatch(str(key.get("hint")))
    return f"SHA256:{found[1]}" if found is not None else None


def _digest(value: object) -> bytes | None:
    # cosign writes {} for Ed25519, whose signature is over the artifact itself.
    fields = _fields(value or {}, "messageDigest")
    if not fields:
        return None
    digest = _bytes(fields.get("digest"), "messageDigest.digest")
    if fields.get("algorithm") != "SHA2_256" or len(digest) != _SHA256_BYTES:
        raise SignatureError(f"expected a SHA2_256 message digest, got {str(fields.get('algorithm'))[:40]!r}")
    return digest


def _unique(pairs: list[tuple[str, object]]) -> Fields:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise SignatureError("expected each key of a JSON object once, got one twice in the bundle")
    return fields


def _refuse(text: str) -> object:
    raise SignatureError(f"expected integers only in a bundle, got {text[:40]}")


def _fields(value: object, where: str) -> Fields:
    if not isinstance(value, dict):
        raise SignatureError(f"expected an object at {where} of the bundle, got {type(value).__name__}")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise SignatureError(f"expected a list at {where} of the bundle, got {type(value).__name__}")
    return value


def _bytes(value: object, where: str) -> bytes:
    if not isinstance(value, str) or not value:
        raise SignatureError(f"expected base64 text at {where} of the bundle, got {type(value).__name__}")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError(f"expected base64 text at {where} of the bundle: {error}") from error
    if base64.b64encode(data).decode() != value:
        raise SignatureError(f"expected canonical base64 text at {where} of the bundle, got another spelling")
    return data
