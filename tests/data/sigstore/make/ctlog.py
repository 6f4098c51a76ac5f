# SPDX-License-Identifier: Apache-2.0
"""A test certificate transparency log on loopback: signs what Fulcio submits and keeps nothing. Usage: ctlog.py PORT PUBLIC_KEY

It writes its public key to the file PUBLIC_KEY and answers POST /ct/v1/add-pre-chain and /ct/v1/add-chain (RFC 6962).
"""

import base64
import hashlib
import http.server
import json
import pathlib
import struct
import sys
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

POISON = bytes.fromhex("060a2b06010401d679020403")  # OBJECT IDENTIFIER 1.3.6.1.4.1.11129.2.4.3
KEY = ec.generate_private_key(ec.SECP256R1())


def spki(key: object) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


LOG_ID = hashlib.sha256(spki(KEY.public_key())).digest()


def split(der: bytes) -> tuple[int, bytes, bytes]:
    """(tag, content, rest) of the first DER element."""
    size, start = der[1], 2
    if size & 0x80:
        start = 2 + (size & 0x7F)
        size = int.from_bytes(der[2:start], "big")
    return der[0], der[start : start + size], der[start + size :]


def join(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def elements(der: bytes) -> list[tuple[int, bytes]]:
    found = []
    while der:
        tag, content, der = split(der)
        found.append((tag, content))
    return found


def without_poison(tbs: bytes) -> bytes:
    """The TBSCertificate that the SCT is about: without the extension that makes it a precertificate."""
    tag, content, _ = split(tbs)
    fields = []
    for field_tag, field in elements(content):
        if field_tag == 0xA3:  # [3] extensions
            kept = [join(*each) for each in elements(split(field)[1]) if not each[1].startswith(POISON)]
            fields.append(join(field_tag, join(0x30, b"".join(kept))))
        else:
            fields.append(join(field_tag, field))
    return join(tag, b"".join(fields))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        chain = [x509.load_der_x509_certificate(base64.b64decode(each)) for each in request["chain"]]
        now = int(time.time() * 1000)
        if self.path.endswith("add-pre-chain"):
            tbs = without_poison(chain[0].tbs_certificate_bytes)
            issuer = hashlib.sha256(spki(chain[1].public_key())).digest()
            entry = struct.pack(">H", 1) + issuer + len(tbs).to_bytes(3, "big") + tbs
        else:
            der = chain[0].public_bytes(serialization.Encoding.DER)
            entry = struct.pack(">H", 0) + len(der).to_bytes(3, "big") + der
        signature = KEY.sign(struct.pack(">BBQ", 0, 0, now) + entry + b"\0\0", ec.ECDSA(hashes.SHA256()))
        answer = {
            "sct_version": 0,
            "id": base64.b64encode(LOG_ID).decode(),
            "timestamp": now,
            "extensions": "",
            "signature": base64.b64encode(struct.pack(">BBH", 4, 3, len(signature)) + signature).decode(),
        }
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


public = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
pathlib.Path(sys.argv[2]).write_bytes(public)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
