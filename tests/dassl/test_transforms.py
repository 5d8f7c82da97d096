"""Pixels equal torchvision's own steps in Dassl's order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform
from dassl.utils import UserError, seeded

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
LAST = [T.ToTensor(), T.Normalize(MEAN, STD)]
CROP = T.RandomResizedCrop((24, 24), scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC)

CASES = [  # whether in training, size, names, torchvision's steps
    (False, (24, 24), ["random_flip", "normalize"], [T.Resize(24, InterpolationMode.BICUBIC), T.CenterCrop(24), *LAST]),
    (False, (24, 32), ["normalize"], [T.Resize(32, InterpolationMode.BICUBIC), T.CenterCrop((24, 32)), *LAST]),
    (True, (24, 24), ["normalize", "random_flip", "random_resized_crop"], [CROP, T.RandomHorizontalFlip(), *LAST]),
    (True, (24, 32), ["center_crop"], [T.Resize((24, 32), InterpolationMode.BICUBIC), T.ToTensor()]),
]


@pytest.mark.parametrize(("is_train", "size", "names", "steps"), CASES)
def test_pixels_are_torchvisions(is_train: bool, size: tuple[int, int], names: list[str], steps: list[Any]) -> None:
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.TRANSFORMS, cfg.INPUT.INTERPOLATION = size, names, "bicubic"
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = MEAN, STD
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8))
    transform = build_transform(cfg, is_train)
    for seed in range(4):  # flipped and not
        with seeded(seed):
            found = transform(picture)
        with seeded(seed):
            assert torch.equal(found, T.Compose(steps)(picture))


def test_the_centre_of_a_larger_picture_is_tested() -> None:
    """CROP_SHARE: of a shorter side of 24 / 0.75 pixels the middle 24; training's crops know nothing of it."""
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.CROP_SHARE, cfg.INPUT.TRANSFORMS = (24, 24), 0.75, ["random_resized_crop"]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8))
    steps = T.Compose([T.Resize(32, InterpolationMode.BILINEAR), T.CenterCrop(24), T.ToTensor()])
    assert torch.equal(build_transform(cfg, is_train=False)(picture), steps(picture))
    assert "Resize(size=32" not in repr(build_transform(cfg))


def test_an_unknown_step() -> None:
    cfg = get_cfg_default()
    cfg.INPUT.TRANSFORMS = ["random_flop"]
    with pytest.raises(UserError, match=r"unknown transform .*'random_flop'; did you mean 'random_flip'"):
        build_transform(cfg)
