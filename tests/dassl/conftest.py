"""A dataset of real JPEG files and a trainer of a linear model: the engine's room without CLIP."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import nn
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer

CLASSES = ("ant", "bee", "crab")

TOY = """
SEED: 1
DATASET: {NAME: ToyImages}
TRAINER: {NAME: ToyTrainer}
DATALOADER: {NUM_WORKERS: 0, TRAIN_X: {BATCH_SIZE: 5}, TEST: {BATCH_SIZE: 4}}
INPUT:
  SIZE: [16, 16]
  INTERPOLATION: bicubic
  TRANSFORMS: [random_resized_crop, random_flip, normalize]
OPTIM:
  NAME: sgd
  LR: 0.002
  MAX_EPOCH: 4
  LR_SCHEDULER: cosine
  WARMUP_EPOCH: 1
  WARMUP_TYPE: constant
"""


@DATASET_REGISTRY.register()
class ToyImages(DatasetBase):
    """ROOT holds <class>_<number>.jpg; 4 of each class train, 1 validates, the rest test."""

    def __init__(self, cfg: CfgNode) -> None:
        splits: dict[str, list[Datum]] = {"train": [], "val": [], "test": []}
        for label, name in enumerate(CLASSES):
            for i, path in enumerate(sorted(Path(cfg.DATASET.ROOT).glob(f"{name}_*.jpg"))):
                split = "train" if i < 4 else "val" if i == 4 else "test"
                splits[split].append(Datum(str(path), label, classname=name))
        super().__init__(train_x=splits["train"], val=splits["val"], test=splits["test"])


@TRAINER_REGISTRY.register()
class ToyTrainer(TrainerX):
    """A linear model with dropout, so that a run depends on every random number there is."""

    def build_model(self) -> None:
        side = self.cfg.INPUT.SIZE[0]
        self.model = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(3 * side * side, self.num_classes))
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("toy", self.model, self.optim, self.sched)

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        image, label, _ = self.parse_batch_train(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for i in range(7):
            pixels = rng.integers(0, 120, (36, 48, 3), dtype=np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(root / f"{name}_{i}.jpg")
    return root


MakeCfg = Callable[..., CfgNode]


@pytest.fixture
def make_cfg(image_root: Path, tmp_path: Path) -> MakeCfg:
    """make_cfg(KEY=value): the toy run's config; a double underscore is a dot."""

    def make(**overrides: Any) -> CfgNode:
        cfg = get_cfg_default()
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(TOY)))
        cfg.DATASET.ROOT, cfg.OUTPUT_DIR = str(image_root), str(tmp_path / "out")
        cfg.merge_from_list([x for key, value in overrides.items() for x in (key.replace("__", "."), value)])
        return cfg

    return make


@pytest.fixture(autouse=True)
def _global_seed() -> Iterator[None]:
    """Each test starts from the same global generators, whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
