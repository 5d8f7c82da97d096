"""CLIP's two towers as every method here uses them: frozen, in eval mode, built from the installed ``clip``.

``ImageEncoder`` gives pooled and local features; ``TextEncoder`` turns prompts into text features. CLIP's text
transformer is causal: tokens that all classes have in front (the prefix) are computed once, what follows EOT never, and
the classes' own tokens (the suffixes) are packed several to a row. A method reaches into a tower through ``Extra``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from clip.model import CLIP, ModifiedResNet, VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from .frozen import Autocast, Block, convolution, fold_batch_norms
from .prompts import Layout, UserError, words_of
from .towers import Tower, positions, register, tower_of

# Suffix tokens of which all is kept for the backward pass. Of more, the MLPs' hidden layers, a good third of the
# memory, are computed anew from their inputs: a sixth more work. In a text tower of 12 layers, width 512 and float32,
# 6,144 tokens keep about 2 GB.
MAX_TOKENS = 6144

# Times MAX_TOKENS computed at once; beyond it in chunks of MAX_TOKENS, which under gradients are checkpointed whole:
# half as much work again. ImageNet's 1,000 classes with N = 4, some 16,000 tokens, are within.
MAX_AT_ONCE = 3


@dataclass(frozen=True)
class Extra:
    """What a method adds to a frozen tower. Empty, the fast path without gradient runs.

    Attributes:
        tokens: [n, width] or [batch, n, width], behind a ViT's patches, before ``ln_pre``, without a position.
        deep: {block: [n, width]}, put in at the input of that block: in a ViT in the place of the last n tokens, in the
            text tower in the place of the n tokens behind SOS, which must be in the shared prefix.
        deltas: {parameter, by its name in CLIP's tower: what is added to it}.
    """

    tokens: Tensor | None = None
    deep: Mapping[int, Tensor] = field(default_factory=dict)
    deltas: Mapping[str, Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.tokens is not None or bool(self.deep) or bool(self.deltas)


NOTHING = Extra()


def _caller(tower: nn.Module, deltas: Mapping[str, Tensor]) -> Callable[..., Any]:
    """Calls the tower's parts; with ``deltas`` with the changed weights, in a checkpoint's recomputation too."""
    if not deltas:
        return tower
    names = dict(tower.named_parameters())
    changed: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        index, _, rest = name.partition(".resblocks.")[2].partition(".")
        try:
            if index:
                block: Any = tower.get_submodule(f"blocks.{index}")
                changed |= {f"blocks.{index}.{own}": weight for own, weight in block.changed(rest, delta).items()}
            else:
                changed[name] = names[name] + delta.to(names[name].dtype)
        except (KeyError, AttributeError):
            raise UserError(f"no weight '{name}' that can be changed in the tower") from None
    return lambda *args: functional_call(tower, changed, args)


def _check_deep(deep: Mapping[int, Tensor], n_blocks: int, room: int) -> None:
    """Raises UserError for a block that is not there, or more tokens than ``room``, the number they replace."""
    for block, tokens in deep.items():
        if not 0 <= block < n_blocks or tokens.shape[-2] > room:
            raise UserError(
                f"{tokens.shape[-2]} deep tokens at block {block} do not fit: there are {n_blocks} blocks, and {room} "
                "tokens to replace"
            )


class ImageEncoder(nn.Module):
    """CLIP's image tower: image [batch, 3, h, w] -> pooled [batch, d], local [batch, M, d].

    ``pooled`` is what ``model.encode_image`` gives. ``local`` is, for a ResNet, the output of the attention pooling
    queried at each of the M grid positions, and for a ViT each patch token through ``ln_post`` and ``proj``
    (PLOT, section 3.3); the files of other towers (``towers.py``) say theirs. With ``local=False`` only the pooled
    feature is computed, and ``local`` has M = 0. The two are computed apart, so that ``pooled`` has the same bits
    either way, and both are contiguous, so that features read from a file go through the head bit by bit as those just
    computed. Gradients flow through ``Extra`` alone.

    Raises:
        UserError: extra tokens for a tower without tokens, or a delta of a weight that is folded or not there.
    """

    def __init__(self, visual: nn.Module, local: bool = True) -> None:
        super().__init__()
        self.tower = tower_of(visual)
        self.visual = self.tower.freeze(visual)
        self.local = local
        self.cast = Autocast(self.visual)

    @property
    def dtype(self) -> torch.dtype:
        return next(module for module in self.visual.modules() if isinstance(module, nn.Conv2d)).weight.dtype

    def forward(self, image: Tensor, extra: Extra = NOTHING) -> tuple[Tensor, Tensor]:
        image = image.to(self.dtype)
        if not extra:
            with torch.no_grad():
                return self.cast(image.device)(image, self.local)
        if (extra.tokens is not None or extra.deep) and not self.tower.takes_tokens:
            raise UserError(f"extra image tokens need a ViT backbone, this one is {self.tower.what}")
        tower = self.visual if extra.deltas else self.cast(image.device)
        return _caller(tower, extra.deltas)(image, self.local, extra.tokens, extra.deep)


class _ResNet(nn.Module):
    """A ResNet tower, copied, with its batch norms folded into the convolutions."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.trunk = fold_batch_norms(visual)
        self.attnpool, self.trunk.attnpool = self.trunk.attnpool, nn.Identity()

    def extra_repr(self) -> str:
        return f"heads={self.attnpool.num_heads}"

    def forward(self, x: Tensor, local: bool, tokens: None = None, deep: object = None) -> tuple[Tensor, Tensor]:
        x = positions(functools.partial(_trunk, self.trunk), x)
        pool = self.attnpool
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + pool.positional_embedding.to(x.dtype)

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (pool.num_heads, -1)).transpose(-2, -3)

        k, v = heads(pool.k_proj(x)), heads(pool.v_proj(x))

        def attend(query: Tensor) -> Tensor:
            q = heads(pool.q_proj(query.flatten(0, 1)).unflatten(0, query.shape[:2]))
            return pool.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

        return attend(x[:, :1])[:, 0], attend(x[:, 1:] if local else x[:, :0])


def _trunk(visual: ModifiedResNet, x: Tensor) -> Tensor:
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


class _ViT(nn.Module):
    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        self.conv1, self.ln_pre, self.ln_post = visual.conv1, visual.ln_pre, visual.ln_post
        self.class_embedding, self.positional_embedding = visual.class_embedding, visual.positional_embedding
        self.proj = visual.proj
        self.blocks = nn.ModuleList(Block(block) for block in visual.transformer.resblocks)

    def forward(
        self, x: Tensor, local: bool, tokens: Tensor | None = None, deep: Mapping[int, Tensor] = NOTHING.deep
    ) -> tuple[Tensor, Tensor]:
        x = self.conv1(x).flatten(2).transpose(1, 2)  # [batch, h * w, width]
        batch, M = x.shape[:2]
        cls = self.class_embedding.to(x.dtype).expand(batch, 1, -1)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding.to(x.dtype)
        if tokens is not None:
            x = torch.cat([x, tokens.to(x.dtype).expand(batch, -1, -1)], dim=1)
        x = self.ln_pre(x)
        _check_deep(deep, len(self.blocks), x.shape[1] - 1 - M)
        for i, block in enumerate(self.blocks):
            if i in deep:
                x = torch.cat([x[:, : -deep[i].shape[-2]], deep[i].to(x.dtype).expand(batch, -1, -1)], dim=1)
            x = block(x)

        def project(x: Tensor) -> Tensor:
            x = self.ln_post(x)
            return x.contiguous() if self.proj is None else x @ self.proj

        return project(x[:, 0]), project(x[:, 1 : 1 + M] if local else x[:, :0])


RESNET = register(Tower("a ResNet", ModifiedResNet, _ResNet))
VIT = register(Tower("a ViT", VisionTransformer, _ViT, takes_tokens=True))


class TextEncoder(nn.Module):
    """CLIP's text tower on prompts given as a shared prefix and packed suffixes.

    Equal, up to rounding, to running CLIP's transformer on each prompt padded to 77 tokens and reading it at EOT. That
    is what it does if ``clip_model.plain_text``, for a tower that is not causal. A ``clip_model`` whose text tower is
    another library's has a ``text_tower`` with ``plain_features``.
    """

    padding: Tensor  # [d], the embedding of what follows EOT

    def __init__(self, clip_model: CLIP) -> None:
        super().__init__()
        theirs = getattr(clip_model, "text_tower", None)
        self.tower = _TextTower(clip_model) if theirs is None else theirs
        self.plain = getattr(clip_model, "plain_text", False)
        self.words = words_of(clip_model)
        table = clip_model.token_embedding
        padding = table(torch.tensor(self.words.pad, device=table.weight.device)).detach()
        self.register_buffer("padding", padding, persistent=False)
        self.cast = Autocast(self.tower)

    def forward(self, prefix: Tensor, suffix: Tensor, layout: Layout, extra: Extra = NOTHING) -> Tensor:
        """Text features, not normalized.

        Args:
            prefix: [G, P, d], embeddings of SOS and the context that stands in front of every class.
            suffix: [G, R, W, d] or, if it is the same for every group, [1, R, W, d]; rows as ``layout`` packs them.
        Returns:
            text [G, n_cls, d_out]; G counts PLOT's N prompts, or CoCoOp's images.
        Raises:
            UserError: extra tokens that do not fit into the prefix.
        """
        G, P, _ = prefix.shape
        R, W = layout.position.shape
        if extra.tokens is not None:
            raise UserError("the text tower takes deep tokens; others belong into the prompt learner's context")
        if self.plain:
            return self._whole_prompts(prefix, suffix, layout, extra)
        _check_deep(extra.deep, len(self.tower.blocks), P - 1)
        place = self.tower.positional_embedding.to(prefix.dtype)
        suffix = suffix + place[layout.position]
        at_once = G * R * W <= MAX_AT_ONCE * MAX_TOKENS
        g_step = G if at_once else min(G, max(1, MAX_TOKENS // W))
        r_step = R if at_once else min(R, max(1, MAX_TOKENS // (g_step * W)))
        recompute = torch.is_grad_enabled() and not at_once
        light = at_once and MAX_TOKENS < G * R * W
        run = _caller(self.tower if extra.deltas else self.cast(prefix.device), extra.deltas)
        keys = run("prefix_keys", prefix + place[:P], extra.deep)
        groups = []
        for g in range(0, G, g_step):
            own = suffix if suffix.shape[0] == 1 else suffix[g : g + g_step]
            kv = [(k[g : g + g_step], v[g : g + g_step]) for k, v in keys]
            rows = []
            for r in range(0, R, r_step):
                part = slice(r, r + r_step)
                args = ("suffix_features", own[:, part], kv, layout.mask[part], layout.eot[part], light)
                rows.append(
                    checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False) if recompute else run(*args)
                )
            groups.append(torch.cat(rows, dim=1))
        return torch.cat(groups)[:, layout.slot]

    def _whole_prompts(self, prefix: Tensor, suffix: Tensor, layout: Layout, extra: Extra) -> Tensor:
        """As ``forward``, computing all tokens of each prompt, 77 in CLIP's towers."""
        if extra.deep:
            raise UserError("deep text prompts need the shared prefix: MODEL.BACKBONE.PLAIN_TEXT must be False")
        G, P, d = prefix.shape
        n_cls, place = len(layout.slot), layout.position.flatten()[layout.token]
        owner = (place == P).cumsum(0) - 1  # the class of each suffix token
        eot = place.new_zeros(n_cls).scatter_reduce(0, owner, place, "amax").repeat(G)
        x = self.padding.to(prefix.dtype).expand(G, n_cls, self.words.length, d).clone()
        x[:, :, :P] = prefix[:, None]
        x[:, owner, place] = suffix.expand(G, -1, -1, -1).flatten(1, 2)[:, layout.token]
        x = x.flatten(0, 1)
        run = _caller(self.tower if extra.deltas else self.cast(prefix.device), extra.deltas)
        step = MAX_AT_ONCE * MAX_TOKENS // self.words.length
        parts = [("plain_features", *part) for part in zip(x.split(step), eot.split(step), strict=True)]
        if torch.is_grad_enabled() and len(parts) > 1:
            found = [checkpoint(run, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        else:
            found = [run(*part) for part in parts]
        return torch.cat(found).unflatten(0, (G, n_cls))


class _TextTower(nn.Module):
    def __init__(self, clip_model: CLIP) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(block) for block in clip_model.transformer.resblocks)
        self.ln_final, self.text_projection = clip_model.ln_final, clip_model.text_projection
        self.positional_embedding = clip_model.positional_embedding
        self.causal = clip_model.transformer.resblocks[0].attn_mask is not None

    def forward(self, part: str, *args: object) -> Any:
        """``part`` names one of the methods below, so that they can be called with other weights."""
        return getattr(self, part)(*args)

    def plain_features(self, x: Tensor, eot: Tensor) -> Tensor:
        """x [prompts, 77, d], eot [prompts] -> features at EOT [prompts, d_out]."""
        x = x + self.positional_embedding.to(x.dtype)
        for block in self.blocks:
            x = block(x, is_causal=self.causal)
        x = self.ln_final(x[torch.arange(len(x), device=x.device), eot])
        return x.to(self.text_projection.dtype) @ self.text_projection

    def prefix_keys(self, x: Tensor, deep: Mapping[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The prefix's keys and values in each layer, [G, heads, P, d_head] each; the last layer needs no more."""
        keys = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if i in deep:
                n = deep[i].shape[-2]
                x = torch.cat([x[:, :1], deep[i].to(x.dtype).expand(x.shape[0], -1, -1), x[:, 1 + n :]], dim=1)
            q, k, v = block.project(block.ln_1(x))
            keys.append((k, v))
            if i + 1 < len(self.blocks):
                x = x + block.project_out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
                x = x + block.mlp(block.ln_2(x))
        return keys

    def suffix_features(
        self, x: Tensor, keys: list[tuple[Tensor, Tensor]], mask: Tensor, eot: Tensor, light: bool
    ) -> Tensor:
        """x [G or 1, R, W, d], mask [R, W, P + W], eot [R, E] -> features at EOT [G, R * E, d_out].

        light: the MLPs keep their inputs for the backward pass, not their hidden layers.
        """
        G, R, E = keys[0][0].shape[0], x.shape[1], eot.shape[1]
        row = torch.arange(R, device=x.device)[:, None]
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            h = query = block.ln_1(x)
            if i + 1 == len(self.blocks):  # nothing after the last layer is read but EOT
                x, query, mask = x[:, row, eot], h[:, row, eot], mask[row, eot]
            x = x + _suffix_attention(block, query, h, keys[i], mask)
            h = block.ln_2(x)
            kept = not (light and torch.is_grad_enabled() and i + 1 < len(self.blocks))
            x = x + (block.mlp(h) if kept else checkpoint(block.mlp, h, use_reentrant=False, preserve_rng_state=False))
        x = self.ln_final(x).to(keys[0][0].dtype) @ self.text_projection
        return x.reshape(G, R * E, -1)


def _suffix_attention(block: Block, query: Tensor, h: Tensor, prefix: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """Attention of packed suffix tokens to their group's prefix and, by ``mask``, to their own class.

    query [G or 1, R, L, d], h [G or 1, R, W, d], prefix two of [G, n_head, P, d_head], mask [R, L, P + W].
    """
    k0, v0 = prefix
    G, R = k0.shape[0], h.shape[1]
    q, k, v = block.project(h, query)

    def with_prefix(own: Tensor, shared: Tensor) -> Tensor:
        shared = shared[:, None].expand(-1, R, -1, -1, -1)
        return torch.cat([shared, own.expand(G, -1, -1, -1, -1)], dim=3).flatten(0, 1)

    q = q.expand(G, -1, -1, -1, -1).flatten(0, 1)
    bias = mask.expand(G, -1, -1, -1).flatten(0, 1)[:, None]
    x = F.scaled_dot_product_attention(q, with_prefix(k, k0), with_prefix(v, v0), attn_mask=bias)
    return block.project_out(x).unflatten(0, (G, R))
