#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# inside.sh CHECKOUT SHARE PHASE...: what the virtual machine runs. The checkout is read-only here; SHARE is not, and
# outlives the machine. The last lines that it writes say how each phase ended.
set -u
readonly CHECKOUT=$1 SHARE=$2
shift 2
export PATH=$PATH:/usr/sbin:/sbin PYTHONDONTWRITEBYTECODE=1
cd "$CHECKOUT"

mount -t bpf bpf /sys/fs/bpf
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /var/lib/reconciler /run/netns "$SHARE/state"
mount --bind "$SHARE/state" /var/lib/reconciler
mount --make-rshared /

# systemd as the first process of its own process namespace; it runs nothing but what is asked of it.
start_systemd() {
    mkdir -p /run/systemd/system/reconciler.service.d
    cp deploy/systemd/reconciler.service /run/systemd/system/
    printf '[Service]\nExecStart=\nExecStart=%s run\nWatchdogSec=30s\nTimeoutStartSec=15min\nStandardOutput=append:%s\nStandardError=append:%s\n' \
        "$CHECKOUT/.venv/bin/reconciler" "$SHARE/agent.jsonl" "$SHARE/agent.err" >/run/systemd/system/reconciler.service.d/vm.conf
    printf '[Unit]\nDefaultDependencies=no\n' >/run/systemd/system/vm.target
    env -i container=vm PATH="$PATH" unshare --fork --pid --mount-proc \
        /lib/systemd/systemd --system --unit=vm.target --log-target=console --log-level=warning &
    # It answers only who is in its process namespace.
    until enter=(nsenter -p -m -t "$(pgrep -P $!)") && "${enter[@]}" systemctl show -P Version >/dev/null 2>&1; do sleep 0.5; done
}

enter=()
for phase in "$@"; do
    [[ $phase == again ]] && start_systemd
    "${enter[@]}" env -C "$CHECKOUT" .venv/bin/python -m tests.vm.story "$phase" "$SHARE"
    code=$?
    echo "vm-result: $(uname -r) $phase exit $code" | tee -a "$SHARE/results"
done
sync
