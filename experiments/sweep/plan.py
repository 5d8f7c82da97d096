"""The plan of a sweep: each run with its arguments and directory, which runs are finished, and estimates.

A mistake in any run's arguments is found here, before anything starts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from tabulate import tabulate

from dassl.utils import UserError
from experiments.compare import jobs_of
from experiments.jobs import Job, resolve
from experiments.recipes import method_of
from experiments.tables import by_shots
from experiments.tables.render import Table
from experiments.tables.request import Request
from experiments.tables.results import Cell, check_unmixed, finished

from .spec import Spec
from .task import Task
from .times import Times


@dataclass(frozen=True)
class Run:
    """One start of ``train.py``; ``directory`` is absolute."""

    name: str
    trainer: str
    dataset: str
    shots: int
    epochs: int
    task: Task

    @property
    def directory(self) -> Path:
        return self.task.directory

    @property
    def finished(self) -> bool:
        return (self.directory / "result.json").is_file()

    @property
    def resumable(self) -> bool:
        return not self.finished and any(self.directory.glob("*/*.pth.tar*"))


@dataclass(frozen=True)
class Plan:
    """``cells`` are the table's cells by dataset, method and shots; a run without seeds is in several."""

    spec: Spec
    cells: dict[tuple[str, str, int], list[Run]]

    @property
    def runs(self) -> list[Run]:
        """Each once. A dataset's runs, which share its caches, are neighbours."""
        return list({run.directory: run for cell in self.cells.values() for run in cell}.values())

    @property
    def todo(self) -> list[Run]:
        return [run for run in self.runs if not run.finished]

    def describe(self, times: Times) -> str:
        """A row per method: runs finished, resumable, to do, and their estimated time."""
        rows: list[list[object]] = []
        for trainer in (*self.spec.trainers, ""):
            of = [run for run in self.runs if trainer in ("", run.trainer)]
            todo = [run for run in of if not run.finished]
            resumable = sum(run.resumable for run in todo)
            counts = [len(of) - len(todo), resumable, len(todo) - resumable]
            rows.append([trainer or "all", len(of), *counts, duration(times.of(todo))])
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
        table.name = f"sweep_{spec.name}"
        used = list({run.path: run for cell in cells.values() for run in cell.runs}.values())
        table.notes += [f"Mixed: {text}." for text in check_unmixed(used, mixed=True)]
        return table


def plan_of(spec: Spec) -> Plan:
    """Raises UserError: a mistake in a run's arguments, a damaged result or config, a method before one it needs."""
    for i, trainer in enumerate(spec.trainers):
        if absent := {*method_of(trainer).needs.values()} - {*spec.trainers[:i]}:
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
    return Plan(spec, {key: cells[key] for key in itertools.product(spec.datasets, spec.trainers, spec.shots)})


def run_of(job: Job, seed: int, spec: Spec) -> Run:
    arguments = job.arguments(seed)
    _, cfg, directory = resolve(arguments)
    directory, method = directory.absolute(), method_of(job.trainer)
    place = (f"{job.shots} shots", f"seed {seed}") if method.has_seeds else ()
    log = (spec.out / "sweeps" / directory.relative_to(spec.out)).with_suffix(".txt")
    return Run(
        name=", ".join((job.trainer, job.dataset, *place)),
        trainer=job.trainer,
        dataset=job.dataset,
        shots=job.shots,
        epochs=cfg.OPTIM.MAX_EPOCH if method.learns else 0,
        task=Task(tuple(arguments), directory, log, {"DATA": str(spec.data), "OUT": str(spec.out)}),
    )


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds, with a tilde."""
    return "unknown until the first run ends" if seconds is None else f"~{timedelta(seconds=round(seconds))}"
