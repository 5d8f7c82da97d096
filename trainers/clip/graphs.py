"""Training's passes through the frozen towers from CUDA graphs.

At few-shot sizes a GPU computes the hundreds of small kernels of a step faster than the host launches them. A graph
launches all of a tower's at once. It needs fixed shapes and no decision by the host, which the towers have and the
head, where Sinkhorn asks whether to go on, has not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .encoders import Extra


class Replayed:
    """``function``, called with tensors of the same kinds a second time in a row, from a CUDA graph from then on.

    The results' memory is the graph's own: the next call overwrites it, so a backward pass must come before it. What is
    not a tensor of a GPU among the arguments, or a pass without gradient where ``gradient`` is True, is called plainly;
    so is for good a function that cannot be captured.
    """

    def __init__(self, function: Callable[..., Any], gradient: bool = False) -> None:
        self.function, self.gradient = function, gradient
        self.kinds: tuple[Any, ...] = ()
        self.graph: Callable[..., Any] | None = None
        self.kept: tuple[Any, ...] = ()
        self.fails = False

    def __call__(self, *args: Any) -> Any:
        tensors = [x for x in args if isinstance(x, Tensor)]
        plain = self.fails or not all(x.is_cuda for x in tensors) or (self.gradient and not torch.is_grad_enabled())
        plain = plain or any(isinstance(x, Extra) and x for x in args)  # its tensors would be constants of the graph
        if plain:
            return self.function(*args)
        kinds = (_modes(), *(_kind(x) for x in args))
        if kinds != self.kinds:
            self.kinds, self.graph = kinds, None
            return self.function(*args)
        if self.graph is None:
            self._capture(args, tensors)
        return self.function(*args) if self.graph is None else self.graph(*tensors)

    def _capture(self, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
        def of_tensors(*tensors: Tensor) -> Any:
            given = iter(tensors)
            return self.function(*(next(given) if isinstance(x, Tensor) else x for x in args))

        samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in tensors)
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        try:
            with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False), warnings.catch_warnings():
                # The capture has a stream of its own, which the samples outlive: known to it, and no concern of users.
                warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
                self.graph = torch.cuda.make_graphed_callables(of_tensors, samples)
            self.kept = args  # the graph reads what they are made of, such as a layout
        except RuntimeError as error:  # out of memory, or something that no graph can hold
            self.fails = True
            torch.cuda.synchronize()
            warnings.warn(f"computed without CUDA graphs: {str(error).splitlines()[0]}", stacklevel=3)


def _modes() -> tuple[Any, ...]:
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


def _kind(x: Any) -> Any:
    return (x.shape, x.dtype, x.device, x.requires_grad) if isinstance(x, Tensor) else id(x)


def replay(model: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Lets a ``PromptedCLIP``'s text encoder be replayed under gradients; returns its image encoder, replayed."""
    model.text_encoder.forward = Replayed(model.text_encoder.forward, gradient=True)
    return Replayed(model.image_encoder)
