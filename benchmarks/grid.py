"""The paper's grid of 506 runs on paper: hours on 1, 8 and 64 devices, from the step times that were measured on one.

    python -m benchmarks.step --parts --cocoop-batch 8 --json step.json
    python -m benchmarks.grid step.json... [loading.json] [--devices 1 8 64] [--start 6]

A run's time is its steps times the time of one: the image encoder's by the image, the rest by the class. Between the
numbers of classes that were measured the rest is interpolated, beyond it is in proportion, and on a GPU fewer take no
less. With a file of `benchmarks.image_loading` no step is faster than 8 workers load its images. Where steps as one
graph, else with the fused head, are in the files (`benchmarks.step --whole`, `--fused`), the hours with them and with
images decoded once follow. A test reads cached image features. Exceptions are a dataset's first test, and PLOT's where
the features are more than TEST.FEATURE_CACHE_GB. CoCoOp makes text features for every image. The longest run goes
first, each to the device that is free first.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import parser_of, save, show
from benchmarks.sides import METHODS as TIMED
from benchmarks.turns import PARTS
from experiments.recipes import compared_methods
from experiments.tables.suite import DATASETS, SHOTS
from runs.config import read_yaml
from runs.directory import REPOSITORY, defaults
from trainers.method import methods

COMPARED = {name: methods()[name] for name in compared_methods()}
METHODS = {name: kind for name, kind in COMPARED.items() if kind.node in TIMED or not kind.learns}
SEEDS = 3
WORKERS = 8  # that load images, as in CoOp's configs
# Classes and test images, as the split files list them (DATASETS.md).
SIZES = {
    "caltech101": (100, 2465), "dtd": (47, 1692), "eurosat": (10, 8100), "fgvc_aircraft": (100, 3333),
    "food101": (101, 30300), "imagenet": (1000, 50000), "oxford_flowers": (102, 2463), "oxford_pets": (37, 3669),
    "stanford_cars": (196, 8041), "sun397": (397, 19850), "ucf101": (101, 3783),
}  # fmt: skip
LOCAL_BYTES = 49 * 1024 * 4  # an image's local features on RN50, in float32


@dataclass(frozen=True)
class Rate:
    """Times of a trainer on one kind of device.

    Attributes:
        image: seconds of the image encoder, an image.
        text: (prompts, seconds of the rest of a training step) as measured, by number. More prompts than the last take
            longer in proportion. So many classes are so many prompts; CoCoOp makes them for each image.
        forward: the share of the text encoder's forward pass in these seconds, which is what a test needs.
        waits: fewer prompts than the first take no less, as on a GPU, which then waits for the host.
    """

    image: float
    text: tuple[tuple[float, float], ...]
    forward: float
    waits: bool = False

    def rest(self, prompts: float) -> float:
        (fewest, least), (most, longest) = self.text[0], self.text[-1]
        if prompts <= fewest:
            return least if self.waits else least * prompts / fewest
        if prompts >= most:
            return longest * prompts / most
        return float(np.interp(prompts, [n for n, _ in self.text], [seconds for _, seconds in self.text]))


def rates(files: Sequence[dict[str, Any]], side: str = "ours s") -> dict[str, Rate]:
    """By trainer, from JSON files of `benchmarks.step`; a row without ``side`` counts with "ours s"."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for found in files:
        waits = found.get("device") == "cuda"
        for row, parts in zip(found["rows"], found.get("parts") or [{}] * len(found["rows"]), strict=True):
            seconds = row.get(side, row["ours s"])
            rows.setdefault(row["trainer"], []).append({"classes": 100, "waits": waits, **parts, **row, "s": seconds})
    images = {trainer: image_seconds(of) for trainer, of in rows.items()}
    other = max(images.values(), default=0.0)
    return {trainer: rate_of(of, images[trainer] or other) for trainer, of in rows.items()}


def image_seconds(rows: Sequence[dict[str, Any]]) -> float:
    """By two batch sizes, else by the parts of the step; 0 without either: then it is the other trainers'."""
    few = [row for row in rows if row["classes"] == min(row["classes"] for row in rows)]
    small, large = (pick(few, key=lambda row: row["batch"]) for pick in (min, max))
    if small["batch"] < large["batch"]:
        return (large["s"] - small["s"]) / (large["batch"] - small["batch"])
    whole = sum(large.get(part, 0.0) for part in PARTS)
    return large["s"] * large["image"] / whole / large["batch"] if whole else 0.0


def rate_of(rows: Sequence[dict[str, Any]], image: float) -> Rate:
    """Without parts, half of the rest of a step is the forward pass."""
    text = {}
    for row in sorted(rows, key=lambda row: row["batch"]):  # the larger batch decides
        prompts = row["classes"] * (row["batch"] if row["trainer"] == "COCOOP" else 1)
        text[prompts] = row["s"] - image * row["batch"]
    parts = rows[0]
    rest = sum(parts.get(part, 0.0) for part in PARTS if part != "image")
    return Rate(image, tuple(sorted(text.items())), parts["text"] / rest if rest else 0.5, parts["waits"])


def run_seconds(method: str, dataset: str, shots: int, rate: Rate, loaded: float = math.inf) -> float:
    """Training and test of one run whose test set's image features are cached; ``loaded``: images a second at most."""
    n_cls, n_test = SIZES[dataset]
    config, pairs = METHODS[method].recipe(dataset, shots)
    cfg, path = defaults(), REPOSITORY / "configs/trainers" / method / f"{config.format(backbone='rn50')}.yaml"
    cfg.merge_from_list([word for options in (read_yaml(path), pairs) for pair in options.items() for word in pair])
    per_image = method == "CoCoOp"
    test = rate.forward * rate.rest(n_cls * (n_test if per_image else 1))
    if method == "PLOT" and n_test * LOCAL_BYTES > 1e9 * cfg.TEST.FEATURE_CACHE_GB:
        test += n_test * rate.image
    if not METHODS[method].learns:
        return test
    images, batch = shots * n_cls, cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    used = min(batch, images)
    steps = cfg.OPTIM.MAX_EPOCH * max(1, images // batch)
    step = used * rate.image + rate.rest(n_cls * (used if per_image else 1))
    return test + steps * max(step, used / loaded)


def grid(measured: dict[str, Rate], start: float, loaded: float = math.inf) -> dict[tuple[str, str, int, int], float]:
    """Seconds by (method, dataset, shots, seed).

    Args:
        start: seconds that a process takes to start. Each dataset's first run also encodes the test set.
    """
    seconds = {}
    for dataset in DATASETS:
        for method, kind in METHODS.items():
            for shots in SHOTS if kind.has_seeds else (1,):
                once = start + run_seconds(method, dataset, shots, measured[kind.node or "COOP"], loaded)
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
    parser.add_argument("files", nargs="+", type=Path, help="JSON files of benchmarks.step, of all three trainers")
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--start", type=float, default=6.0, help="seconds that a process takes to start")
    options = parser.parse_args()
    files = [json.loads(path.read_text()) for path in options.files]
    steps = [found for found in files if any("ours s" in row for row in found["rows"])]
    loading = [row for found in files if found not in steps for row in found["rows"] if row["workers"] == WORKERS]
    measured = rates(steps)
    if missing := {kind.node for kind in METHODS.values() if kind.learns} - set(measured):
        parser.error(f"no step of {', '.join(sorted(missing))} in these files; see benchmarks.step --trainers")
    found = {"before": grid(measured, options.start, *(row["images a second"] for row in loading[:1]))}
    sides = [side for side in ("whole s", "fused s") if any(side in row for file in steps for row in file["rows"])]
    if sides:
        after = (row.get("decoded once, images a second", row["images a second"]) for row in loading[:1])
        found["after"] = grid(rates(steps, sides[0]), options.start, *after)
    rows = {when: report(when, seconds, options.devices) for when, seconds in found.items()}
    save(options, rows=rows["before"], after=rows.get("after"))


def report(when: str, seconds: dict[tuple[str, str, int, int], float], devices: Sequence[int]) -> list[dict[str, Any]]:
    """Prints hours by method and by number of devices; the latter are returned."""
    hours = sum(seconds.values()) / 3600

    def hours_of(*run: str) -> float:
        return sum(s for key, s in seconds.items() if key[: len(run)] == run) / 3600

    rows = [{"method": m, "hours": hours_of(m), "of these on ImageNet": hours_of(m, "imagenet")} for m in METHODS]
    show(f"{when}: {len(seconds)} runs, {hours:,.0f} device hours", rows, ",.1f")
    (method, dataset, shots, _), longest = max(seconds.items(), key=lambda item: item[1])
    took = {n: makespan(list(seconds.values()), n) / 3600 for n in devices}
    rows = [{"devices": n, "hours": h, "ideal": hours / n, "busy (%)": 100 * hours / n / h} for n, h in took.items()]
    show(f"The longest run: {method} on {dataset}, {shots} shots, {longest / 3600:,.1f} hours", rows, ",.1f")
    return rows


if __name__ == "__main__":
    main()
