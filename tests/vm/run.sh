#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# run.sh [SUITE...]: boot the kernels of Debian suites in QEMU, without KVM, on this root file system (read-only), and
# play tests/vm/story.py in each, one boot for each phase: `first`, an apply and its upgrade with packets; `again`, a real
# reboot without the Git server, under systemd. PHASES='first again conformance' adds promises of the kernel protocol,
# PHASES=again goes on from what `first` left.
# Everything that is downloaded or written lies below build/vm. Needs root for Debian packages only; a quarter of an hour
# for each kernel.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly CACHE=$PWD/build/vm VIRTME_NG=virtme-ng==1.42
readonly -a DEBIAN_PACKAGES=(qemu-system-x86 busybox-static kmod systemd-sysv)
readonly SECONDS_FOR_A_BOOT=3000 PHASES=${PHASES:-first again}
(($#)) || set -- bookworm bookworm-backports sid

missing=()
for package in "${DEBIAN_PACKAGES[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
if ((${#missing[@]})); then
    echo "test-kernels: installing ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
fi
if [[ ! -x $CACHE/venv/bin/vng ]]; then
    mkdir -p "$CACHE"
    /usr/bin/python3 -m venv "$CACHE/venv"
    "$CACHE/venv/bin/pip" --quiet --disable-pip-version-check install "$VIRTME_NG"
fi
export PATH=$CACHE/venv/bin:$PATH

boot() {  # SUITE SHARE LOG PHASE...
    local kernel
    kernel=$(tests/vm/kernel.sh "$1" "$CACHE")
    timeout "$SECONDS_FOR_A_BOOT" vng --disable-kvm -v -r "$kernel" --user root --memory 2G --cpus 2 --force-9p \
        --rwdir="$2" -- bash "$PWD/tests/vm/inside.sh" "$PWD" "$2" "${@:4}" 2>&1 </dev/null | cat >>"$3"  # the machine's console would empty a file that it writes itself
}

status=0
for suite in "$@"; do
    share=$CACHE/share-$suite log=$CACHE/$suite.log
    [[ " $PHASES " != *" first "* ]] || rm -rf "$share" "$log"
    mkdir -m 0755 -p "$share"
    rm -f "$share/results"
    for phase in $PHASES; do boot "$suite" "$share" "$log" "$phase" || true; done
    cat "$share/results" 2>/dev/null || true
    for phase in $PHASES; do
        grep -q " $phase exit 0\$" "$share/results" 2>/dev/null || { echo "test-kernels: $suite: $phase failed, see $log" >&2; status=1; }
    done
done
exit "$status"
