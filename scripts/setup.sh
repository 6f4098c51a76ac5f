#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes this checkout ready to use: Debian packages, .venv with the locked and hash-checked dependencies, and
# .venv/bin/reconciler. Safe to run at any time; when nothing is missing it takes a fraction of a second.
#
# The virtual environment is made from Debian's own Python, whatever other one comes first in PATH, because it must
# see python3-bpfcc (module bcc), which exists for that interpreter only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly PYTHON=${RECONCILER_PYTHON:-/usr/bin/python3}
readonly VENV=.venv
readonly STAMP=$VENV/.setup-stamp
readonly DEBIAN_PACKAGES=(
    clang llvm libbpf1 libbpf-dev bpftool linux-libc-dev libc6-dev gcc make  # compiling bpf/ and the test probe
    python3 python3-venv python3-pip python3-bpfcc                           # the agent's Python
    git openssh-client openssh-server iproute2                               # the source, the tests' servers and namespaces
    apache2-bin                                                              # the tests' web server; brings no service
    xdp-tools                                                                # a neighbour in the tests: xdp-loader, libxdp's dispatcher
)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

missing_packages() {
    local name status
    for name in "${DEBIAN_PACKAGES[@]}"; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) || status=absent
        [[ $status == installed ]] || printf '%s\n' "$name"
    done
}

install_packages() {
    command -v dpkg-query >/dev/null ||
        die "expected Debian or a derivative (dpkg-query); install by hand what these packages hold: ${DEBIAN_PACKAGES[*]}"
    local -a missing
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || die "Debian packages are missing and only root may install them; run: sudo apt-get install ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    # The tests start an sshd of their own on loopback; installing it must not open this machine to the network.
    if [[ " ${missing[*]} " == *" openssh-server "* ]] && command -v systemctl >/dev/null; then
        say "masking ssh.service, so that openssh-server does not start (undo: systemctl unmask ssh.service ssh.socket)"
        systemctl --quiet mask ssh.service ssh.socket
    fi
    local -a apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
    # The package lists may be old or absent; they are fetched only when it does not work without.
    if ! "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null 2>&1; then
        say "updating the Debian package lists"
        "${apt[@]}" update </dev/null
        "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
    fi
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]} == 0)) || die "expected these Debian packages to be installed, still missing: ${missing[*]}"
}

# What the environment is a function of: of pyproject.toml that is what comes before the first [tool.*] table. A moved
# checkout needs a new one, because the scripts in .venv/bin name their place. Count LAYOUT up when this script changes
# what it makes.
readonly LAYOUT=1
fingerprint() {
    { echo "$LAYOUT"; pwd -P; readlink -f "$PYTHON"; "$PYTHON" -V; sed '/^\[tool\./,$d' pyproject.toml; cat requirements.lock; } | sha256sum
}

is_current() {
    [[ -x $VENV/bin/python && -x $VENV/bin/reconciler && -f $STAMP && $(<"$STAMP") == "$(fingerprint)" ]]
}

make_venv() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "expected Python 3.11 or newer, got $("$PYTHON" -V) at $PYTHON"
    rm -f "$STAMP"
    say "making $VENV with $("$PYTHON" -V) from $PYTHON"
    # First without sight of the system's packages: Debian's older copies of what we lock (PyYAML, cryptography)
    # must never count as installed.
    "$PYTHON" -m venv --clear "$VENV"
    local -a pip=("$VENV/bin/python" -m pip --disable-pip-version-check --quiet --no-input)
    say "installing the locked dependencies, hashes checked ($(grep -c '^[a-z].*==' requirements.lock) packages)"
    "${pip[@]}" install --require-hashes --no-deps -r requirements.lock
    say "installing the reconciler itself (editable)"
    "${pip[@]}" install --no-deps --no-build-isolation -e .
    "${pip[@]}" check
    # Now let it see Debian's python3-bpfcc; what is in .venv itself comes first.
    "$PYTHON" -m venv --system-site-packages --without-pip "$VENV"
    "$VENV/bin/python" scripts/check_lock.py requirements.lock
    fingerprint >"$STAMP.new"
    mv "$STAMP.new" "$STAMP"
}

install_packages
if ! is_current; then
    exec 9>.setup.lock
    flock 9  # two of these at once would build on each other's ruins
    is_current || make_venv
fi
say "ready: $VENV/bin/reconciler"
