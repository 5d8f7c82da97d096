"""CoOp: one learned context, matched to the pooled image feature.

Zhou, Yang, Loy and Liu, "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv 2109.01134).
"""

from __future__ import annotations

from collections.abc import Sequence

from clip.model import CLIP
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .clip.prompts import PromptBuilder, initial_contexts
from .method import Recipe, epochs_by_shots, method_cfg
from .prompt_trainer import PROMPT_OPTIONS, PromptedCLIP, PromptTrainer, cosine


class PromptLearner(nn.Module):
    """ctx [n_ctx, d], with CSC [n_cls, n_ctx, d]; forward() -> prefix [1, P, d], suffix [1, R, W, d]."""

    def __init__(self, cfg: CfgNode, classnames: Sequence[str], clip_model: CLIP) -> None:
        super().__init__()
        options = method_cfg(cfg, "COOP")
        self.ctx = nn.Parameter(initial_contexts(options, len(classnames), clip_model)[0])
        n_ctx, position = self.ctx.shape[-2], options.CLASS_TOKEN_POSITION
        self.prompts = PromptBuilder(classnames, clip_model, n_ctx, position, options.CSC)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.prompts(self.ctx[None])


class CustomCLIP(PromptedCLIP):
    """Logits [batch, n_cls] = exp(logit_scale) cos(f_0, g_k)."""

    def __init__(self, cfg: CfgNode, classnames: Sequence[str], clip_model: CLIP) -> None:
        super().__init__(cfg, PromptLearner(cfg, classnames, clip_model), clip_model)

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        return self.logit_scale.exp() * cosine(pooled, self.text_features()[0])


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    node = "COOP"
    options = PROMPT_OPTIONS
    paper = "Learning to Prompt for Vision-Language Models, IJCV 2022 (arXiv 2109.01134)"
    colour, marker, role = "tab:blue", "s", "baseline"
    custom_clip = CustomCLIP

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        """Section 4.1: the epochs by shots, in configs of their own."""
        epochs = epochs_by_shots(dataset, shots)
        return Recipe("{backbone}" if epochs == 200 else f"{{backbone}}_ep{epochs}")
