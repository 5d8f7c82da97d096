"""PLOT's head on hand-written prompts, nothing learned: what the plan gives without prompt learning.

Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023 (arXiv 2210.01253).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY

from .feature_trainer import templates_option
from .method import Recipe
from .plot import MAX_SIMILARITIES, PLOT
from .prompt_trainer import unit
from .sinkhorn import transport_score
from .zsclip import ZeroshotCLIP


def match(local: Tensor, text: Tensor, eps: float, max_iter: int, thresh: float) -> Tensor:
    """local [batch, M, d], text [N, n_cls, d], unit length -> sum over m and n of T_mn f_m·g_nk [batch, n_cls]."""
    chunks = local.split(max(1, MAX_SIMILARITIES // (local.shape[1] * text.shape[0] * text.shape[1])))
    pairs = (torch.einsum("bmd,nkd->bkmn", f, text) for f in chunks)
    return torch.cat([transport_score(similarity, eps, max_iter, thresh) for similarity in pairs])


@TRAINER_REGISTRY.register()
class ZeroshotPLOT(ZeroshotCLIP):
    """Logits exp(logit_scale) sum_mn T_mn f_m·g_nk over the N hand-written prompts of ``TEMPLATES``."""

    node = "ZSPLOT"
    options = (
        templates_option("both"),
        *(option for option in PLOT.options if option.key in ("EPS", "MAX_ITER", "THRESH")),
    )
    label = "zero-shot PLOT"
    paper = PLOT.paper
    compared = False
    colour, marker = "tab:pink", "X"
    reads_local = True

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        """The prompts of ZeroshotCLIP2."""
        return Recipe("{backbone}", {"TRAINER.ZSPLOT.TEMPLATES": "ensemble"} if dataset == "imagenet" else {})

    def build_head(self) -> None:
        self.text = unit(self.text_features(self.method_cfg.TEMPLATES))  # [N, n_cls, d]

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        assert local is not None
        options = self.method_cfg
        score = match(unit(local), self.text, options.EPS, options.MAX_ITER, options.THRESH)
        return self.model.logit_scale.exp() * score
