"""Zero-shot CLIP: a hand-written prompt a dataset, nothing learned.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY

from .feature_trainer import FeatureTrainer


def __getattr__(name: str) -> dict[str, str]:
    """``CUSTOM_TEMPLATES``, by dataset, for trainers written for CoOp; the datasets have them."""
    if name != "CUSTOM_TEMPLATES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import datasets  # noqa: F401 -- registers them

    kinds = {name: DATASET_REGISTRY.get(name) for name in DATASET_REGISTRY.registered_names()}
    return {name: kind.template for name, kind in kinds.items() if hasattr(kind, "template")}


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(FeatureTrainer):
    """Logits exp(logit_scale) cos(f_0, g_k); the prompt is DATASET.TEMPLATE or the dataset's own ``template``."""

    label = "zero-shot CLIP"
    paper = "Learning Transferable Visual Models From Natural Language Supervision, ICML 2021 (arXiv 2103.00020)"
    learns = has_seeds = False
    colour, marker = "tab:gray", "*"

    def build_head(self) -> None:
        self.text = F.normalize(self.text_features("own")[0], dim=-1)  # [n_cls, d]

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        return self.model.logit_scale.exp() * F.normalize(pooled, dim=-1) @ self.text.t()
