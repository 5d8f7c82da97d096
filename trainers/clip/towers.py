"""The image towers: OpenAI's two, and those that register here.

A tower has two modules. The one that CLIP calls ``visual`` encodes pictures to pooled features, and is built by CLIP's
own code or, for a weights file with the tower's ``key``, by ``build``. ``freeze`` makes of it what ``ImageEncoder``
runs: image [batch, 3, h, w], local, tokens, deep -> pooled [batch, d], local [batch, M, d].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Of a larger batch on a CPU, the outputs of a convolutional tower's first layers no longer fit in its caches: a tenth
# slower.
IMAGES_AT_ONCE = 8


class Tower(NamedTuple):
    """An image tower.

    Attributes:
        what: its kind, as in "this one is a ResNet".
        visual: the class of ``visual``, which has ``conv1`` for its dtype, ``input_resolution`` and ``output_dim``. Its
            ``pictures``, if it has them, are INPUT's values that it needs.
        freeze: makes the frozen module of ``visual``.
        takes_tokens: whether a method can add tokens.
        key: the name that a weights file has for this tower alone.
        build: makes ``visual`` of the file's tensors, their names without "visual.".
        check: raises UserError if something that ``build`` needs is not installed.
    """

    what: str
    visual: type[nn.Module]
    freeze: Callable[[Any], nn.Module]
    takes_tokens: bool = False
    key: str = ""
    build: Callable[[Mapping[str, Tensor]], nn.Module] | None = None
    check: Callable[[], object] = lambda: None


TOWERS: list[Tower] = []


def register(tower: Tower) -> Tower:
    TOWERS.append(tower)
    return tower


def tower_of(visual: nn.Module) -> Tower:
    """The tower that a model's ``visual`` belongs to."""
    return next(tower for tower in TOWERS if isinstance(visual, tower.visual))


def tower_in(names: Mapping[str, object]) -> Tower | None:
    """The tower whose key a state dict has; None for OpenAI's."""
    return next((tower for tower in TOWERS if tower.key and tower.key in names), None)


class Encodes(nn.Module):
    """The frozen module of a ``visual`` that has ``encode(image, local)``, and takes no tokens."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, x: Tensor, local: bool, tokens: None = None, deep: object = None) -> tuple[Tensor, Tensor]:
        return self.visual.encode(x, local)


def positions(trunk: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The last feature map of a convolutional trunk: x [batch, 3, h, w] -> [batch, M, c], without gradient.

    A picture that is not finite gives NaN: CPUs may rectify NaN to 0.
    """
    with torch.no_grad():
        lost = None if x.is_cuda else ~x.flatten(1).isfinite().all(dim=1)
        parts = x.split(IMAGES_AT_ONCE if x.device.type == "cpu" else x.shape[0])
        x = torch.cat([trunk(part) for part in parts]).flatten(2).transpose(1, 2)
        if lost is not None:
            x[lost] = torch.nan
        return x
