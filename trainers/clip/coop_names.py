"""Names of CoOp's ``trainers/coop.py`` that trainers written for CoOp import, on our own parts."""

from __future__ import annotations

import torch
from clip.model import CLIP
from torch import Tensor, nn
from yacs.config import CfgNode

from . import encoders
from .prompts import Layout
from .weights import in_half, load_clip


def load_clip_to_cpu(cfg: CfgNode) -> CLIP:
    """``load_clip``, in CLIP's half precision."""
    model = load_clip(cfg)
    in_half(model)
    return model


class TextEncoder(nn.Module):
    """CLIP's text tower on whole prompts: prompts [n_cls, 77, d], tokens [n_cls, 77] -> text features [n_cls, d_out].

    What follows a prompt's EOT, the largest token, is not computed.
    """

    def __init__(self, clip_model: CLIP) -> None:
        super().__init__()
        self.encoder = encoders.TextEncoder(clip_model)
        self.dtype = clip_model.dtype

    def forward(self, prompts: Tensor, tokenized_prompts: Tensor) -> Tensor:
        lengths = (tokenized_prompts.argmax(dim=-1) + 1).tolist()
        layout = Layout(lengths, P=0).to(prompts.device)
        flat = torch.cat([prompt[:length] for prompt, length in zip(prompts, lengths, strict=True)])
        rows = flat.new_zeros(*layout.position.shape, flat.shape[-1]).flatten(0, 1).index_put((layout.token,), flat)
        suffix = rows.view(1, *layout.position.shape, -1)
        return self.encoder(suffix[:, 0, :0], suffix, layout)[0]
