"""PLOT on CoCoOp: N contexts, each shifted by the image's meta token, matched to its local features by transport.

Chen et al., "PLOT", ICLR 2023 (arXiv 2210.01253), report it for base-to-new classes, and publish no code of it. This is
our reading: CoCoOp's meta-net and recipe (Zhou et al., CVPR 2022, arXiv 2203.05557), PLOT's head and backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .clip.prompts import PromptBuilder, initial_contexts
from .cocoop import meta_net
from .diagnostics import HeadMeter
from .method import Recipe, method_cfg
from .plot import MAX_SIMILARITIES, PLOT, transported
from .prompt_trainer import PromptedCLIP, unit

KEYS = ("N_CTX", "CTX_INIT", "PREC", "N", "EPS", "MAX_ITER", "THRESH")


class PromptLearner(nn.Module):
    """ctx [N, n_ctx, d]; forward(pooled [batch, d_out], unit length) -> prefix [batch * N, P, d], suffix [1, R, W, d].

    All N contexts of an image are shifted by one meta token. The prompts of an image are neighbours.
    """

    def __init__(self, cfg: CfgNode, classnames: Sequence[str], clip_model: CLIP) -> None:
        super().__init__()
        options = method_cfg(cfg, "PLOTCOCOOP")
        self.ctx = nn.Parameter(initial_contexts(options, len(classnames), clip_model, options.N))
        self.meta_net = meta_net(clip_model)
        self.prompts = PromptBuilder(classnames, clip_model, self.ctx.shape[1])

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        shifted = self.ctx + self.meta_net(pooled)[:, None, None]  # [batch, N, n_ctx, d]
        return self.prompts(shifted.flatten(0, 1))


class CustomCLIP(PromptedCLIP):
    """Logits [batch, n_cls] = exp(logit_scale) sum over m and n of T_mn f_m·g_nk(f_0)."""

    def __init__(self, cfg: CfgNode, classnames: Sequence[str], clip_model: CLIP) -> None:
        super().__init__(cfg, PromptLearner(cfg, classnames, clip_model), clip_model, local=True)
        self.options = method_cfg(cfg, "PLOTCOCOOP")
        self.meter: HeadMeter | None = None
        self.variance: Tensor | None = None

    def asks_the_device(self) -> str:
        return "another method: Sinkhorn asks when to stop"

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        assert local is not None
        layout = self.prompt_learner.prompts.layout
        per_image = self.options.N * len(layout.slot) * max(local.shape[1:])  # of similarities, or of text features
        n = max(1, MAX_SIMILARITIES // per_image)
        return torch.cat([self._logits(*pair) for pair in zip(pooled.split(n), local.split(n), strict=True)])

    def _logits(self, pooled: Tensor, local: Tensor) -> Tensor:
        prefix, suffix = self.prompt_learner(F.normalize(pooled, dim=-1))
        text = self.text_encoder(prefix, suffix, self.prompt_learner.prompts.layout)
        text = text.unflatten(0, (len(pooled), -1))  # [batch, N, n_cls, d]
        with torch.autocast(pooled.device.type, enabled=False):
            similarity = torch.einsum("bmd,bnkd->bkmn", unit(local), unit(text))
            score = transported(similarity, self.options, self.meter)
            if self.meter is not None:
                self.meter.see_scores(score, text.transpose(0, 1).flatten(1, 2), self.logit_scale.exp())
            return self.logit_scale.exp() * score


@TRAINER_REGISTRY.register()
class PLOTCoCoOp(PLOT):
    node = "PLOTCOCOOP"
    options = tuple(option for option in PLOT.options if option.key in KEYS)
    label, colour, role = "PLOT + CoCoOp", "", "base-to-new"
    variants: ClassVar = {}
    ablation: ClassVar = {}
    transfer: ClassVar = {}
    transfer_as_published: ClassVar = {}
    custom_clip = CustomCLIP  # type: ignore[assignment]

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        """CoCoOp's: 10 epochs at batch 1, from "a photo of a"."""
        return Recipe("{backbone}_c4_ep10_batch1_ctxv1")
