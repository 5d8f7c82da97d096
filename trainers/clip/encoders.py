"""CLIP's two towers as every method here uses them: frozen, in eval mode, built from the installed ``clip``.

``load_clip`` reads the weights; ``ImageEncoder`` gives pooled and local features; ``TextEncoder`` turns prompts
into text features. CLIP's text transformer is causal, so tokens that all classes have in front (the prefix) are
computed once, what follows EOT never, and the classes' own tokens (the suffixes) are packed several to a row.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from .products import convolution, linear, mlp
from .prompts import Layout

# Suffix tokens of which all is kept for the backward pass. Of more, the MLPs' hidden layers, a good third of the
# memory, are computed anew from their inputs: a sixth more work. In a text tower of 12 layers, width 512 and float32,
# 6,144 tokens keep about 2 GB.
MAX_TOKENS = 6144

# Of a larger batch on a CPU, what the first layers of a ResNet make no longer stays in its caches: a tenth slower.
IMAGES_AT_ONCE = 8

# Times MAX_TOKENS computed at once; beyond it in chunks of MAX_TOKENS, which under gradients are checkpointed whole:
# half as much work again. ImageNet's 1,000 classes with N = 4, some 16,000 tokens, are within.
MAX_AT_ONCE = 3


class ImageEncoder(nn.Module):
    """CLIP's image tower: image [batch, 3, h, w] -> pooled [batch, d], local [batch, M, d], without gradient.

    ``pooled`` is what ``model.encode_image`` gives. ``local`` is, for a ResNet, the output of the attention pooling
    queried at each of the M grid positions, and for a ViT each patch token through ``ln_post`` and ``proj``
    (PLOT, section 3.3). With ``local=False`` only the pooled feature is computed, and ``local`` has M = 0.
    The two are computed apart, so that ``pooled`` has the same bits either way, and both are contiguous, so that
    features read from a file go through the head bit by bit as those just computed.
    A ResNet is copied, with its batch norms folded into the convolutions; ``visual`` itself stays as it is.
    """

    def __init__(self, visual: nn.Module, local: bool = True) -> None:
        super().__init__()
        self.visual = _fold_batch_norms(visual) if hasattr(visual, "attnpool") else visual
        self.local = local
        self.cast = Autocast(self.visual)

    @property
    def dtype(self) -> torch.dtype:
        visual: Any = self.visual
        return visual.conv1.weight.dtype

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        visual: Any = self.cast(image.device)
        x = image.to(visual.conv1.weight.dtype)
        return self._resnet(visual, x) if hasattr(visual, "attnpool") else self._vit(visual, x)

    def _resnet(self, visual: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        lost = None if x.is_cuda else ~x.flatten(1).isfinite().all(dim=1)  # CPUs may rectify NaN to 0
        parts = x.split(IMAGES_AT_ONCE if x.device.type == "cpu" else x.shape[0])
        x = torch.cat([_trunk(visual, part) for part in parts]).flatten(2).transpose(1, 2)  # [batch, M, c]
        if lost is not None:
            x[lost] = torch.nan
        pool = visual.attnpool
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + pool.positional_embedding.to(x.dtype)
        k, v = (_heads(layer(x), pool.num_heads) for layer in (pool.k_proj, pool.v_proj))

        def attend(query: Tensor) -> Tensor:
            q = _heads(pool.q_proj(query.flatten(0, 1)).unflatten(0, query.shape[:2]), pool.num_heads)
            return pool.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

        return attend(x[:, :1])[:, 0], attend(x[:, 1:] if self.local else x[:, :0])

    def _vit(self, visual: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = visual.conv1(x).flatten(2).transpose(1, 2)  # [batch, h*w, width]
        cls = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = visual.ln_pre(torch.cat([cls, x], dim=1) + visual.positional_embedding.to(x.dtype))
        for block in visual.transformer.resblocks:
            q, k, v = _project(block, block.ln_1(x))
            x = x + _out(block, F.scaled_dot_product_attention(q, k, v))
            x = x + mlp(block, block.ln_2(x))

        def project(x: Tensor) -> Tensor:
            x = visual.ln_post(x)
            return x.contiguous() if visual.proj is None else x @ visual.proj

        return project(x[:, 0]), project(x[:, 1:] if self.local else x[:, :0])


def _trunk(visual: Any, x: Tensor) -> Tensor:
    """A ResNet tower up to its pooling: x [batch, 3, h, w] -> [batch, c, h / 32, w / 32]."""
    for i in (1, 2, 3):
        x = convolution(getattr(visual, f"conv{i}"), getattr(visual, f"bn{i}"), x)
    x = visual.avgpool(x)
    for block in itertools.chain(visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        residual = x
        if block.downsample is not None:
            pool, conv, norm = block.downsample
            residual = convolution(conv, norm, pool(x), relu=False)
        x = convolution(block.conv1, block.bn1, x)
        x = convolution(block.conv2, block.bn2, x)
        x = convolution(block.conv3, block.bn3, block.avgpool(x), add=residual)
    return x


def _fold_batch_norms(visual: Any) -> Any:
    """A copy of a ResNet tower in channels-last order whose frozen batch norms are part of the convolutions.

    In half precision the folded weights would round the features differently, so there the batch norms stay.
    """
    visual = copy.deepcopy(visual, {id(visual.attnpool): visual.attnpool}).eval()
    if visual.conv1.weight.dtype.itemsize >= 4:
        for block in list(visual.modules()):
            layers = dict(block.named_children())
            for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):
                if isinstance(layers.get(norm), nn.BatchNorm2d):
                    setattr(block, conv, fuse_conv_bn_eval(layers[conv], layers[norm]))
                    setattr(block, norm, nn.Identity())
    return visual.to(memory_format=torch.channels_last)


class Autocast:
    """A frozen tower as autocast computes it, its products' weights cast once.

    Autocast keeps what it has cast only of weights that are trained; frozen ones it would cast anew at every use.
    """

    def __init__(self, tower: Any) -> None:
        self.tower = tower
        self.copies: dict[tuple[torch.device, torch.dtype], Any] = {}

    def __call__(self, device: torch.device) -> Any:
        """The tower itself, or under autocast its copy, with the same bits as autocast's own results."""
        if not torch.is_autocast_enabled(device.type):
            return self.tower
        weight = next(self.tower.parameters())
        dtype = torch.get_autocast_dtype(device.type)
        if weight.dtype in (dtype, torch.float64):  # there is nothing to cast, or autocast leaves it alone
            return self.tower
        key = (weight.device, dtype)
        if key not in self.copies:
            self.copies = {key: copy.deepcopy(self.tower)}
            for module in self.copies[key].modules():
                if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
                    module.to(dtype)
        return self.copies[key]


class TextEncoder(nn.Module):
    """CLIP's text tower on prompts given as a shared prefix and packed suffixes.

    Equal, up to rounding, to running CLIP's transformer on each prompt padded to 77 tokens and reading it at EOT.
    """

    def __init__(self, clip_model: Any) -> None:
        super().__init__()
        self.transformer = clip_model.transformer
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.cast = Autocast(self.transformer)

    def forward(self, prefix: Tensor, suffix: Tensor, layout: Layout) -> Tensor:
        """Text features, not normalized.

        Args:
            prefix: [G, P, d], embeddings of SOS and the context that stands in front of every class.
            suffix: [G, R, W, d] or, if it is the same for every group, [1, R, W, d]; rows as ``layout`` packs them.
        Returns:
            text [G, n_cls, d_out]; G counts PLOT's N prompts, or CoCoOp's images.
        """
        G, P, _ = prefix.shape
        R, W = layout.position.shape
        place = self.positional_embedding.to(prefix.dtype)
        suffix = suffix + place[layout.position]
        at_once = G * R * W <= MAX_AT_ONCE * MAX_TOKENS
        g_step = G if at_once else min(G, max(1, MAX_TOKENS // W))
        r_step = R if at_once else min(R, max(1, MAX_TOKENS // (g_step * W)))
        recompute = torch.is_grad_enabled() and not at_once
        pack = G * R * W <= MAX_TOKENS  # of more, memory is what is short
        keys = self._prefix_keys(prefix + place[:P], pack)
        light = at_once and not pack
        groups = []
        for g in range(0, G, g_step):
            own = suffix if suffix.shape[0] == 1 else suffix[g : g + g_step]
            kv = [(k[g : g + g_step], v[g : g + g_step]) for k, v in keys]
            rows = []
            for r in range(0, R, r_step):
                part = slice(r, r + r_step)
                args = (own[:, part], kv, layout.mask[part], layout.eot[part], light, pack)
                rows.append(
                    checkpoint(self._suffix_features, *args, use_reentrant=False, preserve_rng_state=False)
                    if recompute
                    else self._suffix_features(*args)
                )
            groups.append(torch.cat(rows, dim=1))
        return torch.cat(groups)[:, layout.slot]

    def _prefix_keys(self, x: Tensor, pack: bool) -> list[tuple[Tensor, Tensor]]:
        """The prefix's keys and values in each layer, [G, heads, P, d_head] each; the last layer needs no more."""
        keys = []
        blocks = self.cast(x.device).resblocks
        for i, block in enumerate(blocks):
            q, k, v = _project(block, block.ln_1(x), pack=pack)
            keys.append((k, v))
            if i + 1 < len(blocks):
                x = x + _out(block, F.scaled_dot_product_attention(q, k, v, is_causal=True), pack)
                x = x + mlp(block, block.ln_2(x), pack=pack)
        return keys

    def _suffix_features(
        self, x: Tensor, keys: list[tuple[Tensor, Tensor]], mask: Tensor, eot: Tensor, light: bool, pack: bool
    ) -> Tensor:
        """x [G or 1, R, W, d], mask [R, W, P + W], eot [R, E] -> features at EOT [G, R * E, d_out].

        light: the MLPs keep their inputs for the backward pass, not their hidden layers. pack: weights may be copied.
        """
        G, R, E = keys[0][0].shape[0], x.shape[1], eot.shape[1]
        row = torch.arange(R, device=x.device)[:, None]
        blocks = self.cast(x.device).resblocks
        for i, block in enumerate(blocks):
            h = block.ln_1(x)
            if i + 1 < len(blocks):
                x = x + _suffix_attention(block, h, h, keys[i], mask, pack)
                x = x + mlp(block, block.ln_2(x), light, pack)
            else:  # nothing after the last layer is read but EOT
                x = x[:, row, eot] + _suffix_attention(block, h[:, row, eot], h, keys[i], mask[row, eot], pack)
                x = x + mlp(block, block.ln_2(x), pack=pack)
        x = self.ln_final(x).to(keys[0][0].dtype) @ self.text_projection
        return x.reshape(G, R * E, -1)


def _heads(x: Tensor, n_head: int) -> Tensor:
    """[..., L, d] -> [..., n_head, L, d / n_head]."""
    return x.unflatten(-1, (n_head, -1)).transpose(-2, -3)


def _project(block: Any, h: Tensor, query: Tensor | None = None, pack: bool = False) -> list[Tensor]:
    """A block's queries, [..., n_head, L, d_head], of ``query`` [..., L, d], and keys and values of h [..., W, d].

    Apart, as the queries are kept for the backward pass, but of keys and values often only a copy.
    """
    attn, d = block.attn, h.shape[-1]
    wq, wkv = attn.in_proj_weight.split([d, 2 * d])
    bq, bkv = attn.in_proj_bias.split([d, 2 * d])
    q = linear(h if query is None else query, wq, bq, pack)
    return [_heads(x, attn.num_heads) for x in (q, *linear(h, wkv, bkv, pack).chunk(2, dim=-1))]


def _out(block: Any, x: Tensor, pack: bool = False) -> Tensor:
    """[..., n_head, L, d_head] -> the attention's output [..., L, d]."""
    out = block.attn.out_proj
    return linear(x.transpose(-2, -3).flatten(-2), out.weight, out.bias, pack)


def _suffix_attention(
    block: Any, query: Tensor, h: Tensor, prefix: tuple[Tensor, Tensor], mask: Tensor, pack: bool
) -> Tensor:
    """Attention of packed suffix tokens to their group's prefix and, by ``mask``, to their own class.

    query [G or 1, R, L, d], h [G or 1, R, W, d], prefix two of [G, n_head, P, d_head], mask [R, L, P + W].
    """
    k0, v0 = prefix
    G, R = k0.shape[0], h.shape[1]
    q, k, v = _project(block, h, query, pack)

    def with_prefix(own: Tensor, shared: Tensor) -> Tensor:
        shared = shared[:, None].expand(-1, R, -1, -1, -1)
        return torch.cat([shared, own.expand(G, -1, -1, -1, -1)], dim=3).flatten(0, 1)

    q = q.expand(G, -1, -1, -1, -1).flatten(0, 1)
    bias = mask.expand(G, -1, -1, -1).flatten(0, 1)[:, None]
    x = F.scaled_dot_product_attention(q, with_prefix(k, k0), with_prefix(v, v0), attn_mask=bias)
    return _out(block, x, pack).unflatten(0, (G, R))
