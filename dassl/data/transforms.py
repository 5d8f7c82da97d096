"""Transforms a PIL image into the tensor that a model takes. INPUT.TRANSFORMS names the steps of training.

The order of the steps is Dassl's, whatever the order of the names. Testing resizes, crops the center and normalizes.
"""

from collections.abc import Callable
from typing import Any

from torchvision import transforms as T
from torchvision.transforms.functional import InterpolationMode
from yacs.config import CfgNode

from dassl.utils import check_availability

AVAI_CHOICES = [
    "random_flip",
    "random_resized_crop",
    "normalize",
    "center_crop",  # changes nothing: testing always crops, training resizes to the size
]

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


def build_transform(cfg: CfgNode, is_train: bool = True) -> T.Compose:
    """Returns the transform for training or testing. Raises UserError for an unknown step."""
    c = cfg.INPUT
    for name in c.TRANSFORMS:
        check_availability(name, AVAI_CHOICES, "transform (INPUT.TRANSFORMS)")
    mode = INTERPOLATION_MODES[c.INTERPOLATION]
    steps: list[Callable[[Any], Any]] = []
    if not is_train:
        steps += [T.Resize(round(max(c.SIZE) / c.CROP_SHARE), interpolation=mode), T.CenterCrop(c.SIZE)]
    elif "random_resized_crop" in c.TRANSFORMS:
        steps.append(T.RandomResizedCrop(c.SIZE, scale=c.RRCROP_SCALE, interpolation=mode))
    else:
        steps.append(T.Resize(c.SIZE, interpolation=mode))
    if is_train and "random_flip" in c.TRANSFORMS:
        steps.append(T.RandomHorizontalFlip())
    steps.append(T.ToTensor())
    if "normalize" in c.TRANSFORMS:
        steps.append(T.Normalize(mean=c.PIXEL_MEAN, std=c.PIXEL_STD))
    transform = T.Compose(steps)
    print(f"Transform for {'training' if is_train else 'testing'}: {transform}")
    return transform
