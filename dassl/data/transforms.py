"""From a PIL image to the tensor a model takes: cfg.INPUT.TRANSFORMS names what happens in training.

The order is Dassl's, whatever the order of the names; testing resizes, crops the centre and normalizes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode
from yacs.config import CfgNode

from dassl.utils import UserError, check_availability

AVAI_CHOICES = [
    "random_flip",
    "random_resized_crop",
    "normalize",
    "instance_norm",
    "random_crop",
    "random_translation",
    "center_crop",  # what testing does by default; training resizes to the size anyway
    "cutout",
    "randaugment",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
]

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


class _Shown:
    """Tells its options, as torchvision's transforms do: cached features are named by them."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items())})"


class RandomTranslation(_Shown):
    """Half of the time enlarge by an eighth and crop at random, else resize; to `size` (height, width)."""

    def __init__(self, size: Sequence[int]) -> None:
        self.size = list(size)
        self.enlarged = [round(side * 1.125) for side in size]

    def __call__(self, img: Image.Image) -> Image.Image:
        if torch.rand(()) > 0.5:
            return F.resize(img, self.size)
        top, left = (
            round(torch.rand(()).item() * (big - side)) for big, side in zip(self.enlarged, self.size, strict=True)
        )
        return F.crop(F.resize(img, self.enlarged), top, left, *self.size)


class Cutout(_Shown):
    """Zero `n_holes` squares of `length` pixels with random centres, in a tensor [c, h, w] (DeVries 2017)."""

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes, self.length = n_holes, length

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        img, half = img.clone(), self.length // 2
        for _ in range(self.n_holes):
            y, x = (int(torch.randint(side, ())) for side in img.shape[1:])
            img[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        return img


class GaussianNoise(_Shown):
    """Half of the time add noise N(mean, std²) to a tensor."""

    def __init__(self, mean: float = 0.0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean, self.std, self.p = mean, std, p

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        if torch.rand(()) > self.p:
            return img
        return img + torch.randn(img.shape) * self.std + self.mean


class InstanceNormalization(_Shown):
    """Each channel of a tensor [c, h, w] to mean 0 and standard deviation 1."""

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        mean = img.mean(dim=(1, 2), keepdim=True)
        return (img - mean) / (img.std(dim=(1, 2), keepdim=True) + 1e-8)


def build_transform(
    cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None
) -> Callable[[Image.Image], Any] | None:
    """The transform for training or testing; `choices` takes the place of cfg.INPUT.TRANSFORMS.

    UserError: an unknown choice or interpolation, or a size that is not two positive numbers.
    """
    c = cfg.INPUT
    if c.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    names = c.TRANSFORMS if choices is None else choices
    for name in names:
        check_availability(name, AVAI_CHOICES, "transform (INPUT.TRANSFORMS)")
    check_availability(c.INTERPOLATION, INTERPOLATION_MODES, "interpolation (INPUT.INTERPOLATION)")
    size = c.SIZE
    if not isinstance(size, (list, tuple)) or [type(s) for s in size] != [int, int] or min(size) < 1:
        raise UserError(f"INPUT.SIZE is {size!r}; expected height and width, such as (224, 224)")
    print(f"Building transform_{'train' if is_train else 'test'}")
    steps = _train_steps(c, names) if is_train else _test_steps(c, names)
    for text, _ in steps:
        print(f"+ {text}")
    return T.Compose([step for _, step in steps])


Steps = list[tuple[str, Callable[[Any], Any]]]


def _train_steps(c: CfgNode, names: Sequence[str]) -> Steps:
    size, mode = c.SIZE, INTERPOLATION_MODES[c.INTERPOLATION]
    b_, c_, s_, h_ = c.COLORJITTER_B, c.COLORJITTER_C, c.COLORJITTER_S, c.COLORJITTER_H
    blur = T.RandomApply([T.GaussianBlur(c.GB_K)], p=c.GB_P)
    on_image: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "random_translation": ("random translation", RandomTranslation(size)),
        "random_crop": (
            f"random crop (padding = {c.CROP_PADDING})",
            T.RandomCrop(size, padding=c.CROP_PADDING),
        ),
        "random_resized_crop": (
            f"random resized crop (size={size}, scale={c.RRCROP_SCALE})",
            T.RandomResizedCrop(size, scale=c.RRCROP_SCALE, interpolation=mode),
        ),
        "random_flip": ("random flip", T.RandomHorizontalFlip()),
        "randaugment": (
            f"randaugment (n={c.RANDAUGMENT_N}, m={c.RANDAUGMENT_M})",
            T.RandAugment(c.RANDAUGMENT_N, c.RANDAUGMENT_M),
        ),
        "colorjitter": (
            f"color jitter (brightness={b_}, contrast={c_}, saturation={s_}, hue={h_})",
            T.ColorJitter(b_, c_, s_, h_),
        ),
        "randomgrayscale": ("random gray scale", T.RandomGrayscale(c.RGS_P)),
        "gaussian_blur": (f"gaussian blur (kernel={c.GB_K})", blur),
    }
    on_tensor: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "cutout": (
            f"cutout (n_holes={c.CUTOUT_N}, length={c.CUTOUT_LEN})",
            Cutout(c.CUTOUT_N, c.CUTOUT_LEN),
        ),
        "normalize": _normalize(c),
        "gaussian_noise": (
            f"gaussian noise (mean={c.GN_MEAN}, std={c.GN_STD})",
            GaussianNoise(c.GN_MEAN, c.GN_STD),
        ),
        "instance_norm": ("instance normalization", InstanceNormalization()),
    }
    steps: Steps = []
    if not {"random_crop", "random_resized_crop"} & set(names):
        steps.append((f"resize to {size[0]}x{size[1]}", T.Resize(size, interpolation=mode)))
    steps += [step for name, step in on_image.items() if name in names]
    steps.append(("to torch tensor of range [0, 1]", T.ToTensor()))
    return steps + [step for name, step in on_tensor.items() if name in names]


def _test_steps(c: CfgNode, names: Sequence[str]) -> Steps:
    size, mode = c.SIZE, INTERPOLATION_MODES[c.INTERPOLATION]
    steps: Steps = [
        (f"resize the smaller edge to {max(size)}", T.Resize(max(size), interpolation=mode)),
        (f"{size[0]}x{size[1]} center crop", T.CenterCrop(size)),
        ("to torch tensor of range [0, 1]", T.ToTensor()),
    ]
    if "normalize" in names:
        steps.append(_normalize(c))
    if "instance_norm" in names:
        steps.append(("instance normalization", InstanceNormalization()))
    return steps


def _normalize(c: CfgNode) -> tuple[str, Callable[[Any], Any]]:
    text = f"normalization (mean={c.PIXEL_MEAN}, std={c.PIXEL_STD})"
    return text, T.Normalize(mean=c.PIXEL_MEAN, std=c.PIXEL_STD)
