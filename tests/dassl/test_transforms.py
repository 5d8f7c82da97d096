"""Pixels equal torchvision's own steps in Dassl's order; the small transforms by what they promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from dassl.config import get_cfg_default
from dassl.data.transforms import AVAI_CHOICES, Cutout, GaussianNoise, RandomTranslation, build_transform
from dassl.utils import UserError, seeded

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def input_cfg(**overrides: Any) -> Any:
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (24, 24), "bicubic"
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = MEAN, STD
    for key, value in overrides.items():
        cfg.INPUT[key] = value
    return cfg


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def run(transform: Callable[[Image.Image], Any] | None, picture: Image.Image) -> torch.Tensor:
    assert transform is not None
    with seeded(0):
        return transform(picture)


@pytest.mark.parametrize("size", [(24, 24), (24, 32)])
def test_testing_resizes_crops_and_normalizes(size: tuple[int, int], picture: Image.Image) -> None:
    expected = T.Compose(
        [T.Resize(max(size), InterpolationMode.BICUBIC), T.CenterCrop(size), T.ToTensor(), T.Normalize(MEAN, STD)]
    )
    cfg = input_cfg(SIZE=size, TRANSFORMS=("random_flip", "normalize"))
    assert torch.equal(run(build_transform(cfg, is_train=False), picture), expected(picture))
    plain = run(build_transform(cfg, is_train=False, choices=()), picture)
    assert torch.allclose(T.Normalize(MEAN, STD)(plain), expected(picture))


def test_training_as_coop_configures_it(picture: Image.Image) -> None:
    cfg = input_cfg(TRANSFORMS=["random_resized_crop", "random_flip", "normalize"])
    expected = T.Compose(
        [
            T.RandomResizedCrop((24, 24), scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )
    assert torch.equal(run(build_transform(cfg), picture), run(expected, picture))


def test_training_without_a_random_crop_resizes(picture: Image.Image) -> None:
    expected = T.Compose([T.Resize((24, 24), InterpolationMode.BICUBIC), T.ToTensor()])(picture)
    assert torch.equal(run(build_transform(input_cfg(), choices=["center_crop"]), picture), expected)


@pytest.mark.parametrize("choice", AVAI_CHOICES)
def test_every_choice_gives_a_tensor(choice: str, picture: Image.Image) -> None:
    transform = build_transform(input_cfg(TRANSFORMS=(choice,), CROP_PADDING=4, GB_K=5))
    first, again = run(transform, picture), run(transform, picture)
    assert first.shape == (3, 24, 24) and torch.isfinite(first).all()
    assert torch.equal(first, again), "random choices must come from the seeded generators"
    if choice == "instance_norm":
        assert first.mean().abs() < 1e-5 and first.std().item() == pytest.approx(1, abs=1e-3)


def test_cutout_zeroes_a_square() -> None:
    torch.manual_seed(0)
    before = torch.ones(3, 32, 32)
    areas = {int((Cutout(1, 8)(before) == 0).sum()) / 3 for _ in range(50)}
    assert max(areas) == 64 and min(areas) >= 16, "whole squares, or cut at the border"
    assert before.all(), "the input stays"


def test_translation_and_noise(picture: Image.Image) -> None:
    results = [np.asarray(RandomTranslation((24, 30))(picture)) for _ in range(40)]
    assert {r.shape for r in results} == {(24, 30, 3)}
    resized = np.asarray(picture.resize((30, 24), Image.Resampling.BILINEAR))
    same = sum(np.array_equal(r, resized) for r in results)
    assert 10 <= same <= 30, "half of them are only resized"
    noisy = [GaussianNoise(std=0.5)(torch.zeros(3, 40, 40)) for _ in range(40)]
    stds = [n.std().item() for n in noisy if n.any()]
    assert 10 <= len(stds) <= 30 and np.mean(stds) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"TRANSFORMS": ("random_flop",)}, "unknown transform .*'random_flop'; did you mean 'random_flip'"),
        ({"INTERPOLATION": "bicubik"}, "did you mean 'bicubic'"),
        ({"SIZE": 224}, "INPUT.SIZE is 224; expected height and width"),
        ({"SIZE": (224, 0)}, "INPUT.SIZE"),
    ],
)
def test_mistakes(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_transform(input_cfg(**overrides))


def test_no_transform() -> None:
    assert build_transform(input_cfg(NO_TRANSFORM=True)) is None
