"""Two toy methods that reach where the published ones do not: into the image tower, and past ``ctx``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from trainers import coop
from trainers.clip.encoders import Extra
from trainers.prompt_trainer import PROMPT_OPTIONS, PromptTrainer


class VisualToken(coop.CustomCLIP):
    """CoOp with one learned token behind a ViT's patches."""

    def __init__(self, cfg: Any, classnames: Any, clip_model: Any) -> None:
        super().__init__(cfg, classnames, clip_model)
        width = clip_model.visual.conv1.weight.shape[0]
        self.prompt_learner.visual = nn.Parameter(torch.randn(1, width, dtype=clip_model.dtype))

    def image_extra(self) -> Extra:
        return Extra(tokens=self.prompt_learner.visual)


class TextScale(coop.CustomCLIP):
    """CoOp with a second learned text parameter: a deep token at the second block."""

    def __init__(self, cfg: Any, classnames: Any, clip_model: Any) -> None:
        super().__init__(cfg, classnames, clip_model)
        ctx: Tensor = self.prompt_learner.ctx
        self.prompt_learner.deep = nn.Parameter(torch.randn(1, ctx.shape[-1], dtype=ctx.dtype))

    def text_extra(self) -> Extra:
        return Extra(deep={1: self.prompt_learner.deep})


for kind in (VisualToken, TextScale):
    attributes = {"node": "COOP", "options": PROMPT_OPTIONS, "custom_clip": kind}
    TRAINER_REGISTRY.register(type(f"Toy{kind.__name__}", (PromptTrainer,), attributes), force=True)
