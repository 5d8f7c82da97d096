"""The few-shot curves: which panels and points are drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import figures
from experiments.tables.request import Request
from experiments.tables.results import read_runs
from experiments.tables.suite import DATASETS, SHOTS
from tests.experiments.trees import write_run, write_table

pytestmark = pytest.mark.medium


def request(out: Path, datasets: tuple[str, ...]) -> Request:
    return Request(out, read_runs(out), datasets, SHOTS)


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """The points drawn, by label."""
    found = {}
    for container in axes.containers:
        x, y = container.lines[0].get_data()
        found[container.get_label()] = list(map(float, x)), list(map(float, y))
    return found


def test_a_panel_a_dataset_and_the_average(tmp_path: Path) -> None:
    write_table(tmp_path, DATASETS, SHOTS)
    figure = figures.draw(request(tmp_path, DATASETS))
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == ["average of 11 datasets", *DATASETS]
    drawn = lines(panels[1 + DATASETS.index("dtd")])
    found = [r for r in read_runs(tmp_path) if (r.dataset, r.trainer, r.shots) == ("dtd", "PLOT", 4)]
    assert drawn["PLOT"][0] == list(SHOTS)
    assert drawn["PLOT"][1][2] == pytest.approx(sum(r.accuracy for r in found) / 3)
    assert drawn["PLOT, published"][1] == [46.55, 51.24, 56.03, 61.70, 65.60]
    assert drawn["zero-shot CLIP"][0] == [0] and "CoCoOp, published" not in drawn
    average = lines(panels[0])
    means = [lines(axes)["PLOT"][1][0] for axes in panels[1:]]
    assert average["PLOT"][1][0] == pytest.approx(sum(means) / 11)


def test_what_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, "PLOT", "symbols", 4, 1, 50.0)
    (axes,) = figures.draw(request(tmp_path, ("symbols",))).axes
    assert lines(axes) == {"PLOT": ([4.0], [50.0])}


def test_files_and_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, ("symbols",), (1, 2))
    assert figures.main(["--dataset", "symbols", "--out", str(tmp_path)]) == 0
    for ending, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert (tmp_path / f"tables/few_shot_curves_symbols.{ending}").read_bytes().startswith(start)
    monkeypatch.setenv("OUT", str(tmp_path / "mistyped/new"))
    assert figures.main(["--dataset", "symbols"]) == 0
    assert "Not written" in capsys.readouterr().out and not (tmp_path / "mistyped").exists()
    write_run(tmp_path, "PLOT", "symbols", 1, 4, epochs=99)
    assert figures.main(["--dataset", "symbols", "--out", str(tmp_path)]) == 0
    assert "Left out: 1 finished run with other options" in capsys.readouterr().out
    assert figures.main(["--dataset", "symbols", "--out", str(tmp_path), "--shots", "all"]) == 2
    assert "a curve has no place for all images" in capsys.readouterr().err


def test_points_of_different_backbones_or_epochs_are_not_joined(tmp_path: Path) -> None:
    write_table(tmp_path, ("symbols",), (1, 2))
    write_run(tmp_path, "PLOT", "symbols", 4, 1, 90.0, epochs=3, overrides={"OPTIM.MAX_EPOCH": 3})
    write_run(tmp_path, "CoOp", "symbols", 4, 1, 90.0, backbone={"name": "ViT-B/16", "sha256": "5806e77cd80f"})
    (axes,) = figures.draw(replace(request(tmp_path, ("symbols",)), mixed=True)).axes
    assert lines(axes)["PLOT"][0] == [1.0, 2.0] and lines(axes)["CoOp"][0] == [1.0, 2.0, 4.0]
    joined = {container.get_label(): container.lines[0].get_linestyle() for container in axes.containers}
    assert joined["CoOp"] == "None" and joined["PLOT"] == "-"
