"""The plain computation: the published equations with the installed clip's own modules.

Every prompt of every class is one sequence of all 77 tokens, as the code published with the papers runs it
(CoOp, arXiv 2109.01134; CoCoOp, arXiv 2203.05557; PLOT, arXiv 2210.01253). `benchmarks.step` compares our
speed with it and `tests/oracle.py` builds the exactness tests on it, so it shares no code with `trainers/`.
Axes: N prompts a class, n_cls classes, M local features an image, d a feature's width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import clip
import torch
import torch.nn.functional as F
from clip.model import CLIP
from clip.simple_tokenizer import SimpleTokenizer
from torch import Tensor, nn

_tokenizer = SimpleTokenizer()


class Words(NamedTuple):
    """The prompts' tokens that no training changes: SOS, name, full stop, EOT and padding."""

    embedded: Tensor  # [n_cls, 77, d]
    lengths: list[int]  # tokens of each class's name
    ends: Tensor  # [n_cls], where EOT stands

    def to(self, device: str) -> Words:
        return Words(self.embedded.to(device), self.lengths, self.ends.to(device))


def embed_words(clip_model: CLIP, classnames: Sequence[str]) -> Words:
    """Name and full stop are tokenized together; the name is as many of those tokens as it has alone."""
    names = [name.replace("_", " ") for name in classnames]
    tokens = clip.tokenize([name + "." for name in names])
    with torch.no_grad():
        embedded = clip_model.token_embedding(tokens).type(clip_model.dtype)
    return Words(embedded, [len(_tokenizer.encode(name)) for name in names], tokens.argmax(dim=-1))


def text_features(clip_model: CLIP, words: Words, ctx: Tensor, position: str = "end") -> Tensor:
    """[N, n_cls, d] (not normalized) of ctx [N, n_ctx, d], or class-specific [N, n_cls, n_ctx, d]."""
    n_cls = len(words.lengths)
    if ctx.dim() == 3:
        ctx = ctx.unsqueeze(1).expand(-1, n_cls, -1, -1)
    n, _, n_ctx, _ = ctx.shape
    embedded = words.embedded[:, : clip_model.context_length - n_ctx].repeat(n, 1, 1)
    sos, rest = embedded[:, :1], embedded[:, 1:]
    context = ctx.flatten(0, 1)
    if position == "end":
        x = torch.cat([sos, context, rest], dim=1)
    else:
        half = {"front": 0, "middle": n_ctx // 2}[position]  # context before the name
        x = torch.stack(
            [
                torch.cat([sos[i], context[i, :half], rest[i, :name], context[i, half:], rest[i, name:]])
                for i, name in enumerate(words.lengths * n)
            ]
        )
    x = x + clip_model.positional_embedding.type(clip_model.dtype)
    x = clip_model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
    x = clip_model.ln_final(x).type(clip_model.dtype)
    x = x[torch.arange(n * n_cls, device=x.device), n_ctx + words.ends.repeat(n)] @ clip_model.text_projection
    return x.view(n, n_cls, -1)


def image_features(clip_model: CLIP, image: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled [batch, d] and local [batch, M, d] features, not normalized, of image [batch, 3, h, w]."""
    image = image.type(clip_model.dtype)
    visual = clip_model.visual
    x = _vit_tokens(visual, image) if hasattr(visual, "ln_post") else _resnet_tokens(visual, image)
    return x[:, 0], x[:, 1:]


def _vit_tokens(visual: Any, image: Tensor) -> Tensor:
    """[batch, 1 + M, d]: the class token and the patches, all through ln_post and proj."""
    patches = visual.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(image.dtype).expand(len(image), 1, -1), patches], dim=1)
    x = visual.ln_pre(x + visual.positional_embedding.to(x.dtype))
    x = visual.transformer(x.transpose(0, 1)).transpose(0, 1)
    return visual.ln_post(x) @ visual.proj


def prompted_image_features(clip_model: CLIP, image: Tensor, prompt: Tensor) -> Tensor:
    """[batch, d], not normalized: a ViT's class token, with a prompt [n, width] behind the patches (PLOT++)."""
    visual: Any = clip_model.visual
    patches = visual.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(image.dtype).expand(len(image), 1, -1), patches], dim=1)
    x = torch.cat([x + visual.positional_embedding.to(x.dtype), prompt.expand(len(image), -1, -1)], dim=1)
    x = visual.transformer(visual.ln_pre(x).transpose(0, 1)).transpose(0, 1)
    return visual.ln_post(x[:, 0]) @ visual.proj


def _resnet_tokens(visual: Any, image: Tensor) -> Tensor:
    """[batch, 1 + M, d]: the attention pooling queried at the mean and at every grid position."""
    x = image
    for i in (1, 2, 3):
        x = getattr(visual, f"relu{i}")(getattr(visual, f"bn{i}")(getattr(visual, f"conv{i}")(x)))
    x = visual.avgpool(x)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    return attended(visual.attnpool, x)


def attended(pool: Any, x: Tensor) -> Tensor:
    """What attention pooling gives for x [batch, c, h, w], queried by the mean and at each place: [batch, 1 + M, d]."""
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(dim=0, keepdim=True), x])
    x = x + pool.positional_embedding[:, None].to(x.dtype)
    x, _ = F.multi_head_attention_forward(
        x, x, x, x.shape[-1], pool.num_heads, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, need_weights=False, use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    return x.transpose(0, 1)


def sinkhorn_batch(cost: Tensor, eps: float = 0.1, max_iter: int = 100, thresh: float = 0.01) -> Tensor:
    """Plan [..., M, N] of cost [..., M, N]; all problems stop at once, by their common mean, as published."""
    m, n = cost.shape[-2:]
    kernel = torch.exp(-cost / eps)
    r, c = torch.ones_like(cost[..., 0]), torch.ones_like(cost[..., 0, :])
    for _ in range(max_iter):
        before = r
        r = (1 / m) / (kernel @ c.unsqueeze(-1)).squeeze(-1)
        c = (1 / n) / (kernel.transpose(-2, -1) @ r.unsqueeze(-1)).squeeze(-1)
        if (r - before).abs().mean() < thresh:
            break
    return r.unsqueeze(-1) * kernel * c.unsqueeze(-2)


def plot_logits(
    clip_model: CLIP,
    pooled: Tensor,
    local: Tensor,
    text: Tensor,
    match: str = "ot",
    global_logits: bool = False,
    solver: Callable[[Tensor], Tensor] = sinkhorn_batch,
) -> Tensor:
    """Logits [batch, n_cls] of pooled [batch, d], local [batch, M, d], text [N, n_cls, d], none normalized.

    match is TRAINER.PLOT.MATCH; solver makes the plan [batch, n_cls, M, N] of the cost.
    global_logits adds the pooled feature's logits.
    """
    f, f0, g = F.normalize(local, dim=-1), F.normalize(pooled, dim=-1), F.normalize(text, dim=-1)
    cosine = torch.einsum("bmd,nkd->bkmn", f, g)
    global_cosine = f0 @ F.normalize(text.mean(dim=0), dim=-1).t()
    if match == "ot":
        with torch.no_grad():
            plan = solver(1 - cosine)
        logits = (plan * cosine).sum(dim=(-2, -1))
    elif match == "uniform":
        logits = cosine.mean(dim=(-2, -1))
    elif match == "max":
        logits = cosine.amax(dim=-2).mean(dim=-1)
    elif match == "mean":
        logits = global_cosine
    elif match == "global":
        logits = torch.stack([f0 @ prompt.t() for prompt in g]).mean(dim=0)
    else:
        raise ValueError(f"match {match!r} is none of ot, uniform, mean, global, max")
    return clip_model.logit_scale.exp() * (logits + global_cosine if global_logits else logits)


def plotpp_logits(clip_model: CLIP, features: Tensor, text: Tensor, global_logits: bool = False) -> Tensor:
    """PLOT++'s logits [batch, n_cls] of class tokens [M, batch, d] and text [N, n_cls, d], none normalized."""
    return plot_logits(clip_model, features.mean(dim=0), features.transpose(0, 1), text, global_logits=global_logits)


def coop_logits(clip_model: CLIP, pooled: Tensor, text: Tensor) -> Tensor:
    """Logits [batch, n_cls] of pooled [batch, d] and text [n_cls, d]: zero-shot CLIP, CoOp and CoCoOp."""
    return clip_model.logit_scale.exp() * F.normalize(pooled, dim=-1) @ F.normalize(text, dim=-1).t()


def cocoop_logits(clip_model: CLIP, words: Words, pooled: Tensor, ctx: Tensor, meta_net: nn.Module) -> Tensor:
    """CoCoOp's logits [batch, n_cls]: each image shifts ctx [n_ctx, d] by what meta_net makes of it."""
    rows = []
    for image in pooled.split(1):
        shifted = ctx + meta_net(F.normalize(image, dim=-1))
        rows.append(coop_logits(clip_model, image, text_features(clip_model, words, shifted[None])[0]))
    return torch.cat(rows)
