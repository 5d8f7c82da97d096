"""The speed programs on a toy CLIP: they run, their JSON holds what their tables show, and the parts add up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.growth
import benchmarks.image_loading
import benchmarks.imagenet
import benchmarks.step
import benchmarks.sweep
import benchmarks.testing
import benchmarks.turns
import benchmarks.views
import train
from benchmarks.sides import Setting
from benchmarks.turns import CLOCKS, PARTS, make_step
from runs.result import peak_memory

pytestmark = pytest.mark.slow


def run(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *args: str) -> dict[str, Any]:
    file = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", [program.__name__, *args, "--json", str(file)])
    program.main()
    return json.loads(file.read_text())


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides in this process: to start another takes seconds, and `test_step` does."""

    class Here(benchmarks.turns.Side):
        def __init__(self, side: str, setting: Setting, clock: str = "wall") -> None:
            self.take, self.steps = make_step(side, setting, CLOCKS[clock]), []

        def step(self, times: int = 1, keep: bool = True) -> None:
            taken = [self.take() for _ in range(times)]
            self.steps += taken if keep else []
            self.peak = peak_memory()

        def close(self) -> None:
            pass

    monkeypatch.setattr(benchmarks.turns, "Side", Here)


@pytest.fixture
def whole_runs(weights: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of programs of whole runs, on the tiny CLIP and data, each run in this process."""
    monkeypatch.setattr(benchmarks.sweep, "start_train", lambda arguments: train.main(arguments) and sys.exit("failed"))
    tiny = ["MODEL.BACKBONE.NAME", str(weights), "INPUT.SIZE", "(64, 64)", "OPTIM.MAX_EPOCH", "2"]
    small = ["DATALOADER.TRAIN_X.BATCH_SIZE", "4", "DATALOADER.NUM_WORKERS", "0"]
    return ["--dataset", "caltech101", "--root", str(data_root), *tiny, *small]


@pytest.mark.parametrize("method", ["PLOT", "COOP", "COCOOP"])
def test_the_parts_of_a_step_add_up(method: str) -> None:
    ticks = iter(range(10**6))
    step = make_step("ours", Setting(method, 2, classes=5, tiny=True), lambda: float(next(ticks)))
    seconds = step()
    assert sum(seconds[part] for part in PARTS) == seconds["total"] > 0
    assert (seconds["ot"] > 0) == (method == "PLOT")
    assert min(seconds[part] for part in ("image", "text", "head", "head_back", "text_back", "optimizer")) > 0


def test_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--tiny", "--trainers", "COOP", "--batch", "1", "--repeats", "1", "--threads", "1", "--amp", "--parts")
    (row,) = run(benchmarks.step, tmp_path, monkeypatch, *args)["rows"]
    assert row["times_faster"] == pytest.approx(row["plain_s"] / row["ours_s"])
    assert row["parts"].keys() == {"loading", *PARTS} and min(row["parts"]["loading"], row["parts"]["text"]) > 0
    assert row["quartiles"]["ours"][1] == row["ours_s"] and len(row["steps"]["ours"]) == 6
    assert "| COOP" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cuda"], "PyTorch sees no GPU here"),
        (["--prec", "fp16"], "--prec fp16 needs --device cuda"),
        (["--cocoop-batch", "0"], "--cocoop-batch is 0; it must be 1 or more"),
        (["--repeats", "-1"], "--repeats is -1"),
    ],
)
def test_impossible_options(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks.step", *options])
    with pytest.raises(SystemExit, match="2"):
        benchmarks.step.main()
    assert said in capsys.readouterr().err


def test_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None) -> None:
    args = ("--tiny", "--classes", "20", "--batch", "2", "--threads", "1")
    found = run(benchmarks.imagenet, tmp_path, monkeypatch, *args)
    assert found["times_floor"] == pytest.approx(found["ours_s"] / found["floor_s"])
    assert found["ours_gb"] > 0.1


def test_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None) -> None:
    monkeypatch.setattr(benchmarks.growth, "POINTS", {"classes": (2, 4), "local": (49, 196)})
    args = ("--tiny", "--axes", "classes", "--batch", "1", "--threads", "1", "--repeats", "1")
    (axis,) = run(benchmarks.growth, tmp_path, monkeypatch, *args)["axes"]
    assert [row["classes"] for row in axis["rows"]] == [2, 4]
    assert benchmarks.growth.at(Setting("PLOT", 1), "local", 196).side == 448


def test_the_exponent_of_a_power() -> None:
    assert benchmarks.growth.exponent([1, 2, 8], [3, 6, 24]) == pytest.approx(1)
    assert benchmarks.growth.exponent([1, 10, 100], [5, 500, 50000]) == pytest.approx(2)


def test_testing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("--tiny", "--images", "5", "--threads", "1", "--trainers", "ZeroshotCLIP")
    (row,) = run(benchmarks.testing, tmp_path, monkeypatch, *args)["rows"]
    assert row["file_mb"] == pytest.approx((128 + 5 * 64 * 4 + 4) / 1e6)
    assert row["times_faster"] == pytest.approx(row["first_s"] / row["second_s"])


def test_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("--images", "8", "--batch", "4", "--workers", "0")
    (row,) = run(benchmarks.image_loading, tmp_path, monkeypatch, *args)["rows"]
    assert row["workers"] == 0 and row["images a second"] > 0


def test_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_runs: list[str]) -> None:
    args = ("--shots", "1", "--seeds", "1", "--trainers", "CoOp", "--views", "1", *whole_runs)
    found = run(benchmarks.sweep, tmp_path, monkeypatch, *args)
    assert [(row["trainer"], row["side"], row["runs"]) for row in found["rows"]] == [
        (trainer, side, 1) for trainer in ("CoOp", "all") for side in ("off", "kept", "views")
    ]
    off, kept, _ = found["rows"][:3]
    assert off["accuracy (%)"] == kept["accuracy (%)"]
    assert 0 < off["train s"] + off["test s"] < off["total s"]


def test_a_sweep_whose_predictions_differ_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_runs: list[str]
) -> None:
    answers = iter(([1, 2], [1, 2], [1, 3]))
    monkeypatch.setattr(benchmarks.sweep, "timed_run", lambda *args: {"predictions": next(answers)})
    with pytest.raises(RuntimeError, match="CoOp, 1 shots, seed 1: kept features change a prediction"):
        run(benchmarks.sweep, tmp_path, monkeypatch, "--shots", "1", "--seeds", "1", "--trainers", "CoOp", *whole_runs)


def test_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_runs: list[str]) -> None:
    args = ("--views", "1", "--shots", "1", "--seeds", "1", "2", "--trainers", "CoOp", *whole_runs)
    found = run(benchmarks.views, tmp_path, monkeypatch, *args)
    plain, views = found["rows"]
    assert (plain["views"], plain["difference"], plain["again s"], views["views"]) == (0, 0, None, 1)
    assert views["difference"] == pytest.approx(views["accuracy (%)"] - plain["accuracy (%)"])
    assert [(done["views"], done["seed"]) for done in found["runs"]] == [(0, 1), (0, 2), (1, 1), (1, 2)]
