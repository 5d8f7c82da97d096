"""Nearest class mean: the control without text. Mensink et al., ECCV 2012.

What the image features alone give, in the same few-shot protocol. A method that reads the class names should beat it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY

from .feature_trainer import FeatureTrainer
from .method import Recipe
from .prompt_trainer import unit


@TRAINER_REGISTRY.register()
class NearestClassMean(FeatureTrainer):
    """Logits s f_0·m_k, s = exp(logit_scale): m_k is the mean of class k's unit features, again of unit length."""

    label = "nearest class mean"
    paper = "Metric Learning for Large Scale Image Classification, ECCV 2012"
    compared = other_classes = False
    colour, marker = "tab:gray", "1"

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        return Recipe("../LinearProbe/{backbone}")

    def build_head(self) -> None:
        self.register_head({"means": torch.zeros(len(self.classnames), self.model.visual.output_dim)}, {})

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        return self.model.logit_scale.exp() * unit(pooled.to(self.head.means.dtype)) @ self.head.means.t()

    def fit(self) -> None:
        features, labels = self.features_of(self.loader(self.dm.dataset.train_x))
        x = unit(features["pooled"].to(self.head.means.dtype))
        means = x.new_zeros(self.head.means.shape).index_add_(0, labels, x)
        self.head.put(means=unit(means))
