"""CoOp's and CoCoOp's protocols for every method: few-shot, base-to-new, cross-dataset, domain generalization.

First what is not finished of the training runs, each by ``train.py``; then the tests of the trained prompts, each by
``train.py --eval-only`` into ``eval/`` of its run, which never trains. Zero-shot CLIP, with nothing to carry over, is
simply run on each test set. Then the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    from runs.process import before_imports

    before_imports()

from dassl.extras.cli import Parser, guarded
from dassl.utils import UserError
from experiments.compare import check_configs, chosen_methods, finished, jobs_of
from experiments.jobs import Job, finish, positive_integers, run_train
from experiments.tables import significance
from experiments.tables.render import Section, Table, mean_std, number
from experiments.tables.results import Cell, check_unmixed
from experiments.tables.suite import DATASETS, SHIFTED, SHOWN
from runs.command_line import build_parser
from runs.config import setup_cfg
from runs.directory import REPOSITORY
from runs.execution import is_finished, output_directory

HEAD = "TRAINER.PLOT.GLOBAL_LOGITS"
SUBSAMPLE = "DATASET.SUBSAMPLE_CLASSES"


def train_all(jobs: Sequence[Job], mixed: bool) -> list[list[Path]]:
    """The finished runs of each job, by seed; every mistake in any of them is found before anything runs.

    Raises:
        UserError: the runs are of mixed backbones or epochs, and ``mixed`` is off.
    """
    for job in jobs:
        job.directories()
    if not mixed:
        check_configs(jobs)
    directories = []
    for job in jobs:
        print(f"{job.trainer} on {job.dataset}, config {job.config}", flush=True)
        directories.append(finish(job))
    check_unmixed([finished(directory) for folders in directories for directory in folders], mixed)
    return directories


def test(job: Job, directories: Sequence[Path], dataset: str, extra: Sequence[str] = ()) -> Cell:
    """A job's trained prompts on another dataset or other classes, with the KEY VALUE pairs in ``extra``.

    Raises:
        UserError, SystemExit: as for a run.
    """
    if job.trainer == "ZeroshotCLIP":
        opts = [*_without(job.opts, SUBSAMPLE), *extra]
        return Cell(tuple(map(finished, finish(dataclasses.replace(job, dataset=dataset, opts=opts)))))
    found = []
    for seed, directory in zip(job.seeds, directories, strict=True):
        there = dataclasses.replace(job, dataset=dataset, opts=[*_without(job.opts, SUBSAMPLE), *extra])
        arguments = ["--eval-only", "--model-dir", str(directory), *there.arguments(seed)]
        parsed = build_parser().parse_args(arguments)
        cfg, base = setup_cfg(parsed)
        place = output_directory(parsed, cfg, base)
        if not is_finished(place, cfg, parsed):
            run_train(arguments)
        found.append(finished(place))
    return Cell(tuple(found))


def _without(opts: Sequence[str], key: str) -> list[str]:
    return [word for k, v in zip(opts[::2], opts[1::2], strict=True) if k != key for word in (k, v)]


def few_shot(request: Request) -> Table:
    rows = []
    for shots in request.shots:
        jobs = jobs_of(request.trainers, request.dataset, shots, request.opts)
        for job, directories in zip(jobs, train_all(jobs, request.mixed), strict=True):
            cell = Cell(tuple(map(finished, directories)))
            rows.append([str(shots), SHOWN.get(job.trainer, job.trainer), mean_std(cell.mean, cell.std)])
    section = Section("", ["shots", "method", "accuracy (%)"], rows)
    return Table("", f"Few-shot, {request.dataset}", [section], notes=[NOTE])


def base_to_new(request: Request) -> Table:
    opts = [*_without(request.opts, SUBSAMPLE), SUBSAMPLE, "base"]
    jobs = jobs_of(request.trainers, request.dataset, request.shots[0], opts)
    rows, records = [], []
    for job, directories in zip(jobs, train_all(jobs, request.mixed), strict=True):
        base = Cell(tuple(map(finished, directories)))
        new = test(job, directories, request.dataset, (SUBSAMPLE, "new"))
        harmonic = harmonic_mean(base.mean, new.mean)
        method = SHOWN.get(job.trainer, job.trainer)
        rows.append([method, mean_std(base.mean, base.std), mean_std(new.mean, new.std), number(harmonic)])
        records.append(
            {
                "dataset": request.dataset,
                "method": job.trainer,
                "shots": request.shots[0],
                "base": base.mean,
                "base_std": base.std,
                "new": new.mean,
                "new_std": new.std,
                "harmonic_mean": harmonic,
                "runs": len(base.runs),
            }
        )
    section = Section("", ["method", "base (%)", "new (%)", "harmonic mean"], rows)
    name = f"base_to_new_{request.dataset}_{request.shots[0]}shots"
    notes = [NOTE, "The harmonic mean is that of the two means, as in CoCoOp's paper."]
    return Table(name, f"Base to new, {request.dataset}, {request.shots[0]} shots", [section], records, notes)


def harmonic_mean(base: float | None, new: float | None) -> float | None:
    if base is None or new is None:
        return None
    return 2 * base * new / (base + new) if base + new > 0 else 0.0


def cross_dataset(request: Request) -> Table:
    chosen = os.environ.get("TARGETS", "").replace(",", " ").split()
    default = SHIFTED["symbols"] if request.dataset == "symbols" else DATASETS
    targets = [name for name in dict.fromkeys(chosen or default) if name != request.dataset]
    if not targets:
        raise UserError(f"TARGETS is '{os.environ['TARGETS']}'; it must name other datasets than {request.dataset}")
    return _transfer(request, targets, "cross_dataset", "Cross-dataset transfer")


def domain_generalization(request: Request) -> Table:
    if request.dataset not in SHIFTED:
        raise UserError(f"'{request.dataset}' has no shifted sets; those that have: {', '.join(SHIFTED)}")
    return _transfer(request, SHIFTED[request.dataset], "domain_generalization", "Domain generalization")


def _transfer(request: Request, targets: Sequence[str], name: str, title: str) -> Table:
    """Trained on one dataset, tested on others; in domain generalization PLOT with the global logits, as published."""
    for target in targets:
        if not (REPOSITORY / "configs/datasets" / f"{target}.yaml").is_file():
            raise UserError(f"no dataset '{target}': looked for 'configs/datasets/{target}.yaml'")
    shifted = name == "domain_generalization"
    opts = [*((HEAD, "True") if shifted and HEAD not in request.opts[::2] else ()), *request.opts]
    jobs = jobs_of(request.trainers, request.dataset, request.shots[0], opts)
    rows, records = [], []
    for job, directories in zip(jobs, train_all(jobs, request.mixed), strict=True):
        source = Cell(tuple(map(finished, directories)))
        heads: list[tuple[str, tuple[str, ...]]] = [(SHOWN.get(job.trainer, job.trainer), ())]
        if shifted and job.trainer == "PLOT":
            heads.append(("PLOT, tested as the published code does", (HEAD, "False")))
        for method, extra in heads:
            cells = {request.dataset: source} | {t: test(job, directories, t, extra) for t in targets}
            means = [cell.mean for cell in list(cells.values())[1:] if cell.mean is not None]
            average = significance.mean(means)
            rows.append([method, *(mean_std(cell.mean, cell.std) for cell in cells.values()), number(average)])
            records += [
                {"method": method, "dataset": dataset, "mean": cell.mean, "std": cell.std, "runs": len(cell.runs)}
                for dataset, cell in cells.items()
            ]
    section = Section("", ["method", f"{request.dataset} (source)", *targets, "average of the others"], rows)
    stem = f"{name}_{request.dataset}_{request.shots[0]}shots"
    return Table(stem, f"{title}, {request.shots[0]} shots of {request.dataset}", [section], records, [NOTE])


NOTE = "Accuracy in percent, mean and standard deviation (n - 1) over the seeds; zero-shot CLIP is one run."


@dataclasses.dataclass
class Request:
    dataset: str
    shots: list[int]
    trainers: list[str]
    opts: list[str]
    mixed: bool = False


PROTOCOLS = {
    "few_shot": few_shot,
    "base_to_new": base_to_new,
    "cross_dataset": cross_dataset,
    "domain_generalization": domain_generalization,
}


def run(args: argparse.Namespace) -> None:
    shots = positive_integers(args.shots, "SHOTS")
    if len(shots) > 1 and args.protocol != "few_shot":
        raise UserError(f"SHOTS is '{args.shots}'; {args.protocol} takes one positive integer")
    if len(args.opts) % 2:
        raise UserError(f"KEY VALUE pairs expected, '{args.opts[-1]}' has no value")
    table = PROTOCOLS[args.protocol](Request(args.dataset, shots, chosen_methods(), args.opts, args.mixed))
    print(f"\n{table.markdown()}")
    if table.name:
        paths = table.write(Path(os.environ.get("OUT") or "output"))
        print("Written: " + ", ".join(str(path) for path in paths))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="experiments.protocols", description=__doc__, allow_abbrev=False)
    parser.add_argument("--mixed", action="store_true", help="allow different backbones or epochs")
    parser.add_argument("protocol", choices=list(PROTOCOLS))
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("shots", metavar="SHOTS")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return guarded(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
