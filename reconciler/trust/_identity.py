# SPDX-License-Identifier: Apache-2.0
"""Whom a certificate names. Nothing here verifies it; exceptions of all kinds may leave on hostile input."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat import asn1

from reconciler.errors import SignatureError
from reconciler.trust._format import Certified

if TYPE_CHECKING:
    from reconciler.trust._format import Bundle

_ISSUER_V1: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_USERNAME: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")
"""Fulcio's extensions and its kind of name (fulcio, docs/oid-info.md)."""


def claimed(bundle: Bundle) -> Certified:
    """Whom the certificate of a bundle names; `bundle.certificate` holds."""
    material = bundle.fields["verificationMaterial"]["certificate"]
    return certified(x509.load_der_x509_certificate(base64.b64decode(material["rawBytes"], validate=True)))


def certified(certificate: x509.Certificate) -> Certified:
    """The one identity and the one issuer of a certificate."""
    names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    if len(names) != 1:
        raise SignatureError(f"expected one name in the certificate, got {len(names)}")
    match names[0]:
        case x509.RFC822Name(value=identity) | x509.UniformResourceIdentifier(value=identity):
            pass
        case x509.OtherName(type_id=kind, value=value) if kind == _USERNAME:
            identity = asn1.decode_der(str, value)
        case other:
            raise SignatureError(f"expected an e-mail address or URI in the certificate, got a {type(other).__name__}")
    issuers = {
        each.value.value.decode() if each.oid == _ISSUER_V1 else asn1.decode_der(str, each.value.value)
        for each in certificate.extensions
        if each.oid in (_ISSUER_V1, _ISSUER_V2) and isinstance(each.value, x509.UnrecognizedExtension)
    }
    if len(issuers) != 1:
        raise SignatureError(f"expected one issuer in the certificate, got {len(issuers)}")
    return Certified(identity=identity, issuer=issuers.pop())
