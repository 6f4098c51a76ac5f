# SPDX-License-Identifier: Apache-2.0
"""A sigstore in one process, for what real servers would not sign: wrong times, wrong logs, odd certificates.

Certificate authority, certificate transparency log, Rekor v1 log with inclusion promises, timestamp authority; no
network, any time. What it writes by default is accepted, so a test alters one thing. What real servers write is in
tests/data/sigstore.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

START: Final = datetime(2024, 1, 1, tzinfo=UTC)
SIGNED_AT: Final = START + timedelta(days=30)
ISSUER: Final = "https://issuer.example.org"
IDENTITY: Final = "https://ci.example.org/team/repo/build@refs/tags/v1.0.0"
ORIGIN: Final = "rekor.test"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def canonical(value: object) -> bytes:
    """RFC 8785, for the plain values that occur here."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def public_der(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signature(key: PrivateKey, message: bytes) -> bytes:
    match key:
        case ed25519.Ed25519PrivateKey():
            return key.sign(message)
        case rsa.RSAPrivateKey():
            return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        case _:
            wide = key.curve.key_size > 256
            return key.sign(message, ec.ECDSA(hashes.SHA384() if wide else hashes.SHA256()))


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


# --- DER, as much as timestamps and extensions need --------------------------------------------------------


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def sequence(*parts: bytes) -> bytes:
    return der(0x30, *parts)


def oid(dotted: str) -> bytes:
    first, second, *others = map(int, dotted.split("."))
    body = bytes([first * 40 + second])
    for number in others:
        septets = [number & 0x7F]
        while number := number >> 7:
            septets.append(0x80 | (number & 0x7F))
        body += bytes(reversed(septets))
    return der(0x06, body)


SHA256_ALGORITHM: Final = sequence(oid("2.16.840.1.101.3.4.2.1"))
ECDSA_SHA256: Final = sequence(oid("1.2.840.10045.4.3.2"))


def fulcio(number: int) -> x509.ObjectIdentifier:
    return x509.ObjectIdentifier(f"1.3.6.1.4.1.57264.1.{number}")


# --- the parts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """A self-signed certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @staticmethod
    def make(name: str, issuer: Authority | None = None, *, stamps: bool = False) -> Authority:
        """A root, or the timestamping certificate of `issuer`."""
        key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        by = issuer.key if issuer is not None else key
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer is not None else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(START)
            .not_valid_after(START + timedelta(days=36500))
            .add_extension(x509.BasicConstraints(ca=not stamps, path_length=None), critical=True)
            .add_extension(key_usage(certificates=not stamps), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
        )
        if stamps:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
            builder = builder.add_extension(usage, critical=True)
        return Authority(builder.sign(by, hashes.SHA256()), key)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def key_usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True)
class Stamper:
    """A timestamp authority (RFC 3161)."""

    root: Authority = field(default_factory=lambda: Authority.make("stamp root"))
    leaf: Authority = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaf", Authority.make("stamps", self.root, stamps=True))

    def stamp(self, message: bytes, at: datetime) -> bytes:
        """A response that says `message` was there at `at`."""
        kind = oid("1.2.840.113549.1.9.16.1.4")
        imprint = sequence(SHA256_ALGORITHM, der(0x04, sha256(message)))
        time = der(0x18, at.strftime("%Y%m%d%H%M%SZ").encode())
        info = sequence(der(0x02, b"\1"), oid("1.3.6.1.4.1.57264.2"), imprint, der(0x02, b"\1"), time)

        def attribute(name: str, value: bytes) -> bytes:
            return sequence(oid(name), der(0x31, value))

        certificate = sequence(sequence(sequence(der(0x04, sha256(self.leaf.der)))))
        attributes = b"".join(
            sorted(
                [
                    attribute("1.2.840.113549.1.9.3", kind),
                    attribute("1.2.840.113549.1.9.4", der(0x04, sha256(info))),
                    attribute("1.2.840.113549.1.9.16.2.47", certificate),
                ]
            )
        )
        signed = signature(self.leaf.key, der(0x31, attributes))
        serial = self.leaf.certificate.serial_number
        number = der(0x02, serial.to_bytes(serial.bit_length() // 8 + 1, "big"))
        signer = sequence(
            der(0x02, b"\1"),
            sequence(self.leaf.certificate.issuer.public_bytes(), number),
            SHA256_ALGORITHM,
            der(0xA0, attributes),
            ECDSA_SHA256,
            der(0x04, signed),
        )
        content = sequence(
            der(0x02, b"\3"),
            der(0x31, SHA256_ALGORITHM),
            sequence(kind, der(0xA0, der(0x04, info))),
            der(0xA0, self.leaf.der),
            der(0x31, signer),
        )
        return sequence(sequence(der(0x02, b"\0")), sequence(oid("1.2.840.113549.1.7.2"), der(0xA0, content)))


@dataclass(frozen=True)
class Log:
    """A Rekor v1 log of two entries, whatever is asked of it: another one, then ours."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    @property
    def id(self) -> bytes:
        return sha256(public_der(self.key))

    def entry(self, body: bytes, at: datetime) -> dict[str, Any]:
        """An entry with inclusion proof, checkpoint and promise."""
        other = sha256(b"\0another entry")
        root = sha256(b"\1" + other + sha256(b"\0" + body))
        note = f"{ORIGIN}\n2\n{text(root)}\n"
        line = f"\n\u2014 {ORIGIN} {text(self.id[:4] + signature(self.key, note.encode()))}\n"
        seconds = int(at.timestamp())
        promise = {"body": text(body), "integratedTime": seconds, "logID": self.id.hex(), "logIndex": 1}
        fields = json.loads(body)
        return {
            "logIndex": "1",
            "logId": {"keyId": text(self.id)},
            "kindVersion": {"kind": fields["kind"], "version": fields["apiVersion"]},
            "integratedTime": str(seconds),
            "inclusionPromise": {"signedEntryTimestamp": text(signature(self.key, canonical(promise)))},
            "inclusionProof": {
                "logIndex": "1",
                "rootHash": text(root),
                "treeSize": "2",
                "hashes": [text(other)],
                "checkpoint": {"envelope": note + line},
            },
            "canonicalizedBody": text(body),
        }


def log_body(artifact: bytes, signed: bytes, verifier_pem: bytes) -> bytes:
    """A hashedrekord 0.0.1."""
    return canonical(
        {
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(artifact).hexdigest()}},
                "signature": {"content": text(signed), "publicKey": {"content": text(verifier_pem)}},
            },
        }
    )


@dataclass(frozen=True)
class Leaf:
    """What a certificate says, and how it is issued.

    Attributes:
        names: subject alternative names; None for IDENTITY as a URI.
        issuers: Fulcio's extension number to the issuer.
        transparency: key of the certificate transparency log; None leaves the SCT out.
    """

    names: tuple[x509.GeneralName, ...] | None = None
    issuers: dict[int, str] = field(default_factory=lambda: {1: ISSUER, 8: ISSUER})
    minutes: int = 10
    key: PrivateKey = field(default_factory=new_key)
    transparency: ec.EllipticCurvePrivateKey | None = None
    usages: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CODE_SIGNING,)


@dataclass(frozen=True)
class PrivateSigstore:
    """All parts, and the trusted root that names them."""

    authority: Authority = field(default_factory=lambda: Authority.make("code signing root"))
    transparency: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    log: Log = field(default_factory=Log)
    stamper: Stamper = field(default_factory=Stamper)

    def root(self, **others: Any) -> bytes:
        """trusted_root.json."""
        window = {"start": START.isoformat()}

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            public = {
                "rawBytes": text(public_der(key)),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": dict(window),
            }
            return {
                "baseUrl": "https://log.test",
                "hashAlgorithm": "SHA2_256",
                "publicKey": public,
                "logId": {"keyId": text(sha256(public_der(key)))},
            }

        def chain(*authorities: Authority) -> dict[str, Any]:
            certificates = [{"rawBytes": text(each.der)} for each in authorities]
            subject = {"organization": "test", "commonName": "test"}
            return {
                "subject": subject,
                "uri": "https://ca.test",
                "certChain": {"certificates": certificates},
                "validFor": dict(window),
            }

        fields = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log.key)],
            "certificateAuthorities": [chain(self.authority)],
            "ctlogs": [log(self.transparency)],
            "timestampAuthorities": [chain(self.stamper.leaf, self.stamper.root)],
        }
        return json.dumps(fields | others).encode()

    def certificate(self, leaf: Leaf, at: datetime) -> x509.Certificate:
        names = leaf.names if leaf.names is not None else (x509.UniformResourceIdentifier(IDENTITY),)
        public = leaf.key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.authority.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(at)
            .not_valid_after(at + timedelta(minutes=leaf.minutes))
            .add_extension(key_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(leaf.usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.key.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        for number, issuer in leaf.issuers.items():
            value = issuer.encode() if number == 1 else der(0x0C, issuer.encode())
            builder = builder.add_extension(x509.UnrecognizedExtension(fulcio(number), value), critical=False)
        if leaf.transparency is not None:
            builder = builder.add_extension(self._sct(builder, leaf.transparency, at), critical=False)
        return builder.sign(self.authority.key, hashes.SHA256())

    def _sct(
        self, builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, at: datetime
    ) -> x509.UnrecognizedExtension:
        # RFC 6962, 3.2: over the certificate without this extension, which is the last one.
        tbs = builder.sign(self.authority.key, hashes.SHA256()).tbs_certificate_bytes
        time = struct.pack(">Q", int(at.timestamp() * 1000))
        entry = b"\0\1" + sha256(public_der(self.authority.key)) + len(tbs).to_bytes(3, "big") + tbs
        signed = signature(key, b"\0\0" + time + entry + b"\0\0")
        sct = b"\0" + sha256(public_der(key)) + time + b"\0\0\4\3" + struct.pack(">H", len(signed)) + signed
        listed = struct.pack(">HH", len(sct) + 2, len(sct)) + sct
        return x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2"), der(0x04, listed))

    def bundle(
        self,
        artifact: bytes,
        *,
        leaf: Leaf | None = None,
        issued: datetime = SIGNED_AT,
        logged: datetime | None = SIGNED_AT + timedelta(seconds=30),
        stamped: datetime | None = None,
    ) -> dict[str, Any]:
        """A keyless bundle; `logged` and `stamped` say when, None leaves the log entry or the stamp out."""
        used = leaf if leaf is not None else Leaf(transparency=self.transparency)
        certificate = self.certificate(used, issued)
        signed = signature(used.key, artifact)
        material: dict[str, Any] = {"certificate": {"rawBytes": text(certificate.public_bytes(Encoding.DER))}}
        if logged is not None:
            body = log_body(artifact, signed, certificate.public_bytes(Encoding.PEM))
            material["tlogEntries"] = [self.log.entry(body, logged)]
        return self._finish(material, artifact, signed, stamped)

    def key_bundle(
        self, artifact: bytes, key: PrivateKey, *, logged: datetime | None = SIGNED_AT, stamped: datetime | None = None
    ) -> dict[str, Any]:
        """A bundle by a key of one's own."""
        signed = signature(key, artifact)
        material: dict[str, Any] = {"publicKey": {"hint": text(sha256(public_der(key)))}}
        if logged is not None:
            material["tlogEntries"] = [self.log.entry(log_body(artifact, signed, public_pem(key)), logged)]
        return self._finish(material, artifact, signed, stamped)

    def _finish(
        self, material: dict[str, Any], artifact: bytes, signed: bytes, stamped: datetime | None
    ) -> dict[str, Any]:
        if stamped is not None:
            stamp = {"signedTimestamp": text(self.stamper.stamp(signed, stamped))}
            material["timestampVerificationData"] = {"rfc3161Timestamps": [stamp]}
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": material,
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": text(sha256(artifact))},
                "signature": text(signed),
            },
        }
