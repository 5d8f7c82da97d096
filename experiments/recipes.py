"""What the papers prescribe, for Python: ``recipe.sh`` asked for one method, dataset and shot count."""

from __future__ import annotations

import difflib
import functools
import os
import subprocess

import yaml

from dassl.utils import UserError
from runs.directory import REPOSITORY

METHODS = ("ZeroshotCLIP", "CoOp", "CoCoOp", "PLOT")
ENTRY = {"ZeroshotCLIP": "zsclip", "CoOp": "coop", "CoCoOp": "cocoop", "PLOT": "plot"}

# OpenAI's names, as the configs' names begin.
BACKBONES = {"rn50": "RN50", "rn101": "RN101", "vit_b16": "ViT-B/16", "vit_b32": "ViT-B/32"}


@functools.cache
def recipe(trainer: str, dataset: str, shots: int, cfg: str = "", backbone: str = "") -> tuple[str, str]:
    """(config's name, KEY VALUE pairs in one string).

    Args:
        cfg, backbone: what CFG and BACKBONE set for the shell scripts; empty for the recipe's own.
    """
    code = 'source "$1"; recipe "$2" "$3" "$4"; printf "%s\\n%s" "$CFG" "$RECIPE"'
    command = ["bash", "-euc", code, "bash", str(REPOSITORY / "scripts" / "recipe.sh"), trainer, dataset, str(shots)]
    env = {**os.environ, "CFG": cfg, "BACKBONE": backbone}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    config, _, pairs = done.stdout.partition("\n")
    return config, pairs


@functools.cache
def prescribed_epochs(trainer: str, dataset: str, shots: int) -> int:
    """The epochs that the recipe and its config prescribe."""
    config, pairs = recipe(trainer, dataset, shots, backbone="rn50")
    words = pairs.split()
    if "OPTIM.MAX_EPOCH" in words:
        return int(words[words.index("OPTIM.MAX_EPOCH") + 1])
    path = REPOSITORY / "configs" / "trainers" / trainer / f"{config}.yaml"
    return int(yaml.safe_load(path.read_text(encoding="utf-8")).get("OPTIM", {}).get("MAX_EPOCH", 0))


def methods(text: str) -> list[str]:
    """TRAINERS as the user wrote it, "PLOT,coop" or "PLOT CoOp" -> the registered names.

    Raises:
        UserError: one of them is no method.
    """
    known = {name.lower(): name for name in METHODS} | {short: name for name, short in ENTRY.items()}
    chosen = []
    for word in text.replace(",", " ").split():
        if word.lower() not in known:
            nearest = known[difflib.get_close_matches(word.lower(), known, n=1, cutoff=0)[0]]
            raise UserError(f"TRAINERS: '{word}' is none of {', '.join(METHODS)}; the nearest is '{nearest}'")
        chosen.append(known[word.lower()])
    return list(dict.fromkeys(chosen))


def own_options(trainer: str, opts: list[str]) -> list[str]:
    """KEY VALUE pairs without those that mean nothing to a method: TRAINER.PLOT.N to CoOp, epochs to zero-shot CLIP."""
    others = tuple(f"TRAINER.{name.upper()}." for name in METHODS if name != trainer)
    if trainer == "ZeroshotCLIP":
        others += ("OPTIM.", "TRAIN.", "DATALOADER.TRAIN_X.")
    pairs = [opts[i : i + 2] for i in range(0, len(opts), 2)]
    return [word for pair in pairs if not pair[0].startswith(others) for word in pair]
