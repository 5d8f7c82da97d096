"""Random CLIPs of open_clip and transformers, saved in each of their formats, and what these libraries compute of them.

``Reference`` runs a library's own modules: pooled features, local features, and text features of prompts whose context
stands in unused rows of its token table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clip
import pytest
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from benchmarks import plain
from tests.oracle import make_cfg, plain_layernorms, sinkhorn
from trainers import plot
from trainers.clip.weights import load_clip

open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

NAMES = ("cat", "sea horse", "Boeing 737-800 aircraft")
N, N_CTX = 2, 3
FIRST_ROW = 500  # of the contexts in the token table: tokens that no name has
# Image width, patch, layers, heads, hidden width, text width, layers, heads, d; in transformers' GELU or QuickGELU.
HF_SHAPES = {
    "ViT-B-32": (768, 32, 12, 12, 3072, 512, 12, 8, 512, "quick_gelu"),
    "ViT-B-16": (768, 16, 12, 12, 3072, 512, 12, 8, 512, "quick_gelu"),
    "ViT-L-14": (1024, 14, 24, 16, 4096, 768, 12, 12, 768, "quick_gelu"),
    "ViT-H-14": (1280, 14, 32, 16, 5120, 1024, 24, 16, 1024, "gelu"),
    "ViT-g-14": (1408, 14, 40, 16, 6144, 1024, 24, 16, 1024, "gelu"),
}


def config(name: object, **backbone: object) -> CfgNode:
    """A config that ``load_clip`` reads."""
    return CfgNode({"MODEL": {"BACKBONE": {"NAME": str(name), **backbone}}})


@torch.no_grad()
def enliven(model: nn.Module) -> nn.Module:
    """Gives every parameter a part in the features, and the MLPs inputs at which GELU and QuickGELU differ."""
    generator = torch.Generator().manual_seed(0)
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        if not p.is_floating_point() or p.dim() == 0 or "attn_mask" in name:
            continue
        noise = torch.randn(p.shape, generator=generator) if p.dim() == 1 else torch.zeros(())
        if name.endswith("running_var"):
            p.copy_(1 + noise.abs() / 2)
        elif p.dim() == 1:
            p.add_(noise.to(p.dtype) * (0.02 if "embedding" in name else 0.2))
        elif "mlp" in name:
            p.mul_(1.5 if "fc" in name.removesuffix("fc2.weight") else 12)
    return model.eval().requires_grad_(False)


def of_open_clip(arch: str, depth: int | None = 2, size: int | None = None, **text: Any) -> tuple[nn.Module, dict]:
    """An open_clip CLIP, and its config; depth None is the architecture's own."""
    cfg = open_clip.get_model_config(arch)
    resnet = isinstance(cfg["vision_cfg"]["layers"], list)
    if depth:
        cfg["vision_cfg"]["layers"] = [depth, 1, 1, depth] if resnet else depth
        cfg["text_cfg"]["layers"] = depth
    if size:
        cfg["vision_cfg"]["image_size"] = size
    cfg["text_cfg"].update(text)
    torch.manual_seed(0)
    kind = open_clip.model.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.model.CLIP
    return enliven(kind(**cfg)), cfg


def of_transformers(arch: str, depth: int | None = 2, size: int = 224) -> nn.Module:
    """A CLIPModel of transformers; depth None is the architecture's own."""
    width, patch, layers, heads, hidden, text_width, text_layers, text_heads, d, activation = HF_SHAPES[arch]
    config = transformers.CLIPConfig(
        vision_config={"hidden_size": width, "patch_size": patch, "num_hidden_layers": depth or layers,
                       "num_attention_heads": heads, "intermediate_size": hidden, "image_size": size,
                       "hidden_act": activation},
        text_config={"hidden_size": text_width, "num_hidden_layers": depth or text_layers,
                     "num_attention_heads": text_heads, "intermediate_size": 4 * text_width, "hidden_act": activation},
        projection_dim=d,
    )  # fmt: skip
    torch.manual_seed(0)
    return enliven(transformers.CLIPModel(config))


def save_open_clip(model: nn.Module, cfg: dict, folder: Path, form: str) -> Path:
    """Saves it as ``form``: safetensors, bin, or a checkpoint of training, with its config beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {}}))
    state = {name: x.contiguous() for name, x in model.state_dict().items()}
    path = folder / {"safetensors": "open_clip_model.safetensors", "bin": "open_clip_pytorch_model.bin"}.get(
        form, f"{form}.pt"
    )
    if form == "safetensors":
        safetensors.save_file(state, path)
        return path
    wrapped: dict[str, Any] = {
        "bin": state,
        "module": {"epoch": 3, "name": "run", "state_dict": {f"module.{k}": x for k, x in state.items()}},
        "model_state_dict": {"model_state_dict": state},
        "lightning": {"state_dict": {f"model.{k}": x for k, x in state.items()} | {"loss.weight": torch.zeros(3)}},
        "text": open_clip.model.convert_to_custom_text_state_dict(dict(state)),
    }
    torch.save(wrapped[form], path)
    return path


def save_transformers(model: nn.Module, folder: Path, form: str) -> Path:
    """Saves it as ``form``: safetensors, bin, sharded, or sharded bin. Returns the folder."""
    model.config.save_pretrained(folder)
    state = {name: x.contiguous() for name, x in model.state_dict().items()}
    if form in ("safetensors", "sharded"):
        size = max(x.numel() for x in state.values()) * 4 + 1 if form == "sharded" else 10**11
        model.save_pretrained(folder, max_shard_size=size)
        assert ((folder / "model.safetensors.index.json").is_file()) == (form == "sharded")
    elif form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names, index = sorted(state), {}
        for i, part in enumerate((names[::2], names[1::2])):
            index |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
            torch.save({name: state[name] for name in part}, folder / f"pytorch_model-{i}.bin")
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def contexts(width: int) -> Tensor:
    """[N, N_CTX, width], float32 numbers."""
    return torch.randn(N, N_CTX, width, generator=torch.Generator().manual_seed(1)) * 0.1


class Reference:
    """A library's model, in a dtype of its own, and the features that it computes."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model, self.hf = model.to(dtype), hasattr(model, "vision_model")
        table = (
            model.text_model.embeddings.token_embedding if self.hf else getattr(model, "text", model).token_embedding
        )
        rows = contexts(table.weight.shape[1])
        table.weight[FIRST_ROW : FIRST_ROW + N * N_CTX] = rows.flatten(0, 1).to(dtype)
        self.logit_scale = model.logit_scale

    @torch.no_grad()
    def images(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled [batch, d] and local [batch, M, d]."""
        if self.hf:
            hidden = self.model.vision_model(image).last_hidden_state
            local = self.model.visual_projection(self.model.vision_model.post_layernorm(hidden[:, 1:]))
            return _tensor(self.model.get_image_features(image)), local
        visual = self.model.visual
        seen: list[Tensor] = []
        resnet = hasattr(visual, "attnpool")
        inner = visual.attnpool if resnet else visual.transformer
        handle = inner.register_forward_hook(lambda module, args, output: seen.extend((args[0], output)))
        pooled = self.model.encode_image(image)
        handle.remove()
        return pooled, plain.attended(inner, seen[0])[:, 1:] if resnet else visual.ln_post(seen[1][:, 1:]) @ visual.proj

    @torch.no_grad()
    def texts(self, tokens: Tensor) -> Tensor:
        """tokens [n, 77] -> [n, d]."""
        return _tensor(self.model.get_text_features(tokens)) if self.hf else self.model.encode_text(tokens)

    def plot_logits(self, pooled: Tensor, local: Tensor) -> Tensor:
        """[batch, n_cls], PLOT's equations on the library's features."""
        rows = torch.arange(FIRST_ROW, FIRST_ROW + N * N_CTX).view(N, N_CTX)
        texts = []
        for row in rows:
            tokens = clip.tokenize([name + "." for name in NAMES])
            texts.append(self.texts(torch.cat([tokens[:, :1], row.expand(len(NAMES), -1), tokens[:, 1:-N_CTX]], dim=1)))
        return plain.plot_logits(self, pooled, local, torch.stack(texts), solver=each)


def each(cost: Tensor) -> Tensor:
    """The plans [batch, n_cls, M, N], each problem stopping by its own rule."""
    return torch.stack([sinkhorn(problem) for problem in cost.flatten(0, 1)]).view_as(cost)


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


def check(path: object, model: nn.Module, size: int, exact: float = 1e-10, **backbone: object) -> None:
    """Compares our features and PLOT's logits with the library's, in float32 and, to ``exact``, in float64.

    H/14 takes 8 GB in float64: the two sides are never in it together.
    """
    tokens = clip.tokenize([f"a photo of a {name}" for name in NAMES])
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, exact)):
        reference = Reference(model, dtype)
        image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3)).to(dtype)
        theirs = reference.images(image)
        texts, logits = reference.texts(tokens), reference.plot_logits(*theirs)
        model.float()
        ours = load_clip(config(path, **backbone)).to(dtype)
        if dtype == torch.float64:
            plain_layernorms(ours)
        head = plot.CustomCLIP(make_cfg("PLOT", size, N=N, N_CTX=N_CTX), NAMES, ours)
        with torch.no_grad():
            head.prompt_learner.ctx.copy_(contexts(ours.ln_final.weight.shape[0]))
            pooled, local = head.image_encoder(image)
            for name, own, expected in (
                ("pooled", pooled, theirs[0]),
                ("local", local, theirs[1]),
                ("texts", ours.encode_text(tokens), texts),
                ("logits", head.logits(pooled, local), logits),
            ):
                assert own.dtype == dtype
                error = float((own - expected).abs().max() / expected.abs().max())
                assert error < tolerance, f"{name} {dtype} {error}"
