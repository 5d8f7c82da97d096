"""A sweep with and without kept image features: every shot count, seed and method, each run as the scripts make it.

    python -m benchmarks.sweep [--shots 1 2 4 8 16] [--seeds 1 2 3] [--trainers PLOT CoOp CoCoOp] [--json FILE]

On symbols (--dataset), with its data under $DATA or --root; KEY VALUE pairs at the end reach all runs. The sides take
turns run by run: "off" keeps no features, "kept" starts from an empty folder and keeps the test sets', "views" (with
--views K) keeps those of K views of each training image as well. Seconds are those of whole processes, start included.
One more run in front, of zero-shot CLIP, is not counted: it draws the data. The predictions of "off" and "kept" have to
be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from experiments.jobs import Job
from experiments.recipes import recipe
from runs.directory import REPOSITORY

LEARNED = ("PLOT", "CoOp", "CoCoOp")


def start_train(arguments: list[str]) -> None:
    """train.py in a process of its own. SystemExit: it failed."""
    done = subprocess.run([sys.executable, str(REPOSITORY / "train.py"), *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}train.py failed: {' '.join(arguments)}")


def timed_run(options: argparse.Namespace, trainer: str, shots: int, seed: int, more: Sequence[str]) -> dict[str, Any]:
    """One run by the recipe: accuracy, predictions, and the seconds of the process, of training and of the test."""
    config, pairs = recipe(trainer, options.dataset, shots)
    job = Job(trainer, options.dataset, shots, config, pairs, [*options.opts, *more])
    output = Path(tempfile.mkdtemp(dir=options.folder))
    root = ["--root", options.root] if options.root else []
    start = time.perf_counter()
    start_train([*root, "--output-dir", str(output), *job.arguments(seed)])
    total = time.perf_counter() - start
    result = json.loads((output / "result.json").read_text())
    predictions = json.loads((output / "predictions.json").read_text())["prediction"]
    shutil.rmtree(output)
    seconds = result["seconds"]
    return {
        "trainer": trainer, "shots": shots, "seed": seed, "accuracy": result["accuracy"], "predictions": predictions,
        "total": total, "train": seconds.get("train_seconds", 0.0),
        "test": len(predictions) / (seconds.get("test_images_per_second") or seconds["kept_test_images_per_second"]),
    }  # fmt: skip


def keep_in(folder: str | Path, views: int = 0) -> list[str]:
    """KEY VALUE pairs that keep features in a folder."""
    return ["TEST.FEATURE_CACHE_DIR", str(folder), "DATALOADER.CACHED_VIEWS", str(views)]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options that programs of whole runs share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trainers", nargs="+", choices=LEARNED, default=list(LEARNED))
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--dataset", default="symbols")
    add("--root", default="", help="folder that holds the datasets (default: $DATA, else data)")
    add("--json", metavar="FILE", help="write the results here as well")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options, opts = parser.parse_known_args()
    if len(opts) % 2 or any(word.startswith("-") for word in opts[::2]):
        parser.error(f"unknown arguments: {' '.join(opts)}")
    options.opts = opts
    return options


def finish(options: argparse.Namespace, rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> None:
    """Prints the table, and writes it with all runs to --json."""
    print(f"{options.dataset}, seeds {options.seeds}, {os.cpu_count()} CPUs, torch {torch.__version__}")
    print(tabulate(rows, "keys", "pipe", floatfmt=".4g"))
    if options.json:
        known = {key: value for key, value in vars(options).items() if key != "folder"}
        runs = [{key: value for key, value in run.items() if key != "predictions"} for run in runs]
        text = json.dumps({"torch": torch.__version__, **known, "rows": rows, "runs": runs}, indent=1)
        Path(options.json).write_text(text + "\n")


def sweep(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, the sides in turn."""
    sides = {"off": ["TEST.FEATURE_CACHE", "False"], "kept": keep_in(options.folder / "kept")}
    if options.views:
        sides["views"] = keep_in(options.folder / "views", options.views)
    timed_run(options, "ZeroshotCLIP", 1, 1, sides["off"])
    found = []
    for shots in options.shots:
        for seed in options.seeds:
            for trainer in options.trainers:
                runs = {side: timed_run(options, trainer, shots, seed, more) for side, more in sides.items()}
                if runs["off"]["predictions"] != runs["kept"]["predictions"]:
                    raise RuntimeError(f"{trainer}, {shots} shots, seed {seed}: kept features change a prediction")
                found += [{"side": side, **run} for side, run in runs.items()]
                times = ", ".join(f"{side} {run['total']:.1f} s" for side, run in runs.items())
                print(f"{trainer}, {shots} shots, seed {seed}: {times}", flush=True)
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--views", type=int, default=0, help="a third side, with so many views of a training image")
    options = parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        runs = sweep(options)
    rows = []
    for trainer in (*options.trainers, "all"):
        for side in dict.fromkeys(run["side"] for run in runs):
            chosen = [run for run in runs if run["side"] == side and trainer in (run["trainer"], "all")]
            sums = {f"{part} s": sum(run[part] for run in chosen) for part in ("total", "train", "test")}
            accuracy = sum(run["accuracy"] for run in chosen) / len(chosen)
            rows.append({"trainer": trainer, "side": side, "runs": len(chosen), **sums, "accuracy (%)": accuracy})
    finish(options, rows, runs)


if __name__ == "__main__":
    main()
