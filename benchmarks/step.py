"""Time and peak memory of a training step, ours against the plain computation.

    python -m benchmarks.step [--trainers PLOT COOP COCOOP] [--batch 8] [--repeats 2] [--threads 2]
        [--device cuda --prec fp16] [--json FILE]

RN50 with random weights, the 100 class names of Caltech-101, N = 4, 16 context tokens, a batch that is in
memory; CoCoOp at batch 1 unless --cocoop-batch says more: then the plain side still takes one image a step,
since it keeps some 5 GB for each, and its seconds are counted for as many. Each side (`benchmarks.sides`) lives in a
process of its own, so that the operating system tells its peak memory; they take turns, and only one runs at a time.
Medians; the quartiles, and our step's seconds by part, are in the JSON and with --parts in a second table, where
"loading" is a batch from the training loader without workers (`benchmarks.image_loading`): with workers it goes on
beside the step.
--amp adds our step under amp. The plain PLOT step takes about a minute and 13 GB; --no-plain leaves it out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.image_loading import rates
from benchmarks.sides import METHODS, N_CTX, Setting
from benchmarks.turns import PARTS, parse, parser_of, take_turns

OURS_PER_PLAIN = 6  # our steps after each plain one: ours are many times shorter, and the first ones a little slow
HEADERS = {
    "trainer": "trainer", "batch": "batch", "plain_s": "plain s", "ours_s": "ours s", "amp_s": "amp s",
    "floor_s": "floor s", "times_faster": "times faster", "amp_times_faster": "amp times faster",
    "times_floor": "ours/floor", "plain_gb": "plain GB", "ours_gb": "ours GB", "memory_share": "memory ratio",
}  # fmt: skip


def measure(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of interleaved steps, after one step of each side that is not counted."""
    batch = options.cocoop_batch if method == "COCOOP" else options.batch
    setting = Setting.of(options, method, batch)
    names = [*([] if options.no_plain else ["plain"]), "ours", *(["amp"] if options.amp else []), "floor"]
    times = [1 if name == "plain" else OURS_PER_PLAIN for name in names]
    plain = dataclasses.replace(setting, batch=1) if method == "COCOOP" else setting
    amp = dataclasses.replace(setting, prec="amp")
    settings = [(name, {"plain": plain, "amp": amp}.get(name, setting)) for name in names]
    steps = take_turns(settings, times, options.repeats, options.clock)
    sides = dict(zip(names, steps, strict=True))
    row: dict[str, Any] = {"trainer": method, "batch": batch}
    row |= {f"{name}_s": side.median() for name, side in sides.items()}
    if "plain" in sides:
        row["plain_s"] *= batch / plain.batch
    row |= {f"{name}_gb": side.peak / 1e9 for name, side in sides.items() if name != "floor"}
    row["times_floor"] = row["ours_s"] / row["floor_s"]
    if "plain" in sides:
        row["times_faster"] = row["plain_s"] / row["ours_s"]
        row["memory_share"] = sides["ours"].peak / sides["plain"].peak
        if options.amp:
            row["amp_times_faster"] = row["plain_s"] / row["amp_s"]
    row["quartiles"] = {name: side.quartiles() for name, side in sides.items()}
    row["parts"] = {part: sides["ours"].median(part) for part in PARTS}
    if options.parts:
        (rate,) = rates(max(64, 4 * batch), batch, [0])
        row["parts"] = {"loading": batch / rate["images a second"], **row["parts"]}
    row["steps"] = {name: side.steps for name, side in sides.items()}
    return row


def main() -> None:
    parser = parser_of(__doc__, repeats=2)  # a round: one plain step and OURS_PER_PLAIN of the others
    add = parser.add_argument
    add("--trainers", nargs="+", choices=METHODS, default=list(METHODS))
    add("--batch", type=int, default=8, help="images a step of PLOT and CoOp")
    add("--cocoop-batch", type=int, default=1, help="images a step of CoCoOp")
    add("--amp", action="store_true", help="also our step under amp")
    add("--parts", action="store_true", help="also a table of our step's parts")
    add("--no-plain", action="store_true", help="ours and the floor alone")
    options = parse(parser)
    rows = [measure(method, options) for method in options.trainers]
    setting, others = Setting.of(options, "PLOT", 1).about, options.repeats * OURS_PER_PLAIN
    print(f"{setting}, 100 classes, {N_CTX} context tokens, N = 4 in PLOT, {options.clock} clock, medians of "
          f"{options.repeats} plain and {others} other steps")  # fmt: skip
    columns = [key for key in HEADERS if any(key in row for row in rows)]
    print(tabulate([[row.get(key) for key in columns] for row in rows], [HEADERS[key] for key in columns], "pipe",
                   floatfmt=".3g"))  # fmt: skip
    if options.parts:
        print("\nOur step's seconds by part:")
        parts = [[row["trainer"], row["batch"], *row["parts"].values()] for row in rows]
        print(tabulate(parts, ["trainer", "batch", "loading", *PARTS], "pipe", floatfmt=".3g"))
    if options.json:
        about = {"torch": torch.__version__, **vars(options)}
        Path(options.json).write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
