"""Tip-Adapter: a cache of the training images' features beside zero-shot CLIP, nothing trained.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022 (arXiv 2207.09519).

Here alpha and beta are searched on the few-shot validation set. The published code searches them on the whole
validation set, which on ImageNet is the test set. ``AS_PUBLISHED`` does so too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .clip_trainer import Features
from .feature_trainer import FeatureTrainer, templates_option
from .method import Option, Recipe
from .prompt_trainer import unit

GRID_START = 0.1  # of alpha and of beta
IMAGES_AT_ONCE = 100  # in a search
# The largest beta and alpha of the grid.
SCALES = {
    "caltech101": (12, 5),
    "dtd": (13, 13),
    "eurosat": (12, 10),
    "fgvc_aircraft": (30, 30),
    "food101": (10, 10),
    "imagenet": (7, 3),
    "oxford_flowers": (50, 50),
    "oxford_pets": (7, 3),
    "stanford_cars": (20, 10),
    "sun397": (12, 10),
    "ucf101": (7, 3),
}
CACHE_OPTIONS = (
    Option("VIEWS", 10, "augmented views that a cached feature is the mean of", 1, 1000),
    Option("ALPHA", 1.0, "weight of the cache, where it is not searched", 0, 1e6),
    Option("BETA", 1.0, "sharpness of the cache, where it is not searched", 0, 1e6),
    Option("ALPHA_MAX", 3.0, f"end of the grid of alpha, which begins at {GRID_START}", GRID_START, 1e6),
    Option("BETA_MAX", 7.0, f"end of the grid of beta, which begins at {GRID_START}", GRID_START, 1e6),
    Option("ALPHA_STEPS", 20, "values of alpha in the grid", 1, 10000),
    Option("BETA_STEPS", 200, "values of beta in the grid", 1, 10000),
    Option("AS_PUBLISHED", False, "choose by the images that the published code chooses by"),
)


def grid(largest: float, steps: int) -> list[float]:
    """Values from GRID_START up, without the largest."""
    return [GRID_START + i * (largest - GRID_START) / steps for i in range(steps)]


@TRAINER_REGISTRY.register()
class TipAdapter(FeatureTrainer):
    """Logits exp(logit_scale) f_0·t_k + alpha sum_i exp(-beta (1 - f_0·key_i)) [label_i = k]."""

    node = "TIP_ADAPTER"
    options: ClassVar[tuple[Option, ...]] = (templates_option("own"), *CACHE_OPTIONS)
    label = "Tip-Adapter"
    paper = "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022 (arXiv 2207.09519)"
    compared = other_classes = False
    colour, marker, role = "tab:olive", "<", "adapter"
    trains_keys = False

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        """The published configs; on ImageNet with the ensemble of prompts."""
        options: dict[str, object] = dict(zip(("BETA_MAX", "ALPHA_MAX"), SCALES.get(dataset, ()), strict=False))
        if dataset == "imagenet":
            options["TEMPLATES"] = "ensemble"
        return Recipe("{backbone}", {f"TRAINER.{cls.node}.{key}": value for key, value in options.items()})

    @property
    def test_selected(self) -> bool:
        return self.method_cfg.AS_PUBLISHED and self.validated_on_test

    @property
    def validated_on_test(self) -> bool:
        """Whether the published validation images of the dataset are its test images, as ImageNet's are."""
        return getattr(self.dm.dataset, "validate_on_train", False)

    def build_head(self) -> None:
        self.text = self.class_vectors(self.method_cfg.TEMPLATES)
        keys = {"keys": self.text.new_zeros(0, self.text.shape[1])}
        fixed = {name: self.text.new_zeros(()) for name in ("alpha", "beta")}
        fixed["labels"] = torch.zeros(0, dtype=torch.long)
        self.register_head(keys if self.trains_keys else {}, fixed if self.trains_keys else {**keys, **fixed})

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        features = {"pooled": pooled} if local is None else {"pooled": pooled, "local": local}
        return self.base(features) + self.head.alpha * self.cached(self.cosines(features), self.head.beta)

    def zero_shot(self, features: Features) -> Tensor:
        return self.model.logit_scale.exp() * unit(features["pooled"]) @ self.text.t()

    def base(self, features: Features) -> Tensor:
        """The logits of a test without the cache [batch, n_cls]."""
        return self.zero_shot(features)

    def cosines(self, features: Features) -> Tensor:
        """Of the features with the keys [batch, n]."""
        return unit(features["pooled"]) @ self.head.keys.t()

    def cached(self, cosines: Tensor, beta: float | Tensor) -> Tensor:
        """The cache's part of the logits [batch, n_cls], without its weight alpha."""
        return (-beta * (1 - cosines)).exp() @ self.one_hot()

    def one_hot(self) -> Tensor:
        """The labels of the keys [n, n_cls]."""
        return F.one_hot(self.head.labels, len(self.classnames)).to(self.text.dtype)

    def sum_of_views(self, prepare: Callable[[Tensor], Tensor]) -> tuple[Features, Tensor]:
        """Of each training image the sum of its views' features, each prepared; and the labels."""
        loader, total = self.loader(self.dm.dataset.train_x, augmented=True), Features()
        for view in range(self.method_cfg.VIEWS):
            features, labels = self.features_of(loader, view)
            for name, x in features.items():
                total[name] = total.get(name, 0) + prepare(x.to(self.dtype))
        return total, labels

    def fill_cache(self) -> None:
        """Takes as keys the training images' features: the mean over the views of each, to unit length."""
        views, labels = self.sum_of_views(lambda x: x)
        self.head.put(keys=unit(views["pooled"]), labels=labels)

    def take(self, alpha: float, beta: float) -> None:
        self.head.put(alpha=torch.tensor(alpha, dtype=torch.float64), beta=torch.tensor(beta, dtype=torch.float64))

    def fit(self) -> None:
        options = self.method_cfg
        self.fill_cache()
        self.take(options.ALPHA, options.BETA)
        self.search(self.searched_images())

    def searched_images(self) -> Sequence[Any]:
        """The images that alpha and beta are searched on: the few-shot validation images, or those of AS_PUBLISHED."""
        if not self.method_cfg.AS_PUBLISHED:
            return self.validation_images()
        if self.validated_on_test:
            print("AS_PUBLISHED: alpha and beta are searched on the test set")
            return self.dm.dataset.test
        print("AS_PUBLISHED: alpha and beta are searched on the whole validation set")
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATASET.NUM_SHOTS, cfg.DATASET.FEW_SHOT_LIST = -1, ""
        return self.validation_images(type(self.dm.dataset)(cfg).val)

    @torch.no_grad()
    def search(self, images: Sequence[Any], least: float = -1.0) -> None:
        """Takes the alpha and beta of the grid that are best on the images, the first of equals, beta varying last.

        Args:
            least: an accuracy in percent that they must exceed.
        """
        options = self.method_cfg
        if not images:
            print(f"No validation images that are not tested: alpha stays {options.ALPHA}, beta {options.BETA}")
            return
        alphas, betas = grid(options.ALPHA_MAX, options.ALPHA_STEPS), grid(options.BETA_MAX, options.BETA_STEPS)
        right = torch.zeros(len(betas), len(alphas), dtype=torch.long, device=self.device)
        for features, labels in self.parts(images):
            base, cosines = self.base(features), self.cosines(features)
            for i, beta in enumerate(betas):
                cached = self.cached(cosines, beta)
                for j, alpha in enumerate(alphas):
                    right[i, j] += ((base + alpha * cached).argmax(dim=1) == labels).sum()
        best = int(right.flatten().argmax())
        accuracy = 100 * int(right.flatten()[best]) / len(images)
        if accuracy > least:
            self.take(alphas[best % len(alphas)], betas[best // len(alphas)])
        print(f"alpha = {self.head.alpha:.4g}, beta = {self.head.beta:.4g} ({accuracy:.2f}% of {len(images)} images)")

    @torch.no_grad()
    def accuracy(self, images: Sequence[Any]) -> float:
        """In percent."""
        right = [(self.logits(**features).argmax(dim=1) == labels).sum() for features, labels in self.parts(images)]
        return 100 * int(sum(right)) / len(images)

    def parts(self, images: Sequence[Any]) -> Iterator[tuple[Features, Tensor]]:
        """Features and labels, some images at a time."""
        features, labels = self.features_of(self.loader(images))
        parts = (x.split(IMAGES_AT_ONCE) for x in (*features.values(), labels))
        for *values, label in zip(*parts, strict=True):
            yield dict(zip(features, values, strict=True)), label
