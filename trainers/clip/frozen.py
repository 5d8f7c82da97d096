"""Our copies of CLIP's frozen towers: factors folded into weights, products by oneDNN, casts for autocast made once.

The copies share every parameter that they leave as it is; ``clip_model`` itself is never changed.
"""

from __future__ import annotations

import copy
import math
import platform

import torch
import torch.nn.functional as F
from clip.model import ModifiedResNet, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.utils.fusion import fuse_conv_bn_eval

_OPS = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise", "_convolution_pointwise_")
ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")  # not measured elsewhere
    and torch.backends.mkldnn.is_available()
    and all(hasattr(torch.ops.mkldnn, name) for name in _OPS)
)
# Rows that oneDNN's weight order is chosen for: a constant, so that bits do not depend on earlier calls.
PACKED_FOR = 2048
PACKED_ROWS = range(256, 6145)  # fewer gain nothing; with more, memory is short
QUICK_GELU = 1.702  # QuickGELU is x * sigmoid(1.702 x) = SiLU(1.702 x) / 1.702


def _by_onednn(x: Tensor) -> bool:
    return ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


class FrozenLinear(nn.Module):
    """x [..., d_in] -> x W^T + b [..., d_out], for a frozen W [d_out, d_in] that is used many times.

    On a CPU in float32, W is copied once for each direction into oneDNN's own order.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = _frozen(weight), None if bias is None else _frozen(bias)
        self._packs: dict[bool, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        # A changed weight (``Extra.deltas``) is no Parameter; it is used once.
        packs = _by_onednn(x) and isinstance(self.weight, nn.Parameter) and x[..., 0].numel() in PACKED_ROWS
        return _PackedProduct.apply(x, self) if packs else F.linear(x, self.weight, self.bias)

    def packed(self, back: bool) -> Tensor:
        """W or, back, its transpose in oneDNN's order."""
        if back not in self._packs:
            weight = (self.weight.t() if back else self.weight).detach().contiguous()
            self._packs[back] = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)
        return self._packs[back]

    def _apply(self, *args: object, **kwargs: object) -> FrozenLinear:
        self._packs = {}
        return super()._apply(*args, **kwargs)


class _Context(FunctionCtx):
    layer: FrozenLinear


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return torch.ops.mkldnn._linear_pointwise(x, layer.packed(False), layer.bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
        return torch.ops.mkldnn._linear_pointwise(grad, ctx.layer.packed(True), None, "none", [], ""), None


class Block(nn.Module):
    """One of CLIP's residual attention blocks, in parts that its towers put together.

    QuickGELU's factor is folded into a copy of the MLP's weights, except in half precision, where that would round the
    features differently.
    """

    def __init__(self, block: ResidualAttentionBlock) -> None:
        super().__init__()
        attn, fc, proj = block.attn, block.mlp.c_fc, block.mlp.c_proj
        d, self.n_head = attn.embed_dim, attn.num_heads
        self.ln_1, self.ln_2 = block.ln_1, block.ln_2
        self.query = FrozenLinear(attn.in_proj_weight[:d], attn.in_proj_bias[:d])
        self.key_value = FrozenLinear(attn.in_proj_weight[d:], attn.in_proj_bias[d:])
        self.out = FrozenLinear(attn.out_proj.weight, attn.out_proj.bias)
        self.factor = 1.0
        activation: nn.Module = block.mlp.gelu
        weights = fc.weight, fc.bias, proj.weight
        if isinstance(activation, QuickGELU) and fc.weight.dtype.itemsize >= 4:
            self.factor, activation = QUICK_GELU, nn.SiLU()
            weights = fc.weight * self.factor, fc.bias * self.factor, proj.weight / self.factor
        self.mlp = nn.Sequential(FrozenLinear(*weights[:2]), activation, FrozenLinear(weights[2], proj.bias))

    def extra_repr(self) -> str:
        """Kept features are told apart by it, where weights and layers are the same."""
        return f"heads={self.n_head}"

    def project(self, h: Tensor, query: Tensor | None = None) -> list[Tensor]:
        """Queries of ``query`` [..., L, d] or h, keys and values of h [..., W, d], each [..., n_head, L, d_head].

        Apart, since queries are kept for the backward pass, but of keys and values often only a copy.
        """
        parts = (self.query(h if query is None else query), *self.key_value(h).chunk(2, dim=-1))
        return [x.unflatten(-1, (self.n_head, -1)).transpose(-2, -3) for x in parts]

    def project_out(self, x: Tensor) -> Tensor:
        """[..., n_head, L, d_head] -> the attention's output [..., L, d]."""
        return self.out(x.transpose(-2, -3).flatten(-2))

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """x [..., L, d] -> [..., L, d]."""
        q, k, v = self.project(self.ln_1(x))
        x = x + self.project_out(F.scaled_dot_product_attention(q, k, v, is_causal=is_causal))
        return x + self.mlp(self.ln_2(x))

    def changed(self, name: str, delta: Tensor) -> dict[str, Tensor]:
        """Our parameters where ``delta`` is added to CLIP's parameter ``name``. KeyError: there is none."""
        layer, _, kind = name.rpartition(".")
        own, d = dict(self.named_parameters()), self.query.weight.shape[0]
        delta = delta.to(self.query.weight.dtype)
        if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = name.rpartition("_")[2]
            return {f"query.{kind}": own[f"query.{kind}"] + delta[:d],
                    f"key_value.{kind}": own[f"key_value.{kind}"] + delta[d:]}  # fmt: skip
        scale = {"mlp.c_fc": self.factor, "mlp.c_proj": 1 / self.factor if kind == "weight" else 1.0}.get(layer, 1.0)
        layer = {"attn.out_proj": "out", "mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.2"}.get(layer, layer)
        return {f"{layer}.{kind}": own[f"{layer}.{kind}"] + scale * delta}


def _frozen(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x.detach(), requires_grad=False)


def fold_batch_norms(visual: ModifiedResNet) -> ModifiedResNet:
    """A copy of a ResNet tower in channels-last order whose frozen batch norms are part of the convolutions.

    In half precision the folded weights would round the features differently, so there the batch norms stay.
    """
    tower = copy.deepcopy(visual, {id(visual.attnpool): visual.attnpool}).eval()
    if tower.conv1.weight.dtype.itemsize >= 4:
        for block in list(tower.modules()):
            layers = dict(block.named_children())
            for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):
                if isinstance(layers.get(norm), nn.BatchNorm2d):
                    setattr(block, conv, fuse_conv_bn_eval(layers[conv], layers[norm]))
                    setattr(block, norm, nn.Identity())
    return tower.to(memory_format=torch.channels_last)


def convolution(
    conv: nn.Conv2d,
    norm: nn.Module,
    x: Tensor,
    add: Tensor | None = None,
    relu: bool = True,
    most: float = math.inf,
) -> Tensor:
    """norm(conv(x)) + add, with ``relu`` clamped to 0 and ``most``; without gradient. ``add`` may be overwritten.

    oneDNN rectifies NaN to 0: the caller looks at the input where that matters.
    """
    if isinstance(norm, nn.Identity) and _by_onednn(x):
        where = (conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)
        unary, bounds = ("relu", []) if most == math.inf else ("hardtanh", [0.0, most])
        if add is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *where, unary if relu else "none", bounds, "")
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            add, x, *where, "add", 1.0, unary if relu else None, bounds, ""
        )
    x = norm(conv(x))
    x = x if add is None else x.add_(add)
    return x.clamp_(0, most) if relu else x


class Autocast:
    """A frozen tower as autocast computes it, its products' weights cast once.

    Autocast keeps its casts of trained weights only; frozen ones it would cast anew at every use.
    """

    def __init__(self, tower: nn.Module) -> None:
        self.tower = tower
        self.copies: dict[tuple[torch.device, torch.dtype], nn.Module] = {}

    def __call__(self, device: torch.device) -> nn.Module:
        """The tower itself, or under autocast its copy, with the same bits as autocast's own results.

        A tower that reads its weights' dtype says so with ``reads_dtype``, and is not copied.
        """
        if not torch.is_autocast_enabled(device.type) or getattr(self.tower, "reads_dtype", False):
            return self.tower
        weight = next(self.tower.parameters())
        dtype = torch.get_autocast_dtype(device.type)
        if weight.dtype in (dtype, torch.float64):  # nothing to cast, or autocast leaves it alone
            return self.tower
        key = (weight.device, dtype)
        if key not in self.copies:
            self.copies = {key: copy.deepcopy(self.tower)}
            for module in self.copies[key].modules():
                if isinstance(module, nn.Conv2d | nn.Linear | FrozenLinear):
                    module.to(dtype)
        return self.copies[key]
