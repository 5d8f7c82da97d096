"""Tip-Adapter-F: Tip-Adapter with trained keys.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022 (arXiv 2207.09519).

The published code keeps the epoch that is best on the test set. Then it searches alpha and beta on Tip-Adapter's
images, and takes them if they help on the test set. Here the last epoch counts, and alpha and beta are searched on the
few-shot validation set. ``AS_PUBLISHED`` chooses as the published code does.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_optimizer

from .clip_trainer import Batch
from .method import Recipe
from .tip_adapter import TipAdapter

ADAM_EPS = 1e-4
# In training.
ALPHAS = {
    "caltech101": 3,
    "dtd": 2,
    "eurosat": 2,
    "fgvc_aircraft": 5,
    "food101": 1.17,
    "imagenet": 1.17,
    "oxford_flowers": 10,
    "oxford_pets": 1.17,
    "stanford_cars": 3,
    "sun397": 1.17,
    "ucf101": 3,
}


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    """Logits as Tip-Adapter's; the keys [n, d] learn by cross-entropy, at ALPHA and BETA."""

    label = "Tip-Adapter-F"
    colour, marker = "tab:cyan", ">"
    trains_keys = True

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        """The published configs; beta is 1 in all of them."""
        config, options = super().recipe(dataset, shots)
        own: dict[str, object] = {"OPTIM.MAX_EPOCH": 100 if dataset == "eurosat" else 20}
        if dataset in ALPHAS:
            own[f"TRAINER.{cls.node}.ALPHA"] = ALPHAS[dataset]
        return Recipe(config, {**options, **own})

    @property
    def test_selected(self) -> bool:
        return self.method_cfg.AS_PUBLISHED

    @classmethod
    def find_faults(cls, cfg: CfgNode) -> list[str]:
        faults, schedule = super().find_faults(cfg), cfg.OPTIM.get("LR_SCHEDULER", "cosine")
        if schedule != "cosine":
            faults.append(f"OPTIM.LR_SCHEDULER is '{schedule}'; {cls.__name__} learns by cosine, step by step")
        return faults

    def build_data_loader(self) -> None:
        super().build_data_loader()
        self.train_loader_x.batch_sampler.drop_last = False  # as published: an epoch shows every image

    def train(self) -> None:  # type: ignore[override]
        TrainerX.train(self)

    def before_train(self) -> None:
        """The keys start from the cache; then the engine resumes, if there is something."""
        self.fill_cache()
        optimizer = self._optims["head"] = build_optimizer(self.head, self.cfg.OPTIM)
        for group in optimizer.param_groups:
            group["eps"] = ADAM_EPS
        steps = self.cfg.OPTIM.MAX_EPOCH * len(self.train_loader_x)
        self._scheds["head"] = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)  # to 0, step by step
        super().before_train()
        self.take(self.method_cfg.ALPHA, self.method_cfg.BETA)

    def forward_backward(self, batch: Batch) -> dict[str, float]:
        input, label = self.parse_batch_train(batch)
        with torch.no_grad():
            features = input if isinstance(input, dict) else self.encode_images(input)
        output = self.zero_shot(features) + self.head.alpha * self.cached(self.cosines(features), self.head.beta)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def after_epoch(self) -> None:
        if self.method_cfg.AS_PUBLISHED and (result := self.accuracy(self.dm.dataset.test)) > self.best_result:
            print(f"AS_PUBLISHED: epoch {self.epoch + 1} is the best on the test set, {result:.2f}%")
            self._save_chosen(result)
            self.best_result = result
        super().after_epoch()

    def after_train(self) -> None:
        options = self.method_cfg
        if options.AS_PUBLISHED:
            self.load_model(self.output_dir)
        self.take(options.ALPHA, options.BETA)
        found = self.searched_images()
        self.search(found, least=-1.0 if options.AS_PUBLISHED or not found else self.accuracy(found))
        if options.AS_PUBLISHED:
            searched, chosen = self.accuracy(self.dm.dataset.test), (float(self.head.alpha), float(self.head.beta))
            self.take(options.ALPHA, options.BETA)
            if searched > self.accuracy(self.dm.dataset.test):
                self.take(*chosen)
            print(f"AS_PUBLISHED: by the test set alpha = {self.head.alpha:.4g}, beta = {self.head.beta:.4g}")
        self._save_chosen()
        super().after_train()

    def _save_chosen(self, result: float | None = None) -> None:
        """What is tested and loaded goes beside the epochs' checkpoints."""
        self.save_model(self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar")
