"""The grid on paper, on numbers that can be checked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import grid
from benchmarks.grid import Rate, makespan, run_seconds

pytestmark = pytest.mark.medium

PARTS = {"image": 0.8, "text": 0.5, "ot": 0.1, "head": 0.1, "head_back": 0.1, "text_back": 0.6, "optimizer": 0.1}


def test_runs_go_to_the_device_that_is_free_first_the_longest_first() -> None:
    assert makespan([1, 2, 3, 4, 5, 5], 2) == 10
    assert makespan([1, 2, 3, 4, 5, 5], 1) == 20
    assert makespan([9, 1, 1], 3) == 9


def test_a_run_by_hand() -> None:
    """Caltech's 100 classes at 2 shots: PLOT in 100 epochs of one batch of 128, CoCoOp in 10 epochs of 200 images."""
    rate = Rate(image=0.1, train_text=0.01, test_text=0.005)
    assert run_seconds("PLOT", "caltech101", 2, rate) == pytest.approx(0.5 + 100 * (128 * 0.1 + 1))
    assert run_seconds("CoCoOp", "caltech101", 2, rate) == pytest.approx(0.5 * 2465 + 10 * 200 * (0.1 + 1))
    assert run_seconds("ZeroshotCLIP", "caltech101", 1, rate) == pytest.approx(0.5)


def test_the_whole_grid_has_506_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [{"trainer": name, "batch": 8, "classes": 100, **PARTS} for name in ("PLOT", "COOP", "COCOOP")]
    (tmp_path / "step.json").write_text(json.dumps({"parts": parts}))
    monkeypatch.setattr("sys.argv", ["grid", str(tmp_path / "step.json")])
    grid.main()
    assert "506 runs" in capsys.readouterr().out
