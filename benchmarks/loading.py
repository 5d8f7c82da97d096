"""Time to load the largest datasets, on trees of empty files: SUN397's size, and a tenth of ImageNet's classes.

    python -m benchmarks.loading [--share 0.1] [--dir FOLDER]

The first load checks or lists the folders, and keeps what it found; the later ones are what a run waits for. "scaled"
is the wall time at the real number of files (only ImageNet is scaled, by 1 / share).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

import datasets  # noqa: F401 (registers them)
import trainers
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset

REPEATS = 3


def sun397(root: Path, share: float) -> int:
    """Lays out a share of SUN397's 397 classes of 100 files each, with a split file; the number of files."""
    rows = []
    for label in range(round(397 * share)):
        folder = root / f"sun397/SUN397/a/class_{label}"
        folder.mkdir(parents=True)
        for i in range(100):
            (folder / f"sun_{i:020d}.jpg").touch()
            rows.append([f"a/class_{label}/sun_{i:020d}.jpg", label, f"class {label}"])
    random.Random(1).shuffle(rows)
    n_train, n_val = round(0.4 * len(rows)), round(0.1 * len(rows))
    split = {"train": rows[:n_train], "val": rows[n_train : n_train + n_val], "test": rows[n_train + n_val :]}
    (root / "sun397/split_zhou_SUN397.json").write_text(json.dumps(split, indent=4))
    return len(rows)


def imagenet(root: Path, share: float) -> int:
    """Lays out a share of ImageNet's 1,000 classes, 1,281 files each for training and 50 for test; their number."""
    folder, wnids = root / "imagenet", [f"n{label:08d}" for label in range(round(1000 * share))]
    for part, n in (("train", 1281), ("val", 50)):
        for wnid in wnids:
            (folder / "images" / part / wnid).mkdir(parents=True)
            for i in range(n):
                (folder / "images" / part / wnid / f"{wnid}_{i}.JPEG").touch()
    (folder / "classnames.txt").write_text("".join(f"{wnid} name of {wnid}\n" for wnid in wnids))
    return 1331 * len(wnids)


def load(root: Path, name: str, shots: int) -> tuple[float, float]:
    """Wall and CPU seconds of building a dataset."""
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    cfg.DATASET.update({"NAME": name, "ROOT": str(root), "NUM_SHOTS": shots})
    cfg.SEED, cfg.VERBOSE = 1, False
    start = time.perf_counter(), time.process_time()
    build_dataset(cfg)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def measure(root: Path, name: str, share: float) -> list[list[object]]:
    """Rows of the table for one dataset, laid out under ``root``."""
    files = {"SUN397": sun397, "ImageNet": imagenet}[name](root, share)
    rows: list[list[object]] = []
    for what, shots, repeats in (("first", 16, 1), ("16 shots", 16, REPEATS), ("all images", 0, REPEATS)):
        wall, cpu = min(load(root, name, shots) for _ in range(repeats))
        rows.append([name, files, what, wall, cpu, wall / share])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1, help="of ImageNet's classes")
    parser.add_argument("--dir", help="where the trees are made, and removed (default: the system's place)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        rows = measure(Path(folder), "SUN397", 1) + measure(Path(folder), "ImageNet", args.share)
    headers = ["dataset", "files", "load", "wall s", "CPU s", "scaled s"]
    print(tabulate(rows, headers, "pipe", floatfmt=".3g"))


if __name__ == "__main__":
    main()
