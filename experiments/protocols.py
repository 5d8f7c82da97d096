"""CoOp's and CoCoOp's protocols for every method: few-shot, base-to-new, cross-dataset, domain generalization.

First what is not finished of the training runs, each by ``train.py``; then the tests of the trained prompts, each by
``train.py --eval-only`` into ``eval/`` of its run, which never trains. A method that learns nothing is run on each test
set. Then the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from runs.process import before_imports

    before_imports()

from dassl.extras.cli import guarded
from dassl.utils import UserError
from experiments.compare import jobs_of, parser, train_all
from experiments.jobs import Job, finish, positive_integers, resolve, run_train
from experiments.recipes import label, method_of, named_methods, pairs_of
from experiments.tables import significance
from experiments.tables.by_shots import one_run
from experiments.tables.domain import as_the_code_tests
from experiments.tables.render import Section, Table, mean_std, number
from experiments.tables.results import Cell, finished
from experiments.tables.suite import DATASETS, SHIFTED
from runs.directory import REPOSITORY
from runs.execution import is_finished

SUBSAMPLE = "DATASET.SUBSAMPLE_CLASSES"


def trained(args: argparse.Namespace, shots: int, opts: Sequence[str]) -> list[tuple[Job, Cell]]:
    """The chosen methods, and their finished runs."""
    jobs = jobs_of(args.trainers, args.dataset, shots, opts, args.environment)
    return list(zip(jobs, train_all(jobs, args.mixed), strict=True))


def test(job: Job, source: Cell, dataset: str, extra: Sequence[str] = ()) -> Cell:
    """A job's trained prompts on another dataset or other classes, with the KEY VALUE pairs in ``extra``.

    Raises:
        UserError, SystemExit: as for a run.
    """
    there = dataclasses.replace(job, dataset=dataset, opts=[*_without_subsample(job.opts), *extra])
    if not method_of(job.trainer).learns:
        return Cell(tuple(map(finished, finish(there))))
    found = []
    for run in source.runs:
        arguments = ["--eval-only", "--model-dir", str(run.path.parent), *there.arguments(run.seed)]
        parsed, cfg, place = resolve(arguments)
        if not is_finished(place, cfg, parsed):
            run_train(arguments)
        found.append(finished(place))
    return Cell(tuple(found))


def _without_subsample(opts: Sequence[str]) -> list[str]:
    return [word for k, v in zip(opts[::2], opts[1::2], strict=True) if k != SUBSAMPLE for word in (k, v)]


def each_shots(args: argparse.Namespace) -> Table:
    rows = [
        [str(shots), label(job.trainer), mean_std(cell.mean, cell.std)]
        for shots in args.shots
        for job, cell in trained(args, shots, args.opts)
    ]
    return Table("", f"Few-shot, {args.dataset}", [Section("", ["shots", "method", "accuracy (%)"], rows)])


def base_to_new(args: argparse.Namespace) -> Table:
    rows, records = [], []
    (shots,) = args.shots
    for job, base in trained(args, shots, [*_without_subsample(args.opts), SUBSAMPLE, "base"]):
        new = test(job, base, args.dataset, (SUBSAMPLE, "new"))
        harmonic = statistics.harmonic_mean([base.mean or 0.0, new.mean or 0.0])
        rows.append([label(job.trainer), mean_std(base.mean, base.std), mean_std(new.mean, new.std), number(harmonic)])
        place = {"dataset": args.dataset, "method": job.trainer, "shots": shots}
        means = {"base": base.mean, "base_std": base.std, "new": new.mean, "new_std": new.std}
        records.append({**place, **means, "harmonic_mean": harmonic, "runs": len(base.runs)})
    section = Section("", ["method", "base (%)", "new (%)", "harmonic mean"], rows)
    name, title = f"base_to_new_{args.dataset}_{shots}shots", f"Base to new, {args.dataset}, {shots} shots"
    return Table(name, title, [section], records, ["The harmonic mean is that of the two means, as in CoCoOp's paper."])


def cross_dataset(args: argparse.Namespace) -> Table:
    chosen = args.environment.TARGETS.replace(",", " ").split()
    default = DATASETS if args.dataset in DATASETS else SHIFTED.get(args.dataset, DATASETS)
    targets = [name for name in dict.fromkeys(chosen or default) if name != args.dataset]
    if not targets:
        raise UserError(f"TARGETS is '{args.environment.TARGETS}'; it must name other datasets than {args.dataset}")
    return _transfer(args, targets, "Cross-dataset transfer")


def domain_generalization(args: argparse.Namespace) -> Table:
    """Methods train with their ``transfer`` options; where the published code tests with others, they have two rows."""
    if args.dataset not in SHIFTED:
        raise UserError(f"'{args.dataset}' has no shifted sets; those that have: {', '.join(SHIFTED)}")
    return _transfer(args, SHIFTED[args.dataset], "Domain generalization", shifted=True)


def _transfer(args: argparse.Namespace, targets: Sequence[str], title: str, shifted: bool = False) -> Table:
    """Trained on one dataset, tested on others."""
    for target in targets:
        if not (REPOSITORY / "configs/datasets" / f"{target}.yaml").is_file():
            raise UserError(f"no dataset '{target}': looked for 'configs/datasets/{target}.yaml'")
    (shots,) = args.shots
    opts = [word for name in args.trainers if shifted for word in pairs_of(name, method_of(name).transfer)]
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    for job, source in trained(args, shots, [*opts, *args.opts]):
        tests: dict[str, Mapping[str, Any]] = {label(job.trainer): {}}
        if shifted and method_of(job.trainer).transfer_as_published:
            tests[as_the_code_tests(job.trainer)] = method_of(job.trainer).transfer_as_published
        for method, options in tests.items():
            extra = pairs_of(job.trainer, options)
            cells = {args.dataset: source} | {t: test(job, source, t, extra) for t in targets}
            average = number(significance.mean([cells[target].mean for target in targets]))
            rows.append([method, *(mean_std(cell.mean, cell.std) for cell in cells.values()), average])
            records += [
                {"method": method, "dataset": dataset, "mean": cell.mean, "std": cell.std, "runs": len(cell.runs)}
                for dataset, cell in cells.items()
            ]
    section = Section("", ["method", f"{args.dataset} (source)", *targets, "average of the others"], rows)
    name = f"{args.protocol}_{args.dataset}_{shots}shots"
    return Table(name, f"{title}, {shots} shots of {args.dataset}", [section], records)


PROTOCOLS = {
    "few_shot": each_shots,
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
    args.shots, args.trainers = shots, named_methods(args.environment.TRAINERS)
    table = PROTOCOLS[args.protocol](args)
    table.notes.insert(0, f"Accuracy in percent, mean and standard deviation (n - 1) over the seeds; {one_run()}.")
    print()
    if table.name:
        table.show(Path(args.environment.OUT))
    else:
        print(table.markdown())


def main(argv: list[str] | None = None) -> int:
    return guarded(lambda: run(parser("experiments.protocols", __doc__, list(PROTOCOLS)).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
