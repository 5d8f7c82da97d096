"""The speed programs on a toy CLIP: they run, their JSON holds what their tables show, and the parts add up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import benchmarks.growth
import benchmarks.image_loading
import benchmarks.imagenet
import benchmarks.step
import benchmarks.testing
from benchmarks.sides import PARTS, Setting, make_step


def run(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *args: str) -> dict[str, Any]:
    file = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", [program.__name__, *args, "--json", str(file)])
    program.main()
    return json.loads(file.read_text())


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
    assert row["quartiles"]["ours"][1] == row["ours_s"] and len(row["steps"]["ours"]) == 3
    assert "| COOP" in capsys.readouterr().out


def test_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("--tiny", "--classes", "20", "--batch", "2", "--threads", "1")
    found = run(benchmarks.imagenet, tmp_path, monkeypatch, *args)
    assert found["times_floor"] == pytest.approx(found["ours_s"] / found["floor_s"])
    assert found["ours_gb"] > 0.1


def test_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
