"""CoCoOp: a context that a small network shifts for each image.

Zhou, Yang, Loy and Liu, "Conditional Prompt Learning for Vision-Language Models", CVPR 2022 (arXiv 2203.05557).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .clip.prompts import PromptBuilder, UserError, initial_contexts
from .method import Recipe, method_cfg
from .prompt_trainer import PROMPT_OPTIONS, PromptedCLIP, PromptTrainer, unit


class PromptLearner(nn.Module):
    """ctx [n_ctx, d]; forward(pooled [batch, d_out], unit length) -> prefix [batch, P, d], suffix [1, R, W, d]."""

    def __init__(self, cfg: CfgNode, classnames: Sequence[str], clip_model: CLIP) -> None:
        super().__init__()
        self.ctx = nn.Parameter(initial_contexts(method_cfg(cfg, "COCOOP"), len(classnames), clip_model)[0])
        self.meta_net = meta_net(clip_model)
        self.prompts = PromptBuilder(classnames, clip_model, len(self.ctx))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return self.prompts(self.ctx + self.meta_net(pooled)[:, None])


def meta_net(clip_model: CLIP) -> nn.Sequential:
    """pooled [batch, d_out] -> what is added to every context vector [batch, d]."""
    d_out, width = clip_model.visual.output_dim, clip_model.token_embedding.embedding_dim
    layers = [
        ("linear1", nn.Linear(d_out, d_out // 16)),
        ("relu", nn.ReLU(inplace=True)),
        ("linear2", nn.Linear(d_out // 16, width)),
    ]
    return nn.Sequential(OrderedDict(layers)).to(clip_model.dtype)


class CustomCLIP(PromptedCLIP):
    """Logits [batch, n_cls] = exp(logit_scale) cos(f_0, g_k(f_0)); one prefix an image, the suffixes common to all."""

    def __init__(self, cfg: CfgNode, classnames: Sequence[str], clip_model: CLIP) -> None:
        super().__init__(cfg, PromptLearner(cfg, classnames, clip_model), clip_model)

    def text_features(self) -> Tensor:
        raise UserError("CoCoOp's text features depend on the image: there are none of a class alone")

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        pooled = F.normalize(pooled, dim=-1)
        prefix, suffix = self.prompt_learner(pooled)
        text = self.text_encoder(prefix, suffix, self.prompt_learner.prompts.layout)  # [batch, n_cls, d]
        with torch.autocast(pooled.device.type, enabled=False):
            return self.logit_scale.exp() * (unit(text) @ unit(pooled)[:, :, None]).squeeze(-1)


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    node = "COCOOP"
    options = tuple(option for option in PROMPT_OPTIONS if option.key in ("N_CTX", "CTX_INIT", "PREC"))
    paper = "Conditional Prompt Learning for Vision-Language Models, CVPR 2022 (arXiv 2203.05557)"
    backbone = "vit_b16"
    colour, marker = "tab:green", "^"
    custom_clip = CustomCLIP

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        """Section 4.1: 10 epochs at batch 1, from "a photo of a"."""
        return Recipe("{backbone}_c4_ep10_batch1_ctxv1")
