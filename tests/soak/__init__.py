"""Long tests, run by hand: python -m tests.soak.kills, python -m tests.soak.many_runs."""

from __future__ import annotations

import os
from pathlib import Path

from datasets import glyphs
from runs.directory import REPOSITORY

os.environ.setdefault("OMP_NUM_THREADS", "1")

# The symbols with few pictures a class, to keep a run short.
FEW = {"train": 4, "val": 1, "test": 2} | dict.fromkeys(glyphs.SHIFTS, 1)


def symbols(trainer: str, root: Path, shots: int) -> list[str]:
    """The flags of a run on a small copy of symbols, which is drawn below ``root`` if it is missing."""
    if not (root / "symbols").exists():
        glyphs.write_symbols(root, per_class=FEW)
    configs = REPOSITORY / "configs"
    return [
        *("--root", str(root), "--seed", "1", "--trainer", trainer),
        *("--dataset-config-file", str(configs / "datasets/symbols.yaml")),
        *("--config-file", str(configs / f"trainers/{trainer}/symbols.yaml")),
        *("DATASET.NUM_SHOTS", str(shots)),
    ]
