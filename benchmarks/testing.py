"""Time of testing a split: without the feature cache, the first time with it, and after that.

    python -m benchmarks.testing [--trainers PLOT CoOp ZeroshotCLIP] [--images 2465] [--threads 2] [--json FILE]

RN50 with random weights, the 100 class names of Caltech-101 and as many JPEG pictures as its test set has (300 x 240,
noise), float32, test batches of 100. A test is a new trainer's ``test()``: reading, decoding, image encoder, text
features, head. CPU seconds count all threads and no other program. The three tests must predict the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import datasets  # noqa: F401 -- registers them
from benchmarks.caltech_names import NAMES
from benchmarks.report import parser_of, save, show
from benchmarks.sides import make_clip
from dassl import startup
from dassl.engine import build_trainer
from runs.config import read_yaml
from runs.directory import REPOSITORY, defaults
from trainers.method import methods


def make_data(root: Path, images: int) -> None:
    """Writes Caltech-101's layout: one training image a class, ``images`` for test, each as large as a photograph."""
    rng = np.random.default_rng(0)
    rows = []
    folder = root / "caltech-101" / "101_ObjectCategories"
    for i in range(len(NAMES) + images):
        label = i % len(NAMES)
        path = folder / NAMES[label] / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (24, 30, 3), dtype=np.uint8))
        coarse.resize((300, 240), Image.Resampling.BICUBIC).save(path)
        rows.append([f"{NAMES[label]}/{path.name}", label, NAMES[label]])
    train = rows[: len(NAMES)]
    split = {"train": train, "val": train, "test": rows[len(NAMES) :]}
    (root / "caltech-101" / "split_zhou_Caltech101.json").write_text(json.dumps(split))


def make_cfg(name: str, root: Path, size: int = 224, workers: int = 0) -> Any:
    """The config of a trainer on the data and the weights in ``root``."""
    cfg, kind = defaults(), methods()[name]
    config = kind.recipe("caltech101", 16).config.format(backbone="rn50")
    for path in ("datasets/caltech101.yaml", f"trainers/{name}/{config}.yaml"):
        cfg.merge_from_list([word for pair in read_yaml(REPOSITORY / "configs" / path).items() for word in pair])
    cfg.SEED, cfg.TRAINER.NAME, cfg.DATASET.ROOT, cfg.USE_CUDA = 1, name, str(root), False
    cfg.INPUT.SIZE, cfg.MODEL.BACKBONE.NAME = (size, size), str(root / "weights.pt")
    cfg.MODEL.BACKBONE.ACTIVATION = "quickgelu"  # as OpenAI's
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TEST.BATCH_SIZE = workers, 100
    cfg.OUTPUT_DIR, cfg.TEST.FEATURE_CACHE_DIR = str(root / "run"), str(root / "features" / name)
    if kind.node:
        cfg.TRAINER[kind.node].PREC = "fp32"
    return cfg


def test_once(cfg: Any, cache: bool) -> tuple[float, float, list[int]]:
    """Wall and CPU seconds of one test of a new trainer, and its predictions."""
    cfg.TEST.FEATURE_CACHE = cache
    with contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(0)  # the same context each time
        trainer = build_trainer(cfg)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.test()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, trainer.evaluator.y_pred


def measure(cfg: Any) -> dict[str, Any]:
    off, first, later = (test_once(cfg, cache) for cache in (False, True, True))
    if not off[2] == first[2] == later[2]:
        raise RuntimeError(f"{cfg.TRAINER.NAME}: the predictions of cached features differ")
    size = sum(file.stat().st_size for file in Path(cfg.TEST.FEATURE_CACHE_DIR).glob("*.npy"))
    return {
        "trainer": cfg.TRAINER.NAME, "no cache s": off[0], "first s": first[0], "later s": later[0],
        "times faster": first[0] / later[0], "times less CPU": first[1] / later[1], "MB kept": size / 1e6,
    }  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--trainers", nargs="+", choices=methods(), default=["PLOT", "CoOp", "ZeroshotCLIP"])
    parser.add_argument("--images", type=int, default=2465)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tiny", action="store_true", help="a toy CLIP: tries the program, measures nothing")
    options = parser.parse_args()
    startup.keep_memory()  # as in our programs
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clip_model = make_clip(options.tiny)
        torch.save(clip_model.state_dict(), root / "weights.pt")
        make_data(root, options.images)
        rows = [measure(make_cfg(name, root, clip_model.visual.input_resolution)) for name in options.trainers]
    model = "a toy CLIP" if options.tiny else "RN50"
    show(f"{model}, {options.images} images, {options.threads} threads, torch {torch.__version__}", rows)
    save(options, rows=rows)


if __name__ == "__main__":
    main()
