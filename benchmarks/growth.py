"""How the cost of a training step grows: with the classes, the prompts a class, the local features and the batch.

    python -m benchmarks.growth [--axes classes n local batch] [--batch 8] [--repeats 3] [--threads 2]
        [--device cuda --prec fp16] [--json FILE]

PLOT on RN50 with random weights, ImageNet's class names, 16 context tokens; one axis moves, the others stay
at 100 classes, N = 4, 49 local features and --batch. Each point is a process of its own; one step is not counted. The
exponent b of seconds ~ x^b is fitted by least squares from the second point of an axis on, to what the axis moves:
everything but the image encoder for classes and N, the head and OT for the local features, the whole step for the
batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.sides import Setting
from benchmarks.turns import PARTS, parse, parser_of, take_turns

POINTS = {
    "classes": (10, 100, 1000),
    "n": (1, 2, 4, 8),
    "local": (49, 196),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256),
}
MOVES: dict[str, Sequence[str]] = {
    "classes": [part for part in PARTS if part != "image"],
    "n": [part for part in PARTS if part != "image"],
    "local": ["ot", "head", "head_back"],
    "batch": PARTS,
}


def at(setting: Setting, axis: str, x: int) -> Setting:
    """The setting with its axis at x; local features by the pictures' side, (side / 32)^2 of them."""
    if axis == "local":
        return replace(setting, side=32 * math.isqrt(x))
    moved: dict[str, Any] = {axis: x}
    return replace(setting, **moved)


def exponent(xs: Sequence[float], seconds: Sequence[float]) -> float:
    """b of seconds ~ x^b, by least squares in logarithms."""
    u, v = [math.log(x) for x in xs], [math.log(s) for s in seconds]
    mean = sum(u) / len(u)
    return sum((a - mean) * b for a, b in zip(u, v, strict=True)) / sum((a - mean) ** 2 for a in u)


def measure(axis: str, setting: Setting, repeats: int, clock: str) -> dict[str, Any]:
    """Seconds and memory at each point, one point after the other: together they would not fit into memory."""
    rows = []
    for x in POINTS[axis]:
        (side,) = take_turns([("ours", at(setting, axis, x))], [1], repeats, clock)
        parts = {part: side.median(part) for part in PARTS}
        moved = sum(parts[part] for part in MOVES[axis])
        rows.append({axis: x, "total": side.median(), **parts, "moved": moved, "gb": side.peak / 1e9})
    fitted = rows if len(rows) < 3 else rows[1:]
    return {"axis": axis, "rows": rows, "exponent": exponent([r[axis] for r in fitted], [r["moved"] for r in fitted])}


def main() -> None:
    parser = parser_of(__doc__, repeats=3)
    parser.add_argument("--axes", nargs="+", choices=POINTS, default=list(POINTS))
    parser.add_argument("--batch", type=int, default=8)
    options = parse(parser)
    setting = Setting.of(options, "PLOT", options.batch, classes=100)
    print(f"PLOT, {setting.about}, batch {options.batch}, {options.clock} clock, medians of {options.repeats}")
    results = []
    for axis in options.axes:
        result = measure(axis, setting, options.repeats, options.clock)
        results.append(result)
        print(f"\n{axis}: exponent {result['exponent']:.2f}")
        print(tabulate(result["rows"], "keys", "pipe", floatfmt=".3g"), flush=True)
    if options.json:
        about = {"torch": torch.__version__, **vars(options)}
        Path(options.json).write_text(json.dumps({**about, "axes": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
