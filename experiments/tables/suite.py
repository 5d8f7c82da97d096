"""What the papers' tables are made of: methods, datasets, shots, and which sets are shifted versions of which."""

from __future__ import annotations

from experiments.recipes import METHODS

DATASETS = (
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "food101",
    "imagenet",
    "oxford_flowers",
    "oxford_pets",
    "stanford_cars",
    "sun397",
    "ucf101",
)
SHOTS = (1, 2, 4, 8, 16)
PROMPTS = (1, 2, 4, 8)
MATCHES = ("ot", "uniform", "mean", "max")
SHIFTED = {
    "imagenet": ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
    "symbols": ("symbols_layout", "symbols_outline", "symbols_occlusion", "symbols_texture"),
}
SHOWN = {"ZeroshotCLIP": "zero-shot CLIP"}  # the others are shown by their names

__all__ = ["DATASETS", "MATCHES", "METHODS", "PROMPTS", "SHIFTED", "SHOTS", "SHOWN"]
