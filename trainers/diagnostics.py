"""Measures PLOT's plans and prompts: whether the plan matters, and whether the prompts collapse.

``CustomCLIP.meter`` receives what the head computes anyway. A plan of 0.97 of the largest entropy can still change many
predictions, so the meter also measures the plan's effect on the logits.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

NAMES = (
    *("plan_entropy", "plan_distance", "shift_spread", "predictions_changed"),
    *("iterations_mean", "unconverged", "text_cosine"),
)


class IterationMeter:
    """Sinkhorn's iterations: their mean and their most, and the percent of the problems that did not converge."""

    def __init__(self, max_iter: int) -> None:
        self.max_iter = max_iter
        self.totals: dict[str, Tensor] = {}  # [sum, count]
        self.iterations_max = 0

    def see_plan(self, plan: Tensor, similarity: Tensor, iterations: Tensor) -> None:
        """iterations [batch, n_cls] of a part of the batch."""
        self._add("iterations_mean", iterations)
        self._add("unconverged", 100.0 * (iterations >= self.max_iter))
        self.iterations_max = max(self.iterations_max, int(iterations.max()))

    def _add(self, name: str, values: Tensor) -> None:
        total = torch.tensor([values.sum(dtype=torch.float64), values.numel()], dtype=torch.float64)
        self.totals[name] = self.totals.get(name, 0) + total

    def gather(self) -> None:
        """Adds up the sums of all processes of the run."""
        if not dist.is_initialized():
            return
        seen: list = [None] * dist.get_world_size()
        dist.all_gather_object(seen, (self.totals, self.iterations_max))
        self.totals = {}
        for totals, most in seen:
            self.totals |= {name: self.totals.get(name, 0) + total for name, total in totals.items()}
            self.iterations_max = max(self.iterations_max, most)

    def summary(self) -> dict[str, float | None]:
        found: dict[str, float | None] = dict.fromkeys(NAMES)
        found |= {name: (total[0] / total[1]).item() for name, total in self.totals.items()}
        return {**found, "iterations_max": float(self.iterations_max) if self.iterations_max else None}


def say_unconverged(share: float | None, node: str, options: CfgNode) -> None:
    """The line about a test's plans of which ``share`` percent are not converged."""
    if share:
        where = f"TRAINER.{node}"
        print(
            f"Not converged: {share:.3g}% of the plans took {where}.MAX_ITER {options.MAX_ITER} iterations, with "
            f"{where}.EPS {options.EPS} and THRESH {options.THRESH}"
        )


class CountsIterations:
    """A mixin for a trainer whose head shows its plans to ``self.meter``: a test says so if some are not converged."""

    node: ClassVar[str]
    method_cfg: CfgNode
    meter: IterationMeter | None = None

    def before_test(self, split: str) -> None:
        self.meter = IterationMeter(self.method_cfg.MAX_ITER)

    def after_test(self, split: str) -> None:
        meter, self.meter = self.meter, None
        if meter is not None:
            meter.gather()
            self.diagnostics = meter.summary()
            say_unconverged(self.diagnostics["unconverged"], self.node, self.method_cfg)


class HeadMeter(IterationMeter):
    """Means over the images and, for values of a class, over the classes. ``summary()`` gives, None if not measured:

    - ``plan_entropy``: entropy of the plan relative to the uniform plan's, log(MN); 1 is uniform.
    - ``plan_distance``: total-variation distance from the uniform plan, 0 to 1.
    - ``shift_spread``: standard deviation over the classes of the logits' difference from the uniform plan's.
    - ``predictions_changed``: percent of the images whose prediction the plan changes.
    - ``iterations_mean``, ``iterations_max``: of Sinkhorn, a problem.
    - ``unconverged``: percent of the problems that took ``max_iter`` iterations.
    - ``text_cosine``: mean pairwise cosine of a class's N text features; 1 is collapse.
    """

    def __init__(self, max_iter: int) -> None:
        super().__init__(max_iter)
        self.shift: list[Tensor] = []

    @torch.no_grad()
    def see_plan(self, plan: Tensor, similarity: Tensor, iterations: Tensor) -> None:
        """plan, similarity [batch, n_cls, M, N] and iterations [batch, n_cls] of a part of the batch, in order."""
        M, N = plan.shape[-2:]
        entropy = torch.special.entr(plan).sum(dim=(2, 3))
        self._add("plan_entropy", entropy / math.log(M * N) if M * N > 1 else torch.ones_like(entropy))
        self._add("plan_distance", (plan - 1 / (M * N)).abs().sum(dim=(2, 3)) / 2)
        super().see_plan(plan, similarity, iterations)
        self.shift.append(((plan - 1 / (M * N)) * similarity).sum(dim=(2, 3)))

    @torch.no_grad()
    def see_scores(self, score: Tensor, text: Tensor, scale: Tensor) -> None:
        """score [batch, n_cls] and text [N, n_cls, d] of the whole batch; logits = scale * score."""
        if (N := text.shape[0]) > 1:
            total = F.normalize(text.double(), dim=-1).sum(dim=0)  # |sum|^2 = N + the sum of the pairs' cosines
            self._add("text_cosine", (total.square().sum(dim=-1) - N) / (N * (N - 1)))
        if self.shift:
            shift = torch.cat(self.shift)
            self.shift = []
            self._add("shift_spread", scale * shift.std(dim=1, correction=0))
            changed = score.argmax(dim=1) != (score - shift).argmax(dim=1)
            self._add("predictions_changed", 100.0 * changed)


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
