"""The programs that measure, on a toy CLIP and tiny data: they run, and their JSON agrees with their tables."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.busy
import benchmarks.turns
from benchmarks.grid import Rate, makespan, rates, run_seconds
from benchmarks.sides import Setting
from benchmarks.testing import make_data
from benchmarks.turns import CLOCKS, PARTS, make_step, take_turns
from runs.directory import REPOSITORY
from runs.result import peak_memory
from tests.trainers.test_whole_step import taped
from trainers.clip.graphs import WholeStep

pytestmark = pytest.mark.medium

Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a program by its command line; the JSON that it writes."""

    def run(command: str) -> dict[str, Any]:
        name, *words = command.split()
        monkeypatch.setattr(sys, "argv", [name, *words, "--json", str(tmp_path / "out.json")])
        import_module(f"benchmarks.{name}").main()
        return json.loads((tmp_path / "out.json").read_text())

    return run


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides in this process: a child process takes seconds to start."""

    class Here(benchmarks.turns.Side):
        def __init__(self, side: str, setting: Setting) -> None:
            self.take, self.steps = make_step(side, setting, CLOCKS[setting.clock]), []

        def step(self) -> None:
            self.steps.append(self.take())
            self.peak = peak_memory()

        def close(self) -> None:
            pass

    monkeypatch.setattr(benchmarks.turns, "Side", Here)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("method", ["PLOT", "PLOTPP", "COOP", "COCOOP"])
def test_the_parts_of_a_step_add_up(method: str, stage: int) -> None:
    ticks = iter(range(10**6))
    setting = Setting(method, 2, classes=5, tiny=True, stage=stage)
    step = make_step("ours", setting, lambda: float(next(ticks)))
    seconds = step()
    assert sum(seconds[part] for part in PARTS) == seconds["total"] > 0
    assert (seconds["ot"] > 0) == (method in ("PLOT", "PLOTPP"))
    texts_learn = method != "PLOTPP" or stage == 2
    assert min(seconds[part] for part in PARTS if part != "ot" and (texts_learn or "text" not in part)) > 0


@pytest.mark.parametrize("method", ["COOP", "COCOOP"])
def test_the_step_as_one_graph(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tape stands for the graph; where there is none, it is an error and no figure."""
    setting = Setting(method, 2, classes=5, tiny=True, whole=True)
    with pytest.warns(UserWarning, match="without one graph"), pytest.raises(RuntimeError, match="not be captured"):
        make_step("ours", setting, time.perf_counter)
    monkeypatch.setattr(benchmarks.turns, "WholeStep", functools.partial(WholeStep, record=taped))
    assert make_step("ours", setting, time.perf_counter)()["total"] > 0


def test_a_side_is_a_child_process() -> None:
    (side,) = take_turns({"ours": Setting("COOP", 1, classes=5, tiny=True)}, repeats=2).values()
    assert side.process.exitcode == 0 and side.process.pid != os.getpid()
    assert len(side.steps) == 2 and side.median("text") > 0 and side.peak > 1e8


@pytest.mark.usefixtures("in_process")
def test_step(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("step --tiny --trainers COOP --batch 1 --repeats 1 --threads 1 --parts")
    (row,), (parts,), (steps,) = found["rows"], found["parts"], found["steps"]
    assert row["times faster"] == pytest.approx(row["plain s"] / row["ours s"])
    assert min(parts["loading"], parts["text"], row["ours GB"], row["plain GB"]) > 0
    assert {side: len(taken) for side, taken in steps.items()} == {"plain": 1, "ours": 6, "floor": 6}
    assert "| COOP" in capsys.readouterr().out


@pytest.mark.usefixtures("in_process")
def test_a_step_of_imagenets_classes(run: Run) -> None:
    found = run("step --tiny --classes 20 --batch 2 --cocoop-batch 2 --threads 1 --repeats 1 --no-plain")
    for row, steps in zip(found["rows"], found["steps"], strict=True):
        assert row["ours/floor"] == pytest.approx(row["ours s"] / row["floor s"])
        assert {side: len(taken) for side, taken in steps.items()} == {"ours": 1, "floor": 1}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_of_plotpp(stage: int, run: Run) -> None:
    (row,) = run(f"step --tiny --trainers PLOTPP --stage {stage} --batch 2 --classes 5 --threads 1 --repeats 1")["rows"]
    assert min(row["plain s"], row["ours s"], row["floor s"]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--device cuda", "PyTorch sees no GPU here"),
        ("--prec fp16", "--prec fp16 needs --device cuda"),
        ("--fused", "--fused needs --device cuda"),
        ("--whole", "--whole needs --device cuda"),
        ("--cocoop-batch 0", "--cocoop-batch is 0; it must be 1 or more"),
    ],
)
def test_impossible_options(
    options: str, message: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        run(f"step {options}")
    assert message in capsys.readouterr().err


def test_photographs(run: Run, tmp_path: Path) -> None:
    make_data(tmp_path, 1)
    options = "--shots 1 --epochs 2 --batch 50"
    each, once, on_device = run(f"photographs {tmp_path} {options}")["rows"]
    assert each["SHA-256"] == once["SHA-256"] != on_device["SHA-256"]
    assert min(row["s"] for row in (each, once, on_device)) > 0


def test_testing(run: Run) -> None:
    (row,) = run("testing --tiny --images 5 --threads 1 --trainers ZeroshotCLIP")["rows"]
    assert 5 * 64 * 4 <= 1e6 * row["MB kept"] < 2000  # float32 features [5, 64] and the files' headers
    assert row["times faster"] == pytest.approx(row["first s"] / row["later s"])


def test_image_loading(run: Run) -> None:
    (row,) = run("image_loading --images 8 --batch 4 --workers 0")["rows"]
    assert row["workers"] == 0 and min(row["images a second"], row["decoded once, images a second"]) > 0


def test_busy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the training run records its arguments, its OUT and how many processes run beside it."""
    log = tmp_path / "log"
    code = 'echo $0 $1 $(ls -A "$OUT" | wc -l) $(cat /proc/$PPID/task/*/children | wc -w)'
    monkeypatch.setattr(benchmarks.busy, "COMMAND", ["bash", "-c", f"{code} >> {log}"])
    found = run("busy --repeats 2 --epochs 5")
    uncounted, *lines = log.read_text().splitlines()
    start, _, alone = uncounted.rpartition(" ")
    assert start == "OPTIM.MAX_EPOCH 5 0"
    assert lines == [f"OPTIM.MAX_EPOCH 5 0 {int(alone) + count}" for count in (0, 1, 2)] * 2
    assert [row["busy processes"] for row in found["rows"]] == [0, 1, 2] and found["rows"][0]["ratio"] == 1


def test_a_run_of_the_grid_by_hand() -> None:
    """Caltech's 100 classes at 2 shots: PLOT in 100 epochs of one batch of 128, CoCoOp in 10 epochs of 200 images."""
    rate = Rate(image=0.1, text=((50, 0.5), (200, 2.0)), forward=0.5)
    assert run_seconds("PLOT", "caltech101", 2, rate) == pytest.approx(0.5 + 100 * (128 * 0.1 + 1))
    assert run_seconds("PLOT", "caltech101", 2, rate, loaded=4) == pytest.approx(0.5 + 100 * 128 / 4)
    assert run_seconds("CoCoOp", "caltech101", 2, rate) == pytest.approx(0.5 * 2465 + 10 * 200 * (0.1 + 1))
    assert run_seconds("ZeroshotCLIP", "caltech101", 1, rate) == pytest.approx(0.5)
    assert [rate.rest(n) for n in (10, 100, 400)] == pytest.approx([0.1, 1, 4])
    assert Rate(0.1, ((50, 0.5),), 0.5, waits=True).rest(10) == 0.5


def step_file(path: Path, **more: float) -> Path:
    row = {"batch": 8, "classes": 100, **dict.fromkeys(PARTS, 0.1)}
    trainers = ("PLOT", "COOP", "COCOOP")
    rows = [
        {"trainer": trainer, "batch": 8, "ours s": 0.7, **(more if trainer == "PLOT" else {})} for trainer in trainers
    ]
    path.write_text(json.dumps({"parts": [{"trainer": trainer, **row} for trainer in trainers], "rows": rows}))
    return path


def test_grid(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, *_ = run(f"grid {step_file(tmp_path / 'step.json')}")["rows"]
    assert one["hours"] == pytest.approx(one["ideal"])
    out = capsys.readouterr().out
    assert "before: 506 runs" in out and "after" not in out
    # Each run goes to the device that is free first, the longest run first.
    assert [makespan([1, 2, 3, 4, 5, 5], 2), makespan([1, 2, 3, 4, 5, 5], 1), makespan([9, 1, 1], 3)] == [10, 20, 9]


@pytest.mark.slow
def test_the_grid_before_and_after(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After, where steps with the fused head are in the files; both are held up by the loader."""
    steps, loading = step_file(tmp_path / "step.json", **{"fused s": 0.35}), tmp_path / "loading.json"
    found = run(f"grid {steps}")
    assert found["after"][0]["hours"] < found["rows"][0]["hours"]
    rates = {"images a second": 0.1, "decoded once, images a second": 0.2}
    loading.write_text(json.dumps({"rows": [{"workers": 4, **dict.fromkeys(rates, 9)}, {"workers": 8, **rates}]}))
    slow = run(f"grid {steps} {loading}")
    assert "after: 506 runs" in capsys.readouterr().out
    assert found["rows"][0]["hours"] < slow["after"][0]["hours"] < slow["rows"][0]["hours"]
    whole = run(f"grid {step_file(steps, **{'fused s': 0.35, 'whole s': 0.3})}")
    assert whole["after"][0]["hours"] < found["after"][0]["hours"]


def test_the_grid_by_the_figures_of_the_documentation(run: Run) -> None:
    """An H200's steps, of two batch sizes or two numbers of classes, without parts."""
    measured = rates([json.loads((REPOSITORY / "benchmarks/h200.json").read_text())])
    plot = measured["PLOT"]
    assert plot.image == pytest.approx((9.04e-3 - 7.1e-3) / 24) and plot.waits
    assert 32 * plot.image + plot.rest(100) == pytest.approx(9.04e-3)
    assert 32 * plot.image + plot.rest(1000) == pytest.approx(25.2e-3)
    assert measured["COCOOP"].image == max(plot.image, measured["COOP"].image)
    assert run(f"grid {REPOSITORY / 'benchmarks/h200.json'}")["after"] is None


def test_the_grid_needs_all_trainers(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plot.json"
    path.write_text(json.dumps({"rows": [{"trainer": "PLOT", "batch": 8, "ours s": 1.0}]}))
    with pytest.raises(SystemExit, match="2"):
        run(f"grid {path}")
    assert "no step of COCOOP, COOP in these files" in capsys.readouterr().err
