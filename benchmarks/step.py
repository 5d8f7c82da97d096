"""Time and peak memory of a training step, ours against the plain computation.

    python -m benchmarks.step [--trainers PLOT COOP COCOOP] [--batch 8] [--cocoop-batch 1] [--repeats 2] [--threads 2]
        [--parts] [--no-plain] [--classes 1000] [--stage 1] [--device cuda --prec fp16 --fused --whole]
        [--json FILE] [--backbone ViT-L/14]

RN50 or --backbone with random weights, N = 4, 16 context tokens (PLOTPP: ViT-B/16, 4, and M = 4 visual prompts), the
100 class names of Caltech-101 or, with --classes, the first of ImageNet's and the global logits. The batch is in
memory. The sides (`benchmarks.sides`) take turns, each in a child process; seconds are medians, memory is the child's
peak. The plain CoCoOp side takes one image a step, since it keeps 5 GB for each image; its seconds are multiplied by
the batch. On RN50 the
plain PLOT side takes about a minute and 13 GB a step; --no-plain leaves it out, and a round is then one step a side.
--parts adds our step's seconds by part; "loading" is a batch from the training loader without workers
(`benchmarks.image_loading`). PLOTPP's backward parts have the image tower's in them. All steps are in the JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any

import torch

from benchmarks.caltech_names import NAMES
from benchmarks.image_loading import rates
from benchmarks.report import parser_of, save, show
from benchmarks.sides import BACKBONES, METHODS, Setting
from benchmarks.turns import CLOCKS, PARTS, Side, take_turns
from trainers import plot

OURS_PER_PLAIN = 6  # ours are many times shorter


def measure(method: str, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Side]]:
    """A row of the table, and the sides behind it."""
    batch = options.cocoop_batch if method == "COCOOP" else options.batch
    setting = Setting.of(
        options, method, batch=batch, global_logits=options.classes is not None, fused=False, whole=False
    )
    plain = dataclasses.replace(setting, batch=1) if method == "COCOOP" else setting
    settings = {"ours": setting, "floor": setting} if options.no_plain else {
        "plain": plain, "ours": setting, "floor": setting}  # fmt: skip
    has_head = issubclass(METHODS[method].custom_clip, plot.CustomCLIP)
    if options.fused and has_head:
        settings["fused"] = dataclasses.replace(setting, fused=True)
    if options.whole:
        settings["whole"] = dataclasses.replace(setting, fused=has_head, whole=True)
    sides = take_turns(settings, options.repeats, 1 if options.no_plain else OURS_PER_PLAIN)
    ours, floor = sides["ours"], sides["floor"]
    row = {
        "trainer": method, "batch": batch, "ours s": ours.median(), "floor s": floor.median(),
        "ours/floor": ours.median() / floor.median(), "ours GB": ours.peak / 1e9,
    }  # fmt: skip
    for name in ("fused", "whole"):
        if name in sides:
            row |= {f"{name} s": sides[name].median(), f"{name} GB": sides[name].peak / 1e9}
    if "plain" in sides:
        seconds, peak = sides["plain"].median() * batch / plain.batch, sides["plain"].peak
        row |= {"plain s": seconds, "times faster": seconds / ours.median(), "plain GB": peak / 1e9,
                "memory ratio": ours.peak / peak}  # fmt: skip
    return row, sides


def parse() -> argparse.Namespace:
    """The options. Impossible ones end the program with one line and exit code 2."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--batch", type=int, default=8, help="images a step")
    add("--repeats", type=int, default=2, help="rounds of steps")
    add("--threads", type=int, default=os.cpu_count())
    add("--clock", choices=CLOCKS, default="wall", help="cpu: CPU seconds of the side alone, for a busy machine")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--prec", choices=("fp32", "fp16", "amp", "bf16"), default="fp32", help="as TRAINER.PLOT.PREC; fp16 on a GPU")
    add("--fused", action="store_true", help="also ours with TRAINER.FUSED_HEAD, where the method has it")
    add("--whole", action="store_true", help="also ours with TRAINER.WHOLE_STEP_GRAPH, and FUSED_HEAD likewise")
    add("--no-graphs", action="store_true", help="TRAINER.CUDA_GRAPHS False")
    add("--tiny", action="store_true", help="a toy CLIP: tries the program, measures nothing")
    add("--trainers", nargs="+", choices=METHODS, default=[node for node, kind in METHODS.items() if kind.colour])
    add("--backbone", choices=BACKBONES, default="", help="default: RN50; PLOTPP: ViT-B/16")
    add("--stage", type=int, choices=(1, 2), default=2, help="of PLOTPP")
    add("--cocoop-batch", type=int, default=1, help="images a step of CoCoOp")
    add("--classes", type=int, help="so many of ImageNet's, in place of the 100 of Caltech-101")
    add("--parts", action="store_true", help="also a table of our step's parts")
    add("--no-plain", action="store_true", help="ours and the floor alone")
    options = parser.parse_args()
    for name, value in vars(options).items():
        if type(value) is int and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be 1 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if options.device == "cpu" and (options.fused or options.whole):
        parser.error(
            f"--{'fused' if options.fused else 'whole'} needs --device cuda: elsewhere the step is the plain one"
        )
    if options.device == "cpu" and options.prec == "fp16":
        parser.error("--prec fp16 needs --device cuda: on a CPU training computes in fp32 instead")
    return options


def main() -> None:
    options = parse()
    rows, parts, steps = [], [], []
    for method in options.trainers:
        row, sides = measure(method, options)
        rows.append(row)
        about = {"trainer": method, "batch": row["batch"], "classes": options.classes or len(NAMES)}
        parts.append({**about, **{part: sides["ours"].median(part) for part in PARTS}})
        steps.append({name: side.steps for name, side in sides.items()})
        if options.parts:
            (rate,) = rates(max(64, 4 * row["batch"]), row["batch"], [0])
            parts[-1]["loading"] = row["batch"] / rate["images a second"]
    classes = f"{options.classes or len(NAMES)} classes"
    show(f"{Setting.of(options, options.trainers[0]).about}, {classes}, medians of {options.repeats} rounds", rows)
    if options.parts:
        show("Our step's seconds by part:", parts)
    save(options, rows=rows, parts=parts, steps=steps)


if __name__ == "__main__":
    main()
