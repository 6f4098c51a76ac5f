# SPDX-License-Identifier: Apache-2.0
# A whole sigstore on loopback, to be sourced: `stack_up FOLDER` and `stack_down`.
# Issuers on 18001 and 18011, Fulcio 18002, Rekor v2 18003, timestamp authority 18004, certificate transparency log 18005.
# Needs BIN (folder with cosign, fulcio, posix = rekor-server, timestamp-server) and PY (a python with cryptography).
# Leaves FOLDER/signing-config.json and FOLDER/trusted-root.json.
START=2026-01-01T00:00:00Z
STACK_PIDS=()

wait_for() {
    for _ in $(seq 100); do curl -sf "$1" >"$2" && return; sleep 0.1; done
    echo "stack: no answer from $1" >&2
    return 1
}

stack_up() {
    mkdir -p "$1"
    pushd "$1" >/dev/null
    openssl genpkey -algorithm ed25519 -out rekor.pem
    openssl pkey -in rekor.pem -pubout -out rekor.pub
    openssl ecparam -genkey -name prime256v1 -noout | openssl pkcs8 -topk8 -passout pass:x -out ca.key
    openssl req -x509 -new -key ca.key -passin pass:x -subj "/O=test/CN=ca" -days 36500 -out ca.pem \
        -addext "keyUsage=critical,keyCertSign,cRLSign" 2>/dev/null
    "$PY" "$HERE/issuer.py" 18001 & STACK_PIDS+=($!)
    "$PY" "$HERE/issuer.py" 18011 & STACK_PIDS+=($!)
    "$PY" "$HERE/ctlog.py" 18005 ct.pub & STACK_PIDS+=($!)
    "$BIN/posix" serve --http-port 18003 --grpc-port 18013 --http-metrics-port 18023 --storage-dir rekor \
        --signer-filepath rekor.pem --hostname 127.0.0.1 --checkpoint-interval 1s >rekor.log 2>&1 & STACK_PIDS+=($!)
    "$BIN/timestamp-server" serve --host 127.0.0.1 --port 18004 --timestamp-signer memory --disable-ntp-monitoring \
        >tsa.log 2>&1 & STACK_PIDS+=($!)
    for _ in $(seq 50); do [ -s ct.pub ] && break; sleep 0.1; done
    "$BIN/fulcio" serve --ca fileca --fileca-cert ca.pem --fileca-key ca.key --fileca-key-passwd x --fileca-watch=false \
        --ct-log-url http://127.0.0.1:18005 --ct-log-public-key-path ct.pub --config-path "$HERE/fulcio.yaml" \
        --host 127.0.0.1 --port 18002 --grpc-host 127.0.0.1 --grpc-port 18012 --metrics-port 18022 >fulcio.log 2>&1 & STACK_PIDS+=($!)
    wait_for http://127.0.0.1:18002/api/v1/rootCert fulcio.pem
    wait_for http://127.0.0.1:18004/api/v1/timestamp/certchain tsa.pem
    wait_for http://127.0.0.1:18011/jwks jwks.json
    "$BIN/cosign" signing-config create \
        --fulcio="url=http://127.0.0.1:18002,api-version=1,start-time=$START,operator=t" \
        --rekor="url=http://127.0.0.1:18003,api-version=2,start-time=$START,operator=t" --rekor-config=ANY \
        --tsa="url=http://127.0.0.1:18004/api/v1/timestamp,api-version=1,start-time=$START,operator=t" --tsa-config=ANY \
        --oidc-provider="url=http://127.0.0.1:18001,api-version=1,start-time=$START,operator=t" --out signing-config.json
    "$BIN/cosign" trusted-root create \
        --fulcio="url=http://127.0.0.1:18002,certificate-chain=fulcio.pem,start-time=$START" \
        --rekor="url=http://127.0.0.1:18003,public-key=rekor.pub,start-time=$START,origin=127.0.0.1" \
        --ctfe="url=http://127.0.0.1:18005,public-key=ct.pub,start-time=$START" \
        --tsa="url=http://127.0.0.1:18004/api/v1/timestamp,certificate-chain=tsa.pem,start-time=$START" --out trusted-root.json
    popd >/dev/null
}

stack_down() {
    kill "${STACK_PIDS[@]}" 2>/dev/null || true
    wait "${STACK_PIDS[@]}" 2>/dev/null || true
    STACK_PIDS=()
}
