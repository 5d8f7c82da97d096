"""The sides that the speed programs compare: plain, ours and the floor; `benchmarks.turns` lets them step.

"plain" (`benchmarks.plain`) runs the installed clip's own modules on all 77 tokens of every prompt and class, as
published. "ours" is the trainer's `CustomCLIP`. "floor" is our image encoder's forward pass and the matrix
products, forward and backward, of the fewest tokens: the context once a prompt, the class name once a prompt and class.
PLOT++ learns in the image tower: there the floor goes through our image encoder forward and backward, M times an image.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import clip
import torch
from clip.model import CLIP
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.caltech_names import NAMES
from runs.directory import defaults
from trainers.clip.encoders import Extra, ImageEncoder
from trainers.clip.graphs import Replayed
from trainers.clip_trainer import AMP_DTYPES
from trainers.method import methods

# Trainer class by config node, of the learning methods whose logits `benchmarks.plain` computes.
METHODS: dict[str, Any] = {
    kind.node: kind for kind in methods().values() if kind.learns and hasattr(plain, f"{kind.node.lower()}_logits")
}
N_CTX, N = 16, 4  # context tokens; PLOT's and PLOT++'s prompts a class
PLOTPP_N_CTX, M, N_CTX_V = 4, 4, 2  # PLOT++'s context tokens, its visual prompts and their tokens
# CLIP's arguments: image side, and width, heads and layers of the text side.
BACKBONES: dict[str, tuple[tuple[Any, ...], tuple[int, int, int]]] = {
    "RN50": ((1024, 224, (3, 4, 6, 3), 64, None), (512, 8, 12)),
    "ViT-B/16": ((512, 224, 12, 768, 16), (512, 8, 12)),
    "ViT-L/14": ((768, 224, 24, 1024, 14), (768, 12, 12)),
}
Logits = Callable[[Tensor], Tensor]  # image [batch, 3, h, w] -> [batch, n_cls]


@dataclass(frozen=True)
class Setting:
    """What one side computes in a step, and where."""

    method: str
    batch: int
    classes: int | None = None  # the first of ImageNet's; None: the 100 of Caltech-101
    global_logits: bool = False
    threads: int = 1
    tiny: bool = False  # a toy CLIP with as many tokens
    device: str = "cpu"
    prec: str = "fp32"
    clock: str = "wall"
    no_graphs: bool = False
    stage: int = 2  # of PLOT++: 1 learns the visual prompts alone
    fused: bool = False  # TRAINER.FUSED_HEAD
    whole: bool = False  # TRAINER.WHOLE_STEP_GRAPH
    backbone: str = ""  # one of BACKBONES; "": RN50, and for PLOT++ ViT-B/16

    @classmethod
    def of(cls, options: argparse.Namespace, method: str, **more: Any) -> Setting:
        """The setting that the options ask for."""
        given = {field.name: getattr(options, field.name) for field in fields(cls) if hasattr(options, field.name)}
        return cls(**{**given, "method": method, **more})

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrix products."""
        types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "amp": AMP_DTYPES[self.device]}
        return types[self.prec]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.prec in ("amp", "bf16"))

    @property
    def backbone_name(self) -> str:
        return self.backbone or ("ViT-B/16" if self.method == "PLOTPP" else "RN50")

    @property
    def about(self) -> str:
        """For a table's heading."""
        place = torch.cuda.get_device_name() if self.device == "cuda" else f"{self.threads} threads"
        model = "a toy CLIP" if self.tiny else self.backbone_name
        return f"{model}, {self.prec}, {place}, {self.clock} clock, torch {torch.__version__}"

    @property
    def names(self) -> list[str]:
        if self.classes is None:
            return NAMES
        from torchvision.models import ResNet50_Weights

        return list(ResNet50_Weights.DEFAULT.meta["categories"][: self.classes])


def make_clip(tiny: bool, backbone: str = "RN50") -> CLIP:
    """A frozen CLIP with random weights, or a toy with as many text tokens."""
    torch.manual_seed(0)
    vision, text = BACKBONES[backbone]
    if tiny:
        text, vision = (64, 1, 2), (64, 64, *(((1,) * 4, 8, None) if backbone.startswith("RN") else (2, 64, 16)))
    return CLIP(*vision, 77, 49408, *text).eval().requires_grad_(False)


def plain_logits(setting: Setting, clip_model: CLIP) -> tuple[Logits, list[Tensor]]:
    """The published forward pass, image -> logits, and its learned parameters."""
    method, words = setting.method, plain.embed_words(clip_model, setting.names).to(setting.device)
    clip_model.to(setting.device)
    made = {"dtype": clip_model.dtype, "device": setting.device}
    width = clip_model.ln_final.weight.shape[0]
    if method == "PLOTPP":
        visual = nn.Parameter(0.02 * torch.randn(M, N_CTX_V, clip_model.visual.conv1.weight.shape[0], **made))
        texts = nn.Parameter(0.02 * torch.randn(N, PLOTPP_N_CTX, width, **made), requires_grad=setting.stage == 2)

        def plotpp_logits(image: Tensor) -> Tensor:
            features = torch.stack([plain.prompted_image_features(clip_model, image, own) for own in visual])
            text = plain.text_features(clip_model, words, texts)
            with torch.autocast(setting.device, enabled=False):
                return plain.plotpp_logits(clip_model, features.float(), text.float(), setting.stage == 1)

        return plotpp_logits, [visual, texts]
    ctx = nn.Parameter(0.02 * torch.randn(N if method == "PLOT" else 1, N_CTX, width, **made))
    if method != "COCOOP":

        def logits(image: Tensor) -> Tensor:
            pooled, local = plain.image_features(clip_model, image)
            text = plain.text_features(clip_model, words, ctx)
            # In half precision the published Sinkhorn may never meet its threshold, and would run all iterations.
            pooled, local, text = pooled.float(), local.float(), text.float()
            with torch.autocast(setting.device, enabled=False):
                if method == "PLOT":
                    return plain.plot_logits(clip_model, pooled, local, text, global_logits=setting.global_logits)
                return plain.coop_logits(clip_model, pooled, text[0])

        return logits, [ctx]
    d = clip_model.visual.output_dim
    meta_net = nn.Sequential(nn.Linear(d, d // 16), nn.ReLU(), nn.Linear(d // 16, width)).to(**made)

    def cocoop_logits(image: Tensor) -> Tensor:
        pooled, _ = plain.image_features(clip_model, image)
        return plain.cocoop_logits(clip_model, words, pooled, ctx[0], meta_net)

    return cocoop_logits, [ctx, *meta_net.parameters()]


def our_model(setting: Setting, clip_model: CLIP) -> Any:
    """The trainer's `CustomCLIP` in training mode, on the setting's device."""
    cfg, method = defaults(), setting.method
    size = clip_model.visual.input_resolution
    cfg.INPUT.SIZE = (size, size)
    cfg.TRAINER.NAME, cfg.TRAINER.FUSED_HEAD = METHODS[method].__name__, setting.fused
    cfg.TRAINER[method].update({"N_CTX": N_CTX, "PREC": "fp32"})
    if method == "PLOT":
        cfg.TRAINER.PLOT.update({"N": N, "GLOBAL_LOGITS": setting.global_logits})
    model = METHODS[method].custom_clip(cfg, setting.names, clip_model).train().to(setting.device)
    if method == "PLOTPP":
        model.prompt_learner.ctx.requires_grad_(setting.stage == 2)
        model.global_logits = setting.stage == 1
    return model


def floor(setting: Setting, clip_model: CLIP) -> Callable[[Tensor], Any]:
    """The image encoder, and the text side's matrix products on the fewest tokens."""
    texts = [name.replace("_", " ") + "." for name in setting.names]
    lengths = [int(tokens.argmax()) for tokens in clip.tokenize(texts)]  # name, full stop and EOT
    plotpp = setting.method == "PLOTPP"
    prompts = {"COCOOP": setting.batch, "COOP": 1}.get(setting.method, N)
    tokens, ends = prompts * (1 + (PLOTPP_N_CTX if plotpp else N_CTX) + sum(lengths)), prompts * len(texts)
    clip_model.to(setting.device)
    products: list[tuple[Tensor, int]] = []
    *blocks, last = clip_model.transformer.resblocks
    for block in (*blocks, last):
        d = block.attn.embed_dim
        query, key_value = block.attn.in_proj_weight.split([d, 2 * d])
        rest = (query, block.attn.out_proj.weight, block.mlp.c_fc.weight, block.mlp.c_proj.weight)
        # After the last block only EOT is read.
        products += [(key_value, tokens), *((weight, ends if block is last else tokens) for weight in rest)]
    products = [(weight.to(setting.dtype), rows) for weight, rows in products]
    ones = torch.ones(tokens, max(max(weight.shape) for weight, _ in products)).to(products[0][0])
    encoder = ImageEncoder(clip_model.visual, local=setting.method == "PLOT")

    visual = torch.randn(M, N_CTX_V, clip_model.visual.conv1.weight.shape[0]).to(ones) if plotpp else None

    def run(image: Tensor) -> Tensor:
        if visual is not None:
            own = visual.repeat_interleave(len(image), dim=0).requires_grad_()
            with setting.autocast():
                pooled, _ = encoder(image.repeat(M, 1, 1, 1), Extra(tokens=own))
            pooled.sum().backward()
            if setting.stage == 1:
                return pooled
        with torch.no_grad(), setting.autocast():
            if visual is None:
                pooled, _ = encoder(image)
            for weight, rows in products:
                out, inside = weight.shape
                ones[:rows, :inside] @ weight.t()
                ones[:rows, :out] @ weight  # the gradient of the input; weights are frozen
        return pooled

    return Replayed(run) if setting.device == "cuda" and not plotpp else run
