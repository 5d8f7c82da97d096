"""The methods side by side: what runs, what is kept, what the table says and what is refused."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import pytest
from scipy import stats

from dassl.extras.cli import Environment
from experiments import compare
from experiments.recipes import own_options
from experiments.tables import significance
from runs.recipes import recipe
from tests.experiments.test_tables import grid
from trainers.method import methods

pytestmark = pytest.mark.medium


def test_all_four_to_one_table_and_again(
    tiny: list[str], in_process: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["caltech101", "1", *tiny]) == 0
    text = capsys.readouterr().out
    assert len(in_process) == 7  # zero-shot once, the others twice
    rows = {row[0]: row for row in grid(text)[1:]}
    assert list(rows) == ["zero-shot CLIP", "CoOp", "CoCoOp", "PLOT"]
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("result.json")]
    accuracy = {
        name: [r["accuracy"] for r in sorted(results, key=lambda r: r["seed"]) if r["trainer"] == name]
        for name in ("ZeroshotCLIP", "CoOp", "PLOT")
    }
    plot = rows["PLOT"]
    mean, half = statistics.fmean(accuracy["PLOT"]), significance.half_width(accuracy["PLOT"]) or 0
    assert plot[1:4] == [
        f"{mean:.2f}",
        f"{statistics.stdev(accuracy['PLOT']):.2f}",
        f"{mean - half:.2f} to {mean + half:.2f}",
    ]
    difference = [a - b for a, b in zip(accuracy["PLOT"], accuracy["CoOp"], strict=True)]
    assert plot[4].startswith(f"{statistics.fmean(difference):+.2f}".replace("+0.00", "0.00"))
    if len(set(difference)) > 1:
        assert plot[5] == f"{stats.ttest_rel(accuracy['PLOT'], accuracy['CoOp']).pvalue:.3f}"
    assert len(plot[6].split()) == 2 and plot[7] == str(2 * 16 * 64)
    assert rows["zero-shot CLIP"][2:4] == ["–¹", "–¹"] and rows["zero-shot CLIP"][5] == "–¹"
    assert rows["CoOp"][4:7] == ["–"] * 3
    (path,) = (tmp_path / "out/tables").glob("compare_caltech101_1shots*.csv")
    lines = {line["method"]: line for line in csv.DictReader(path.open())}
    assert float(lines["PLOT"]["mean"]) == pytest.approx(mean)
    assert compare.main(["caltech101", "1", *tiny]) == 0
    again = capsys.readouterr().out
    assert len(in_process) == 7 and again.count("finished before") == 7 and grid(again) == grid(text)


def test_one_seed_and_no_coop_give_dashes(
    tiny: list[str],
    in_process: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRAINERS", "plot")
    monkeypatch.setenv("SEEDS", "3")
    assert compare.main(["caltech101", "1", *tiny]) == 0
    text = capsys.readouterr().out
    assert grid(text)[1][2:7] == ["–¹", "–¹", "–²", "–²", "–²"]
    assert "¹ fewer than two seeds: no deviation, no interval." in text and "² CoOp has no run here." in text


def test_methods_of_different_backbones_are_refused_before_anything_runs(
    in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(compare, "recipe", lambda trainer, *rest: recipe(trainer, "dtd", 1))  # each paper's own
    assert compare.main(["caltech101", "1"]) == 2
    error = capsys.readouterr().err
    assert "mixed backbones: " in error and "CoCoOp on ViT-B/16" in error and error.count("\n") == 1
    assert not in_process and not list(tmp_path.iterdir())


def test_by_the_recipe_all_methods_are_on_one_backbone() -> None:
    for cfg, expected in (
        ("", {"rn50", "rn50_ep50", "rn50_c4_ep10_batch1_ctxv1"}),
        ("vit_b16", {"vit_b16", "vit_b16_ep50", "vit_b16_c4_ep10_batch1_ctxv1"}),
    ):
        jobs = compare.jobs_of(["ZeroshotCLIP", "CoOp", "CoCoOp", "PLOT"], "dtd", 1, [], Environment(CFG=cfg))
        assert {job.config for job in jobs} == expected


def test_options_go_to_the_method_that_has_them() -> None:
    opts = ["TRAINER.PLOT.N", "2", "OPTIM.LR", "0.1", "TRAINER.COOP.CSC", "True", "INPUT.SIZE", "(64, 64)"]
    assert own_options("PLOT", opts) == ["TRAINER.PLOT.N", "2", "OPTIM.LR", "0.1", "INPUT.SIZE", "(64, 64)"]
    assert own_options("ZeroshotCLIP", opts) == ["INPUT.SIZE", "(64, 64)"]


@pytest.mark.parametrize(
    ("dataset", "configs"), [("symbols", ("symbols", "symbols_vit")), ("dtd", ("rn50", "vit_b16"))]
)
def test_all_methods_by_backbone(dataset: str, configs: tuple[str, str]) -> None:
    groups = compare.all_methods(dataset, 16, [], Environment())
    found = [{job.trainer: job.config for job in jobs} for jobs in groups]
    assert [names["PLOT"] for names in found] == list(configs)
    assert all({"ZeroshotCLIP", "CoOp", "PLOT"} <= set(names) for names in found)
    ours = {name for name in methods() if not name.startswith("Toy")}
    assert set(found[1]) == ours and set(found[1]) - set(found[0]) == {"PLOTPP"}


def test_a_method_without_a_config_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    (jobs,) = compare.all_methods("dtd", 1, [], Environment(BACKBONE="rn101"))
    assert "PLOTPP" not in [job.trainer for job in jobs]
    line = "PLOTPP is left out: it has no config for this backbone; its own is vit_b16\n"
    assert line in capsys.readouterr().out
