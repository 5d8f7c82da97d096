"""Training steps of the sides (`benchmarks.sides`), each side in a child process, one step at a time.

A side answers each request for a step (forward, backward, SGD) with its seconds by part and its peak memory. On a GPU
a step is the mean of STEPS_AT_ONCE without a wait between them, and the memory is what PyTorch reserved there. The
parts are timed with a wait after each, so that their sum is more than the step.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from clip.model import convert_weights
from torch import Tensor

import trainers.plot
from benchmarks.sides import Setting, floor, make_clip, our_model, plain_logits
from dassl import startup
from dassl.extras.distributed import use_exact_convolutions
from runs.result import peak_memory
from trainers.clip.graphs import WholeStep, replay

STEPS_AT_ONCE = 10
PARTS = ("image", "text", "ot", "head", "head_back", "text_back", "optimizer")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Clock = Callable[[], float]


def our_step(model: Any, encode: Callable[..., Any], optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor,
             clock: Clock, autocast: torch.autocast) -> dict[str, float]:  # fmt: skip
    """Seconds of one step, by part."""
    seconds = dict.fromkeys(PARTS, 0.0)
    reached: list[float] = []  # when the gradient reaches the text features

    def around(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            result = function(*args, **kwargs)
            seconds[part] += clock() - start
            return result

        return timed

    def text(*args: Any, forward: Callable[..., Tensor] = model.text_encoder.forward) -> Tensor:
        features = forward(*args)
        if features.requires_grad:  # not in PLOT++'s stage 1
            features.register_hook(lambda grad: reached.append(clock()))
        return features

    sinkhorn = around("ot", trainers.plot.counted_sinkhorn)
    with (
        patch.object(model.text_encoder, "forward", around("text", text)),
        patch.object(trainers.plot, "counted_sinkhorn", sinkhorn),
    ):
        start = clock()
        optimizer.zero_grad()
        with autocast:
            logits = model.logits(**around("image", model.encode)(image, encode))
        loss = F.cross_entropy(logits.float(), label)
        forward = clock()
        loss.backward()
        backward = clock()
        optimizer.step()
        end = clock()
    seconds["head"] = forward - start - sum(seconds.values())
    (reached_text,) = reached or [backward]
    seconds["head_back"], seconds["text_back"] = reached_text - forward, backward - reached_text
    seconds["optimizer"] = end - backward
    return {**seconds, "total": end - start}


def make_step(side: str, setting: Setting, clock: Clock) -> Callable[[], dict[str, float]]:
    """A side's step in this process."""
    clip_model = make_clip(setting.tiny, setting.backbone_name)
    if setting.prec == "fp16":
        convert_weights(clip_model)
    size = clip_model.visual.input_resolution
    image = torch.randn(setting.batch, 3, size, size).to(setting.device)
    label = (torch.arange(setting.batch) % len(setting.names)).to(setting.device)
    times = 1
    if setting.device == "cuda":
        times, clock = STEPS_AT_ONCE, waiting(clock)
    if side == "floor":
        forward = floor(setting, clip_model)
        return timed(lambda: forward(image), times, clock)
    if side == "plain":
        logits, parameters = plain_logits(setting, clip_model)
        optimizer = sgd(parameters)

        def plain() -> None:
            optimizer.zero_grad()
            with setting.autocast():
                made = logits(image)
            F.cross_entropy(made.float(), label).backward()
            optimizer.step()

        return timed(plain, times, clock)
    model = our_model(setting, clip_model)
    if setting.whole:
        return timed(whole_step(model, setting, image, label), times, clock)
    encode = model.image_encoder if setting.no_graphs else replay(model)
    optimizer = sgd(model.prompt_learner.parameters())

    def ours(clock: Clock) -> dict[str, float]:
        return our_step(model, encode, optimizer, image, label, clock, setting.autocast())

    if setting.device == "cpu":
        return lambda: ours(clock)
    whole = timed(lambda: ours(lambda: 0.0), times, clock)
    return lambda: {**ours(clock), **whole()}


def whole_step(model: Any, setting: Setting, image: Tensor, label: Tensor) -> Callable[[], object]:
    """Our step as one graph, captured. RuntimeError: it cannot be."""
    optimizer = sgd(model.prompt_learner.parameters())

    def step(image: Tensor, label: Tensor) -> tuple[Tensor]:
        with setting.autocast():
            logits = model(image)
        loss = F.cross_entropy(logits.float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    whole = WholeStep(step, optimizer)
    for _ in range(3):  # the third is captured
        whole(image=image, label=label)
    if whole.fails:
        raise RuntimeError("the step could not be captured")
    return lambda: whole(image=image, label=label)


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.002, momentum=0.9, weight_decay=5e-4)


def waiting(clock: Clock) -> Clock:
    """A clock that waits for the GPU's queue to be empty."""

    def read() -> float:
        torch.cuda.synchronize()
        return clock()

    return read


def timed(run: Callable[[], Any], times: int, clock: Clock) -> Callable[[], dict[str, float]]:
    """A step that is timed as a whole, the mean of several."""

    def step() -> dict[str, float]:
        start = clock()
        for _ in range(times):
            run()
        return {"total": (clock() - start) / times}

    return step


def serve(side: str, setting: Setting, pipe: Connection) -> None:
    """The child process: answers each message with the seconds and the peak bytes of one step, until None."""
    if side != "plain":
        startup.keep_memory()  # as in our programs
    torch.set_num_threads(setting.threads)
    use_exact_convolutions()
    step = make_step(side, setting, CLOCKS[setting.clock])
    while pipe.recv() is not None:
        seconds = step()
        pipe.send((seconds, torch.cuda.max_memory_reserved() if setting.device == "cuda" else peak_memory()))


class Side:
    """A child process that takes a step on request."""

    def __init__(self, side: str, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would count this process's memory
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(side, setting, theirs), daemon=True, name=side)
        self.process.start()
        theirs.close()  # if the child dies, recv() raises EOFError
        self.steps: list[dict[str, float]] = []
        self.peak = 0

    def step(self) -> None:
        self.pipe.send("step")
        try:
            seconds, self.peak = self.pipe.recv()
        except EOFError:
            sys.exit(
                f"error: the side {self.process.name!r} has ended, mostly for want of memory; see --no-plain, --classes"
            )
        self.steps.append(seconds)

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()

    def median(self, part: str = "total") -> float:
        return statistics.median(step[part] for step in self.steps)


def take_turns(settings: dict[str, Setting], repeats: int, times: int = 1) -> dict[str, Side]:
    """Sides after an uncounted step each and ``repeats`` rounds: one step of "plain", ``times`` of each other side."""
    sides = {name: Side(name, setting) for name, setting in settings.items()}
    for side in sides.values():
        side.step()
        side.steps.clear()
    for _ in range(repeats):
        for name, side in sides.items():
            for _ in range(1 if name == "plain" else times):
                side.step()
    for side in sides.values():
        side.close()
    return sides
