"""The sides that the speed programs compare, each in a process of its own: plain, ours, amp and the floor.

A side takes one training step (forward, backward, SGD) when asked, and answers with its seconds by part and its peak
memory. "plain" (`benchmarks.plain`) runs the installed clip's own modules on all 77 tokens of every prompt and class,
as published; "ours" is `trainers.<method>.CustomCLIP`, "amp" the same in bf16. "floor" is our image encoder's forward
pass alone and the matrix products, forward and back, of the fewest tokens: the context once a prompt, the class's own
once a prompt and class.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import clip
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor, nn

import runs
import trainers
import trainers.plot
from benchmarks import plain
from benchmarks.caltech_names import NAMES
from dassl.config import get_cfg_default
from trainers.encoders import ImageEncoder

METHODS = {"PLOT": "plot", "COOP": "coop", "COCOOP": "cocoop"}
N_CTX = 16
PARTS = ("image", "text", "ot", "head", "head_back", "text_back", "optimizer")
Logits = Callable[[Tensor], Tensor]  # image [batch, 3, h, w] -> [batch, n_cls]


def parser_of(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """What the programs that time steps have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--repeats", type=int, default=repeats, help="rounds of steps")
    add("--threads", type=int, default=os.cpu_count())
    add("--clock", choices=CLOCKS, default="wall", help="cpu: seconds of this program alone, on a busy machine")
    add("--tiny", action="store_true", help="a toy CLIP: tries the program, measures nothing")
    add("--json", metavar="FILE", help="write the results here as well")
    return parser


@dataclass(frozen=True)
class Setting:
    """What a step is taken of."""

    method: str
    batch: int
    classes: int = 0  # the first of ImageNet's; 0: the 100 of Caltech-101
    n: int = 4  # prompts a class, in PLOT
    side: int = 224  # of a picture, in pixels: RN50 makes (side / 32)^2 local features of it
    global_logits: bool = False
    threads: int = 1
    tiny: bool = False  # a toy CLIP with as many tokens

    @property
    def names(self) -> list[str]:
        if not self.classes:
            return NAMES
        from torchvision.models import ResNet50_Weights

        return list(ResNet50_Weights.DEFAULT.meta["categories"][: self.classes])


def make_clip(tiny: bool, side: int = 224) -> CLIP:
    """A frozen RN50 CLIP with random weights, or a toy with as many tokens."""
    torch.manual_seed(0)
    sizes = (64, 64, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 2) if tiny else (
        1024, side, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)  # fmt: skip
    return CLIP(*sizes).eval().requires_grad_(False)


def plain_logits(setting: Setting, clip_model: CLIP) -> tuple[Logits, list[Tensor]]:
    """The published forward pass, image -> logits, and what it trains."""
    method, words = setting.method, plain.embed_words(clip_model, setting.names)
    width = clip_model.ln_final.weight.shape[0]
    ctx = nn.Parameter(0.02 * torch.randn(setting.n if method == "PLOT" else 1, N_CTX, width))
    if method != "COCOOP":

        def logits(image: Tensor) -> Tensor:
            pooled, local = plain.image_features(clip_model, image)
            text = plain.text_features(clip_model, words, ctx)
            if method == "PLOT":
                return plain.plot_logits(clip_model, pooled, local, text, global_logits=setting.global_logits)
            return plain.pooled_logits(clip_model, pooled, text[0])

        return logits, [ctx]
    d = clip_model.visual.output_dim
    meta_net = nn.Sequential(nn.Linear(d, d // 16), nn.ReLU(), nn.Linear(d // 16, width))

    def cocoop_logits(image: Tensor) -> Tensor:
        pooled, _ = plain.image_features(clip_model, image)
        return plain.cocoop_logits(clip_model, words, pooled, ctx[0], meta_net)

    return cocoop_logits, [ctx, *meta_net.parameters()]


def our_model(setting: Setting, clip_model: CLIP) -> Any:
    cfg, method = get_cfg_default(), setting.method
    trainers.extend_cfg(cfg)
    size = clip_model.visual.input_resolution
    cfg.INPUT.SIZE = (size, size)
    cfg.TRAINER[method].update({"N_CTX": N_CTX, "PREC": "fp32"})
    if method == "PLOT":
        cfg.TRAINER.PLOT.update({"N": setting.n, "GLOBAL_LOGITS": setting.global_logits})
    module = importlib.import_module(f"trainers.{METHODS[method]}")
    return module.CustomCLIP(cfg, setting.names, clip_model).train()


def floor(setting: Setting, clip_model: CLIP) -> Callable[[Tensor], None]:
    """The image encoder, and the text side's matrix products on the fewest tokens."""
    texts = [name.replace("_", " ") + "." for name in setting.names]
    lengths = [int(tokens.argmax()) for tokens in clip.tokenize(texts)]  # name, full stop and EOT
    prompts = {"PLOT": setting.n, "COOP": 1, "COCOOP": setting.batch}[setting.method]
    tokens, ends = prompts * (1 + N_CTX + sum(lengths)), prompts * len(texts)
    products: list[tuple[Tensor, int]] = []
    *blocks, last = clip_model.transformer.resblocks
    for block in (*blocks, last):
        d = block.attn.embed_dim
        query, key_value = block.attn.in_proj_weight.split([d, 2 * d])
        rest = (query, block.attn.out_proj.weight, block.mlp.c_fc.weight, block.mlp.c_proj.weight)
        # After the last block only EOT is read.
        products += [(key_value, tokens), *((weight, ends if block is last else tokens) for weight in rest)]
    ones = torch.ones(tokens, max(max(weight.shape) for weight, _ in products))
    encoder = ImageEncoder(clip_model.visual, local=setting.method == "PLOT")

    def run(image: Tensor) -> None:
        with torch.no_grad():
            encoder(image)
            for weight, rows in products:
                out, inside = weight.shape
                ones[:rows, :inside] @ weight.t()
                ones[:rows, :out] @ weight  # the gradient of the input; weights are frozen

    return run


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

    model.image_encoder.forward = watch.around("image", model.image_encoder.forward)
    model.text_encoder.forward = watch.around("text", text)
    trainers.plot.counted_sinkhorn = watch.around("ot", plain_sinkhorn)
    try:
        yield reached
    finally:
        del model.image_encoder.forward, model.text_encoder.forward
        trainers.plot.counted_sinkhorn = plain_sinkhorn


def our_step(model: Any, optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor,
             clock: Callable[[], float], amp: bool) -> dict[str, float]:  # fmt: skip
    """Seconds of one step, by part."""
    watch = Stopwatch(clock)
    with watched(model, watch) as reached:
        start = clock()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = model(image)
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
    size = clip_model.visual.input_resolution
    image = torch.randn(setting.batch, 3, size, size)
    label = torch.arange(setting.batch) % len(setting.names)
    if side == "floor":
        run = floor(setting, clip_model)
    else:
        model = None if side == "plain" else our_model(setting, clip_model)
        logits, parameters = (
            plain_logits(setting, clip_model) if model is None else (model, list(model.prompt_learner.parameters()))
        )
        optimizer = torch.optim.SGD(parameters, lr=0.002, momentum=0.9, weight_decay=5e-4)
        if model is not None:
            return lambda: our_step(model, optimizer, image, label, clock, side == "amp")

        def run(image: Tensor) -> None:
            optimizer.zero_grad()
            F.cross_entropy(logits(image), label).backward()
            optimizer.step()

    def step() -> dict[str, float]:
        start = clock()
        run(image)
        return {"total": clock() - start}

    return step


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def serve(side: str, setting: Setting, clock: str, pipe: Connection) -> None:
    """In a process of its own: answer each message by the seconds and peak bytes of one step, until None."""
    torch.set_num_threads(setting.threads)
    step = make_step(side, setting, CLOCKS[clock])
    while pipe.recv() is not None:
        pipe.send((step(), runs.peak_memory()))


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
