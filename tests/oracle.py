"""What the exactness tests compare `trainers/` with: `benchmarks.plain` on small random CLIPs.

Everything here follows the equations of the papers one by one and shares no code with `trainers/`: 77 tokens
for every (prompt, class), and a Sinkhorn loop for every (image, class) that stops by its own rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import clip
import torch
from clip.model import CLIP, AttentionPool2d, LayerNorm, ResidualAttentionBlock
from torch import Tensor, nn
from yacs.config import CfgNode

from benchmarks import plain

KINDS = ("RN", "ViT")


def tiny_clip(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0, size: int = 64) -> CLIP:
    """A frozen random CLIP for images of size x size px, of kind 'RN' or 'ViT', or 'RN GELU' or 'ViT GELU'.

    It has (size / 32)^2 or (size / 16)^2 local features. The weights depend on (kind, seed, size) alone, and
    are float32 numbers in every dtype.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = ((1, 1, 1, 1), 8, None) if kind.startswith("RN") else (2, 64, 16)
        width, heads = (128, 2) if kind.startswith("RN") else (64, 1)
        model = CLIP(64, size, *vision, 77, 49408, width, heads, 2)
        for module in model.modules():
            if kind.endswith("GELU") and isinstance(module, ResidualAttentionBlock):
                module.mlp.gelu = nn.GELU()
        _randomize(model)
    model = model.to(dtype).eval().requires_grad_(False)
    if dtype == torch.float64:
        plain_layernorms(model)
    return model


@torch.no_grad()
def _randomize(model: CLIP) -> None:
    """Give a value of its own to what CLIP starts at zero or one, so that no part may be left out unseen."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.3)
        if isinstance(module, nn.MultiheadAttention):
            module.in_proj_bias.normal_(std=0.3)
            module.out_proj.bias.normal_(std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the running statistics are the mean of all passes
        if isinstance(module, AttentionPool2d):
            module.positional_embedding.normal_(std=0.5)
            module.q_proj.weight.mul_(2)
            module.k_proj.weight.mul_(2)
    for block in model.visual.transformer.resblocks if hasattr(model.visual, "transformer") else ():
        block.attn.in_proj_weight.mul_(2)
        block.attn.out_proj.weight.mul_(4)
    model.logit_scale.fill_(math.log(20))
    # Batch-norm statistics of real passes: with any others a ResNet's features hardly depend on the image.
    model.visual.train()
    for seed in range(2):
        model.visual(random_images(8, model.visual.input_resolution, seed, torch.float32))


def plain_layernorms(model: nn.Module) -> None:
    """Replace CLIP's LayerNorm, which computes in float32 whatever it is fed, by nn.LayerNorm."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LayerNorm):
            norm = nn.LayerNorm(module.normalized_shape, eps=module.eps)
            norm.weight, norm.bias = module.weight, module.bias
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, norm)


def make_cfg(trainer: str, size: int = 64, **overrides: Any) -> CfgNode:
    """The config of the method with the node trainer ('PLOT'); overrides are keys of that node, and FUSED_HEAD."""
    import trainers
    from dassl.config import get_cfg_default
    from trainers.method import methods

    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    cfg.INPUT.SIZE = (size, size)
    cfg.TRAINER.NAME = next(name for name, kind in methods().items() if kind.node == trainer)
    cfg.TRAINER[trainer].PREC = "fp32"
    cfg.TRAINER.FUSED_HEAD = overrides.pop("FUSED_HEAD", False)
    for key, value in overrides.items():
        assert key in cfg.TRAINER[trainer], f"TRAINER.{trainer}.{key} is no config key"
        cfg.TRAINER[trainer][key] = value
    cfg.freeze()
    return cfg


def random_images(batch: int, size: int = 64, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """[batch, 3, size, size], float32 numbers: coarse patches, so that places differ, and fine noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 4, 4, generator=generator)
    coarse = coarse.repeat_interleave(size // 4, dim=2).repeat_interleave(size // 4, dim=3)
    return (coarse + torch.randn(batch, 3, size, size, generator=generator)).to(dtype)


def embed_text(clip_model: CLIP, text: str) -> Tensor:
    """[tokens, d]: the word embeddings of text, without SOS and EOT; underscores are spaces."""
    tokens = clip.tokenize(text.replace("_", " "))[0]
    return clip_model.token_embedding(tokens[1 : int(tokens.argmax())]).type(clip_model.dtype)


def sinkhorn(cost: Tensor, eps: float = 0.1, max_iter: int = 100, thresh: float = 0.01) -> Tensor:
    """Plan [M, N] of one problem's cost [M, N]."""
    m, n = cost.shape
    kernel = torch.exp(-cost / eps)
    r, c = torch.ones_like(cost[:, 0]), torch.ones_like(cost[0])
    for _ in range(max_iter):
        r, before = (1 / m) / (kernel @ c), r
        c = (1 / n) / (kernel.t() @ r)
        if (r - before).abs().mean() < thresh:
            break
    return torch.diag(r) @ kernel @ torch.diag(c)


def in_deviations(cost: Tensor, eps: float) -> Tensor:
    """One problem's cost [M, N] in units of its standard deviation, shifted so that a cost without any gives r = 1."""
    return (cost - cost.mean()) / cost.std(correction=0) + eps * math.log(cost.numel())


class Oracle:
    """One CLIP, one list of classes and one batch of images; what does not depend on ctx is computed once."""

    def __init__(self, clip_model: CLIP, classnames: Sequence[str], image: Tensor) -> None:
        self.clip, self.image = clip_model, image
        self.names = [name.replace("_", " ") for name in classnames]
        self.words = plain.embed_words(clip_model, classnames)
        self.pooled, self.local = plain.image_features(clip_model, image)

    def plot_logits(self, ctx: Tensor, position: str = "end", match: str = "ot", global_logits: bool = False,
                    eps: float = 0.1, max_iter: int = 100, thresh: float = 0.01,
                    cost: str = "raw") -> Tensor:  # fmt: skip
        """[batch, n_cls] for ctx [N, n_ctx, d] or [N, n_cls, n_ctx, d]."""
        kind = cost

        def solver(cost: Tensor) -> Tensor:
            problems = cost.flatten(0, 1)
            if kind == "standardized":
                problems = torch.stack([in_deviations(problem, eps) for problem in problems])
            plans = [sinkhorn(problem, eps, max_iter, thresh) for problem in problems]
            return torch.stack(plans).view_as(cost)

        text = plain.text_features(self.clip, self.words, ctx, position)
        return plain.plot_logits(self.clip, self.pooled, self.local, text, match, global_logits, solver)

    def plotpp_logits(self, ctx: Tensor, visual: Tensor, global_logits: bool = False,
                      texts: Sequence[str] = ()) -> Tensor:  # fmt: skip
        """[batch, n_cls] for ctx [N, n_ctx, d] and visual [M, n, width]; ``texts``: as the published code cuts them."""
        f = torch.stack([plain.prompted_image_features(self.clip, self.image, own) for own in visual])  # [M, batch, d]
        if texts:
            g = torch.stack([self._published_text(*own) for own in zip(ctx, texts, strict=True)])
        else:
            g = plain.text_features(self.clip, self.words, ctx)
        unit_f, unit_g = f / f.norm(dim=-1, keepdim=True), g / g.norm(dim=-1, keepdim=True)
        f_0, g_0 = f.mean(dim=0), g.mean(dim=0)
        f_0, g_0 = f_0 / f_0.norm(dim=-1, keepdim=True), g_0 / g_0.norm(dim=-1, keepdim=True)
        rows = []
        for b in range(f.shape[1]):
            row = []
            for k in range(g.shape[1]):
                cosine = unit_f[:, b] @ unit_g[:, k].t()  # [M, N]
                score = (sinkhorn(1 - cosine.detach()) * cosine).sum()
                row.append(score + f_0[b] @ g_0[k] if global_logits else score)
            rows.append(torch.stack(row))
        return self.clip.logit_scale.exp() * torch.stack(rows)

    def _published_text(self, ctx: Tensor, text: str) -> Tensor:
        """[n_cls, d]: text and name as one prompt of 77 tokens, of which ctx replaces those behind SOS."""
        tokens = clip.tokenize([f"{text} {name}." for name in self.names])
        x = self.clip.token_embedding(tokens)
        x = torch.cat([x[:, :1], ctx.expand(len(x), -1, -1), x[:, 1 + len(ctx) :]], dim=1)
        x = self.clip.transformer((x + self.clip.positional_embedding).transpose(0, 1)).transpose(0, 1)
        return self.clip.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.clip.text_projection

    def coop_logits(self, ctx: Tensor, position: str = "end") -> Tensor:
        """[batch, n_cls] for ctx [n_ctx, d] or [n_cls, n_ctx, d]."""
        text = plain.text_features(self.clip, self.words, ctx[None], position)[0]
        return plain.coop_logits(self.clip, self.pooled, text)

    def cocoop_logits(self, ctx: Tensor, meta_net: nn.Module) -> Tensor:
        """[batch, n_cls] for ctx [n_ctx, d]."""
        return plain.cocoop_logits(self.clip, self.words, self.pooled, ctx, meta_net)

    def plotcocoop_logits(self, ctx: Tensor, meta_net: nn.Module, **settings: Any) -> Tensor:
        """[batch, n_cls] for ctx [N, n_ctx, d]: image by image, prompt by prompt, class by class."""
        rows = []
        for pooled, local in zip(self.pooled, self.local, strict=True):
            token = meta_net(pooled / pooled.norm())
            texts = [plain.text_features(self.clip, self.words, (one + token)[None])[0] for one in ctx]
            f, logits = local / local.norm(dim=-1, keepdim=True), []
            for k in range(len(self.words.lengths)):
                g = torch.stack([text[k] / text[k].norm() for text in texts])
                with torch.no_grad():
                    plan = sinkhorn(1 - f @ g.t(), **settings)
                logits.append(self.clip.logit_scale.exp() * (plan * (f @ g.t())).sum())
            rows.append(torch.stack(logits))
        return torch.stack(rows)

    def zeroshot_logits(self, texts: Sequence[str]) -> Tensor:
        """[batch, n_cls] for one filled-in template a class."""
        return plain.coop_logits(self.clip, self.pooled, self.clip.encode_text(clip.tokenize(list(texts))))


def tip_logits(
    scale: Tensor, pooled: Tensor, text: Tensor, keys: Tensor, labels: Tensor, alpha: float, beta: float
) -> Tensor:
    """Tip-Adapter's logits [batch, n_cls] of pooled [batch, d], and of text [n_cls, d] and keys [n, d], unit length."""
    rows = []
    for f in pooled / pooled.norm(dim=-1, keepdim=True):
        logits = [scale * (f @ t) for t in text]
        for key, label in zip(keys, labels, strict=True):
            logits[label] = logits[label] + alpha * torch.exp(-beta * (1 - f @ key))
        rows.append(torch.stack(logits))
    return torch.stack(rows)


def plot_adapter_scores(
    local: Tensor, keys: Tensor, labels: Tensor, n_cls: int, beta: float, eps: float = 0.3
) -> Tensor:
    """sum_mj T_mj R_mjk [batch, n_cls] of PLOT-Adapter, of local [batch, M, d] and keys [2, n, d]."""
    rows = []
    for image in local / local.norm(dim=-1, keepdim=True):
        match = [[[torch.zeros((), dtype=keys.dtype)] * 2 for _ in image] for _ in range(n_cls)]
        for m, f in enumerate(image):
            for j in (0, 1):
                affinity = torch.stack([torch.exp(-beta * (1 - f @ key)) for key in keys[j]])
                affinity = affinity / affinity.norm()
                for k in range(n_cls):
                    match[k][m][j] = affinity[labels == k].sum()
        scores = []
        for own in match:
            R = torch.stack([torch.stack(row) for row in own])
            scores.append((sinkhorn(1 - R.detach(), eps) * R).sum())
        rows.append(torch.stack(scores))
    return torch.stack(rows)
