# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks._passes CONFIG COUNT poll|drift [EVERY]`: passes of one process, and what they cost it.

Prints one JSON object: CPU milliseconds of a pass (this process and its children, the first pass not counted), and the
resident memory in KiB after the first pass, after every EVERY passes and at the end. No thread, no timer, no events:
only passes, so that ten thousand of them take minutes and not days.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from reconciler import reconcile
from reconciler.cli._compose import emit_nothing, open_parts
from reconciler.config import load_config


def resident() -> int:
    """KiB, as the kernel counts it."""
    for line in Path("/proc/self/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError


def spent() -> float:
    """CPU seconds of this process and of the children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    config, count, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    every = int(sys.argv[4]) if len(sys.argv) > 4 else count
    memory: list[int] = []
    with open_parts(load_config(config), emit=emit_nothing) as parts:
        for number in range(count + 1):
            if number == 1:
                before = spent()
            # As the agent's timer does: it asks first, and fetches only what is new.
            answer = reconcile.ask(parts.source, expecting=False) if kind == "poll" else None
            result = reconcile.Pass(parts, reconcile.Request(poll=kind == "poll", answer=answer)).run()
            assert result.status.reason in ("InSync", "Applied"), result.status
            if number % every == 0:
                memory.append(resident())
        after = spent()
    print(json.dumps({"cpu": 1000 * (after - before) / count, "memory": memory}))


if __name__ == "__main__":
    main()
