"""Time and peak memory of a training step, ours against the plain computation.

    python -m benchmarks.step [--trainers PLOT COOP COCOOP] [--batch 8] [--repeats 2] [--threads 2] [--json FILE]

RN50 with random weights, the 100 class names of Caltech-101, N = 4, 16 context tokens, float32; CoCoOp at
batch 1. A step is forward, backward and SGD. The plain side (`benchmarks.plain`) runs the installed clip's own
modules on all 77 tokens of every prompt and class, as published; ours is `trainers.<method>.CustomCLIP`. Each
side lives in a process of its own, so that the operating system tells its peak memory; they take turns, and only
one runs at a time. "floor" is the image encoder's forward pass and the matrix products, forward and back, of the
fewest tokens: the context once a prompt, the class's own once a prompt and class. The plain PLOT step takes about
a minute and 13 GB.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import clip
import torch
import torch.nn.functional as F
from clip.model import CLIP
from tabulate import tabulate
from torch import Tensor, nn

import trainers
from benchmarks import plain
from benchmarks.caltech_names import NAMES
from dassl.config import get_cfg_default

METHODS = {"PLOT": "plot", "COOP": "coop", "COCOOP": "cocoop"}
N, N_CTX = 4, 16
Logits = Callable[[Tensor], Tensor]  # image [batch, 3, h, w] -> [batch, n_cls]
Step = Callable[[Tensor, Tensor], None]  # of image and label [batch]
OURS_PER_PLAIN = 3  # our steps after each plain one: ours are many times shorter


def make_clip(tiny: bool) -> CLIP:
    """A frozen RN50 CLIP with random weights, or a toy with as many tokens."""
    torch.manual_seed(0)
    sizes = (64, 64, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 2) if tiny else (
        1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)  # fmt: skip
    return CLIP(*sizes).eval().requires_grad_(False)


def plain_logits(method: str, clip_model: CLIP) -> tuple[Logits, list[Tensor]]:
    """The published forward pass, image -> logits, and what it trains."""
    words = plain.embed_words(clip_model, NAMES)
    width = clip_model.ln_final.weight.shape[0]
    ctx = nn.Parameter(0.02 * torch.randn(N if method == "PLOT" else 1, N_CTX, width))
    if method != "COCOOP":

        def logits(image: Tensor) -> Tensor:
            pooled, local = plain.image_features(clip_model, image)
            text = plain.text_features(clip_model, words, ctx)
            if method == "PLOT":
                return plain.plot_logits(clip_model, pooled, local, text)
            return plain.pooled_logits(clip_model, pooled, text[0])

        return logits, [ctx]
    d = clip_model.visual.output_dim
    meta_net = nn.Sequential(nn.Linear(d, d // 16), nn.ReLU(), nn.Linear(d // 16, width))

    def cocoop_logits(image: Tensor) -> Tensor:
        pooled, _ = plain.image_features(clip_model, image)
        return plain.cocoop_logits(clip_model, words, pooled, ctx[0], meta_net)

    return cocoop_logits, [ctx, *meta_net.parameters()]


def our_logits(method: str, clip_model: CLIP) -> tuple[Logits, list[Tensor]]:
    """Our forward pass, image -> logits, and what it trains."""
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    size = clip_model.visual.input_resolution
    cfg.INPUT.SIZE = (size, size)
    cfg.TRAINER[method].update({"N_CTX": N_CTX, "PREC": "fp32", **({"N": N} if method == "PLOT" else {})})
    module = importlib.import_module(f"trainers.{METHODS[method]}")
    model = module.CustomCLIP(cfg, NAMES, clip_model).train()
    return model, list(model.prompt_learner.parameters())


def floor(method: str, clip_model: CLIP, batch: int) -> Step:
    """The image encoder, and the text side's matrix products on the fewest tokens."""
    texts = [name.replace("_", " ") + "." for name in NAMES]
    lengths = [int(tokens.argmax()) for tokens in clip.tokenize(texts)]  # name, full stop and EOT
    prompts = {"PLOT": N, "COOP": 1, "COCOOP": batch}[method]
    tokens, ends = prompts * (1 + N_CTX + sum(lengths)), prompts * len(NAMES)
    products: list[tuple[Tensor, int]] = []
    *blocks, last = clip_model.transformer.resblocks
    for block in (*blocks, last):
        d = block.attn.embed_dim
        query, key_value = block.attn.in_proj_weight.split([d, 2 * d])
        rest = (query, block.attn.out_proj.weight, block.mlp.c_fc.weight, block.mlp.c_proj.weight)
        # After the last block only EOT is read.
        products += [(key_value, tokens), *((weight, ends if block is last else tokens) for weight in rest)]
    ones = torch.ones(tokens, max(max(weight.shape) for weight, _ in products))

    def run(image: Tensor, label: Tensor) -> None:
        with torch.no_grad():
            clip_model.visual(image)
            for weight, rows in products:
                out, inside = weight.shape
                ones[:rows, :inside] @ weight.t()
                ones[:rows, :out] @ weight  # the gradient of the input; weights are frozen

    return run


def training_step(logits: Logits, parameters: list[Tensor]) -> Step:
    optimizer = torch.optim.SGD(parameters, lr=0.002, momentum=0.9, weight_decay=5e-4)

    def step(image: Tensor, label: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(logits(image), label).backward()
        optimizer.step()

    return step


def serve(side: str, method: str, options: argparse.Namespace, pipe: Connection) -> None:
    """In a process of its own: answer each message by the seconds and peak bytes of one step, until None."""
    torch.set_num_threads(options.threads)
    clip_model = make_clip(options.tiny)
    size = clip_model.visual.input_resolution
    batch = 1 if method == "COCOOP" else options.batch
    image, label = torch.randn(batch, 3, size, size), torch.arange(batch) % len(NAMES)
    if side == "floor":
        step = floor(method, clip_model, batch)
    else:
        step = training_step(*(plain_logits if side == "plain" else our_logits)(method, clip_model))
    while pipe.recv() is not None:
        start = time.perf_counter()
        step(image, label)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send((seconds, peak * (1 if sys.platform == "darwin" else 1024)))


class Side:
    """A process that takes steps when asked."""

    def __init__(self, side: str, method: str, options: argparse.Namespace) -> None:
        self.name = f"{method} {side}"
        context = multiprocessing.get_context("spawn")  # a fork would count this process's memory
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(side, method, options, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.seconds: list[float] = []
        self.peak = 0

    def step(self, times: int = 1, keep: bool = True) -> None:
        for _ in range(times):
            self.pipe.send("step")
            seconds, self.peak = self.pipe.recv()
            self.seconds += [seconds] if keep else []
            print(f"{self.name}: {seconds:.2f} s" + ("" if keep else ", not counted"), file=sys.stderr, flush=True)

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def measure(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of interleaved steps, after one step of each side that is not counted."""
    sides = {name: Side(name, method, options) for name in ("plain", "ours", "floor")}
    for side in sides.values():
        side.step(keep=False)
    for _ in range(options.repeats):
        sides["plain"].step()
        sides["ours"].step(OURS_PER_PLAIN)
        sides["floor"].step(OURS_PER_PLAIN)
    for side in sides.values():
        side.close()
    median = {name: statistics.median(side.seconds) for name, side in sides.items()}
    return {
        "trainer": method,
        "batch": 1 if method == "COCOOP" else options.batch,
        "plain_s": median["plain"],
        "ours_s": median["ours"],
        "floor_s": median["floor"],
        "times_faster": median["plain"] / median["ours"],
        "plain_gb": sides["plain"].peak / 1e9,
        "ours_gb": sides["ours"].peak / 1e9,
        "memory_share": sides["ours"].peak / sides["plain"].peak,
        "seconds": {name: side.seconds for name, side in sides.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=8, help="images a step of PLOT and CoOp; CoCoOp's has one")
    parser.add_argument("--repeats", type=int, default=2, help=f"plain steps, {OURS_PER_PLAIN} of ours after each")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tiny", action="store_true", help="a toy CLIP: tries the program, measures nothing")
    parser.add_argument("--json", metavar="FILE", help="write the results here as well")
    options = parser.parse_args()
    rows = [measure(method, options) for method in options.trainers]
    headers = {
        "trainer": "trainer", "batch": "batch", "plain_s": "plain s", "ours_s": "ours s", "floor_s": "floor s",
        "times_faster": "times faster", "plain_gb": "plain GB", "ours_gb": "ours GB", "memory_share": "memory ratio",
    }  # fmt: skip
    model = "a toy CLIP" if options.tiny else "RN50"
    print(f"{model}, {len(NAMES)} classes, {N_CTX} context tokens, N = {N} in PLOT, float32, {options.threads} "
          f"threads, torch {torch.__version__}, medians of {options.repeats} plain and "
          f"{options.repeats * OURS_PER_PLAIN} other steps")  # fmt: skip
    print(tabulate([{headers[k]: row[k] for k in headers} for row in rows], "keys", "pipe", floatfmt=".3g"))
    if options.json:
        about = {"torch": torch.__version__, "threads": options.threads, "tiny": options.tiny}
        with open(options.json, "w") as file:
            json.dump({**about, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
