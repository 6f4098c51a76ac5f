# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.plot` draws benchmarks/scaling.json (from `benchmarks/run i`) into docs/scaling.svg.

Both axes are logarithmic; one panel for each comparison, ours and the baseline in milliseconds.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "benchmarks" / "scaling.json"
TARGET = ROOT / "docs" / "scaling.svg"

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 270, 60, 16, 34, 44
STYLES = {"ours": ("#1f5fa8", ""), "baseline": ("#888", "5 3")}


def panel(title: str, baseline: str, rows: dict[int, dict[str, float]], shift: int) -> str:
    """One comparison over the number of interfaces."""
    sizes = sorted(rows)
    values = [rows[size][side] for size in sizes for side in STYLES]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    first, last = math.log10(sizes[0]), math.log10(sizes[-1])

    def x(size: float) -> float:
        return shift + LEFT + (math.log10(size) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(value) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{shift + LEFT}" y="20" class="t">{title}</text>']
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(
            f'<line x1="{shift + LEFT}" x2="{shift + WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="g"/>'
            f'<text x="{shift + LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g} ms</text>'
        )
    parts += [
        f'<text x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{size:,}</text>' for size in sizes
    ]
    parts.append(f'<text x="{shift + WIDTH / 2 + 20}" y="{HEIGHT - 8}" text-anchor="middle">interfaces</text>')
    for side, (colour, dashes) in STYLES.items():
        points = " ".join(f"{x(size):.1f},{y(rows[size][side]):.1f}" for size in sizes)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
        )
        parts += [
            f'<circle cx="{x(size):.1f}" cy="{y(rows[size][side]):.1f}" r="3" fill="{colour}"/>' for size in sizes
        ]
        name = "reconciler" if side == "ours" else baseline
        line = TOP + 12 + 15 * list(STYLES).index(side)
        parts.append(f'<text x="{shift + LEFT + 8}" y="{line}" fill="{colour}">{name}</text>')
    return "".join(parts)


def main() -> int:
    found = {int(size): rows for size, rows in json.loads(SOURCE.read_text()).items()}
    attach = {size: rows[0] for size, rows in found.items()}
    idle = {size: rows[1] for size, rows in found.items()}
    body = panel("first attach, one XDP chain", "bare LINK_CREATE loop", attach, 0)
    body += panel("pass without changes, XDP and tc", "bpftool net, prog, link", idle, WIDTH)
    style = "text{font:12px sans-serif}.t{font-weight:bold}.g{stroke:#ddd}"
    TARGET.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" role="img">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
