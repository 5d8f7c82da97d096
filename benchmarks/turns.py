"""Training steps of the sides (`benchmarks.sides`), each side in a process of its own, which take turns.

A side takes one step (forward, backward, SGD) when asked, and answers with its seconds by part and its peak memory.
On a GPU a step is the mean of STEPS_AT_ONCE without a wait between them, the memory what PyTorch has taken of the
GPU's, and the parts are timed with a wait after each, so that they add up to more than the step.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from clip.model import convert_weights
from torch import Tensor

import trainers.plot
from benchmarks.sides import Setting, floor, make_clip, our_model, plain_logits
from dassl import startup
from dassl.extras.distributed import local_device
from runs.result import peak_memory
from trainers.clip.graphs import replay

STEPS_AT_ONCE = 10
PARTS = ("image", "text", "ot", "head", "head_back", "text_back", "optimizer")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def parser_of(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """What the programs that time steps have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--repeats", type=int, default=repeats, help="rounds of steps")
    add("--threads", type=int, default=os.cpu_count())
    add("--clock", choices=CLOCKS, default="wall", help="cpu: seconds of this program alone, on a busy machine")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--prec", choices=("fp32", "fp16", "amp", "bf16"), default="fp32", help="as TRAINER.PLOT.PREC; fp16 on a GPU")
    add("--no-graphs", action="store_true", help="TRAINER.CUDA_GRAPHS False")
    add("--tiny", action="store_true", help="a toy CLIP: tries the program, measures nothing")
    add("--json", metavar="FILE", help="write the results here as well")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, if they are possible; otherwise the program ends with a line and code 2."""
    options = parser.parse_args()
    for name, value in vars(options).items():
        if type(value) is int and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be 1 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if options.device == "cpu" and options.prec == "fp16":
        parser.error("--prec fp16 needs --device cuda: on a CPU training computes in fp32 instead")
    return options


class Stopwatch:
    """Seconds by part of a step, on one clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.seconds = clock, dict.fromkeys(PARTS, 0.0)

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.clock()
            result = function(*args, **kwargs)
            self.seconds[part] += self.clock() - start
            return result

        return timed


@contextmanager
def watched(model: Any, watch: Stopwatch) -> Iterator[list[float]]:
    """While it lasts our model's parts are timed; the list gets the time at which a gradient reaches the text."""
    reached: list[float] = []
    text_forward, plain_sinkhorn = model.text_encoder.forward, trainers.plot.counted_sinkhorn

    def text(*args: Any) -> Tensor:
        features = text_forward(*args)
        features.register_hook(lambda grad: reached.append(watch.clock()))
        return features

    model.text_encoder.forward = watch.around("text", text)
    trainers.plot.counted_sinkhorn = watch.around("ot", plain_sinkhorn)
    try:
        yield reached
    finally:
        model.text_encoder.forward = text_forward
        trainers.plot.counted_sinkhorn = plain_sinkhorn


def our_step(model: Any, encode: Callable[..., Any], optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor,
             clock: Callable[[], float], autocast: torch.autocast) -> dict[str, float]:  # fmt: skip
    """Seconds of one step, by part."""
    watch = Stopwatch(clock)
    with watched(model, watch) as reached:
        start = clock()
        optimizer.zero_grad()
        with autocast:
            logits = model.logits(*watch.around("image", encode)(image))
        loss = F.cross_entropy(logits.float(), label)
        forward = clock()
        loss.backward()
        backward = clock()
        optimizer.step()
        end = clock()
    seconds = watch.seconds
    seconds["head"] = forward - start - sum(seconds.values())
    seconds["head_back"], seconds["text_back"] = reached[0] - forward, backward - reached[0]
    seconds["optimizer"] = end - backward
    return {**seconds, "total": end - start}


def make_step(side: str, setting: Setting, clock: Callable[[], float]) -> Callable[[], dict[str, float]]:
    """A side's step in this process."""
    clip_model = make_clip(setting.tiny, setting.side)
    if setting.prec == "fp16":
        convert_weights(clip_model)
    size = clip_model.visual.input_resolution
    image = torch.randn(setting.batch, 3, size, size).to(setting.device)
    label = (torch.arange(setting.batch) % len(setting.names)).to(setting.device)
    if side == "floor":
        return timed(floor(setting, clip_model), image, setting, clock)
    if side == "plain":
        logits, parameters = plain_logits(setting, clip_model)
        optimizer = sgd(parameters)

        def run(image: Tensor) -> None:
            optimizer.zero_grad()
            with setting.autocast():
                made = logits(image)
            F.cross_entropy(made.float(), label).backward()
            optimizer.step()

        return timed(run, image, setting, clock)
    model = our_model(setting, clip_model)
    encode = replay(model) if setting.graphs else model.image_encoder
    optimizer = sgd(model.prompt_learner.parameters())

    def ours(clock: Callable[[], float]) -> dict[str, float]:
        return our_step(model, encode, optimizer, image, label, clock, setting.autocast())

    if setting.device == "cpu":
        return lambda: ours(clock)
    whole = timed(lambda image: ours(lambda: 0.0), image, setting, clock)
    return lambda: {**ours(waiting(clock)), **whole()}


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.002, momentum=0.9, weight_decay=5e-4)


def waiting(clock: Callable[[], float]) -> Callable[[], float]:
    """A clock that lets the GPU come to its end first."""

    def read() -> float:
        torch.cuda.synchronize()
        return clock()

    return read


def timed(run: Callable[[Tensor], Any], image: Tensor, setting: Setting,
          clock: Callable[[], float]) -> Callable[[], dict[str, float]]:  # fmt: skip
    """A step whose parts are not told."""
    times, clock = (1, clock) if setting.device == "cpu" else (STEPS_AT_ONCE, waiting(clock))

    def step() -> dict[str, float]:
        start = clock()
        for _ in range(times):
            run(image)
        return {"total": (clock() - start) / times}

    return step


def peak_of(device: str) -> int:
    return torch.cuda.max_memory_reserved() if device == "cuda" else peak_memory()


def serve(side: str, setting: Setting, clock: str, pipe: Connection) -> None:
    """In a process of its own: answer each message by the seconds and peak bytes of one step, until None."""
    if side != "plain":
        startup.keep_memory()  # as in our programs
    torch.set_num_threads(setting.threads)
    local_device(setting.device == "cuda")  # with its float32 convolutions
    step = make_step(side, setting, CLOCKS[clock])
    while pipe.recv() is not None:
        pipe.send((step(), peak_of(setting.device)))


class Side:
    """A process that takes steps when asked."""

    def __init__(self, side: str, setting: Setting, clock: str = "wall") -> None:
        context = multiprocessing.get_context("spawn")  # a fork would count this process's memory
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(side, setting, clock, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.steps: list[dict[str, float]] = []
        self.peak = 0

    def step(self, times: int = 1, keep: bool = True) -> None:
        for _ in range(times):
            self.pipe.send("step")
            seconds, self.peak = self.pipe.recv()
            self.steps += [seconds] if keep else []

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()

    def median(self, part: str = "total") -> float:
        return statistics.median(step[part] for step in self.steps)

    def quartiles(self) -> list[float]:
        """The first, the second and the third of the steps' seconds."""
        seconds = [step["total"] for step in self.steps]
        return statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3


def take_turns(settings: Sequence[tuple[str, Setting]], times: Sequence[int], repeats: int, clock: str) -> list[Side]:
    """Sides that have stepped in turn, ``times`` steps each in each of ``repeats`` rounds, after one uncounted."""
    sides = [Side(name, setting, clock) for name, setting in settings]
    for side in sides:
        side.step(keep=False)
    for _ in range(repeats):
        for side, n in zip(sides, times, strict=True):
            side.step(n)
    for side in sides:
        side.close()
    return sides
