# SPDX-License-Identifier: Apache-2.0
"""A test OIDC issuer on loopback: GET /token/ADDRESS answers with an identity token for ADDRESS. Usage: issuer.py PORT"""

import base64
import http.server
import json
import sys
import time

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

PORT = int(sys.argv[1])
ISSUER = f"http://127.0.0.1:{PORT}"
KEY = rsa.generate_private_key(65537, 2048)


def text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(address: str) -> bytes:
    now = int(time.time())
    header = {"alg": "RS256", "kid": "1", "typ": "JWT"}
    claims = {"iss": ISSUER, "aud": "sigstore", "sub": address, "email": address, "email_verified": True}
    claims |= {"iat": now, "exp": now + 600}
    signed = ".".join(text(json.dumps(part).encode()) for part in (header, claims)).encode()
    return signed + b"." + text(KEY.sign(signed, padding.PKCS1v15(), hashes.SHA256())).encode()


NUMBERS = KEY.public_key().public_numbers()
DISCOVERY = {
    "issuer": ISSUER,
    "jwks_uri": f"{ISSUER}/jwks",
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
    "response_types_supported": ["id_token"],
    "subject_types_supported": ["public"],
    "id_token_signing_alg_values_supported": ["RS256"],
}
MODULUS = text(NUMBERS.n.to_bytes(256, "big"))
KEYS = {"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "n": MODULUS, "e": "AQAB"}]}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.endswith("openid-configuration"):
            body = json.dumps(DISCOVERY).encode()
        elif self.path == "/jwks":
            body = json.dumps(KEYS).encode()
        elif self.path.startswith("/token/"):
            body = token(self.path.removeprefix("/token/"))
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
