"""Time to list the largest datasets, on trees of empty files: SUN397's size, and a tenth of ImageNet's classes.

    python -m benchmarks.loading [--share 0.1] [--json FILE]

The first load checks or lists the folders and caches the list. A run waits for a later load.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 (registers them)
from benchmarks.report import parser_of, save, show
from dassl.data.datasets import build_dataset
from runs.directory import defaults

REPEATS = 3


def empty_files(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def sun397(root: Path, share: float) -> int:
    """Lays out a share of SUN397's 397 classes of 100 files, with a split file; the number of files."""
    split: dict[str, list[list[object]]] = {"train": [], "val": [], "test": []}
    names = [f"sun_{i:020d}.jpg" for i in range(100)]
    for label in range(round(397 * share)):
        empty_files(root / f"sun397/SUN397/a/class_{label}", names)
        rows: list[list[object]] = [[f"a/class_{label}/{name}", label, f"class {label}"] for name in names]
        for part, some in zip(split, (rows[:40], rows[40:50], rows[50:]), strict=True):
            split[part] += some
    (root / "sun397/split_zhou_SUN397.json").write_text(json.dumps(split, indent=4))
    return sum(map(len, split.values()))


def imagenet(root: Path, share: float) -> int:
    """Lays out a share of ImageNet's 1,000 classes of 1,281 training and 50 test files; the number of files."""
    folder, wnids = root / "imagenet", [f"n{label:08d}" for label in range(round(1000 * share))]
    for wnid in wnids:
        for part, n in (("train", 1281), ("val", 50)):
            empty_files(folder / "images" / part / wnid, [f"{wnid}_{i}.JPEG" for i in range(n)])
    (folder / "classnames.txt").write_text("".join(f"{wnid} name of {wnid}\n" for wnid in wnids))
    return 1331 * len(wnids)


def load(root: Path, name: str, shots: int) -> tuple[float, float]:
    """Wall and CPU seconds of building a dataset."""
    cfg = defaults()
    cfg.DATASET.update({"NAME": name, "ROOT": str(root), "NUM_SHOTS": shots})
    cfg.SEED, cfg.VERBOSE = 1, False
    start = time.perf_counter(), time.process_time()
    build_dataset(cfg)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def measure(root: Path, name: str, share: float) -> list[dict[str, Any]]:
    """The first load of one dataset, laid out under ``root``, and the fastest of later ones."""
    n_files = {"SUN397": sun397, "ImageNet": imagenet}[name](root, share)
    rows = []
    for what, shots, repeats in (("first", 16, 1), ("16 shots", 16, REPEATS), ("all images", 0, REPEATS)):
        wall, cpu = min(load(root, name, shots) for _ in range(repeats))
        rows.append({"dataset": name, "files": n_files, "load": what, "wall s": wall, "CPU s": cpu})
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--share", type=float, default=0.1, help="of ImageNet's classes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), "SUN397", 1) + measure(Path(folder), "ImageNet", options.share)
    show(f"fastest of {REPEATS} loads", rows)
    save(options, rows=rows)


if __name__ == "__main__":
    main()
