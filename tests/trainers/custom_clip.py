"""What the tests of `CustomCLIP` share: the classes, the small CLIPs, and a model with a start of its own."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

import trainers.cocoop
import trainers.coop
import trainers.plot
import trainers.plotcocoop
import trainers.plotpp
from tests.oracle import Oracle, make_cfg, random_images, tiny_clip

# Names of several lengths; in the last, the closing bracket and the full stop are one token.
NAMES = ["cat", "sea horse", "wild_cat", "Boeing 737-800 aircraft", "a.b", "crane (bird)"]
LABEL = torch.tensor([3, 0, 5])
MODULES = {
    "PLOT": trainers.plot,
    "PLOTPP": trainers.plotpp,
    "COOP": trainers.coop,
    "COCOOP": trainers.cocoop,
    "PLOTCOCOOP": trainers.plotcocoop,
}
POSITIONS = ("end", "middle", "front")
# Five tokens each, the last of the first two for one word.
TEXTS = [
    "a photo_of menorah",
    "one blurry picture of my",
    "the image with a large",
    "some drawing of this small",
]

get_clip = functools.cache(tiny_clip)


@functools.cache
def get_oracle(kind: str, batch: int = 3, size: int = 64, seed: int = 1) -> Oracle:
    return Oracle(get_clip(kind, torch.float64, 0, size), NAMES, random_images(batch, size, seed))


def build(trainer: str, kind: str, dtype: torch.dtype = torch.float64, size: int = 64, **overrides: Any) -> nn.Module:
    """A CustomCLIP with a start of its own: the same in every dtype."""
    if not overrides.get("CTX_INIT"):
        overrides.setdefault("N_CTX", 5)
    clip_model = get_clip(kind, dtype, 0, size)
    torch.manual_seed(0)
    model = MODULES[trainer].CustomCLIP(make_cfg(trainer, size, **overrides), NAMES, clip_model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in model.prompt_learner.named_parameters():
            if name != "ctx" or not overrides.get("CTX_INIT"):
                p.copy_(torch.randn(p.shape, generator=generator) * (0.02 if name == "ctx" else 0.2))
            elif len(p) > 1:  # the noise of the copies: make it float32 numbers
                p.copy_(p.float())
    return model.train()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.prompt_learner.named_parameters()}


def error(value: Tensor, reference: Tensor) -> float:
    assert value.shape == reference.shape
    assert reference.abs().max() > 1e-6, "a reference of zeros shows nothing"
    return ((value.double() - reference).abs().max() / reference.abs().max()).item()
