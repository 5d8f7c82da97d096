"""How the cost of a training step grows: with the classes, the prompts a class, the local features and the batch.

    python -m benchmarks.growth [--axes classes n local batch] [--batch 8] [--repeats 3] [--threads 2]
        [--device cuda --prec fp16] [--json FILE]

PLOT on RN50 with random weights, ImageNet's class names, 16 context tokens. One axis moves, the others stay at 100
classes, N = 4, 49 local features and --batch. Each point is a child process, whose first step is not counted. The
exponent b of seconds ~ x^b is a least-squares fit from an axis's second point on (of two points, through both) to the
parts that the axis moves: all but the image encoder for classes and N, the head and OT for the local features, the
whole step for the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.report import save, show
from benchmarks.sides import Setting
from benchmarks.turns import PARTS, parse, parser_of, take_turns

POINTS = {
    "classes": (10, 100, 1000),
    "n": (1, 2, 4, 8),
    "local": (49, 196),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256),
}
MOVES: dict[str, Sequence[str]] = {
    "classes": PARTS[1:],
    "n": PARTS[1:],
    "local": ("ot", "head", "head_back"),
    "batch": PARTS,
}


def at(setting: Setting, axis: str, x: int) -> Setting:
    """The setting with ``axis`` at x. A picture of ``side`` pixels has (side / 32)^2 local features."""
    moved: dict[str, Any] = {"side": 32 * math.isqrt(x)} if axis == "local" else {axis: x}
    return replace(setting, **moved)


def exponent(xs: Sequence[float], seconds: Sequence[float]) -> float:
    """b of seconds ~ x^b, by least squares in logarithms."""
    return float(np.polyfit(np.log(xs), np.log(seconds), 1)[0])


def main() -> None:
    parser = parser_of(__doc__, repeats=3)
    parser.add_argument("--axes", nargs="+", choices=POINTS, default=list(POINTS))
    options = parse(parser)
    setting = Setting.of(options, "PLOT", classes=100)
    print(f"PLOT, {setting.about}, batch {options.batch}, medians of {options.repeats}")
    axes = []
    for axis in options.axes:
        rows = []
        for x in POINTS[axis]:
            side = take_turns({"ours": at(setting, axis, x)}, options.repeats)["ours"]
            parts = {part: side.median(part) for part in PARTS}
            moved = sum(parts[part] for part in MOVES[axis])
            rows.append({axis: x, "total": side.median(), **parts, "moved": moved, "gb": side.peak / 1e9})
        fitted = rows if len(rows) < 3 else rows[1:]
        b = exponent([row[axis] for row in fitted], [row["moved"] for row in fitted])
        show(f"{axis}: exponent {b:.2f}", rows)
        axes.append({"axis": axis, "rows": rows, "exponent": b})
    save(options, axes=axes)


if __name__ == "__main__":
    main()
