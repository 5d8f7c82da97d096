"""The paper's grid of 506 runs on paper: hours on 1, 8 and 64 devices, from the step times that were measured on one.

    python -m benchmarks.step --parts --cocoop-batch 8 --json step.json
    python -m benchmarks.grid step.json [--devices 1 8 64] [--start 6]

A run's time is its steps times the time of one: the image encoder's by the image, the text side's and head's by the
class. A test reads cached image features. Exceptions are a dataset's first test, and PLOT's where the features are more
than TEST.FEATURE_CACHE_GB. CoCoOp makes text features for every image. The longest run goes first, each to the device
that is free first.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import parser_of, save, show
from benchmarks.sides import METHODS as TIMED
from experiments.recipes import compared_methods
from experiments.tables.suite import DATASETS, SHOTS
from runs.config import read_yaml
from runs.directory import REPOSITORY, defaults
from trainers.method import methods

COMPARED = {name: methods()[name] for name in compared_methods()}
METHODS = {name: kind for name, kind in COMPARED.items() if kind.node in TIMED or not kind.learns}
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
    """By trainer, from the parts in a JSON file of `benchmarks.step`."""
    found = {}
    for row in rows:
        # CoCoOp makes text features for each image.
        prompts = row["classes"] * (row["batch"] if row["trainer"] == "COCOOP" else 1)
        train_text = sum(row[name] for name in ("text", "ot", "head", "head_back", "text_back", "optimizer")) / prompts
        found[row["trainer"]] = Rate(row["image"] / row["batch"], train_text, row["text"] / prompts)
    return found


def run_seconds(method: str, dataset: str, shots: int, rate: Rate) -> float:
    """Training and test of one run whose test set's image features are cached."""
    n_cls, n_test = SIZES[dataset]
    config, pairs = METHODS[method].recipe(dataset, shots)
    cfg, path = defaults(), REPOSITORY / "configs/trainers" / method / f"{config.format(backbone='rn50')}.yaml"
    cfg.merge_from_list([word for options in (read_yaml(path), pairs) for pair in options.items() for word in pair])
    per_image = method == "CoCoOp"
    test = rate.test_text * n_cls * (n_test if per_image else 1)
    if method == "PLOT" and n_test * LOCAL_BYTES > 1e9 * cfg.TEST.FEATURE_CACHE_GB:
        test += n_test * rate.image
    if not METHODS[method].learns:
        return test
    images, batch = shots * n_cls, cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    used = min(batch, images)
    steps = cfg.OPTIM.MAX_EPOCH * max(1, images // batch)
    return test + steps * (used * rate.image + rate.train_text * n_cls * (used if per_image else 1))


def grid(measured: dict[str, Rate], start: float) -> dict[tuple[str, str, int, int], float]:
    """Seconds by (method, dataset, shots, seed).

    Args:
        start: seconds that a process takes to start. Each dataset's first run also encodes the test set.
    """
    seconds = {}
    for dataset in DATASETS:
        for method, kind in METHODS.items():
            for shots in SHOTS if kind.has_seeds else (1,):
                once = start + run_seconds(method, dataset, shots, measured[kind.node or "COOP"])
                for seed in range(1, SEEDS + 1 if kind.has_seeds else 2):
                    seconds[method, dataset, shots, seed] = once
        first = next(name for name, kind in METHODS.items() if not kind.learns)
        seconds[first, dataset, 1, 1] += SIZES[dataset][1] * measured["PLOT"].image
    return seconds


def makespan(seconds: Sequence[float], devices: int) -> float:
    """Seconds until the last run ends, each run going to the device that is free first, the longest first."""
    free = [0.0] * devices
    for run in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + run)
    return max(free)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("steps", nargs="+", type=Path, help="JSON files of benchmarks.step, of all three trainers")
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--start", type=float, default=6.0, help="seconds that a process takes to start")
    options = parser.parse_args()
    measured = rates([row for path in options.steps for row in json.loads(path.read_text())["parts"]])
    if missing := {kind.node for kind in METHODS.values() if kind.learns} - set(measured):
        parser.error(f"no step of {', '.join(sorted(missing))} in these files; see benchmarks.step --trainers")
    seconds = grid(measured, options.start)
    hours = sum(seconds.values()) / 3600

    def hours_of(*run: str) -> float:
        return sum(s for key, s in seconds.items() if key[: len(run)] == run) / 3600

    rows = [{"method": m, "hours": hours_of(m), "of these on ImageNet": hours_of(m, "imagenet")} for m in METHODS]
    show(f"{len(seconds)} runs, {hours:,.0f} device hours", rows, ",.1f")
    (method, dataset, shots, _), longest = max(seconds.items(), key=lambda item: item[1])
    took = {n: makespan(list(seconds.values()), n) / 3600 for n in options.devices}
    rows = [{"devices": n, "hours": h, "ideal": hours / n, "busy (%)": 100 * hours / n / h} for n, h in took.items()]
    show(f"The longest run: {method} on {dataset}, {shots} shots, {longest / 3600:,.1f} hours", rows, ",.1f")
    save(options, rows=rows)


if __name__ == "__main__":
    main()
