"""What every method here has: CLIP, batches of pictures or of kept features, and logits from features.

Our engine keeps image features through ``feature_names``, ``feature_key`` and ``encode_images``, unless a learned
parameter reaches them, and then gives batches that hold ``features``; upstream's never asks.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import clip.model
import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.engine import TrainerX

from .clip import encoders, frozen, towers
from .clip.architecture import ACTIVATIONS
from .clip.configs import named
from .clip.prompts import UserError
from .clip.weights import weights_path
from .method import Method

# Of the code that was imported: a child process runs that, whatever its files hold by the time of its test.
_TOWERS = (sys.modules[tower.freeze.__module__] for tower in towers.TOWERS)
_CODE = hashlib.sha256(
    b"".join(Path(module.__file__ or "").read_bytes() for module in (encoders, frozen, towers, clip.model, *_TOWERS))
).hexdigest()
# The steps from pictures to logits, and the modules whose steps leave CLIP's features as they are.
_STEPS = ("parse_input", "parse_batch_train", "parse_batch_test", "model_inference", "encode_images")
_WAY = (__name__, f"{__package__}.prompt_trainer")
Features = dict[str, Tensor]  # pooled [batch, d] and, if the head reads it, local [batch, M, d]
Batch = Mapping[str, Any]


class CLIPTrainer(Method, TrainerX):
    """Subclasses build ``image_encoder`` and ``weights_sha256``, and make ``logits`` of features."""

    weights_sha256: str
    image_encoder: encoders.ImageEncoder

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raises UserError with all that ``find_faults`` finds, an argument each."""
        if faults := self.find_faults(cfg):
            raise UserError(*faults)

    @classmethod
    def find_faults(cls, cfg: CfgNode) -> list[str]:
        """Values of the config that do not suit the method, or keep it from its pictures or from CLIP."""
        faults, arch = super().find_faults(cfg), cfg.MODEL.BACKBONE.get("ARCH", "")
        for check in (lambda: weights_path(cfg), lambda: arch and named(arch)):
            try:
                check()
            except UserError as error:
                faults.append(str(error))
        if (activation := cfg.MODEL.BACKBONE.get("ACTIVATION", "")) not in ("", *ACTIVATIONS):
            faults.append(f"MODEL.BACKBONE.ACTIVATION is '{activation}'; it must be quickgelu, gelu or empty")
        return faults

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        """pooled [batch, d], local [batch, M, d] -> logits [batch, n_cls]."""
        raise NotImplementedError

    @property
    def feature_names(self) -> tuple[str, ...]:
        return ("pooled", "local") if self.image_encoder.local else ("pooled",)

    def feature_key(self) -> dict[str, str] | None:
        """What the features depend on, images and machine apart: weights, dtype and code.

        None, and they are not kept, where the trainer changes the way from pictures to logits.
        """
        if any(getattr(type(self), name).__module__ not in _WAY for name in _STEPS):
            return None
        return {"weights": self._tower_sha256, "dtype": str(self.image_encoder.dtype), "code": _CODE}

    @functools.cached_property
    def _tower_sha256(self) -> str:
        """Of the tower in use, its activation too: a method may have changed the weights of the file."""
        digest = hashlib.sha256(repr(self.image_encoder).encode())
        for name, weight in sorted(self.image_encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def encode_images(self, image: Tensor) -> Features:
        """image [batch, 3, h, w] -> the features by name, contiguous."""
        return dict(zip(self.feature_names, self.image_encoder(image), strict=False))

    def parse_input(self, batch: Batch) -> Tensor | Features:
        if "features" in batch:
            return {name: x.to(self.device, non_blocking=True) for name, x in batch["features"].items()}
        return batch["img"].to(self.device, non_blocking=True)

    def parse_batch_train(self, batch: Batch) -> tuple[Tensor | Features, Tensor]:
        return self.parse_input(batch), batch["label"].to(self.device, non_blocking=True)

    def parse_batch_test(self, batch: Batch) -> tuple[Tensor | Features, Tensor]:
        return self.parse_batch_train(batch)

    def model_inference(self, input: Tensor | Features) -> Tensor:
        return self.logits(**(input if isinstance(input, dict) else self.encode_images(input)))


def check_input(cfg: CfgNode, clip_model: clip.model.CLIP) -> None:
    """Raises UserError if INPUT.SIZE or, where the image tower says them, INPUT's other values are not the tower's."""
    size, backbone = clip_model.visual.input_resolution, cfg.MODEL.BACKBONE.NAME
    if tuple(cfg.INPUT.SIZE) != (size, size):
        raise UserError(
            f"INPUT.SIZE {tuple(cfg.INPUT.SIZE)} does not fit the backbone '{backbone}', "
            f'whose pictures are {size} x {size}: set INPUT.SIZE "({size}, {size})"'
        )
    for key, value in getattr(clip_model.visual, "pictures", {}).items():
        if (given := cfg.INPUT.get(key)) != value:
            raise UserError(f"INPUT.{key} {given} does not fit the backbone '{backbone}': set it to {value}")


AMP_DTYPES = {"cpu": torch.bfloat16, "cuda": torch.float16}


def cpu_has_bf16() -> bool:
    """Whether oneDNN has bfloat16 products for this CPU; PyTorch's own take some 50 times as long as float32's."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return torch.backends.mkldnn.is_available() and bool(supported())


def precision(prec: str, device: torch.device) -> str:
    """PREC as it is computed: in place of what a CPU lacks fp32, and a line that says so."""
    if device.type != "cpu" or prec == "fp32" or (prec != "fp16" and cpu_has_bf16()):
        return prec
    print(f"PREC {prec} needs {'a GPU' if prec == 'fp16' else 'a CPU with bf16 products'}: computing in fp32")
    return "fp32"
