"""Every command that a table gives for a blank cell: parsed by bash, and started up to the loading of the weights."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
import trainers.feature_trainer
import trainers.prompt_trainer
from dassl.engine import TrainerX
from experiments import jobs, protocols
from experiments.tables import __main__ as tables
from runs import process
from runs.directory import REPOSITORY
from tests.experiments.test_tables import commands, show

pytestmark = pytest.mark.slow

ALL = (
    *([table] for table in tables.TABLES),
    *([table, "--dataset", "symbols"] for table in tables.TABLES),
    ["few-shot", "--backbone", "vit_b16"],
    ["domain", "--backbone", "vit_b32"],
)
WITHOUT = ("adapters", "leaks", "published")  # tables that may have no cells
BACKBONES = {"vit_b16": "ViT-B/16", "vit_b32": "ViT-B/32"}


class Weights(Exception):
    """The program has come to the loading of CLIP's weights."""


@pytest.fixture
def up_to_the_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """train.py in this process, without data, up to the weights; the names of the backbones that it came to."""
    came_to: list[str] = []

    def load_clip(cfg: object) -> None:
        came_to.append(cfg.MODEL.BACKBONE.NAME)  # type: ignore[attr-defined]
        raise Weights

    def no_data(self: TrainerX) -> None:
        self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=["cat", "dog"], template="a {}."))
        self.lab2cname = {0: "cat", 1: "dog"}

    def call(arguments: Sequence[str], *more: object, silent: bool = False) -> None:
        with pytest.raises(Weights):
            train.main([*arguments])
        raise SystemExit(7)

    monkeypatch.setattr(trainers.prompt_trainer, "load_clip", load_clip)
    monkeypatch.setattr(trainers.feature_trainer, "load_clip", load_clip)
    monkeypatch.setattr(TrainerX, "build_data_loader", no_data)
    monkeypatch.setattr(process, "start", call)
    return came_to


def through_bash(command: str, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """What a command makes bash start as Python: its arguments, and what it sets in the environment."""
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    stub.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k not in ("CFG", "BACKBONE", "SEEDS", "N", "OUT", "TRAINERS")}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=REPOSITORY,
        env={**env, "PYTHON": str(stub)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), command
    environment = dict(word.split("=", 1) for word in shlex.split(command.partition(" bash ")[0]))
    return done.stdout.splitlines(), environment


@pytest.mark.parametrize("argv", ALL, ids=" ".join)
def test_every_command_starts_up_to_the_weights(
    argv: list[str],
    up_to_the_weights: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "runs of mine"
    out.mkdir()
    found = commands(show(capsys, *argv, "--out", str(out)))
    assert found or argv[0] in WITHOUT
    assert len(set(found)) == len(found)
    for command in found:
        arguments, environment = through_bash(command, tmp_path)
        assert environment["OUT"] == str(out)
        assert arguments[0] == "-m" and arguments[1] in ("experiments.jobs", "experiments.protocols")
        with monkeypatch.context() as patch:
            for key, value in {"SEEDS": "1", **environment}.items():
                patch.setenv(key, value)
            module = jobs if arguments[1] == "experiments.jobs" else protocols
            with pytest.raises(SystemExit, match="7"):
                module.main(arguments[2:])
    assert len(up_to_the_weights) == len(found)
    (backbone,) = set(up_to_the_weights) or {"RN50"}  # all cells of a table are on one backbone
    assert "symbols" in argv or backbone == BACKBONES.get(argv[-1], "RN50")
    capsys.readouterr()
