"""Entropic optimal transport between uniform marginals, many small problems at once.

Sinkhorn-Knopp scaling (Cuturi, "Sinkhorn Distances", 2013) as PLOT uses it (Chen et al., "PLOT: Prompt
Learning with Optimal Transport for Vision-Language Models", ICLR 2023, equations 3 to 5 and algorithm 1).
Each problem stops by its own change, so that a plan never depends on what else is in the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A cost of 1 - cosine is at most 2, and r and c have at most the kernel's range: exp(-2 / 0.05) squared, 1.8e-35, is
# still a normal float32. Below this eps something may underflow, so the iteration moves to logarithms.
LOG_DOMAIN_BELOW = 0.05

# Asking a GPU whether all problems have stopped costs more than an iteration does.
CHECK_EVERY = 4


def sinkhorn(cost: Tensor, eps: float = 0.1, max_iter: int = 100, thresh: float = 1e-2) -> Tensor:
    """Transport plans between the uniform measures on M rows and N columns.

    With K = exp(-cost / eps) and r = c = 1 at first, iterates ``r = (1/M) / (K c)``, ``c = (1/N) / (K^T r)``
    until the mean over the rows of ``|r - r_before|`` is below ``thresh``, at most ``max_iter`` times.

    Args:
        cost: [..., M, N], any float dtype; computed in float32 or wider. From 0 to 2, as 1 - cosine
            is; where eps is below LOG_DOMAIN_BELOW, any finite cost.
        eps: weight of the entropy, in the units of the cost, positive.
    Returns:
        plan [..., M, N] = diag(r) K diag(c), float32 or wider, without gradient. Columns sum to 1/N to
        rounding, rows to 1/M to the tolerance.
    """
    return counted_sinkhorn(cost, eps, max_iter, thresh)[0]


@torch.no_grad()
def counted_sinkhorn(cost: Tensor, eps: float, max_iter: int, thresh: float) -> tuple[Tensor, Tensor]:
    """The plans of ``sinkhorn``, and the iterations that each problem took [...]."""
    cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
    problems = cost.reshape(-1, *cost.shape[-2:])
    scale = _scale_log if eps < LOG_DOMAIN_BELOW else _scale
    with torch.autocast(cost.device.type, enabled=False):
        plan, iterations = scale(problems / -eps, max_iter, thresh)
    return plan.reshape(cost.shape), iterations.reshape(cost.shape[:-2])


def _scale(log_kernel: Tensor, max_iter: int, thresh: float) -> tuple[Tensor, Tensor]:
    n_problems, M, N = log_kernel.shape
    kernel = log_kernel.exp()
    r, c = kernel.new_ones(n_problems, M, 1), kernel.new_ones(n_problems, 1, N)
    active = torch.ones(n_problems, 1, 1, dtype=torch.bool, device=kernel.device)
    iterations = torch.zeros_like(active, dtype=torch.int32)
    for i in range(max_iter):
        r_new = (1 / M) / (kernel @ c.mT)
        c_new = (1 / N) / (r_new.mT @ kernel)
        change = (r_new - r).abs().mean(dim=1, keepdim=True)
        r, c = torch.where(active, r_new, r), torch.where(active, c_new, c)
        iterations += active
        active = active & ~(change < thresh)
        if _all_stopped(active, i):
            break
    return r * kernel * c, iterations


def _scale_log(log_kernel: Tensor, max_iter: int, thresh: float) -> tuple[Tensor, Tensor]:
    """The same iteration on log r and log c: finite for every eps > 0."""
    n_problems, M, N = log_kernel.shape
    log_kernel = log_kernel.clamp(min=torch.finfo(log_kernel.dtype).min / 16)  # sums of such stay finite
    log_M, log_N = math.log(M), math.log(N)
    r, c = log_kernel.new_zeros(n_problems, M, 1), log_kernel.new_zeros(n_problems, 1, N)
    active = torch.ones(n_problems, 1, 1, dtype=torch.bool, device=log_kernel.device)
    iterations = torch.zeros_like(active, dtype=torch.int32)
    for i in range(max_iter):
        r_new = -log_M - torch.logsumexp(log_kernel + c, dim=2, keepdim=True)
        c_new = -log_N - torch.logsumexp(log_kernel + r_new, dim=1, keepdim=True)
        change = (r_new.exp() - r.exp()).abs().mean(dim=1, keepdim=True)
        r, c = torch.where(active, r_new, r), torch.where(active, c_new, c)
        iterations += active
        active = active & ~(change < thresh)
        if _all_stopped(active, i):
            break
    # c makes the columns' sums 1 / N: so does softmax, to rounding even where c is too large to say it.
    return (r + log_kernel).softmax(dim=1) / N, iterations


def _all_stopped(active: Tensor, i: int) -> bool:
    """Whether no problem is active; on a GPU asked only now and then, as it waits for the device."""
    if active.is_cuda and (i + 1) % CHECK_EVERY:
        return False
    return not bool(active.any())
