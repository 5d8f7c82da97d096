"""What training shows on a terminal, elsewhere, with --quiet, and to trackers; log.txt has all of it each time."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import train
from dassl.config import get_cfg_default
from dassl.extras.trackers import check_trackers, with_trackers
from dassl.utils import Silence, UserError, print_to_console, print_to_file, setup_logger, with_progress
from tests.runs.test_train import SHORT, command


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_for_the_file_and_for_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_to_file("no file"), print_to_console("no file either")
    logger = setup_logger(str(tmp_path))
    assert logger is not None
    with logger:
        print("both"), print_to_file("file"), print_to_console("console")
    assert capsys.readouterr().out == "no file\nboth\nconsole\n"
    assert (tmp_path / "log.txt").read_text() == "both\nfile\n"


def test_a_bar_is_shown_on_a_terminal_unless_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert with_progress([1]).disable
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert not with_progress([1]).disable
    monkeypatch.setattr(sys, "stdout", Silence())
    assert with_progress([1]).disable and list(with_progress([1, 2])) == [1, 2]


@pytest.mark.medium
@pytest.mark.parametrize("shown", ["lines", "bar", "nothing"])
def test_training_shows_epochs_and_the_log_keeps_batches(
    shown: str, run_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error: Any = Terminal() if shown == "bar" else io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    flags = ["--output-dir", str(tmp_path / "run"), *(["--quiet"] if shown == "nothing" else [])]
    assert train.main([*flags, *command(run_args, "CoOp"), *SHORT]) == 0
    out, bar, log = capsys.readouterr().out, error.getvalue(), (tmp_path / "run/log.txt").read_text()
    lines = re.findall(r"^epoch \[(\d)/2\] loss [\d.]+ acc [\d.]+ eta", out, re.M)
    assert lines == (["1", "2"] if shown == "lines" else [])
    assert ("epoch 2/2" in bar and "loss=" in bar and "acc=" in bar) == (shown == "bar")
    assert (out == "") == (shown == "nothing") and "batch [" not in out and "PyTorch: " not in out
    assert len(re.findall(r"^epoch \[\d/2\] batch \[\d/\d\] time .* lr ", log, re.M)) >= 2
    for part in ("TRAINER:", "PyTorch: ", "# train_x", "Evaluate on the *test* set", "* accuracy: "):
        assert part in log, part


def test_trackers_are_off_by_default_and_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, writer = get_cfg_default(), SimpleNamespace()
    assert with_trackers(writer, cfg, {}) is writer
    check_trackers(cfg)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cfg.TRAIN.LOGGERS = "wandb"
    with pytest.raises(UserError, match="pip install wandb"):
        check_trackers(cfg)


def test_wandb_gets_what_tensorboard_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    run = SimpleNamespace(log=said.append, finish=lambda: said.append("end"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: said.append(given) or run))
    cfg = get_cfg_default()
    cfg.TRAIN.LOGGERS, cfg.OUTPUT_DIR = "wandb", "out"
    scalars: list[Any] = []
    board = SimpleNamespace(add_scalar=lambda *given: scalars.append(given), close=lambda: None)
    writer = with_trackers(board, cfg, {"SEED": 1})
    writer.add_scalar("train/loss", 0.5, 3)
    writer.close(), writer.close()
    assert scalars == [("train/loss", 0.5, 3)]
    assert said == [{"name": "out", "config": {"SEED": 1}}, {"train/loss": 0.5, "step": 3}, "end"]


@pytest.mark.medium
def test_mlflow_gets_what_tensorboard_gets(
    run_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    argv = ["--output-dir", str(tmp_path / "run"), *command(run_args, "CoOp"), *SHORT]
    assert train.main([*argv, "TRAIN.LOGGERS", "mlflow"]) == 0
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "FINISHED" and run.data.params["TRAINER.NAME"] == "CoOp"
    assert {"train/loss", "train/acc", "train/lr", "test/accuracy"} <= run.data.metrics.keys()
