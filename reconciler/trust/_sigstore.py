# SPDX-License-Identifier: Apache-2.0
"""What needs sigstore: certificates, transparency logs and signed timestamps, offline, under one pinned root.

Importing this module costs 0.4 s and 45 MiB, so `_bundles` imports it when a rule needs it and not before. Nothing here
opens a connection or a file. What sigstore-python leaves to its callers is done here: validity windows of the root's
material, times in the future, one identity per certificate. Exceptions of all kinds may leave these functions on
hostile input (sigstore, pydantic and cryptography raise more than ten); `_bundles` turns each into SignatureError.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import serialization
from rfc3161_client import VerificationError as TimestampError
from rfc3161_client import VerifierBuilder, decode_timestamp_response
from sigstore._internal.trust import KeyringPurpose
from sigstore.errors import Error
from sigstore.hashes import Hashed
from sigstore.models import Bundle as SigstoreBundle
from sigstore.models import TransparencyLogEntry, TrustedRoot
from sigstore.verify import Verifier
from sigstore_models.bundle.v1 import Bundle as BundleModel
from sigstore_models.common.v1 import HashAlgorithm
from sigstore_models.trustroot.v1 import TrustedRoot as RootModel

from reconciler.errors import SignatureError
from reconciler.trust._identity import certified
from reconciler.trust._roots import KEY_KINDS, root_at

if TYPE_CHECKING:
    from cryptography import x509

    from reconciler.trust._format import Bundle, Certified, Fields

CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far a verified signing time may lie ahead of this host's clock."""


def verify_certificate(bundle: Bundle, root: bytes, *, digest: bytes, now: datetime) -> Certified:
    """Who signed the artifact with this sha256, by a certificate under `root`; says nothing about who may.

    Raises:
        SignatureError: (or another exception, see above) not a valid signature under this root.
    """
    trusted = _pruned(bundle, root, now)
    parsed = SigstoreBundle.from_json(json.dumps(bundle.fields))
    hashed = Hashed(algorithm=HashAlgorithm.SHA2_256, digest=digest)
    try:
        Verifier(trusted_root=trusted).verify_artifact(hashed, parsed, _AnyIdentity())
    except Error as error:
        raise SignatureError(f"not valid under the trusted root: {error}") from error
    for stamp in bundle.timestamps:
        _stamp_time(stamp, bundle.signature, trusted)  # sigstore is content with one good one among bad ones
    return certified(parsed.signing_certificate)


class _AnyIdentity:
    """Leaves the identity to the caller, who compares it with all rules and can say whose it was if none matches."""

    def verify(self, cert: x509.Certificate) -> None:
        pass


def verify_evidence(bundle: Bundle, root: bytes, *, key: bytes, digest: bytes, now: datetime) -> tuple[datetime, ...]:
    """Checks the log entry and every timestamp of a bundle that a key signed; returns the signing times they prove.

    Args:
        key: SubjectPublicKeyInfo (DER) of the key that made the signature.
        digest: sha256 of the artifact.

    Raises:
        SignatureError: (or another exception, see above) an entry or a timestamp is not valid under this root.
    """
    trusted = _pruned(bundle, root, now)
    times = [_stamp_time(stamp, bundle.signature, trusted) for stamp in bundle.timestamps]
    for fields in bundle.entries:
        _check_body(fields, signature=bundle.signature, key=key, digest=digest)
        model = BundleModel.from_json(json.dumps(bundle.fields)).verification_material.tlog_entries[0]
        entry = TransparencyLogEntry(model)
        try:
            # Merkle inclusion, the log's checkpoint and, where there is one, its promise (SET).
            entry._verify(trusted.rekor_keyring(KeyringPurpose.VERIFY))  # noqa: SLF001 - sigstore-python has no public way to it without a certificate (its issue 1244); pinned below 5 and covered by tests with real entries
        except Error as error:
            raise SignatureError(f"log entry not valid under the trusted root: {error}") from error
        if model.inclusion_promise and model.integrated_time:
            times.append(datetime.fromtimestamp(model.integrated_time, UTC))
    return tuple(times)


def _pruned(bundle: Bundle, root: bytes, now: datetime) -> TrustedRoot:
    logged, stamped = _claimed_times(bundle)
    for time in (*logged, *stamped):
        if time > now + CLOCK_SKEW:
            message = f"expected a signing time that is not in the future, got {time.isoformat()}"
            raise SignatureError(f"{message} at {now.isoformat()} on this host; check its clock")
    fields = json.loads(root)
    RootModel.from_json(json.dumps(fields))  # all of it, before a part is left out
    # Nobody vouches for a time: then the material must be valid today, or a log that was ended would sign for ever.
    pruned = root_at(fields, logged if logged or stamped else [now], stamped)
    for kind, words in KEY_KINDS.items():
        if fields.get(kind) and not pruned[kind]:
            raise SignatureError(f"the trusted root has no {words} that was valid at the time of signing")
    return TrustedRoot(RootModel.from_json(json.dumps(pruned)))


def _claimed_times(bundle: Bundle) -> tuple[list[datetime], list[datetime]]:
    logged = [
        datetime.fromtimestamp(int(entry["integratedTime"]), UTC)
        for entry in bundle.entries
        if entry.get("inclusionPromise") and entry.get("integratedTime")
    ]
    return logged, [decode_timestamp_response(stamp).tst_info.gen_time for stamp in bundle.timestamps]


def _stamp_time(stamp: bytes, signature: bytes, root: TrustedRoot) -> datetime:
    response = decode_timestamp_response(stamp)
    for authority in root.get_timestamp_authorities():
        certificates = authority.certificates(allow_expired=True)
        if len(certificates) < 2:  # noqa: PLR2004 - the signing certificate and a root, at least
            continue
        builder = VerifierBuilder().tsa_certificate(certificates[0]).add_root_certificate(certificates[-1])
        for each in certificates[1:-1]:
            builder = builder.add_intermediate_certificate(each)
        try:
            builder.build().verify_message(response, signature)
        except TimestampError:
            continue
        return response.tst_info.gen_time
    raise SignatureError("the bundle carries a timestamp by no authority of the trusted root that was valid then")


def _check_body(entry: Fields, *, signature: bytes, key: bytes, digest: bytes) -> None:
    """The log entry must be about this signature, this digest and this key, not about another artifact's."""
    body = json.loads(base64.b64decode(entry["canonicalizedBody"], validate=True))
    kind = (entry["kindVersion"]["kind"], entry["kindVersion"]["version"])
    spec = body["spec"]
    match kind:
        case ("hashedrekord", "0.0.1"):
            claimed = (
                spec["data"]["hash"]["algorithm"],
                bytes.fromhex(spec["data"]["hash"]["value"]),
                base64.b64decode(spec["signature"]["content"], validate=True),
                _der(base64.b64decode(spec["signature"]["publicKey"]["content"], validate=True)),
            )
            expected = ("sha256", digest, signature, key)
        case ("hashedrekord", "0.0.2"):
            record = spec["hashedRekordV002"]
            claimed = (
                record["data"]["algorithm"],
                base64.b64decode(record["data"]["digest"], validate=True),
                base64.b64decode(record["signature"]["content"], validate=True),
                base64.b64decode(record["signature"]["verifier"]["publicKey"]["rawBytes"], validate=True),
            )
            expected = ("SHA2_256", digest, signature, key)
        case _:
            raise SignatureError(f"expected a log entry hashedrekord 0.0.1 or 0.0.2, got {str(kind)[:80]}")
    if (body["kind"], body["apiVersion"]) != kind or claimed != expected:
        raise SignatureError("expected a log entry about this signature, got one about something else")


def _der(pem: bytes) -> bytes:
    key = serialization.load_pem_public_key(pem)
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
