"""CUDA graphs of the frozen towers, for training.

At few-shot sizes the host launches a step's small kernels more slowly than a GPU computes them. A graph launches all
kernels of a tower at once. It needs fixed shapes and no decision by the host, so Sinkhorn excludes the head.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .encoders import Extra

Function = Callable[..., object]


class Replayed:
    """Replays ``function`` from a CUDA graph, from the second call in a row with arguments of the same kinds.

    The graph owns the results' memory, and the next call overwrites it: a backward pass must come before. The function
    runs without a graph for CPU tensors, for an ``Extra``, without gradient if ``gradient``, and if its capture failed.
    """

    def __init__(self, function: Function, gradient: bool = False) -> None:
        self.function, self.gradient = function, gradient
        self.kinds: tuple[object, ...] = ()
        self.graph: Function | None = None
        self.kept: tuple[object, ...] = ()
        self.fails = False

    def __call__(self, *args: object) -> Any:
        tensors = [x for x in args if isinstance(x, Tensor)]
        plain = self.fails or not all(x.is_cuda for x in tensors) or (self.gradient and not torch.is_grad_enabled())
        plain = plain or any(isinstance(x, Extra) and x for x in args)  # the graph would keep its tensors as constants
        if plain:
            return self.function(*args)
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        tensor_kinds = ((x.shape, x.dtype, x.device, x.requires_grad) for x in tensors)
        others = (id(x) for x in args if not isinstance(x, Tensor))
        kinds = (torch.is_grad_enabled(), *autocast, *tensor_kinds, *others)
        if kinds != self.kinds:
            self.kinds, self.graph = kinds, None
            return self.function(*args)
        if self.graph is None:
            self._capture(args, tensors)
        return self.function(*args) if self.graph is None else self.graph(*tensors)

    def _capture(self, args: tuple[object, ...], tensors: list[Tensor]) -> None:
        def of_tensors(*tensors: Tensor) -> object:
            given = iter(tensors)
            return self.function(*(next(given) if isinstance(x, Tensor) else x for x in args))

        samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in tensors)
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        try:
            with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False), warnings.catch_warnings():
                # PyTorch warns that the samples outlive the capture's stream, which does no harm here.
                warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
                self.graph = torch.cuda.make_graphed_callables(of_tensors, samples)
            self.kept = args  # the graph reads their memory, such as a layout's buffers
        except RuntimeError as error:  # out of memory, or an operation that no graph can hold
            self.fails = True
            torch.cuda.synchronize()
            warnings.warn(f"computed without CUDA graphs: {str(error).splitlines()[0]}", stacklevel=3)


def replay(model: Any) -> Replayed:
    """Replays a ``PromptedCLIP``'s text encoder under gradients. Returns its image encoder, replayed."""
    model.text_encoder.forward = Replayed(model.text_encoder.forward, gradient=True)
    return Replayed(model.image_encoder)
