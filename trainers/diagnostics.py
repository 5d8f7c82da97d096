"""What PLOT's plans and prompts look like, as numbers: whether the plan matters, and whether the prompts collapse.

A ``HeadMeter`` is hung into the model (``CustomCLIP.meter``) for some batches and shown what the head computes
anyway. The plan's distance from the uniform one alone misleads, since a plan of 0.97 of the largest entropy can still
change many predictions; so the meter also measures what the plan does to the logits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


class HeadMeter:
    """Means over the images shown, and over the classes where a class has a value of its own.

    ``summary()`` gives, None where there is nothing to measure (no plan; a single prompt):

    - ``plan_entropy``: entropy of the plan relative to the uniform plan's, log(MN); 1 is uniform.
    - ``plan_distance``: total-variation distance from the uniform plan, 0 to 1.
    - ``shift_spread``: standard deviation over the classes of the plan's shift of the logits, against the uniform
      plan's (a shift common to all classes changes nothing).
    - ``predictions_changed``: percent of the images whose prediction the plan changes.
    - ``iterations_mean``, ``iterations_max``: of Sinkhorn, a problem.
    - ``text_cosine``: mean pairwise cosine of a class's N text features; 1 is collapse.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.iterations_max = 0
        self.shift: list[Tensor] = []

    @torch.no_grad()
    def see_plan(self, plan: Tensor, similarity: Tensor, iterations: Tensor) -> None:
        """Some images: plan and similarity [batch, n_cls, M, N], iterations [batch, n_cls]; in order."""
        M, N = plan.shape[-2:]
        entropy = torch.special.entr(plan).sum(dim=(2, 3))
        self._add("plan_entropy", entropy / math.log(M * N) if M * N > 1 else torch.ones_like(entropy))
        self._add("plan_distance", (plan - 1 / (M * N)).abs().sum(dim=(2, 3)) / 2)
        self._add("iterations_mean", iterations)
        self.iterations_max = max(self.iterations_max, int(iterations.max()))
        self.shift.append(((plan - 1 / (M * N)) * similarity).sum(dim=(2, 3)))

    @torch.no_grad()
    def see_scores(self, score: Tensor, text: Tensor, scale: Tensor) -> None:
        """The batch of the plans shown: score [batch, n_cls], text [N, n_cls, d], logits = scale * score."""
        if (N := text.shape[0]) > 1:
            total = F.normalize(text.double(), dim=-1).sum(dim=0)  # |sum|^2 = N + the sum of the pairs' cosines
            self._add("text_cosine", (total.square().sum(dim=-1) - N) / (N * (N - 1)))
        if self.shift:
            shift = torch.cat(self.shift)
            self.shift = []
            self._add("shift_spread", scale * shift.std(dim=1, correction=0))
            changed = score.argmax(dim=1) != (score - shift).argmax(dim=1)
            self._add("predictions_changed", 100.0 * changed)

    def _add(self, name: str, values: Tensor) -> None:
        total = values.sum(dtype=torch.float64)
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0) + values.numel()

    def gather(self) -> None:
        """Takes in what the other processes of the run, if it has several, were shown."""
        if not dist.is_initialized():
            return
        seen: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(seen, ({k: v.cpu() for k, v in self.sums.items()}, self.counts, self.iterations_max))
        self.sums, self.counts = {}, {}
        for sums, counts, most in seen:
            self.sums = {name: self.sums.get(name, 0) + value for name, value in sums.items()}
            self.counts = {name: self.counts.get(name, 0) + value for name, value in counts.items()}
            self.iterations_max = max(self.iterations_max, most)

    def summary(self) -> dict[str, float | None]:
        names = (
            "plan_entropy",
            "plan_distance",
            "shift_spread",
            "predictions_changed",
            "iterations_mean",
            "iterations_max",
            "text_cosine",
        )
        found: dict[str, float | None] = {k: self.sums[k].item() / self.counts[k] for k in names if k in self.sums}
        if self.iterations_max:
            found["iterations_max"] = float(self.iterations_max)
        return {name: found.get(name) for name in names}


@torch.no_grad()
def effective_rank(ctx: Tensor) -> float:
    """Effective rank of the N contexts, each as one vector: 1 (all parallel) to N (orthogonal, of equal length).

    exp of the entropy of the normalized singular values (Roy and Vetterli, "The effective rank", EUSIPCO 2007).

    Args:
        ctx: [N, n_ctx, d] or, class-specific, [N, n_cls, n_ctx, d]; then the mean over the classes.
    """
    contexts = ctx.double().flatten(2).movedim(0, 1) if ctx.dim() == 4 else ctx.double().flatten(1)[None]
    values = torch.linalg.eigvalsh(contexts @ contexts.mT).clamp(min=0).sqrt()  # [n_cls or 1, N], of the Gram matrix
    share = values / values.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.special.entr(share).sum(dim=1).exp().mean().item()
