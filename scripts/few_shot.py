"""Runs one method on one dataset and shot count over the seeds, then prints the table; behind scripts/*/main.sh.

Each seed is a process of its own (``train.py``). A finished run is kept, an unfinished one resumed.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

import runs
import train
from dassl.utils import UserError

REPOSITORY = Path(train.__file__).resolve().parent


def positive_integers(text: str, name: str) -> list[int]:
    """ "1 2 3" -> [1, 2, 3], each once; raises UserError for anything else."""
    words = re.split(r"[\s,]+", text.strip())
    if not all(re.fullmatch(r"[1-9][0-9]{0,8}", word) for word in words):
        raise UserError(f"{name} is '{text}'; it must be made of positive integers")
    return list(dict.fromkeys(int(word) for word in words))


def train_arguments(args: argparse.Namespace, seed: int) -> list[str]:
    """The command line of ``train.py`` for one seed."""
    configs = REPOSITORY / "configs"
    prompts = positive_integers(os.environ.get("N") or "4", "N")[0]
    zero_shot = args.trainer == "ZeroshotCLIP"
    return [
        *("--seed", str(seed)),
        *("--trainer", args.trainer),
        *("--dataset-config-file", str(configs / "datasets" / f"{args.dataset}.yaml")),
        *("--config-file", str(configs / "trainers" / args.trainer / f"{args.config}.yaml")),
        *(("--recipe", args.recipe) if args.recipe else ()),
        *("DATASET.NUM_SHOTS", "0" if zero_shot else str(args.shots)),
        *(("TRAINER.PLOT.N", str(prompts)) if args.trainer == "PLOT" else ()),
        *args.opts,
    ]


def directory_of(arguments: list[str]) -> Path:
    """The run's directory; every mistake in the arguments is found here, before anything runs."""
    parsed = train.build_parser().parse_args(arguments)
    cfg, base = train.setup_cfg(parsed)
    directory = train.output_directory(parsed, cfg, base)
    runs.check_config(directory, cfg)
    return directory


def table(directories: list[Path]) -> str:
    """Accuracy and macro-F1 in percent by seed, with mean and standard deviation (n - 1)."""
    results = [runs.read_result(d) or {} for d in directories]
    rows: list[list[Any]] = [[r["seed"], r["accuracy"], r["macro_f1"]] for r in results]
    if len(rows) > 1:
        columns = list(zip(*rows, strict=True))[1:]
        rows.append(["mean", *map(statistics.fmean, columns)])
        rows.append(["std", *map(statistics.stdev, columns)])
    return tabulate(rows, headers=["seed", "accuracy (%)", "macro F1 (%)"], floatfmt=".2f")


def run_to_its_end(command: list[str]) -> int:
    """The exit code of a process that, interrupted with us, is given the time to leave in order."""
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def run(args: argparse.Namespace) -> int:
    zero_shot = args.trainer == "ZeroshotCLIP"
    seeds = [1] if zero_shot else positive_integers(os.environ.get("SEEDS") or "1 2 3", "SEEDS")
    commands = [train_arguments(args, seed) for seed in seeds]
    directories = [directory_of(command) for command in commands]
    for i, (seed, command, directory) in enumerate(zip(seeds, commands, directories, strict=True)):
        if (result := runs.read_result(directory)) is not None:
            print(f"[{i + 1}/{len(seeds)}] seed {seed}: finished before, {result['accuracy']:.2f}%, {directory}")
            continue
        print(f"[{i + 1}/{len(seeds)}] seed {seed}: {directory}", flush=True)
        if code := run_to_its_end([sys.executable, str(REPOSITORY / "train.py"), *command]):
            return code
    what = "" if zero_shot else f", {args.shots} shots"
    print(f"\n{args.trainer} on {args.dataset}{what}, config {args.config}\n\n{table(directories)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = train.Parser(prog="scripts.few_shot", allow_abbrev=False)
    for name in ("trainer", "dataset", "config"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--shots", type=int, required=True)
    parser.add_argument("--recipe", default="")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    try:
        return run(parser.parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
