"""PLOT's head on hand-written prompts, nothing learned: what the plan gives without prompt learning.

Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023 (arXiv 2210.01253).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from dassl.engine import TRAINER_REGISTRY

from .diagnostics import CountsIterations
from .feature_trainer import templates_option
from .method import Recipe
from .plot import PLOT, match, transported
from .prompt_trainer import unit
from .zsclip import ZeroshotCLIP


@TRAINER_REGISTRY.register()
class ZeroshotPLOT(CountsIterations, ZeroshotCLIP):
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
        score = match(unit(local), self.text, partial(transported, options=self.method_cfg, meter=self.meter))
        return self.model.logit_scale.exp() * score
