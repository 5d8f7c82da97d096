"""Scripts that start ``train.py`` as a process: in tests it is called, which saves its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import train
from runs import forks


@dataclass(frozen=True)
class Ended:
    """A process that has ended with a code."""

    code: int
    pid: int = 0

    def poll(self) -> int:
        return self.code

    wait = poll

    def send_signal(self, number: int, /) -> None:
        raise ProcessLookupError


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of every train.py, in order."""
    started: list[list[str]] = []

    def call(arguments: list[str]) -> Ended:
        started.append(arguments)
        return Ended(train.main(arguments))

    monkeypatch.setattr(forks, "start", call)
    return started


@pytest.fixture
def tiny(weights: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """KEY VALUE pairs of short runs on the tiny CLIP and data, into tmp_path/out."""
    for key, value in {"DATA": data_root, "OUT": tmp_path / "out", "SEEDS": "1 2", "N": "2"}.items():
        monkeypatch.setenv(key, str(value))
    for key in ("CFG", "BACKBONE", "TRAINERS", "TARGETS"):
        monkeypatch.delenv(key, raising=False)
    epochs = ["OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "DATALOADER.NUM_WORKERS", "0"]
    return ["MODEL.BACKBONE.NAME", str(weights), "INPUT.SIZE", "(64, 64)", *epochs]
