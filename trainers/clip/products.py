"""Products with frozen weights: linear layers, CLIP's MLP and convolutions, which keep nothing that those do not need.

On a CPU in float32 they can go through oneDNN, where this PyTorch has the operators that its own compiler uses: a
convolution adds and rectifies its output while it has it at hand, and a linear layer whose weight is copied once into
oneDNN's own order takes a tenth less time than MKL's.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from . import winograd

_OPS = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise", "_convolution_pointwise_")
ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")  # elsewhere nobody has measured
    and torch.backends.mkldnn.is_available()
    and all(hasattr(torch.ops.mkldnn, name) for name in _OPS)
)

# Rows that oneDNN's order is chosen for: always the same, so that bits do not depend on what a process computed first.
PACKED_FOR = 2048
_PACKS = WeakTensorKeyDictionary()


def _by_onednn(x: Tensor) -> bool:
    return ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, pack: bool = False) -> Tensor:
    """x [..., d_in], weight [d_out, d_in], bias [d_out] -> x W^T + b [..., d_out].

    pack: a CPU may keep a copy of the weight for each direction.
    """
    if pack and _by_onednn(x) and not weight.requires_grad:
        return _FrozenLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(x, weight, bias, pack=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _product(grad, ctx.weight, back=True, pack=True), None, None


def mlp(block: Any, x: Tensor, light: bool = False, pack: bool = False) -> Tensor:
    """CLIP's MLP, x [..., d] -> [..., d].

    light: its input is kept for the backward pass, not its hidden layer. pack: as in ``linear``.
    """
    fc, proj = block.mlp.c_fc, block.mlp.c_proj
    return _FrozenMLP.apply(x, fc.weight, fc.bias, proj.weight, proj.bias, light, pack)


class _FrozenMLP(torch.autograd.Function):
    """QuickGELU, x * sigmoid(1.702 x), is SiLU(1.702 x) / 1.702: the products take the two factors along, and in the
    backward pass they cancel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, light: bool, pack: bool) -> Tensor:
        rows = x.flatten(0, -2)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            rows, w1, b1, w2, b2 = (t.to(dtype) for t in (rows, w1, b1, w2, b2))
        hidden = _product(rows, w1, b1, 1.702, 1.702, pack=pack)
        ctx.save_for_backward(rows if light else hidden)
        ctx.weights, ctx.dtype, ctx.light, ctx.pack = (w1, b1, w2), x.dtype, light, pack
        return _product(F.silu(hidden), w2, b2, 1 / 1.702, pack=pack).view(*x.shape[:-1], w2.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,), (w1, b1, w2) = ctx.saved_tensors, ctx.weights
        if ctx.light:
            hidden = _product(hidden, w1, b1, 1.702, 1.702, pack=ctx.pack)
        grad_hidden = _product(grad.flatten(0, -2).to(hidden.dtype), w2, back=True, pack=ctx.pack)
        grad_x = _product(torch.ops.aten.silu_backward(grad_hidden, hidden), w1, back=True, pack=ctx.pack)
        return grad_x.to(ctx.dtype).view(*grad.shape[:-1], w1.shape[1]), *[None] * 6


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: float = 1,
    bias_scale: float = 1,
    back: bool = False,
    pack: bool = False,
) -> Tensor:
    """scale x W^T + bias_scale b or, back, scale x W; without gradient."""
    if pack and _by_onednn(x):
        b = bias if bias is None or bias_scale == 1 else bias_scale * bias
        return torch.ops.mkldnn._linear_pointwise(x, _packed(weight, scale, back), b, "none", [], "")
    w = weight if not back else weight.t()
    if bias is None or scale == bias_scale == 1:
        return F.linear(x, w, bias)
    return torch.addmm(bias, x, w.t(), beta=bias_scale, alpha=scale)


def _packed(weight: Tensor, scale: float, back: bool) -> Tensor:
    """scale W or, back, its transpose in oneDNN's order."""

    def pack() -> Tensor:
        w = scale * (weight.t() if back else weight).detach()
        return torch.ops.mkldnn._reorder_linear_weight(w.contiguous(), PACKED_FOR)

    return _kept(weight, (scale, back), pack)


def _kept(weight: Tensor, what: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
    """What is made of a weight: kept as long as the parameter is, of which ``weight`` may be a part, and as PyTorch
    knows it to be what it was; changes within ``weight.data`` it does not see.
    """
    owner = weight if weight._base is None else weight._base
    storage = owner.untyped_storage()  # held, so that no other comes to its address
    state = (storage.data_ptr(), owner.dtype, 0 if owner.is_inference() else owner._version)
    packs = _PACKS.get(owner)
    if packs is None or packs["of"][0] != state:
        packs = _PACKS[owner] = {"of": (state, storage)}
    key = (weight.storage_offset(), weight.shape, *what)
    if key not in packs:
        packs[key] = make()
    return packs[key]


def _by_winograd(conv: nn.Conv2d) -> bool:
    plain = (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    return plain and conv.groups == 1 and min(conv.in_channels, conv.out_channels) >= winograd.CHANNELS


def convolution(conv: nn.Conv2d, norm: nn.Module, x: Tensor, add: Tensor | None = None, relu: bool = True) -> Tensor:
    """norm(conv(x)) + add, with ``relu`` rectified; without gradient. ``add`` may be overwritten.

    oneDNN rectifies NaN to 0: who needs to see it looks at the input.
    """
    if isinstance(norm, nn.Identity) and _by_onednn(x):
        if relu and add is None and _by_winograd(conv):
            u = _kept(conv.weight, ("winograd",), lambda: winograd.filters(conv.weight.detach()))
            return winograd.convolve_relu(x, u, conv.bias)
        where = (conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)
        if add is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *where, "relu" if relu else "none", [], "")
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            add, x, *where, "add", 1.0, "relu" if relu else None, [], ""
        )
    x = norm(conv(x))
    x = x if add is None else x.add_(add)
    return F.relu_(x) if relu else x
