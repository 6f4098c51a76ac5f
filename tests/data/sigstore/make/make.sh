#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the bundles of this folder with the real clients and servers (../README.md says which versions and how to get them).
# Usage: BIN=FOLDER PY=PYTHON make.sh; it writes next to itself, to the folder above, and ends what it started.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
OUT=$(dirname "$HERE")
WORK=$(mktemp -d)
. "$HERE/stack.sh"
trap 'stack_down; rm -rf "$WORK"' EXIT
trap 'cat "$WORK/cosign.log" >&2' ERR
export COSIGN_PASSWORD=x HOME="$WORK" TUF_ROOT="$WORK/tuf"

printf 'what the bundles of this folder are about\n' >"$OUT/artifact.txt"

keyless() { # STACK IDENTITY ISSUER_PORT BUNDLE
    "$BIN/cosign" sign-blob --yes --signing-config "$1/signing-config.json" --trusted-root "$1/trusted-root.json" \
        --identity-token "$(curl -sf "http://127.0.0.1:$3/token/$2")" --bundle "$4" "$OUT/artifact.txt" >>"$WORK/cosign.log" 2>&1
}

keys() {
    (cd "$WORK" && "$BIN/cosign" generate-key-pair --output-key-prefix p256 2>/dev/null)
    (cd "$WORK" && openssl genpkey -algorithm ed25519 -out ed25519.pem && "$BIN/cosign" import-key-pair --key ed25519.pem --output-key-prefix ed25519 2>/dev/null)
    cp "$WORK/p256.pub" "$OUT/key-p256.pub"
    cp "$WORK/ed25519.pub" "$OUT/key-ed25519.pub"
}

with_key() { # KEY BUNDLE: no log, no timestamp
    "$BIN/cosign" sign-blob --yes --key "$WORK/$1.key" --use-signing-config=false --tlog-upload=false --bundle "$2" "$OUT/artifact.txt" >>"$WORK/cosign.log" 2>&1
}

with_key_and_log() { # STACK KEY BUNDLE
    "$BIN/cosign" sign-blob --yes --key "$WORK/$2.key" --signing-config "$1/signing-config.json" --trusted-root "$1/trusted-root.json" \
        --bundle "$3" "$OUT/artifact.txt" >>"$WORK/cosign.log" 2>&1
}

keys
with_key p256 "$OUT/key-p256.sigstore.json"
with_key ed25519 "$OUT/key-ed25519.sigstore.json"

stack_up "$WORK/one"
# The very first entry of a log: protobuf JSON leaves out its logIndex 0 and its empty list of hashes.
keyless "$WORK/one" alice@example.org 18001 "$OUT/alice-first-entry.sigstore.json"
keyless "$WORK/one" alice@example.org 18001 "$OUT/alice.sigstore.json"
keyless "$WORK/one" bob@example.org 18001 "$OUT/bob.sigstore.json"
keyless "$WORK/one" alice@example.org 18011 "$OUT/alice-other-issuer.sigstore.json"
with_key_and_log "$WORK/one" p256 "$OUT/key-p256-log.sigstore.json"
"$BIN/cosign" attest-blob --yes --key "$WORK/p256.key" --signing-config "$WORK/one/signing-config.json" --trusted-root "$WORK/one/trusted-root.json" \
    --predicate "$OUT/key-p256.sigstore.json" --type custom --bundle "$OUT/key-p256-attestation.sigstore.json" "$OUT/artifact.txt" >>"$WORK/cosign.log" 2>&1
cp "$WORK/one/trusted-root.json" "$OUT/trusted-root.json"
stack_down

stack_up "$WORK/two"
keyless "$WORK/two" alice@example.org 18001 "$OUT/alice-other-stack.sigstore.json"
cp "$WORK/two/trusted-root.json" "$OUT/trusted-root-other-stack.json"
stack_down

# When it was made, because tests choose their own time; and what the timestamp authority made up for itself.
"$PY" - "$OUT" <<'PYTHON'
import base64, json, pathlib, sys
from cryptography import x509
from rfc3161_client import decode_timestamp_response

out = pathlib.Path(sys.argv[1])
stamps = json.loads((out / "alice.sigstore.json").read_bytes())["verificationMaterial"]["timestampVerificationData"]
stamp = decode_timestamp_response(base64.b64decode(stamps["rfc3161Timestamps"][0]["signedTimestamp"]))
authority = json.loads((out / "trusted-root.json").read_bytes())["timestampAuthorities"][0]["certChain"]["certificates"]
ends = min(x509.load_der_x509_certificate(base64.b64decode(each["rawBytes"])).not_valid_after_utc for each in authority)
made = {"at": stamp.tst_info.gen_time.isoformat(), "timestampAuthorityEnds": ends.isoformat()}
(out / "made.json").write_text(json.dumps(made, indent=2) + "\n")
PYTHON
chmod 644 "$OUT"/*.json "$OUT"/*.pub
