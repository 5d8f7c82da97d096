"""CoOp's and CoCoOp's protocols for every method: few-shot, base-to-new, cross-dataset, domain generalization.

    bash scripts/protocols/few_shot.sh DATASET SHOTS [KEY VALUE]...     # and base_to_new, cross_dataset, ...

SHOTS is a number, or "all" for all images; few_shot takes several: "1 2 4 8 16". First what is not finished of the
training runs, each by train.py; then the tests of the trained prompts, each by train.py --eval-only into eval/ of its
run, which never trains. A method that learns nothing is run on each test set. Then the table. What a run prints goes to
log.txt in its directory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    from runs.process import before_imports

    before_imports()

from dassl.extras.cli import guarded, typed
from dassl.utils import UserError
from experiments.compare import jobs_of, parser, train_all
from experiments.jobs import Job, Series, in_words, resolve, shots_of, spelled
from experiments.recipes import label, named_methods, pairs_of
from experiments.sweep.task import Run
from experiments.tables import significance
from experiments.tables.by_shots import one_run
from experiments.tables.domain import as_the_code_tests
from experiments.tables.render import Section, Table, name_of, number
from experiments.tables.results import LIST, Cell, finished
from experiments.tables.suite import DATASETS, SHIFTED, has_same_classes
from runs.directory import REPOSITORY
from runs.execution import is_finished
from runs.recipes import method_of

SUBSAMPLE = "DATASET.SUBSAMPLE_CLASSES"


@dataclass(frozen=True)
class Test:
    """A job's trained prompts on another dataset or other classes, with the KEY VALUE pairs in ``extra``."""

    job: Job
    dataset: str
    extra: Sequence[str] = ()

    @property
    def there(self) -> Job:
        # A list of images is of its own dataset.
        keys = (SUBSAMPLE,) if self.dataset == self.job.dataset else (SUBSAMPLE, LIST)
        return replace(self.job, dataset=self.dataset, opts=[*_without(self.job.opts, *keys), *self.extra])

    @property
    def runs(self) -> list[Run]:
        """By seed, as they stand before the training: the directories of tests that do not exist yet are not known."""
        note = f", {'tested' if method_of(self.job.trainer).learns else 'zero-shot'}"
        note += "".join(f" {k.rpartition('.')[2]} {v}" for k, v in zip(self.extra[::2], self.extra[1::2], strict=True))
        return [replace(run, name=run.name + note, epochs=0, needs=()) for run in self.there.runs]

    def finish(self, source: Cell, series: Series) -> Cell:
        """Raises UserError, SystemExit: as for a run."""
        found = []
        for i, run in enumerate(self.runs):
            if not method_of(self.job.trainer).learns:
                series.do(run)
                found.append(finished(run.directory))
                continue
            arguments = ["--eval-only", "--model-dir", str(source.runs[i].path.parent), *run.task.arguments]
            parsed, cfg, place = resolve(arguments)
            with contextlib.redirect_stdout(io.StringIO()):
                kept = is_finished(place, cfg, parsed)
            series.do(replace(run, task=replace(run.task, arguments=tuple(arguments), directory=place)), kept)
            found.append(finished(place))
        return Cell(tuple(found))


def trained(
    args: argparse.Namespace, jobs: Sequence[Job], tests: Mapping[str, Sequence[Test]]
) -> tuple[dict[str, Cell], dict[str, list[Cell]]]:
    """By method, the finished runs and, in their order, the finished tests."""
    cells, series = train_all(jobs, args.mixed, [run for of in tests.values() for test in of for run in test.runs])
    sources = {job.trainer: cell for job, cell in zip(jobs, cells, strict=True)}
    return sources, {name: [test.finish(sources[name], series) for test in of] for name, of in tests.items()}


def _without(opts: Sequence[str], *keys: str) -> list[str]:
    return [word for k, v in zip(opts[::2], opts[1::2], strict=True) if k not in keys for word in (k, v)]


def each_shots(args: argparse.Namespace) -> Table:
    jobs = [
        job for shots in args.shots for job in jobs_of(args.trainers, args.dataset, shots, args.opts, args.environment)
    ]
    table = Table("", f"Few-shot, {args.dataset}")
    rows = [
        [spelled(job.shots), label(job.trainer), table.accuracy(cell)]
        for job, cell in zip(jobs, train_all(jobs, args.mixed)[0], strict=True)
    ]
    table.sections.append(Section("", ["shots", "method", "accuracy (%)"], rows, 2))
    return table


def refuse_other_classes(args: argparse.Namespace) -> None:
    """Raises UserError: one of the methods serves only the classes that it was trained on."""
    refused = [name for name in args.trainers if not method_of(name).other_classes]
    if refused:
        others = " ".join(name for name in args.trainers if name not in refused)
        raise UserError(
            f"{args.protocol} tests on other classes than those of the training, which {', '.join(refused)} cannot "
            f"serve; leave {'it' if len(refused) == 1 else 'them'} out" + (f": TRAINERS='{others}'" if others else "")
        )


def base_to_new(args: argparse.Namespace) -> Table:
    refuse_other_classes(args)
    (shots,) = args.shots
    table = Table(table_name(args), f"Base to new, {args.dataset}, {in_words(shots)}")
    rows = []
    opts = [*_without(args.opts, SUBSAMPLE), SUBSAMPLE, "base"]
    jobs = jobs_of(args.trainers, args.dataset, shots, opts, args.environment)
    bases, news = trained(args, jobs, {job.trainer: [Test(job, args.dataset, (SUBSAMPLE, "new"))] for job in jobs})
    for trainer, base in bases.items():
        (new,) = news[trainer]
        harmonic = statistics.harmonic_mean([base.mean or 0.0, new.mean or 0.0])
        rows.append([label(trainer), table.accuracy(base), table.accuracy(new), number(harmonic)])
        place = {"dataset": args.dataset, "method": trainer, "shots": shots}
        means = {"base": base.mean, "base_std": base.std, "new": new.mean, "new_std": new.std}
        table.records.append({**place, **means, "harmonic_mean": harmonic, "runs": len(base.runs)})
    table.sections.append(Section("", ["method", "base (%)", "new (%)", "harmonic mean"], rows))
    table.notes.append("The harmonic mean is that of the two means, as in CoCoOp's paper.")
    return table


def table_name(args: argparse.Namespace) -> str:
    return name_of(f"{args.protocol}_{args.dataset}_{spelled(args.shots[0])}shots", args.environment, args.opts)


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
    if not has_same_classes(args.dataset, targets):
        refuse_other_classes(args)
    (shots,) = args.shots
    opts = [word for name in args.trainers if shifted for word in pairs_of(name, method_of(name).transfer)]
    jobs = jobs_of(args.trainers, args.dataset, shots, [*opts, *args.opts], args.environment)
    heads: dict[str, dict[str, Sequence[str]]] = {}  # by method: the name of a row, and its KEY VALUE pairs
    for trainer, kind in ((job.trainer, method_of(job.trainer)) for job in jobs):
        heads[trainer] = {label(trainer): ()}
        if shifted and kind.transfer_as_published:
            heads[trainer][as_the_code_tests(trainer)] = pairs_of(trainer, kind.transfer_as_published)
    tests = {
        job.trainer: [Test(job, target, extra) for extra in heads[job.trainer].values() for target in targets]
        for job in jobs
    }
    sources, tested = trained(args, jobs, tests)
    table = Table(table_name(args), f"{title}, {in_words(shots)} of {args.dataset}")
    rows: list[list[str]] = []
    for trainer, source in sources.items():
        found = iter(tested[trainer])
        for name in heads[trainer]:
            cells = [source, *(next(found) for _ in targets)]
            average = number(significance.mean([cell.mean for cell in cells[1:]]))
            rows.append([name, *map(table.accuracy, cells), average])
            table.records += [
                {"method": name, "dataset": dataset, "mean": cell.mean, "std": cell.std, "runs": len(cell.runs)}
                for dataset, cell in zip((args.dataset, *targets), cells, strict=True)
            ]
    headers = ["method", f"{args.dataset} (source)", *targets, "average of the others"]
    table.sections.append(Section("", headers, rows))
    return table


PROTOCOLS = {
    "few_shot": each_shots,
    "base_to_new": base_to_new,
    "cross_dataset": cross_dataset,
    "domain_generalization": domain_generalization,
}


def run(args: argparse.Namespace) -> None:
    shots = shots_of(args.shots)
    if len(shots) > 1 and args.protocol != "few_shot":
        raise UserError(f"SHOTS is '{args.shots}'; {args.protocol} takes one positive integer")
    if len(args.opts) % 2:
        raise UserError(f"KEY VALUE pairs expected, '{args.opts[-1]}' has no value")
    args.shots, args.trainers = shots, named_methods(args.environment.TRAINERS)
    table = PROTOCOLS[args.protocol](args)
    table.notes.insert(
        0, f"Accuracy in percent, mean and standard deviation (n - 1) over the seeds{one_run(args.trainers)}."
    )
    print()
    if table.name:
        table.show(Path(args.environment.OUT))
    else:
        print(table.terminal())


def main(argv: list[str] | None = None) -> int:
    program = parser("experiments.protocols", __doc__, list(PROTOCOLS))
    return guarded(lambda: run(program.parse_args(argv)), typed(argv, __file__))


if __name__ == "__main__":
    sys.exit(main())
