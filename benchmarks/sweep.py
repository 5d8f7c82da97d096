"""Whole runs with and without cached image features: every shot count, seed and method, by its recipe.

    python -m benchmarks.sweep [KEY VALUE]... [--shots 1 2 4 8 16] [--seeds 1 2 3] [--trainers PLOT CoOp CoCoOp]
        [--views 1 2 4] [--json FILE]

On symbols (--dataset), with its data under $DATA; KEY VALUE pairs reach all runs. The sides take turns run by
run: "off" caches no features, "kept" starts from an empty folder and caches the test sets'. Each K of --views adds two
more: "K views" also caches K views of each training image (DATALOADER.CACHED_VIEWS) in an empty folder, "K again" reads
them, as when another method follows. Seconds are of whole processes, start included; one uncounted run of zero-shot
CLIP draws the data. Accuracies are means; the difference to "off" is paired by run. "off" and "kept" must predict the
same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import parser_of, save, show
from experiments.jobs import Job
from experiments.recipes import recipe
from runs.directory import REPOSITORY

LEARNED = ("PLOT", "CoOp", "CoCoOp")


def start_train(arguments: list[str]) -> None:
    """Runs train.py in a new process. SystemExit: it failed."""
    done = subprocess.run([sys.executable, str(REPOSITORY / "train.py"), *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}train.py failed: {' '.join(arguments)}")


def timed_run(options: argparse.Namespace, trainer: str, shots: int, seed: int, more: Sequence[str]) -> dict[str, Any]:
    """One run by the recipe: accuracy, predictions, and the seconds of the process, of training and of the test."""
    config, pairs = recipe(trainer, options.dataset, shots)
    job = Job(trainer, options.dataset, shots, config, pairs, [*options.opts, *more])
    with tempfile.TemporaryDirectory() as output:
        start = time.perf_counter()
        start_train(["--output-dir", output, *job.arguments(seed)])
        total = time.perf_counter() - start
        result = json.loads((Path(output) / "result.json").read_text())
        predictions = json.loads((Path(output) / "predictions.json").read_text())["prediction"]
    seconds = result["seconds"]
    return {
        "trainer": trainer, "shots": shots, "seed": seed, "accuracy": result["accuracy"], "predictions": predictions,
        "total": total, "train": seconds.get("train_seconds", 0.0),
        "test": len(predictions) / (seconds.get("test_images_per_second") or seconds["kept_test_images_per_second"]),
    }  # fmt: skip


def sweep(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All runs by side, in the same order on each side."""
    sides = {"off": ["TEST.FEATURE_CACHE", "False"], "kept": ["TEST.FEATURE_CACHE_DIR", str(folder / "kept")]}
    for k in options.views:
        more = ["TEST.FEATURE_CACHE_DIR", str(folder / "views"), "DATALOADER.CACHED_VIEWS", str(k)]
        sides |= {f"{k} views": more, f"{k} again": more}
    timed_run(options, "ZeroshotCLIP", 1, 1, sides["off"])
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for shots in options.shots:
        for seed in options.seeds:
            for trainer in options.trainers:
                runs = {}
                for side, more in sides.items():
                    if side.endswith("views"):
                        shutil.rmtree(folder / "views", ignore_errors=True)
                    runs[side] = timed_run(options, trainer, shots, seed, more)
                off, kept, *_ = [run.pop("predictions") for run in runs.values()]
                if off != kept:
                    raise RuntimeError(f"{trainer}, {shots} shots, seed {seed}: cached features change a prediction")
                for side, run in runs.items():
                    found[side].append(run)
                times = ", ".join(f"{side} {run['total']:.1f} s" for side, run in runs.items())
                print(f"{trainer}, {shots} shots, seed {seed}: {times}", flush=True)
    return found


def row(side: str, trainer: str, runs: list[dict[str, Any]], off: list[dict[str, Any]]) -> dict[str, Any]:
    """The table's row of one side and trainer."""
    differences = [run["accuracy"] - other["accuracy"] for run, other in zip(runs, off, strict=True)]
    return {
        "trainer": trainer, "side": side, "runs": len(runs),
        **{f"{part} s": sum(run[part] for run in runs) for part in ("total", "train", "test")},
        "accuracy (%)": statistics.fmean(run["accuracy"] for run in runs),
        "difference": statistics.fmean(differences),
        "its std": statistics.stdev(differences) if len(runs) > 1 else None,
    }  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--trainers", nargs="+", choices=LEARNED, default=list(LEARNED))
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--dataset", default="symbols")
    add("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    add("--views", type=int, nargs="+", default=[], help="numbers of cached views of each training image")
    add("opts", nargs="*", metavar="KEY VALUE", help="for all runs")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        found = sweep(options, Path(folder))
    rows = []
    for trainer in (*options.trainers, "all"):
        chosen = {side: [run for run in runs if trainer in (run["trainer"], "all")] for side, runs in found.items()}
        rows += [row(side, trainer, runs, chosen["off"]) for side, runs in chosen.items()]
    show(f"{options.dataset}, seeds {options.seeds}, {os.cpu_count()} CPUs", rows)
    save(options, rows=rows, runs=found)


if __name__ == "__main__":
    main()
