"""Splits the classes over the processes of a run: each process encodes its share of the prompts.

A process gathers the image features of all processes, computes the logits of the whole batch for its classes, and
exchanges them for the logits of its own images. Text towers and transport plans, with their memory, are divided by the
number of processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from .clip.prompts import UserError


class Head(nn.Module):
    """Images or their features to logits [batch, n_cls]: the module that data-parallel training wraps.

    Args:
        model: a ``PromptedCLIP``.
        encoder: replaces the model's image encoder.
        split: whether, under gradients, a process computes text features of its share of the classes only.
            There must be at least as many classes as processes.
    """

    def __init__(self, model: Any, encoder: Callable[..., tuple[Tensor, Tensor]] | None, split: bool) -> None:
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
    """The process's part of n items. Parts are contiguous, and their lengths differ by at most 1."""
    rank, world = dist.get_rank() if rank is None else rank, dist.get_world_size()
    return range(n * rank // world, n * (rank + 1) // world)


def _sizes(x: Tensor) -> list[int]:
    """The batch size of each process."""
    sizes = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([x.shape[0]], device=x.device))
    return [int(size) for size in sizes]


def _gather(x: Tensor, sizes: list[int]) -> Tensor:
    """Concatenates the x [sizes[rank], ...] of all processes."""
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: x.shape[0]] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])


class _Context(FunctionCtx):
    sizes: list[int]
    classes: range


class _ExchangeClasses(torch.autograd.Function):
    """Logits of all images for the own classes [sum(sizes), share] -> own images, all classes [batch, n_cls]."""

    @staticmethod
    def forward(ctx: _Context, share: Tensor, sizes: list[int], n_cls: int) -> Tensor:
        ctx.sizes, ctx.classes = sizes, _share(n_cls)
        widths = [len(_share(n_cls, rank)) for rank in range(dist.get_world_size())]
        every = _gather(share.t().contiguous(), widths).t()  # [sum(sizes), n_cls]
        start = sum(sizes[: dist.get_rank()])
        return every[start : start + sizes[dist.get_rank()]].contiguous()

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None, None]:
        return _gather(grad.contiguous(), ctx.sizes)[:, ctx.classes.start : ctx.classes.stop], None, None
