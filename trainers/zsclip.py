"""Zero-shot CLIP: a hand-written prompt a dataset, nothing learned.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

import re

import torch
from clip.model import CLIP
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY

from .clip.encoders import ImageEncoder, TextEncoder
from .clip.prompts import PromptBuilder
from .clip.weights import load_clip
from .clip_trainer import CLIPTrainer, check_input_size


def __getattr__(name: str) -> dict[str, str]:
    """``CUSTOM_TEMPLATES``, by dataset, for trainers written for CoOp; the datasets have them."""
    if name != "CUSTOM_TEMPLATES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import datasets  # noqa: F401 -- registers them

    kinds = {name: DATASET_REGISTRY.get(name) for name in DATASET_REGISTRY.registered_names()}
    return {name: kind.template for name, kind in kinds.items() if hasattr(kind, "template")}


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(CLIPTrainer):
    """Logits exp(logit_scale) cos(f_0, g_k); the prompt is DATASET.TEMPLATE or the dataset's own ``template``."""

    label = "zero-shot CLIP"
    paper = "Learning Transferable Visual Models From Natural Language Supervision, ICML 2021 (arXiv 2103.00020)"
    learns = has_seeds = False
    colour, marker = "tab:gray", "*"
    model: CLIP

    @classmethod
    def find_faults(cls, cfg: CfgNode) -> list[str]:
        faults, template = super().find_faults(cfg), cfg.DATASET.get("TEMPLATE", "")
        if template and ("{}" not in template or re.sub(r"[^{}]", "", template) != "{}"):
            faults.append(f"DATASET.TEMPLATE '{template}' has no {{}} for the class name, or more braces than that")
        return faults

    def build_model(self) -> None:
        cfg, dataset = self.cfg, self.dm.dataset
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip_model = load_clip(cfg)
        self.weights_sha256 = clip_model.weights_sha256
        if self.device.type == "cpu":  # float16, as published, is for GPUs
            clip_model.float()
        check_input_size(cfg, clip_model)
        template = cfg.DATASET.get("TEMPLATE", "") or getattr(dataset, "template", "a photo of a {}.")
        print(f"Prompt: {template}")
        prompts = [template.format(name.replace("_", " ")) for name in dataset.classnames]
        builder = PromptBuilder(prompts, clip_model, end="").to(self.device)
        self.model = clip_model.to(self.device).eval()
        self.image_encoder = ImageEncoder(self.model.visual, local=False)
        with torch.no_grad():
            no_ctx = builder.embedding.new_empty(1, 0, builder.embedding.shape[1])
            text = TextEncoder(self.model)(*builder(no_ctx), builder.layout)[0]
        self.text_features = F.normalize(text, dim=-1)  # [n_cls, d]

    def train(self) -> None:  # type: ignore[override]
        """Nothing to learn: only the test."""
        self.test()

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        return self.model.logit_scale.exp() * F.normalize(pooled, dim=-1) @ self.text_features.t()
