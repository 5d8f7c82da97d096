"""The paper's grid of 506 runs on paper: hours on 1, 8 and 64 devices, from the step times that were measured on one.

    python -m benchmarks.step --parts --cocoop-batch 8 --json step.json
    python -m benchmarks.grid step.json [--devices 1 8 64] [--start 6]

A step is the image encoder, by the image, and the text side and head, by the class (`benchmarks.growth` shows that both
are linear), times the recipe's steps. A test reads kept image features, but for the first on its dataset and PLOT's
where they are more than TEST.FEATURE_CACHE_GB; CoCoOp's makes text features for every image. Runs go to the device that
is free first, the longest first, each on one device.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dassl.config import get_cfg_default
from experiments.recipes import METHODS, prescribed_epochs, recipe
from experiments.tables.suite import DATASETS, SHOTS
from runs.config import read_yaml
from runs.directory import REPOSITORY

SEEDS = 3
# Classes and test images, as the split files list them (DATASETS.md).
SIZES = {
    "caltech101": (100, 2465), "dtd": (47, 1692), "eurosat": (10, 8100), "fgvc_aircraft": (100, 3333),
    "food101": (101, 30300), "imagenet": (1000, 50000), "oxford_flowers": (102, 2463), "oxford_pets": (37, 3669),
    "stanford_cars": (196, 8041), "sun397": (397, 19850), "ucf101": (101, 3783),
}  # fmt: skip

LOCAL_BYTES = 49 * 1024 * 4  # an image's local features on RN50, in float32


@dataclass(frozen=True)
class Rate:
    """Seconds: of the image encoder, an image; of the text side, a class, in training and in a test."""

    image: float
    train_text: float
    test_text: float


def rates(rows: Sequence[dict[str, Any]]) -> dict[str, Rate]:
    """By method, from the rows of a JSON file of `benchmarks.step`, measured on 100 classes."""
    found = {}
    for row in rows:
        parts, batch = row["parts"], row["batch"]
        prompts = batch if row["trainer"] == "COCOOP" else 1  # CoCoOp's text features are made an image
        forward = parts["text"] / 100 / prompts
        rest = sum(parts[name] for name in ("ot", "head", "head_back", "text_back", "optimizer")) / 100 / prompts
        found[row["trainer"]] = Rate(parts["image"] / batch, forward + rest, forward)
    return found


def batch_size(method: str, config: str, pairs: str) -> int:
    words = pairs.split()
    if "DATALOADER.TRAIN_X.BATCH_SIZE" in words:
        return int(words[words.index("DATALOADER.TRAIN_X.BATCH_SIZE") + 1])
    path = REPOSITORY / "configs" / "trainers" / method / f"{config}.yaml"
    return int(read_yaml(path)["DATALOADER.TRAIN_X.BATCH_SIZE"])


def run_seconds(method: str, dataset: str, shots: int, rate: Rate) -> float:
    """Training and test of one run, its test set's image features being kept."""
    n_cls, n_test = SIZES[dataset]
    per_image = method == "CoCoOp"
    test = rate.test_text * n_cls * (n_test if per_image else 1)
    if method == "PLOT" and n_test * LOCAL_BYTES > 1e9 * get_cfg_default().TEST.FEATURE_CACHE_GB:
        test += n_test * rate.image
    if method == "ZeroshotCLIP":
        return test
    batch = batch_size(method, *recipe(method, dataset, shots, backbone="rn50"))
    images = shots * n_cls
    used = min(batch, images)
    steps = prescribed_epochs(method, dataset, shots) * max(1, images // batch)
    return test + steps * (used * rate.image + rate.train_text * n_cls * (used if per_image else 1))


def grid(measured: dict[str, Rate], start: float) -> dict[str, float]:
    """Seconds by run. ``start``: of a process; each dataset's first run also encodes the test set."""
    by_method = {"PLOT": "PLOT", "CoOp": "COOP", "CoCoOp": "COCOOP", "ZeroshotCLIP": "COOP"}
    seconds = {}
    for dataset in DATASETS:
        for method in METHODS:
            rate = measured[by_method[method]]
            for shots in (1,) if method == "ZeroshotCLIP" else SHOTS:
                once = start + run_seconds(method, dataset, shots, rate)
                for seed in range(1, 2 if method == "ZeroshotCLIP" else SEEDS + 1):
                    seconds[f"{method} on {dataset}, {shots} shots, seed {seed}"] = once
        seconds[f"ZeroshotCLIP on {dataset}, 1 shots, seed 1"] += SIZES[dataset][1] * measured["PLOT"].image
    return seconds


def makespan(seconds: Sequence[float], devices: int) -> float:
    """Until the last run ends, each run going to the device that is free first, the longest first."""
    free = [0.0] * devices
    for run in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + run)
    return max(free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="+", type=Path, help="JSON files of benchmarks.step, of all three trainers")
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--start", type=float, default=6.0, help="seconds that a process takes to start")
    options = parser.parse_args()
    measured = rates([row for path in options.steps for row in json.loads(path.read_text())["rows"]])
    if missing := {"PLOT", "COOP", "COCOOP"} - set(measured):
        parser.error(
            f"no step of {', '.join(sorted(missing))} in these files; see python -m benchmarks.step --trainers"
        )
    seconds = grid(measured, options.start)
    total = sum(seconds.values())
    print(f"{len(seconds)} runs, {total / 3600:,.0f} device hours\n")
    by = {method: sum(s for run, s in seconds.items() if run.startswith(f"{method} ")) for method in METHODS}
    big = {
        method: sum(s for run, s in seconds.items() if run.startswith(f"{method} on imagenet")) for method in METHODS
    }
    rows = [[method, by[method] / 3600, big[method] / 3600] for method in METHODS]
    print(tabulate(rows, ["method", "hours", "of these on ImageNet"], "pipe", floatfmt=",.1f"))
    longest = max(seconds, key=lambda run: seconds[run])
    print(f"\nThe longest run: {longest}, {seconds[longest] / 3600:,.1f} hours\n")
    rows = []
    for devices in options.devices:
        hours = makespan(list(seconds.values()), devices) / 3600
        rows.append([devices, hours, total / 3600 / devices, 100 * total / 3600 / devices / hours])
    print(tabulate(rows, ["devices", "hours", "ideal", "busy (%)"], "pipe", floatfmt=",.1f"))


if __name__ == "__main__":
    main()
