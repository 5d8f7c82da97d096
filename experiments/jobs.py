"""Runs one method on one dataset and shot count over the seeds, then prints the table; behind scripts/*/main.sh.

Each seed is a child process. A finished run is kept, an unfinished one resumed.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from runs.process import before_imports

    before_imports()

from tabulate import tabulate

import train
from dassl.extras.cli import Parser, guarded
from dassl.extras.interrupts import Interrupted, uninterrupted
from dassl.utils import UserError
from runs import process
from runs.command_line import build_parser
from runs.config import setup_cfg
from runs.directory import check_config
from runs.execution import output_directory
from runs.result import finished_result, load_result

REPOSITORY = Path(train.__file__).resolve().parent

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


@dataclass(frozen=True)
class Job:
    """One method on one dataset and shot count, by one config and recipe, with the user's KEY VALUE pairs."""

    trainer: str
    dataset: str
    shots: int
    config: str
    recipe: str = ""
    opts: Sequence[str] = ()

    @property
    def seeds(self) -> list[int]:
        """Zero-shot CLIP has no seeds: one run."""
        zero_shot = self.trainer == "ZeroshotCLIP"
        return [1] if zero_shot else positive_integers(os.environ.get("SEEDS") or "1 2 3", "SEEDS")

    def arguments(self, seed: int) -> list[str]:
        """The command line of ``train.py`` for one seed."""
        configs = REPOSITORY / "configs"
        prompts = positive_integers(os.environ.get("N") or "4", "N")
        if len(prompts) > 1:
            raise UserError(f"N is '{os.environ['N']}'; it must be one positive integer, the prompts a class")
        if taken := [key for key in self.opts[::2] if key in OURS]:
            raise UserError(f"{taken[0]} follows from {OURS[taken[0]]}: it cannot be a KEY VALUE pair as well")
        shots = 0 if self.trainer == "ZeroshotCLIP" else self.shots
        return [
            *("--seed", str(seed)),
            *("--trainer", self.trainer),
            *("--dataset-config-file", str(configs / "datasets" / f"{self.dataset}.yaml")),
            *("--config-file", str(configs / "trainers" / self.trainer / f"{self.config}.yaml")),
            *(("--recipe", self.recipe) if self.recipe else ()),
            *("DATASET.NUM_SHOTS", str(shots)),
            *(("TRAINER.PLOT.N", str(prompts[0])) if self.trainer == "PLOT" else ()),
            *self.opts,
        ]

    def directories(self) -> list[Path]:
        """By seed; every mistake in the arguments, and a damaged result, is found here, before anything runs."""
        directories = [directory_of(self.arguments(seed)) for seed in self.seeds]
        for directory in directories:
            finished_result(directory)
        return directories


def directory_of(arguments: list[str]) -> Path:
    """The run's directory; every mistake in the arguments is found here, before anything runs."""
    parsed = build_parser().parse_args(arguments)
    cfg, base = setup_cfg(parsed)
    directory = output_directory(parsed, cfg, base)
    check_config(directory, cfg)
    return directory


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
    """Runs what is not yet finished of a job; the directories of its seeds.

    Raises:
        UserError: a mistake in the arguments or a damaged result, found before anything runs.
        SystemExit: a run failed, and has said why.
    """
    directories = job.directories()
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
    job = Job(**vars(args))
    directories = finish(job)
    what = "" if job.trainer == "ZeroshotCLIP" else f", {job.shots} shots"
    print(f"\n{job.trainer} on {job.dataset}{what}, config {job.config}\n\n{table(directories)}")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="experiments.jobs", allow_abbrev=False)
    for name in ("trainer", "dataset", "config"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--shots", type=int, required=True)
    parser.add_argument("--recipe", default="")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    return guarded(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
