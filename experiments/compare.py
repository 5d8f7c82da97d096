"""Runs what is not finished of several methods on one dataset, and prints them side by side.

    bash scripts/compare.sh DATASET SHOTS [KEY VALUE]...

SHOTS is a number, or "all" for all images. TRAINERS=all takes every method, with a table for each backbone. KEY VALUE
pairs override the configs; an option of one method goes to that method. Every mistake, a mixture of backbones or epochs
too, is found before anything runs. What a run prints goes to log.txt in its directory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

if __name__ == "__main__":
    from runs.process import before_imports

    before_imports()

from dassl.extras.cli import RUNNING, Environment, Parser, guarded, set_variables, typed
from dassl.utils import UserError
from experiments.jobs import Job, Series, in_words, one_of_shots, spelled
from experiments.recipes import COMMON, check_backbone, label, named_methods, own_options
from experiments.sweep.task import Run
from experiments.tables import significance
from experiments.tables.by_shots import no_seeds
from experiments.tables.cost import costs
from experiments.tables.render import DASH, Section, Table, interval, name_of, number
from experiments.tables.results import Cell, check_unmixed, finished
from experiments.tables.suite import BASELINE
from experiments.tables.variants import NOTE, compare_cells
from runs.recipes import BACKBONES, config_file, method_of, prefix_of, recipe
from trainers.method import methods

ONE_SEED = "fewer than two seeds: no deviation, no interval"
NO_BASELINE = f"{BASELINE} has no run here"
HEADERS = ["method", "accuracy (%)", "std", "95% interval", f"diff. to {BASELINE}", "paired t p", "McNemar p, by seed"]
HEADERS += ["learned", "step (ms)", "memory (MB)"]


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
    if prefix_of(cfg) in BACKBONES:
        cfg, backbone = "", cfg
    jobs = []
    for trainer in trainers:
        check_backbone(trainer, dataset, environment)
        config, pairs = recipe(trainer, dataset, shots, cfg, backbone or COMMON)
        jobs.append(Job(trainer, dataset, shots, config, pairs, own_options(trainer, list(opts)), environment))
    return jobs


def all_methods(dataset: str, shots: int, opts: Sequence[str], environment: Environment) -> list[list[Job]]:
    """The jobs of every method by backbone: on the baseline's, then on that of each method that does not run there."""

    def on(environment: Environment) -> list[Job]:
        jobs = jobs_of(list(methods()), dataset, shots, opts, environment)
        jobs = [job for job in jobs if config_file(job.trainer, job.config).is_file()]
        usual = next(job.runs[0].backbone for job in jobs if job.trainer == BASELINE)
        return [job for job in jobs if job.runs[0].backbone == usual]

    groups = [on(environment)]
    for trainer in methods():
        if all(trainer != job.trainer for jobs in groups for job in jobs):
            config = PurePath(recipe(trainer, dataset, shots)[0]).name
            chosen = environment.CFG or environment.BACKBONE
            own = [] if chosen else on(replace(environment, CFG=config))
            if any(trainer == job.trainer for job in own):
                groups.append(own)
            else:
                print(f"{trainer} is left out: it has no config for this backbone; its own is {config}")
    return groups


def train_all(jobs: Sequence[Job], mixed: bool, more: Iterable[Run] = ()) -> tuple[list[Cell], Series]:
    """The finished runs of each job; every mistake in any of them is found before anything runs.

    Args:
        more: the runs that the caller does after these, in the series that is returned.

    Raises:
        UserError: a mistake, or the runs are of mixed backbones or epochs and ``mixed`` is off.
    """
    runs = [job.runs for job in jobs]
    if not mixed:
        check_backbones([run for of_job in runs for run in of_job])
    series = Series([*(run for of_job in runs for run in of_job), *more], jobs[0].environment.OUT)
    cells = []
    for job, of_job in zip(jobs, runs, strict=True):
        print(job.heading, flush=True)
        for run in of_job:
            series.do(run)
        cells.append(Cell(tuple(finished(run.directory) for run in of_job)))
    check_unmixed([run for cell in cells for run in cell.runs], mixed)
    return cells, series


def check_backbones(runs: Sequence[Run]) -> None:
    """Raises UserError if the runs are on different ones: what ``check_unmixed`` finds later, before the runs."""
    names = {run.trainer: run.backbone for run in runs}
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
    table.notes.append(
        f"Seeds {' '.join(map(str, seeds))}. {NOTE} Learned: parameters. Step: median, loading apart. Memory: the most "
        "that the process has held or, on a GPU, its tensors; compare only what ran on one machine."
    )
    return table


def _row(table: Table, trainer: str, cell: Cell, baseline: Cell | None) -> list[str]:
    why = "" if method_of(trainer).has_seeds else f"{no_seeds(trainer)}: one run, no deviation and no test over seeds"
    half = significance.half_width(list(cell.by_seed.values()))
    if half is None or cell.mean is None:
        spread = [table.dash(why or ONE_SEED)] * 2
    else:
        spread = [number(cell.std), interval(cell.mean, half)]
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
    return [label(trainer), number(cell.mean) + table.mark(cell.flag), *spread, *against, *texts.values()]


def table_of(jobs: Sequence[Job], opts: Sequence[str], mixed: bool, *titles: str) -> Table:
    """Runs what is not finished, and gives the table.

    Args:
        opts: the user's KEY VALUE pairs, for the title and the name of the files.
        titles: more parts of the title.
    """
    first = jobs[0]
    cells = {job.trainer: cell for job, cell in zip(jobs, train_all(jobs, mixed)[0], strict=True)}
    name = name_of(f"compare_{first.dataset}_{spelled(first.shots)}shots", first.environment, opts)
    title = ", ".join((first.dataset, in_words(first.shots), *opts, *titles))
    return build(cells, max((job.seeds for job in jobs), key=len), name, title)


def compare(
    dataset: str,
    shots: int | str,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (1, 2, 3),
    options: Mapping[str, object] | None = None,
    *,
    backbone: str = "",
    data: str | Path | None = None,
    out: str | Path | None = None,
    mixed: bool = False,
) -> Table:
    """Runs what is not finished of several methods, and puts them side by side; a notebook shows the table.

    Args:
        dataset: the name of its config, such as "symbols".
        shots: images a class, or "all".
        methods: registered names or those of their files; by default those that ``compare.sh`` takes.
        seeds: one run each.
        options: config keys with values; an option of one method goes to that method.
        backbone: for the recipes' own, as BACKBONE of the scripts.
        data, out: the folders of datasets and of runs; by default those of ``$DATA`` and ``$OUT``.
        mixed: allow different backbones or epochs.

    Returns:
        The table: ``records`` holds its numbers, ``markdown()``, ``csv()`` and ``latex()`` its text.

    Raises:
        UserError: a mistake, found before anything runs, or a run that has failed.
    """
    opts = [str(word) for pair in (options or {}).items() for word in pair]
    chosen = {"SEEDS": " ".join(map(str, seeds)), "TRAINERS": " ".join(methods), "BACKBONE": backbone}
    with set_variables(DATA=data, OUT=out, CFG="", N="", **chosen):
        environment = Environment.read()
        jobs = jobs_of(named_methods(environment.TRAINERS), dataset, one_of_shots(str(shots)), opts, environment)
        try:
            return table_of(jobs, opts, mixed)
        except SystemExit as error:
            raise UserError(f"a run ended with exit code {error.code}; the lines above say why") from None


class _Callable(ModuleType):
    """This module, which is the function of its name as well: ``from experiments import compare; compare(...)``."""

    __call__ = staticmethod(compare)


sys.modules[__name__].__class__ = _Callable


def run(args: argparse.Namespace) -> None:
    shots, environment = one_of_shots(args.shots), args.environment
    if environment.TRAINERS == "all":
        groups = all_methods(args.dataset, shots, args.opts, environment)
    else:
        groups = [jobs_of(named_methods(environment.TRAINERS), args.dataset, shots, args.opts, environment)]
    for jobs in groups:
        titles = [f"backbone {Path(jobs[0].runs[0].backbone).stem}"] if len(groups) > 1 else []
        table = table_of(jobs, args.opts, args.mixed, *titles)
        print()
        table.show(Path(environment.OUT))


def parser(program: str, description: str | None, protocols: Sequence[str] = ()) -> Parser:
    """[--mixed] [PROTOCOL] DATASET SHOTS [KEY VALUE]..."""
    names = (*RUNNING, "TRAINERS", *(["TARGETS"] if protocols else []))
    scripted = "[--import FILE] [--mixed] DATASET SHOTS [KEY VALUE]..."
    parsed = Parser(program, description, imports=True, variables=names, scripted=scripted)
    parsed.add_argument("--mixed", action="store_true", help="allow different backbones or epochs")
    if protocols:
        parsed.add_argument("protocol", choices=protocols)
    parsed.add_argument("dataset", metavar="DATASET")
    parsed.add_argument("shots", metavar="SHOTS")
    parsed.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return parsed


def main(argv: list[str] | None = None) -> int:
    return guarded(lambda: run(parser("experiments.compare", __doc__).parse_args(argv)), typed(argv, __file__))


if __name__ == "__main__":
    sys.exit(main())
