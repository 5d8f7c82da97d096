"""Runs one method on one dataset and shot count over the seeds, then prints the table.

    python -m experiments.jobs [--import FILE] TRAINER DATASET SHOTS [KEY VALUE]...

Behind scripts/run.sh and scripts/*/main.sh. From the environment: DATA (data), OUT (output), SEEDS ("1 2 3"), CFG or
BACKBONE (by the recipe), N (for a method with that option). A method without seeds may be asked without SHOTS. Each
seed is a child process. A finished run is kept, an unfinished one resumed.
"""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

if __name__ == "__main__":
    from runs.process import before_imports

    before_imports()

from tabulate import tabulate

from dassl.extras.cli import Environment, Parser, guarded
from dassl.extras.interrupts import Interrupted, uninterrupted
from dassl.utils import UserError
from experiments.recipes import config_file, imported, method_of, named_methods, own_options, recipe
from runs import process
from runs.command_line import build_parser
from runs.config import setup_cfg
from runs.directory import REPOSITORY, check_config
from runs.execution import output_directory
from runs.result import finished_result, load_result

# Keys that tell apart the runs of one command, with what says them.
OURS = {
    "SEED": "the seeds (SEEDS)",
    "DATASET.NUM_SHOTS": "the shots",
    "DATASET.NAME": "the dataset",
    "TRAINER.NAME": "the method",
}


def positive_integers(text: str, name: str) -> list[int]:
    """ "1 2 3" -> [1, 2, 3], each once; raises UserError for anything else."""
    words = re.split(r"[\s,]+", text.strip())
    if not all(re.fullmatch(r"[1-9][0-9]{0,8}", word) for word in words):
        raise UserError(f"{name} is '{text}'; it must be made of positive integers")
    return list(dict.fromkeys(int(word) for word in words))


def positive_integer(text: str, name: str) -> int:
    found = positive_integers(text, name)
    if len(found) > 1:
        raise UserError(f"{name} is '{text}'; it must be one positive integer")
    return found[0]


@dataclass(frozen=True)
class Job:
    """One method on one dataset and shot count, by one config and recipe, with the user's KEY VALUE pairs."""

    trainer: str
    dataset: str
    shots: int
    config: str
    recipe: str = ""
    opts: Sequence[str] = ()
    environment: Environment = field(default_factory=Environment)

    @property
    def seeds(self) -> list[int]:
        """One run of a method that has no seeds."""
        return positive_integers(self.environment.SEEDS, "SEEDS") if method_of(self.trainer).has_seeds else [1]

    @property
    def needed(self) -> dict[str, Job]:
        """By option, the job of the method whose run the option names."""
        found = {}
        for option, trainer in method_of(self.trainer).needs.items():
            config, pairs = recipe(trainer, self.dataset, self.shots, PurePath(self.config).name)
            opts = own_options(trainer, list(self.opts))
            found[option] = replace(self, trainer=trainer, config=config, recipe=pairs, opts=opts)
        return found

    def recipe_of(self, seed: int) -> str:
        """The recipe's pairs, with the runs that the method needs, by their paths in OUT."""
        found = [self.recipe] if self.recipe else []
        for option, job in self.needed.items():
            place = PurePath(*resolve(job.arguments(seed))[2].parts[-5:])
            found += [f"TRAINER.{method_of(self.trainer).node}.{option}", shlex.quote(place.as_posix())]
        return " ".join(found)

    def arguments(self, seed: int) -> list[str]:
        """The command line of ``train.py``."""
        method = method_of(self.trainer)
        n = positive_integer(self.environment.N, "N") if self.environment.N else 0
        takes_n = n and any(option.key == "N" for option in method.options)
        if taken := [key for key in self.opts[::2] if key in OURS]:
            raise UserError(f"{taken[0]} follows from {OURS[taken[0]]}: it cannot be a KEY VALUE pair as well")
        return [
            *imported(self.trainer),
            *("--seed", str(seed)),
            *("--trainer", self.trainer),
            *("--dataset-config-file", str(REPOSITORY / "configs/datasets" / f"{self.dataset}.yaml")),
            *("--config-file", str(config_file(self.trainer, self.config))),
            *(("--recipe", pairs) if (pairs := self.recipe_of(seed)) else ()),
            *("DATASET.NUM_SHOTS", str(self.shots if method.has_seeds else 0)),
            *((f"TRAINER.{method.node}.N", str(n)) if takes_n else ()),
            *self.opts,
        ]

    def directories(self) -> list[Path]:
        """By seed. UserError: a mistake in the arguments, or a damaged result."""
        return [resolve(self.arguments(seed))[2] for seed in self.seeds]


def resolve(arguments: list[str]) -> tuple[argparse.Namespace, Any, Path]:
    """A run's parsed arguments, config and directory. UserError: a mistake in them, or a damaged result."""
    parsed = build_parser().parse_args(arguments)
    cfg, base = setup_cfg(parsed)
    directory = output_directory(parsed, cfg, base)
    check_config(directory, cfg)
    finished_result(directory)
    return parsed, cfg, directory


def table(directories: list[Path]) -> str:
    """Accuracy and macro-F1 in percent by seed, with mean and standard deviation (n - 1)."""
    results = [load_result(d / "result.json") for d in directories]
    rows: list[list[Any]] = [[r["seed"], r["accuracy"], r["macro_f1"]] for r in results]
    if len(rows) > 1:
        columns = list(zip(*rows, strict=True))[1:]
        rows.append(["mean", *map(statistics.fmean, columns)])
        rows.append(["std", *map(statistics.stdev, columns)])
    return tabulate(rows, headers=["seed", "accuracy (%)", "macro F1 (%)"], floatfmt=".2f")


def run_to_its_end(start: Callable[[], process.Child]) -> int:
    """The exit code of a child process. A signal that reaches only its parent is passed on, and the child saves."""
    child = None
    try:
        with uninterrupted():
            child = start()
        return child.wait()
    except Interrupted as signal:
        if child is None:
            raise
        child.send_signal(signal.signum)
        code = child.wait()  # negative, if a second signal, such as a terminal's own, has met its very end
        return code if code > 0 else 128 + signal.signum


def finish(job: Job) -> list[Path]:
    """Runs what is not yet finished of a job, and before it of the runs that it needs; the directories of its seeds.

    Raises:
        UserError: a mistake in the arguments or a damaged result, found before anything runs.
        SystemExit: a run failed, and has said why.
    """
    directories = job.directories()
    if not all(map(finished_result, directories)):
        for needed in job.needed.values():
            print(f"{job.trainer} needs {needed.trainer}", flush=True)
            finish(needed)
    for i, (seed, directory) in enumerate(zip(job.seeds, directories, strict=True)):
        place = f"[{i + 1}/{len(directories)}] seed {seed}"
        if (result := finished_result(directory)) is not None:
            print(f"{place}: finished before, {result['accuracy']:.2f}%, {directory}", flush=True)
            continue
        print(f"{place}: {directory}", flush=True)
        run_train(job.arguments(seed))
    return directories


def run_train(arguments: list[str]) -> None:
    """``train.py`` as a child process; raises SystemExit with its exit code if that is not 0."""
    if code := run_to_its_end(lambda: process.start(arguments)):
        raise SystemExit(code)


def run(args: argparse.Namespace) -> None:
    trainer, *more = named_methods(args.trainer, "TRAINER")
    if more:
        raise UserError(f"TRAINER is '{args.trainer}'; it must be one method")
    method, words, env = method_of(trainer), args.rest, args.environment
    if not method.has_seeds and not (words and words[0].isdigit()):
        words = ["1", *words]
    if not words:
        raise UserError(f"SHOTS is missing: bash scripts/run.sh {args.trainer} {args.dataset} SHOTS [KEY VALUE]...")
    shots = positive_integer(words[0], "SHOTS")
    config, pairs = recipe(trainer, args.dataset, shots, env.CFG, env.BACKBONE)
    job = Job(trainer, args.dataset, shots, config, pairs, words[1:], env)
    directories = finish(job)
    what = f", {job.shots} shots" if method.has_seeds else ""
    print(f"\n{job.trainer} on {job.dataset}{what}, config {job.config}\n\n{table(directories)}")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("experiments.jobs", __doc__, imports=True)
    parser.add_argument("trainer", metavar="TRAINER", help="a registered name or its file's: PLOT, plot")
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="SHOTS [KEY VALUE]...")
    return guarded(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
