"""Runs of train.py in float64, one after another: a JSON list of command lines in; in one process or under torchrun.

In float64 the order of sums hardly shows, so that a run by several processes can be held against one by a single.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import train
import trainers.prompt_trainer
from dassl.extras.distributed import process_group
from tests.oracle import plain_layernorms
from trainers.clip.weights import load_clip


def load_double(cfg: Any) -> Any:
    model = load_clip(cfg).double()
    plain_layernorms(model)
    model.float = lambda: model
    return model


if __name__ == "__main__":
    trainers.prompt_trainer.load_clip = load_double
    with process_group(use_cuda=False):  # one for all: torchrun starts no second one
        codes = [train.main(argv) for argv in json.loads(sys.argv[1])]
    sys.exit(max(codes))
