"""Runs what is not finished of zero-shot CLIP, CoOp, CoCoOp and PLOT on one dataset, and prints them side by side.

Behind ``compare.sh``. Every mistake, a mixture of backbones or epochs too, is found before anything runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from runs.process import before_imports

    before_imports()

from dassl.extras.cli import Parser, guarded
from dassl.utils import UserError
from experiments.jobs import Job, finish, positive_integers
from experiments.recipes import BACKBONES, METHODS, methods, own_options, recipe
from experiments.tables import cost, significance
from experiments.tables.render import Section, Table, number
from experiments.tables.results import Cell, Run, check_unmixed
from experiments.tables.suite import SHOWN
from experiments.tables.variants import compare_cells
from runs.command_line import build_parser
from runs.config import setup_cfg
from runs.directory import shorten, spell
from runs.result import load_result

ONE_RUN = "zero-shot CLIP has no seeds: one run, no deviation and no test over seeds"
ONE_SEED = "fewer than two seeds: no deviation, no interval"
NO_BASELINE = "CoOp is not among TRAINERS"
BASELINE = "CoOp"


def chosen_methods() -> list[str]:
    """TRAINERS, all four by default; UserError if it names none, or one that is no method."""
    text = os.environ.get("TRAINERS") or " ".join(METHODS)
    if not (chosen := methods(text)):
        raise UserError(f"TRAINERS is '{text}'; it must name some of {', '.join(METHODS)}")
    return chosen


def jobs_of(trainers: Sequence[str], dataset: str, shots: int, opts: Sequence[str]) -> list[Job]:
    """A job a method, by CFG or BACKBONE and the recipe; without either all methods are on one backbone.

    Raises:
        UserError: an odd KEY VALUE pair or a mistake in one of them.
    """
    if len(opts) % 2:
        raise UserError(f"KEY VALUE pairs expected, '{opts[-1]}' has no value")
    cfg, backbone = os.environ.get("CFG", ""), os.environ.get("BACKBONE", "")
    if cfg in BACKBONES:
        cfg, backbone = "", cfg
    jobs = []
    for trainer in trainers:
        config, pairs = recipe(trainer, dataset, shots, cfg, backbone or "rn50")
        jobs.append(Job(trainer, dataset, shots, config, pairs, own_options(trainer, list(opts))))
    return jobs


def check_configs(jobs: Sequence[Job]) -> None:
    """Raises UserError if the jobs are on different backbones: what ``check_unmixed`` finds later, before the runs."""
    names = {}
    for job in jobs:
        cfg, _ = setup_cfg(build_parser().parse_args(job.arguments(job.seeds[0])))
        names[job.trainer] = cfg.MODEL.BACKBONE.NAME
    if len(set(names.values())) > 1:
        named = ", ".join(f"{trainer} on {name}" for trainer, name in names.items())
        raise UserError(f"mixed backbones: {named}; set BACKBONE, or allow it with --mixed")


def finished(directory: Path) -> Run:
    path = directory / "result.json"
    return Run(path, load_result(path))


def build(jobs: Sequence[Job], directories: Sequence[Sequence[Path]], mixed: bool, name: str, title: str) -> Table:
    """The table of finished jobs.

    Raises:
        UserError: the runs are of mixed backbones or epochs, and ``mixed`` is off.
    """
    cells = {job.trainer: Cell(tuple(map(finished, folders))) for job, folders in zip(jobs, directories, strict=True)}
    table = Table(name, title)
    used = [run for cell in cells.values() for run in cell.runs]
    table.notes += [f"Mixed, as asked for: {text}." for text in check_unmixed(used, mixed)]
    rows = [_row(table, trainer, cell, cells.get(BASELINE)) for trainer, cell in cells.items()]
    headers = ["method", "accuracy (%)", "std", "95% interval", "diff. to CoOp", "paired t-test p"]
    headers += ["McNemar p, by seed", "learned parameters", "step (ms)", "peak memory (MB)"]
    table.sections.append(Section("", headers, rows))
    seeds = " ".join(str(seed) for seed in max((job.seeds for job in jobs), key=len))
    table.notes.append(
        f"Seeds {seeds}. Standard deviation with n - 1; the 95% interval is Student's, for the mean. Tests are "
        "two-sided, against CoOp: paired t over the seeds; McNemar over the test images, one p a seed (exact below 25 "
        "discordant images, else chi-squared with continuity correction). Step: median, loading apart. Memory: the "
        "most that the process has held or, on a GPU, its tensors; compare only what ran on one machine."
    )
    return table


def _row(table: Table, trainer: str, cell: Cell, baseline: Cell | None) -> list[str]:
    values = list(cell.by_seed.values())
    half = significance.half_width(values)
    why = ONE_RUN if trainer == "ZeroshotCLIP" else ONE_SEED
    spread = (
        [table.dash(why)] * 2
        if half is None or cell.mean is None
        else [number(cell.std), f"{cell.mean - half:.2f} to {cell.mean + half:.2f}"]
    )
    more: dict[str, Any] = {"half_interval": half}
    if trainer == BASELINE:
        against = ["–"] * 3
    elif baseline is None:
        against = [table.dash(NO_BASELINE)] * 3
    elif trainer == "ZeroshotCLIP" and cell.mean is not None and baseline.mean is not None:
        text, numbers = compare_cells(table, cell, baseline, ONE_RUN)
        numbers["difference_to_base"] = cell.mean - baseline.mean
        against = [number(cell.mean - baseline.mean, signed=True), *text[1:]]
        more |= numbers
    else:
        against, numbers = compare_cells(table, cell, baseline)
        more |= numbers
    costs = {key: cost.mean_of(list(cell.runs), key) for key in ("parameters", "step_ms", "memory_mb")}
    shown = cost.cost_row(table, list(cell.runs))
    by_key = dict(zip(cost.COLUMNS, shown, strict=False))
    table.records.append(
        {"method": trainer, "mean": cell.mean, "std": cell.std, "runs": len(cell.runs), **more, **costs}
    )
    return [SHOWN.get(trainer, trainer), number(cell.mean), *spread, *against, *(by_key[key] for key in costs)]


def run(args: argparse.Namespace) -> None:
    trainers = chosen_methods()
    shots = positive_integers(args.shots, "SHOTS")
    if len(shots) != 1:
        raise UserError(f"SHOTS is '{args.shots}'; it must be one positive integer")
    jobs = jobs_of(trainers, args.dataset, shots[0], args.opts)
    for job in jobs:
        job.directories()
    if not args.mixed:
        check_configs(jobs)
    directories = []
    for job in jobs:
        print(f"{job.trainer}, config {job.config}", flush=True)
        directories.append(finish(job))
    extra = "".join(f"_{k}{spell(v)}" for k, v in zip(args.opts[::2], args.opts[1::2], strict=True))
    name = shorten(f"compare_{args.dataset}_{shots[0]}shots{extra}")
    title = f"{args.dataset}, {shots[0]} shots" + (f", {' '.join(args.opts)}" if args.opts else "")
    table = build(jobs, directories, args.mixed, name, title)
    print(f"\n{table.markdown()}")
    out = Path(os.environ.get("OUT") or "output")
    print("Written: " + ", ".join(str(path) for path in table.write(out)))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="experiments.compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("--mixed", action="store_true", help="allow different backbones or epochs")
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("shots", metavar="SHOTS")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return guarded(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
