"""Scripts that start ``train.py`` as a child process: in tests they call it instead, which saves the start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from runs import process


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of every run of train.py, in order."""
    started: list[list[str]] = []

    def call(arguments: Sequence[str], *more: object, silent: bool = False) -> SimpleNamespace:
        started.append([*arguments])
        code = train.main([*arguments])
        return SimpleNamespace(pid=0, poll=lambda: code, wait=lambda: code)

    monkeypatch.setattr(process, "start", call)
    return started


@pytest.fixture
def tiny(weights: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """KEY VALUE pairs of short runs with the tiny CLIP and data, into tmp_path/out."""
    for key, value in {"DATA": data_root, "OUT": tmp_path / "out", "SEEDS": "1 2", "N": "2"}.items():
        monkeypatch.setenv(key, str(value))
    for key in ("CFG", "BACKBONE", "TRAINERS", "TARGETS"):
        monkeypatch.delenv(key, raising=False)
    epochs = ["OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "DATALOADER.NUM_WORKERS", "0"]
    return ["MODEL.BACKBONE.NAME", str(weights), "INPUT.SIZE", "(64, 64)", *epochs]
