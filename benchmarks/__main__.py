# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks [KEY ...] [--rounds N] [--scale X]` prints a table and writes benchmarks/results.json.

That file is a list of {name, ours, baseline, unit, ratio, target, holds}. Everything happens in namespaces, folders and
pin directories of its own, which are removed; only `rcu_expedited` belongs to the whole machine while it is switched.
"""

from __future__ import annotations

import argparse
import compileall
import json
import sys
from pathlib import Path

from benchmarks import agent, kernel, review
from benchmarks._compare import HEADER, Comparison, Options

MEASURES = (*kernel.MEASURES, *agent.MEASURES, *review.MEASURES)
RESULTS = Path(__file__).parent / "results.json"
CODE = Path(__file__).parents[1] / "reconciler"


def main() -> int:
    keys = {measure.key: measure for measure in MEASURES}
    parser = argparse.ArgumentParser(prog="benchmarks/run", description="measure, beside a baseline in the same run")
    names = "; ".join(f"{key}: {measure.what}" for key, measure in keys.items())
    parser.add_argument("keys", nargs="*", help=f"which ones (default: all). {names}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side runs")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the interfaces and passes, for a quick look")
    given = parser.parse_args()
    if unknown := sorted(set(given.keys) - keys.keys()):
        parser.error(f"expected {', '.join(keys)}, got {', '.join(unknown)}")
    # As pip does when it installs: otherwise the start of a command measures Python's compiler.
    compileall.compile_dir(CODE, quiet=1)
    options = Options(rounds=given.rounds, scale=given.scale)
    results: list[Comparison] = []
    for key in given.keys or keys:
        print(f"measuring {key}: {keys[key].what} …", file=sys.stderr, flush=True)
        for result in keys[key].run(options):
            print(result.line(), file=sys.stderr, flush=True)
            results.append(result)
    print(HEADER)
    for result in results:
        print(result.line())
    RESULTS.write_text(json.dumps([result.row() for result in results], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
