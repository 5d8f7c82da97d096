"""The text side split over the processes of one run: each encodes its share of the classes, and logits are gathered.

A process has the image features of its own part of the batch. Split, it is given everybody's, makes the logits of
the whole batch for its classes, and takes from all others what they made for its images. Text towers, transport plans
and what they keep for the backward pass are divided by the number of processes; what travels is features and logits.
Of torch alone, since upstream Dassl has no processes to speak of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .clip.prompts import UserError


class Head(nn.Module):
    """Pictures or their features to logits [batch, n_cls]: the one module that data-parallel training wraps.

    Args:
        model: a ``PromptedCLIP``.
        encoder: its image encoder as training calls it, if not directly.
        split: whether each process makes only its share of the classes' text features, under gradients.
            There must be as many classes as processes, at least.
    """

    def __init__(self, model: Any, encoder: Callable[..., Any] | None = None, split: bool = False) -> None:
        super().__init__()
        self.model, self.encoder = model, encoder
        self.split = split and dist.is_initialized() and dist.get_world_size() > 1
        if self.split:
            prompts = model.prompt_learner.prompts
            prompts.split(_share(len(prompts.suffixes)))

    def forward(self, input: Tensor | dict[str, Tensor]) -> Tensor:
        """input: image [batch, 3, h, w], or its features {pooled [batch, d], local [batch, M, d]}."""
        features = input if isinstance(input, dict) else self.model.encode(input, self.encoder)
        if not (self.split and torch.is_grad_enabled()):
            return self.model.logits(**features)
        pooled, local = features["pooled"], features.get("local")
        if pooled.requires_grad:
            raise UserError("TRAINER.SPLIT_CLASSES is True, but the method learns in the image tower; set it False")
        sizes = _sizes(pooled)
        share = self.model.logits(_gather(pooled, sizes), None if local is None else _gather(local, sizes))
        n_cls = len(self.model.prompt_learner.prompts.suffixes)
        return _ExchangeClasses.apply(share, sizes, n_cls)


def _share(n: int, rank: int | None = None) -> range:
    """A process's part of n things; the parts are contiguous and differ by one at most."""
    rank, world = dist.get_rank() if rank is None else rank, dist.get_world_size()
    return range(n * rank // world, n * (rank + 1) // world)


def _sizes(x: Tensor) -> list[int]:
    """The batch of each process."""
    sizes = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([x.shape[0]], device=x.device))
    return [int(size) for size in sizes]


def _gather(x: Tensor, sizes: list[int]) -> Tensor:
    """Everybody's x, [sizes[rank], ...] of each, one after another."""
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: x.shape[0]] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])


class _ExchangeClasses(torch.autograd.Function):
    """Logits of all images for the own classes [sum(sizes), share] -> of the own images for all classes [batch, n_cls].

    The gradient goes the way back: of all images, for the own classes.
    """

    @staticmethod
    def forward(ctx: Any, share: Tensor, sizes: list[int], n_cls: int) -> Tensor:
        ctx.sizes, ctx.classes = sizes, _share(n_cls)
        widths = [len(_share(n_cls, rank)) for rank in range(dist.get_world_size())]
        every = _gather(share.t().contiguous(), widths).t()  # [sum(sizes), n_cls]
        start = sum(sizes[: dist.get_rank()])
        return every[start : start + sizes[dist.get_rank()]].contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _gather(grad.contiguous(), ctx.sizes)[:, ctx.classes.start : ctx.classes.stop], None, None
