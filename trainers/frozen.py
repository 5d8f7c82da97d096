"""Trainers whose image encoder is frozen: a batch brings pictures or, where the engine keeps them, their features.

Our engine caches features through ``feature_names``, ``feature_key`` and ``encode_images``, and then gives batches that
hold ``features``; upstream's never asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip.model
from torch import Tensor

from dassl.engine import TrainerX

from .clip import encoders, products, winograd

# Of the code that was imported: a fork runs that, whatever its files hold by the time of its test.
_CODE = hashlib.sha256(
    b"".join(Path(module.__file__ or "").read_bytes() for module in (encoders, products, winograd, clip.model))
).hexdigest()
Features = dict[str, Tensor]  # pooled [batch, d] and, if the head reads it, local [batch, M, d]


class FrozenImageTrainer(TrainerX):
    """Subclasses build ``image_encoder`` and ``weights_sha256``, and make ``logits`` of features."""

    weights_sha256: str
    image_encoder: encoders.ImageEncoder

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        """pooled [batch, d], local [batch, M, d] -> logits [batch, n_cls]."""
        raise NotImplementedError

    @property
    def feature_names(self) -> tuple[str, ...]:
        return ("pooled", "local") if self.image_encoder.local else ("pooled",)

    def feature_key(self) -> dict[str, Any]:
        """What the features depend on, images and machine apart: the weights, their type and the code."""
        return {"weights": self.weights_sha256, "dtype": str(self.image_encoder.dtype), "code": _CODE}

    def encode_images(self, image: Tensor, encoder: Callable[..., Any] | None = None) -> Features:
        return dict(zip(self.feature_names, (encoder or self.image_encoder)(image), strict=False))

    def parse_input(self, batch: Any) -> Tensor | Features:
        if "features" in batch:
            return {name: x.to(self.device, non_blocking=True) for name, x in batch["features"].items()}
        return batch["img"].to(self.device, non_blocking=True)

    def parse_batch_train(self, batch: Any) -> tuple[Tensor | Features, Tensor]:
        return self.parse_input(batch), batch["label"].to(self.device, non_blocking=True)

    def parse_batch_test(self, batch: Any) -> tuple[Tensor | Features, Tensor]:
        return self.parse_batch_train(batch)

    def model_inference(self, input: Tensor | Features) -> Tensor:
        return self.logits(**(input if isinstance(input, dict) else self.encode_images(input)))
