"""Time of testing a split: without kept image features, the first time with them, and after that.

    python -m benchmarks.testing [--trainers PLOT CoOp ZeroshotCLIP] [--images 2465] [--threads 2] [--json FILE]

RN50 with random weights, the 100 class names of Caltech-101 and as many JPEG pictures as its test set has (300 x 240,
noise), float32, test batches of 100. Each row is a trainer's ``test()`` from the start: reading, decoding, image
encoder, text features, head. CPU seconds count all threads and no other program. The predictions of the three have to
be the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

import datasets  # noqa: F401 -- registers them
from benchmarks.caltech_names import NAMES
from benchmarks.sides import make_clip
from dassl import startup
from dassl.engine import build_trainer
from runs.config import read_yaml
from runs.directory import REPOSITORY, defaults

CONFIGS = {"PLOT": "rn50", "CoOp": "rn50", "CoCoOp": "rn50_c4_ep10_batch1_ctxv1", "ZeroshotCLIP": "rn50"}
TRAINING = len(NAMES)  # one image a class, so that there is a training set


def make_data(root: Path, images: int, side: int) -> None:
    """Caltech-101's layout with pictures of noise, smooth enough to be of a photograph's size in bytes."""
    rng = np.random.default_rng(0)
    split: dict[str, list[list[Any]]] = {"train": [], "val": [], "test": []}
    folder = root / "caltech-101" / "101_ObjectCategories"
    for i in range(TRAINING + images):
        label = i % len(NAMES)
        coarse = Image.fromarray(rng.integers(0, 255, (24, 30, 3), dtype=np.uint8))
        path = folder / NAMES[label] / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((side * 5 // 4, side), Image.Resampling.BICUBIC).save(path)
        part = "train" if i < TRAINING else "test"
        split[part].append([f"{NAMES[label]}/{path.name}", label, NAMES[label]])
    split["val"] = split["train"]
    (root / "caltech-101" / "split_zhou_Caltech101.json").write_text(json.dumps(split))


def make_cfg(name: str, root: Path, weights: Path, size: int, workers: int) -> Any:
    cfg = defaults()
    for path in ("datasets/caltech101.yaml", f"trainers/{name}/{CONFIGS[name]}.yaml"):
        cfg.merge_from_list([word for pair in read_yaml(REPOSITORY / "configs" / path).items() for word in pair])
    cfg.SEED, cfg.TRAINER.NAME, cfg.DATASET.ROOT, cfg.USE_CUDA = 1, name, str(root), False
    cfg.INPUT.SIZE, cfg.MODEL.BACKBONE.NAME = (size, size), str(weights)
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TEST.BATCH_SIZE = workers, 100
    cfg.OUTPUT_DIR, cfg.TEST.FEATURE_CACHE_DIR = str(root / "run"), str(root / "features" / name)
    if name != "ZeroshotCLIP":
        cfg.TRAINER[name.upper()].PREC = "fp32"
    return cfg


def test_once(cfg: Any) -> tuple[float, float, list[int]]:
    """Wall and CPU seconds of one test of a new trainer, and its predictions."""
    with contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(0)  # the same context each time
        trainer = build_trainer(cfg)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.test()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, trainer.evaluator.y_pred


def measure(name: str, root: Path, weights: Path, size: int, workers: int) -> dict[str, Any]:
    cfg = make_cfg(name, root, weights, size, workers)
    row: dict[str, Any] = {"trainer": name}
    found = []
    for kind in ("off", "first", "second"):
        cfg.TEST.FEATURE_CACHE = kind != "off"
        row[f"{kind}_s"], row[f"{kind}_cpu_s"], predictions = test_once(cfg)
        print(f"{name}, {kind}: {row[f'{kind}_s']:.3g} s", file=sys.stderr, flush=True)
        found.append(predictions)
    if not found[0] == found[1] == found[2]:
        raise RuntimeError(f"{name}: the predictions of cached features differ")
    files = Path(cfg.TEST.FEATURE_CACHE_DIR).glob("*.npy")
    return {
        **row,
        "times_faster": row["first_s"] / row["second_s"],
        "cpu_times_faster": row["first_cpu_s"] / row["second_cpu_s"],
        "file_mb": sum(file.stat().st_size for file in files) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="+", choices=CONFIGS, default=["PLOT", "CoOp", "ZeroshotCLIP"])
    parser.add_argument("--images", type=int, default=2465)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a toy CLIP: tries the program, measures nothing")
    parser.add_argument("--json", metavar="FILE", help="write the results here as well")
    options = parser.parse_args()
    startup.keep_memory()  # as in our programs
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clip_model = make_clip(options.tiny)
        torch.save(clip_model.state_dict(), root / "weights.pt")
        size = clip_model.visual.input_resolution
        make_data(root, options.images, 240)
        rows = [measure(name, root, root / "weights.pt", size, options.workers) for name in options.trainers]
    headers = {
        "trainer": "trainer", "off_s": "no cache s", "first_s": "first s", "second_s": "later s",
        "times_faster": "times faster", "cpu_times_faster": "times less CPU", "file_mb": "MB kept",
    }  # fmt: skip
    model = "a toy CLIP" if options.tiny else "RN50"
    print(
        f"{model}, {options.images} images, {len(NAMES)} classes, {options.threads} threads, {options.workers} "
        f"workers, torch {torch.__version__}"
    )
    print(tabulate([{headers[k]: row[k] for k in headers} for row in rows], "keys", "pipe", floatfmt=".3g"))
    if options.json:
        about = {"torch": torch.__version__, **vars(options)}
        Path(options.json).write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
