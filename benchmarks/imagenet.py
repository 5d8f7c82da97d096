"""A training step of PLOT at ImageNet's size: time, floor and peak memory.

    python -m benchmarks.imagenet [--batch 32] [--repeats 1] [--threads 2] [--device cuda --prec fp16] [--json FILE]

RN50 with random weights, ImageNet's 1,000 class names, N = 4, 16 context tokens, with the global logits, the
first steps of a process of its own (`benchmarks.turns`). The first step of each side is not counted, except by the
operating system's peak of memory.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.sides import Setting
from benchmarks.turns import PARTS, parse, parser_of, take_turns


def main() -> None:
    parser = parser_of(__doc__, repeats=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=1000)
    options = parse(parser)
    setting = Setting.of(options, "PLOT", options.batch, classes=options.classes, global_logits=True)
    sides = [("ours", setting), ("floor", setting)]
    ours, floor = take_turns(sides, [1, 1], options.repeats, options.clock)
    row = {"ours_s": ours.median(), "floor_s": floor.median(), "times_floor": ours.median() / floor.median(),
           "ours_gb": ours.peak / 1e9, **{part: ours.median(part) for part in PARTS}}  # fmt: skip
    print(f"PLOT, {setting.about}, {options.classes} classes, N = 4, batch {options.batch}, {options.clock} clock, "
          f"median of {options.repeats}")  # fmt: skip
    print(tabulate([row], "keys", "pipe", floatfmt=".3g"))
    if options.json:
        about = {"torch": torch.__version__, **vars(options)}
        steps = {"ours": ours.steps, "floor": floor.steps}
        Path(options.json).write_text(json.dumps({**about, **row, "steps": steps}, indent=1) + "\n")


if __name__ == "__main__":
    main()
