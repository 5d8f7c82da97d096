"""Runs what is not finished of several methods on one dataset, and prints them side by side.

Behind ``compare.sh``. Every mistake, a mixture of backbones or epochs too, is found before anything runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from runs.process import before_imports

    before_imports()

from dassl.extras.cli import Environment, Parser, guarded
from dassl.utils import UserError
from experiments.jobs import Job, finish, positive_integer, resolve
from experiments.recipes import BACKBONES, COMMON, label, method_of, named_methods, own_options, recipe
from experiments.tables import significance
from experiments.tables.by_shots import no_seeds
from experiments.tables.cost import costs
from experiments.tables.render import DASH, Section, Table, number
from experiments.tables.results import Cell, check_unmixed, finished
from experiments.tables.suite import BASELINE
from experiments.tables.variants import NOTE, compare_cells
from runs.directory import shorten, spell

ONE_SEED = "fewer than two seeds: no deviation, no interval"
NO_BASELINE = f"{BASELINE} is not among TRAINERS"
HEADERS = ["method", "accuracy (%)", "std", "95% interval", f"diff. to {BASELINE}", "paired t-test p"]
HEADERS += ["McNemar p, by seed", "learned parameters", "step (ms)", "peak memory (MB)"]


def jobs_of(
    trainers: Sequence[str], dataset: str, shots: int, opts: Sequence[str], environment: Environment
) -> list[Job]:
    """A job a method, by CFG or BACKBONE and the recipe; without either all methods are on one backbone.

    Raises:
        UserError: an odd KEY VALUE pair.
    """
    if len(opts) % 2:
        raise UserError(f"KEY VALUE pairs expected, '{opts[-1]}' has no value")
    cfg, backbone = environment.CFG, environment.BACKBONE
    if cfg in BACKBONES:
        cfg, backbone = "", cfg
    jobs = []
    for trainer in trainers:
        config, pairs = recipe(trainer, dataset, shots, cfg, backbone or COMMON)
        jobs.append(Job(trainer, dataset, shots, config, pairs, own_options(trainer, list(opts)), environment))
    return jobs


def train_all(jobs: Sequence[Job], mixed: bool) -> list[Cell]:
    """The finished runs of each job; every mistake in any of them is found before anything runs.

    Raises:
        UserError: a mistake, or the runs are of mixed backbones or epochs and ``mixed`` is off.
    """
    for job in jobs:
        job.directories()
    if not mixed:
        check_backbones(jobs)
    cells = []
    for job in jobs:
        print(f"{job.trainer} on {job.dataset}, config {job.config}", flush=True)
        cells.append(Cell(tuple(map(finished, finish(job)))))
    check_unmixed([run for cell in cells for run in cell.runs], mixed)
    return cells


def check_backbones(jobs: Sequence[Job]) -> None:
    """Raises UserError if the jobs are on different ones: what ``check_unmixed`` finds later, before the runs."""
    names = {job.trainer: resolve(job.arguments(job.seeds[0]))[1].MODEL.BACKBONE.NAME for job in jobs}
    if len(set(names.values())) > 1:
        named = ", ".join(f"{trainer} on {name}" for trainer, name in names.items())
        raise UserError(f"mixed backbones: {named}; set BACKBONE, or allow it with --mixed")


def build(cells: Mapping[str, Cell], seeds: Sequence[int], name: str, title: str) -> Table:
    """The table of finished runs, by method."""
    table = Table(name, title)
    used = [run for cell in cells.values() for run in cell.runs]
    table.notes += [f"Mixed, as asked for: {text}." for text in check_unmixed(used, mixed=True)]
    rows = [_row(table, trainer, cell, cells.get(BASELINE)) for trainer, cell in cells.items()]
    table.sections.append(Section("", HEADERS, rows))
    if chosen := [label(name) for name, cell in cells.items() if any(r.result.get("test_selected") for r in cell.runs)]:
        table.notes.append(f"Chosen on the test set, as published: {', '.join(chosen)}.")
    table.notes.append(
        f"Seeds {' '.join(map(str, seeds))}. {NOTE} Step: median, loading apart. Memory: the most that the process has "
        "held or, on a GPU, its tensors; compare only what ran on one machine."
    )
    return table


def _row(table: Table, trainer: str, cell: Cell, baseline: Cell | None) -> list[str]:
    why = "" if method_of(trainer).has_seeds else f"{no_seeds(trainer)}: one run, no deviation and no test over seeds"
    half = significance.half_width(list(cell.by_seed.values()))
    if half is None or cell.mean is None:
        spread = [table.dash(why or ONE_SEED)] * 2
    else:
        spread = [number(cell.std), f"{cell.mean - half:.2f} to {cell.mean + half:.2f}"]
    numbers: dict[str, Any] = {}
    if trainer == BASELINE or baseline is None:
        against = [DASH if trainer == BASELINE else table.dash(NO_BASELINE)] * 3
    else:
        against, numbers = compare_cells(table, cell, baseline, why)
        if why and cell.mean is not None and baseline.mean is not None:
            numbers["difference_to_base"] = cell.mean - baseline.mean
            against[0] = number(cell.mean - baseline.mean, signed=True)
    texts, means = costs(table, cell, ("parameters", "step_ms", "memory_mb"))
    start = {"method": trainer, "mean": cell.mean, "std": cell.std, "runs": len(cell.runs), "half_interval": half}
    table.records.append({**start, **numbers, **means})
    return [label(trainer), number(cell.mean), *spread, *against, *texts.values()]


def run(args: argparse.Namespace) -> None:
    shots, environment = positive_integer(args.shots, "SHOTS"), args.environment
    jobs = jobs_of(named_methods(environment.TRAINERS), args.dataset, shots, args.opts, environment)
    cells = {job.trainer: cell for job, cell in zip(jobs, train_all(jobs, args.mixed), strict=True)}
    extra = "".join(f"_{k}{spell(v)}" for k, v in zip(args.opts[::2], args.opts[1::2], strict=True))
    name = shorten(f"compare_{args.dataset}_{shots}shots{extra}")
    title = f"{args.dataset}, {shots} shots" + (f", {' '.join(args.opts)}" if args.opts else "")
    print()
    build(cells, max((job.seeds for job in jobs), key=len), name, title).show(Path(environment.OUT))


def parser(program: str, description: str | None, protocols: Sequence[str] = ()) -> Parser:
    """[--mixed] [PROTOCOL] DATASET SHOTS [KEY VALUE]..."""
    parsed = Parser(program, description, imports=True)
    parsed.add_argument("--mixed", action="store_true", help="allow different backbones or epochs")
    if protocols:
        parsed.add_argument("protocol", choices=protocols)
    parsed.add_argument("dataset", metavar="DATASET")
    parsed.add_argument("shots", metavar="SHOTS")
    parsed.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return parsed


def main(argv: list[str] | None = None) -> int:
    return guarded(lambda: run(parser("experiments.compare", __doc__).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
