"""CUDA graphs of the frozen towers, or of the whole step, for training.

At few-shot sizes the host launches a step's small kernels more slowly than a GPU computes them. A graph launches all
kernels of a tower at once. It needs fixed shapes and no decision by the host, so Sinkhorn excludes the head.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

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
            warnings.warn(f"computed without CUDA graphs: {_reason(error)}", stacklevel=3)


def _reason(error: BaseException) -> str:
    """Of a failed capture. Its end raises an error of its own, whose context is the first."""
    error = error.__context__ or error
    return (str(error) or type(error).__name__).splitlines()[0]


def replay(model: Any) -> Replayed:
    """Replays a ``PromptedCLIP``'s text encoder under gradients. Returns its image encoder, replayed."""
    model.text_encoder.forward = Replayed(model.text_encoder.forward, gradient=True)
    return Replayed(model.image_encoder)


def record(function: Callable[[], Any], stream: Any) -> tuple[Callable[[], None], Any]:
    """Captures a call on a stream. Returns the replay, and the result, whose memory each replay overwrites."""
    graph = torch.cuda.CUDAGraph()
    # The loader's thread pins memory meanwhile, which a capture of all threads would not allow.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = function()
    return graph.replay, result


class WholeStep:
    """Replays a training step, the optimizer's included, as one graph.

    The first two calls, and those after a change of the tensors' shapes or of what is learned, run ``step`` itself.

    Args:
        step: step(**tensors) computes gradients, steps the optimizer and returns tensors. It asks the device for
            nothing. What else it reads, the graph keeps as it was.
        optimizer: SGD. In the graph its learning rates are tensors, elsewhere the numbers that they were.
        record: ``record``, which alone needs a GPU.
    """

    def __init__(self, step: Callable[..., tuple[Tensor, ...]], optimizer: torch.optim.Optimizer, record: Any = record):
        self.step, self.optimizer, self.record = step, optimizer, record
        self.learned: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.kinds: list[object] = []
        self.replay: Callable[[], None] | None = None
        self.fails = False

    def __call__(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        if self.fails:
            return self.step(**tensors)
        if (kinds := self._kinds(tensors)) != self.kinds:
            self.kinds, self.replay = kinds, None
            return self._aside(lambda: self.step(**tensors))
        if self.replay is None:
            self.tensors = {name: x.clone() for name, x in tensors.items()}
            groups = self.optimizer.param_groups
            self.rates = [self.learned[0].new_full((), group["lr"], dtype=torch.float32) for group in groups]
            try:
                self.replay, self.results = self._aside(lambda: self.record(self._step_on_kept, self.stream))
            except RuntimeError as error:  # out of memory, or an operation that no graph can hold
                return self._give_up(error, tensors)
        for name, x in tensors.items():
            self.tensors[name].copy_(x, non_blocking=True)
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self.replay()
        increment_version(self.learned)  # kept text features are of these versions
        return tuple(x.clone() for x in self.results)

    def _kinds(self, tensors: dict[str, Tensor]) -> list[object]:
        """What the graph was captured for: shapes, and the memory of what is learned and of the optimizer's state."""
        state = [x for p in self.learned for x in self.optimizer.state.get(p, {}).values() if isinstance(x, Tensor)]
        memory = [(p.data_ptr(), p.requires_grad) for p in (*self.learned, *state)]
        return [*((name, x.shape, x.dtype, x.device) for name, x in tensors.items()), *memory]

    def _step_on_kept(self) -> tuple[Tensor, ...]:
        """``step`` on the memory that replays read; the fused optimizer alone takes a rate from the device."""
        groups = self.optimizer.param_groups
        before = [{key: group[key] for key in ("lr", "foreach", "fused")} for group in groups]
        try:
            for rate, group in zip(self.rates, groups, strict=True):
                group.update(lr=rate, foreach=False, fused=True)
            return self.step(**self.tensors)
        finally:
            for group, own in zip(groups, before, strict=True):
                group.update(own)

    @functools.cached_property
    def stream(self) -> Any:
        """Of the capture and of the steps before it, whose autograd nodes would otherwise wait for another stream."""
        return torch.cuda.Stream(self.learned[0].device) if self.learned[0].is_cuda else None

    def _aside(self, function: Callable[[], Any]) -> Any:
        if self.stream is None:
            return function()
        current = torch.cuda.current_stream(self.learned[0].device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result

    def _give_up(self, error: RuntimeError, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        self.fails = True
        self.optimizer.zero_grad()
        if self.stream is not None:
            torch.cuda.synchronize()
        where = "one graph of the step (TRAINER.WHOLE_STEP_GRAPH)"
        warnings.warn(f"computed without {where}: {_reason(error)}", stacklevel=3)
        return self.step(**tensors)
