"""The plan of a sweep: each run with its arguments and directory, which runs are finished, and estimates.

A mistake in any run's arguments is found here, before anything starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tabulate import tabulate

from dassl.utils import UserError
from experiments.compare import jobs_of
from experiments.jobs import Job
from experiments.tables import by_shots
from experiments.tables.render import Table
from experiments.tables.request import Request
from experiments.tables.results import Cell, check_unmixed, finished
from runs.recipes import method_of

from .spec import Spec
from .task import Run
from .times import Times


@dataclass(frozen=True)
class Plan:
    """``cells`` are the table's cells by dataset, method and shots; a run without seeds is in several.

    The runs of ``variants`` follow, and are in no table.
    """

    spec: Spec
    cells: dict[tuple[str, str, int], list[Run]]
    variants: tuple[Plan, ...] = ()

    @property
    def runs(self) -> list[Run]:
        """Each once. A dataset's runs, which share its caches, are neighbours, but for those of variants."""
        own = [run for cell in self.cells.values() for run in cell]
        further = [run for plan in self.variants for run in plan.runs]
        return list({run.directory: run for run in (*own, *further)}.values())

    @property
    def todo(self) -> list[Run]:
        return [run for run in self.runs if not run.finished]

    def describe(self, times: Times) -> str:
        """A row per method: runs finished, resumable, to do, and their estimated time."""
        rows: list[list[object]] = []
        for trainer in dict.fromkeys((*self.spec.trainers, *(run.trainer for run in self.runs), "")):
            of = [run for run in self.runs if trainer in ("", run.trainer)]
            todo = [run for run in of if not run.finished]
            resumable = sum(run.resumable for run in todo)
            counts = [len(of) - len(todo), resumable, len(todo) - resumable]
            rows.append([trainer or "all", len(of), *counts, times.of(todo)])
        headers = ["method", "runs", "finished", "resumable", "to do", "time, one after another"]
        return tabulate(rows, headers=headers, colalign=("left", *("right",) * 5))

    def table(self) -> Table:
        """The few-shot table of the sweep's own finished runs, whatever else is under OUT."""
        cells = {
            key: Cell(tuple(finished(run.directory) for run in cell if run.finished))
            for key, cell in self.cells.items()
        }
        spec = self.spec
        request = Request(spec.out, [], spec.datasets, spec.shots, spec.seeds, methods=spec.trainers)
        table = by_shots.build(request, cells)
        table.name = spec.table
        used = list({run.path: run for cell in cells.values() for run in cell.runs}.values())
        table.notes += [f"Mixed: {text}." for text in check_unmixed(used, mixed=True)]
        return table


def plan_of(spec: Spec, before: Sequence[str] = ()) -> Plan:
    """Raises UserError: a mistake in a run's arguments, a damaged result or config, a method before one it needs.

    Args:
        before: the methods whose runs come before.
    """
    for i, trainer in enumerate(spec.trainers):
        if absent := {*method_of(trainer).needs.values()} - {*before, *spec.trainers[:i]}:
            raise UserError(f"{trainer} needs the runs of {', '.join(absent)}: name that before it in --trainers")
    cells: dict[tuple[str, str, int], list[Run]] = {}
    for dataset in spec.datasets:
        for shots in spec.shots:
            for job in jobs_of(spec.trainers, dataset, shots, spec.opts, spec.environment):
                if method_of(job.trainer).has_seeds:
                    runs_of = [run_of(job, seed, spec) for seed in spec.seeds]
                else:  # one run, the same at every number of shots
                    runs_of = cells.get((dataset, job.trainer, spec.shots[0])) or [run_of(job, 1, spec)]
                cells[dataset, job.trainer, shots] = runs_of
    ordered = {key: cells[key] for key in itertools.product(spec.datasets, spec.trainers, spec.shots)}
    return Plan(spec, ordered, tuple(plan_of(each, spec.trainers) for each in spec.variants))


def run_of(job: Job, seed: int, spec: Spec) -> Run:
    """Its directory is absolute; what it says on standard error goes to OUT/sweeps/."""
    run = job.run(seed)
    directory = run.directory.absolute()
    log = (spec.out / "sweeps" / directory.relative_to(spec.out)).with_suffix(".txt")
    places = {"DATA": str(spec.data), "OUT": str(spec.out)}
    return replace(run, task=replace(run.task, directory=directory, log=log, environment=places))
