"""Zero-shot CLIP with an ensemble of hand-written prompts a class, as Zhou et al. compare CoOp with (arXiv 2109.01134).

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 3.1.4.
"""

from __future__ import annotations

from torch import Tensor

from dassl.engine import TRAINER_REGISTRY

from .feature_trainer import templates_option
from .method import Recipe
from .prompt_trainer import unit
from .zsclip import ZeroshotCLIP


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Logits exp(logit_scale) cos(f_0, g_k); g_k is the mean of the unit features of class k's prompts."""

    node = "ZSCLIP2"
    options = (templates_option("both"),)
    label = "zero-shot CLIP, ensemble"
    compared = False
    colour, marker = "dimgray", "P"

    @classmethod
    def recipe(cls, dataset: str, shots: int) -> Recipe:
        """On ImageNet the seven alone; elsewhere the dataset's own prompt is the eighth."""
        return Recipe("{backbone}", {"TRAINER.ZSCLIP2.TEMPLATES": "ensemble"} if dataset == "imagenet" else {})

    def build_head(self) -> None:
        self.text = self.class_vectors(self.method_cfg.TEMPLATES)

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        return self.model.logit_scale.exp() * unit(pooled) @ self.text.t()
