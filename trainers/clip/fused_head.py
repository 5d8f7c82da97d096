"""PLOT's head in one Triton kernel: similarities, Sinkhorn, plan and score of an (image, class) pair in registers.

The equations of ``trainers.sinkhorn`` (Chen et al., "PLOT", ICLR 2023), in float32. The plan has no gradient, so that
the backward pass is the plan itself: two matrix products. Import this module only where the kernel is wanted: it needs
Triton, and with TRITON_INTERPRET=1 in the environment it also runs on a CPU. It has not been timed on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..sinkhorn import LOG_DOMAIN_BELOW

MAX_M, MAX_N = 257, 32  # beyond, a pair does not fit into a thread block's registers


# Not specialized: a size of 1 would be a constant, which has no type to convert.
@triton.jit(do_not_specialize=["n_cls", "batch", "M", "N", "max_iter"])
def head_kernel(  # type: ignore[no-untyped-def]
    local, text, scores, plans, counts, n_cls, batch, M, N, d, eps, max_iter, thresh,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, LOG: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """One program an (image, class): local [batch, M, d], text [N, n_cls, d] -> scores and counts [batch, n_cls].

    KEEP: also plans [N, n_cls, batch, M]. LOG: the iteration on log r and log c. Rows from M on and columns from N on
    are padding.
    """
    k, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    m, n, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    in_m, in_n = m < M, n < N
    local += b * M * d + m[:, None] * d
    text += (n * n_cls + k)[None, :] * d
    similarity = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, d, BLOCK_D):
        at = start + columns
        f = tl.load(local + at[None, :], mask=in_m[:, None] & (at < d)[None, :], other=0.0)
        g = tl.load(text + at[:, None], mask=in_n[None, :] & (at < d)[:, None], other=0.0)
        similarity = tl.dot(f, g, similarity, input_precision="ieee")
    inside = in_m[:, None] & in_n[None, :]
    log_kernel = (similarity - 1) / eps
    count, go = 0, 1
    if LOG:
        log_kernel = tl.maximum(log_kernel, -2.1267646e37)  # float32's smallest / 16: sums of such stay finite
        log_M, log_N = tl.log(M.to(tl.float32)), tl.log(N.to(tl.float32))
        r, c = tl.zeros((BLOCK_M,), dtype=tl.float32), tl.zeros((BLOCK_N,), dtype=tl.float32)
        while go > 0:
            x = tl.where(in_n[None, :], log_kernel + c[None, :], -float("inf"))
            top = tl.max(x, axis=1)
            r_new = -log_M - (top + tl.log(tl.sum(tl.exp(x - top[:, None]), axis=1)))
            x = tl.where(in_m[:, None], log_kernel + r_new[:, None], -float("inf"))
            top = tl.max(x, axis=0)
            c = -log_N - (top + tl.log(tl.sum(tl.exp(x - top[None, :]), axis=0)))
            change = tl.sum(tl.where(in_m, tl.abs(tl.exp(r_new) - tl.exp(r)), 0.0), axis=0) / M
            r = r_new
            count += 1
            go = tl.where((change < thresh) | (count >= max_iter), 0, 1)
        x = tl.where(in_m[:, None], log_kernel + r[:, None], -float("inf"))
        x = tl.exp(x - tl.max(x, axis=0)[None, :])
        plan = x / tl.sum(x, axis=0)[None, :] / N
    else:
        kernel = tl.where(inside, tl.exp(log_kernel), 0.0)
        r, c = tl.where(in_m, 1.0, 0.0), tl.where(in_n, 1.0, 0.0)
        while go > 0:
            r_new = tl.where(in_m, (1.0 / M) / tl.where(in_m, tl.sum(kernel * c[None, :], axis=1), 1.0), 0.0)
            c = tl.where(in_n, (1.0 / N) / tl.where(in_n, tl.sum(kernel * r_new[:, None], axis=0), 1.0), 0.0)
            change = tl.sum(tl.abs(r_new - r), axis=0) / M
            r = r_new
            count += 1
            go = tl.where((change < thresh) | (count >= max_iter), 0, 1)
        plan = r[:, None] * kernel * c[None, :]
    plan = tl.where(inside, plan, 0.0)
    tl.store(scores + b * n_cls + k, tl.sum(tl.sum(plan * similarity, axis=1), axis=0))
    tl.store(counts + b * n_cls + k, count + go)  # go is 0; Triton 3.8 cannot compile a while that it leaves out
    if KEEP:
        tl.store(plans + ((n[None, :] * n_cls + k) * batch + b) * M + m[:, None], plan, mask=inside)


def block_sizes(M: int, N: int) -> dict[str, int]:
    """The kernel's blocks and warps; a matrix product has 16 rows and columns at least."""
    M, N = max(16, triton.next_power_of_2(M)), max(16, triton.next_power_of_2(N))
    return {"BLOCK_M": M, "BLOCK_N": N, "BLOCK_D": min(32, 8192 // M), "num_warps": max(4, min(16, M * N // 512))}


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, local: Tensor, text: Tensor, eps: float, max_iter: int, thresh: float
    ) -> tuple[Tensor, Tensor]:
        (B, M, d), (N, n_cls, _) = local.shape, text.shape
        local, text = local.contiguous(), text.contiguous()
        keep = any(ctx.needs_input_grad)
        scores = local.new_empty(B, n_cls)
        plans = local.new_empty((N, n_cls, B, M) if keep else 0)
        counts = torch.empty(B, n_cls, dtype=torch.int32, device=local.device)
        head_kernel[n_cls, B](
            local, text, scores, plans, counts, n_cls, B, M, N, d, float(eps), max_iter, float(thresh),
            LOG=eps < LOG_DOMAIN_BELOW, KEEP=keep, **block_sizes(M, N),
        )  # fmt: skip
        if keep:
            ctx.save_for_backward(local, text, plans)
        ctx.mark_non_differentiable(counts)
        return scores, counts

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        local, text, plans = ctx.saved_tensors
        weights = (plans * grad.t()[None, :, :, None]).flatten(2).flatten(0, 1)  # [N n_cls, batch M]
        of_local = (weights.t() @ text.flatten(0, 1)).view_as(local) if ctx.needs_input_grad[0] else None
        of_text = (weights @ local.flatten(0, 1)).view_as(text) if ctx.needs_input_grad[1] else None
        return of_local, of_text, None, None, None


def fused_head(local: Tensor, text: Tensor, eps: float, max_iter: int, thresh: float) -> tuple[Tensor, Tensor]:
    """Scores [batch, n_cls], sums over m and n of T_mn f_m·g_nk, and the iterations [batch, n_cls] of each plan T.

    Args:
        local: [batch, M, d], float32, of unit length.
        text: [N, n_cls, d], likewise.
    Raises:
        ValueError: another dtype, features of two lengths, or M or N is too large.
    """
    (_, M, d), (N, _, of_text) = local.shape, text.shape
    if d != of_text:
        raise ValueError(f"local features have {d} channels, text features {of_text}")
    if local.dtype != torch.float32 or text.dtype != torch.float32 or M > MAX_M or N > MAX_N:
        raise ValueError(
            f"the fused head takes float32, M up to {MAX_M} and N up to {MAX_N}; here {local.dtype}, {M}, {N}"
        )
    return _Head.apply(local, text, eps, max_iter, thresh)
