# SPDX-License-Identifier: Apache-2.0
"""Accepts the ordinary signed commit without starting ssh-keygen; says nothing about any other.

ssh-keygen takes two processes and 15 ms for a commit: a quarter of the time from a push to the packet, and minutes for
a host that comes back after ten thousand commits. What it does for a plain key is one signature check and one look into
a list, so that is done here, in 0.2 ms. This module can only *accept*. Whatever is not plain is None, and ssh-keygen
decides and names the reason, as it does for every refusal: other kinds of keys, patterns and options in the allowed
signers, a key that is listed twice, validity windows, a revocation list in binary form, a line that is not understood.

Invariant: a signer that is returned here is the one that ssh-keygen would have found; tests compare the two on every
kind of key and on the variants of both files.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from reconciler.model import Signer
from reconciler.trust._sshsig import NAMESPACE, Reader, is_canonical_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.trust._sshsig import SshSignature

_LINE: Final = re.compile(
    rb"(?P<principals>[A-Za-z0-9_][A-Za-z0-9._@+-]*(?:,[A-Za-z0-9_][A-Za-z0-9._@+-]*)*)"
    rb'(?: (?P<options>[A-Za-z-]+(?:="[A-Za-z0-9._,@*!-]*")?(?:,[A-Za-z-]+(?:="[A-Za-z0-9._,@*!-]*")?)*))?'
    rb" (?P<type>(?:ssh|ecdsa|sk)-[a-z0-9@.-]+) (?P<key>[A-Za-z0-9+/]+={0,2})(?: [^\r\n]*)?"
)
"""PRINCIPALS [OPTIONS] TYPE KEY [COMMENT] with single blanks, and principals without patterns or quotes."""
_GIT_ONLY: Final = (None, b'namespaces="git"')
"""The options with which a line may be accepted here."""
_CURVES: Final[Mapping[bytes, tuple[bytes, type[ec.EllipticCurve], type[hashes.HashAlgorithm]]]] = {
    b"ecdsa-sha2-nistp256": (b"nistp256", ec.SECP256R1, hashes.SHA256),
    b"ecdsa-sha2-nistp384": (b"nistp384", ec.SECP384R1, hashes.SHA384),
    b"ecdsa-sha2-nistp521": (b"nistp521", ec.SECP521R1, hashes.SHA512),
}
_RSA_HASHES: Final[Mapping[bytes, type[hashes.HashAlgorithm]]] = {
    b"rsa-sha2-256": hashes.SHA256,
    b"rsa-sha2-512": hashes.SHA512,
}
_UNCOMPRESSED: Final = b"\x04"


def accept(payload: bytes, signature: SshSignature, *, allowed_signers: bytes, revoked: bytes | None) -> Signer | None:
    """Who signed `payload`, if that is plain; None decides nothing."""
    name = _allowed(allowed_signers).get(signature.key)
    if name is None or not _is_unrevoked(signature.key, revoked):
        return None
    digest = hashlib.new(signature.hash_algorithm, payload).digest()
    parts = (NAMESPACE, b"", signature.hash_algorithm.encode("ascii"), digest)
    # PROTOCOL.sshsig, "Signed Data".
    message = b"SSHSIG" + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    try:
        _verify(signature, message)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, NotImplementedError):
        return None
    return Signer(name=name, identity=signature.fingerprint, issuer="ssh")


@functools.lru_cache(maxsize=2)
def _allowed(content: bytes) -> Mapping[bytes, str]:
    """Key to principal, of the keys whose one line allows them for git without conditions; empty if in doubt."""
    found: dict[bytes, str | None] = {}
    for line in content.split(b"\n"):
        if not line or line.startswith(b"#"):
            continue
        parts = _LINE.fullmatch(line)
        key = None if parts is None else _key(parts["type"], parts["key"])
        if parts is None or key is None:
            return {}
        plain = parts["options"] in _GIT_ONLY and key not in found
        found[key] = parts["principals"].split(b",")[0].decode("ascii") if plain else None
    return {key: name for key, name in found.items() if name is not None}


def _is_unrevoked(key: bytes, revoked: bytes | None) -> bool:
    # Certain only for a list of public keys, each in the one form in which it is compared here.
    for line in (revoked or b"").split(b"\n"):
        words = line.strip().split(b" ")
        if words == [b""] or words[0].startswith(b"#"):
            continue
        listed = _key(words[0], words[1]) if len(words) > 1 else None
        if listed is None or listed == key:
            return False
    return True


def _key(kind: bytes, text: bytes) -> bytes | None:
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return key if is_canonical_key(kind, key) else None


def _verify(signature: SshSignature, message: bytes) -> None:
    """Raises InvalidSignature, ValueError or NotImplementedError unless the key made the signature over `message`."""
    key, outer = Reader(signature.key), Reader(signature.signature)
    kind, algorithm, blob = key.string(), outer.string(), outer.string()
    if kind == b"ssh-ed25519":
        ed25519.Ed25519PublicKey.from_public_bytes(key.string()).verify(blob, message)
    elif kind == b"ssh-rsa":
        exponent, modulus = key.mpint("the exponent"), key.mpint("the modulus")
        rsa.RSAPublicNumbers(exponent, modulus).public_key().verify(
            blob, message, padding.PKCS1v15(), _RSA_HASHES[algorithm]()
        )
    elif kind in _CURVES:
        name, curve, hash_algorithm = _CURVES[kind]
        got, point = key.string(), key.string()
        if got != name or not point.startswith(_UNCOMPRESSED):
            raise ValueError("expected an uncompressed point on the curve that the type names")
        numbers = Reader(blob)
        encoded = encode_dss_signature(numbers.mpint("r"), numbers.mpint("s"))
        ec.EllipticCurvePublicKey.from_encoded_point(curve(), point).verify(
            encoded, message, ec.ECDSA(hash_algorithm())
        )
    else:  # security keys sign more than the message, and their touch counts
        raise NotImplementedError
