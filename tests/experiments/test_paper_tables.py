"""The tables beyond accuracy by shots: ablation, base to new, time, leaks, published; flags; few-shot sets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments import compare, protocols
from experiments.jobs import Job
from experiments.recipes import own_options
from experiments.tables import __main__ as tables
from experiments.tables.published import published
from experiments.tables.results import Cell, finished
from tests.experiments.test_tables import commands, grid, records, show
from tests.experiments.trees import write_run
from trainers import plot
from trainers.method import Option

HERE = ("--dataset", "symbols")


def test_runs_on_other_few_shot_sets_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For one dataset, seed and shots; runs from before there was a hash are not compared."""
    write_run(tmp_path, "PLOT", "symbols", 16, 1, split_sha256="aaaaaaaa11")
    write_run(tmp_path, "PLOT", "symbols", 16, 2, split_sha256="bbbbbbbb22")
    write_run(tmp_path, "PLOT", "symbols", 8, 1, split_sha256="cccccccc33")
    write_run(tmp_path, "CoOp", "symbols", 16, 1)
    write_run(tmp_path, "CoOp", "symbols", 16, 2, split_sha256="bbbbbbbb22")
    argv = ["few-shot", *HERE, "--shots", "8", "16", "--out", str(tmp_path)]
    assert "mixed" not in show(capsys, *argv)
    write_run(tmp_path, "CoCoOp", "symbols", 16, 1, split_sha256="dddddddd44")
    assert tables.main(argv) == 2
    captured = capsys.readouterr()
    says = (
        r"error: mixed few-shot sets: '.*/PLOT/.*seed1' \(split aaaaaaaa\) and '.*/CoCoOp/.*seed1' \(split dddddddd\)"
    )
    found = captured.err
    assert re.search(says, found) or re.search("mixed few-shot sets: .*dddddddd.* and .*aaaaaaaa", found), found
    assert captured.err.count("\n") == 1 and "--mixed" in captured.err and captured.out == ""
    assert "Mixed, as asked for: mixed few-shot sets" in show(capsys, *argv, "--mixed")


def test_a_list_for_all_methods_goes_into_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = {"DATASET.FEW_SHOT_LIST": "lists/{seed}.jsonl"}
    for method in ("PLOT", "CoOp"):
        write_run(tmp_path, method, "symbols", 16, 1, overrides=overrides, folder="list", split_sha256="aa")
    write_run(tmp_path, "ZeroshotCLIP", "symbols")
    text = show(capsys, "few-shot", *HERE, "--shots", "16", "--out", str(tmp_path))
    assert grid(text)[2][2] == "90.00 (1)"
    words = "bash scripts/plot/main.sh symbols 16 DATASET.FEW_SHOT_LIST 'lists/{seed}.jsonl'"
    assert f"OUT={tmp_path} SEEDS='2 3' {words}" in commands(text)


@pytest.mark.parametrize("leak", [{"test_selected": True}, {"options": {"AS_PUBLISHED": True}}])
def test_a_flagged_run_has_a_mark_and_a_footnote(
    leak: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "CoOp", "symbols", 16, 1, 80.0)
    write_run(tmp_path, "PLOT", "symbols", 16, 1, 90.0, **leak)
    why = "chosen on the test set" if "test_selected" in leak else "run as its published code does (AS_PUBLISHED)"
    for table, column in (("few-shot", 2), ("match", 3), ("diagnostics", 4), ("ablation", 1)):
        text = show(capsys, table, *HERE, "--shots", "16", "--out", str(tmp_path))
        found = re.search(r"90\.00 \(1\)([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)
        assert found and f"{found[1]} {why}." in text, (table, column)
        assert not re.search(r"80\.00 \(1\)[⁰¹²³⁴⁵⁶⁷⁸⁹]", text)


def test_the_ablation_has_a_command_for_each_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = plot.PLOT.ablation
    for i, (name, options) in enumerate(rows.items()):
        overrides = {f"TRAINER.PLOT.{key}": value for key, value in options.items()}
        for seed in (1, 2):
            write_run(tmp_path, "PLOT", "symbols", 16, seed, 50.0 + i + seed * i, overrides=overrides, options=options)
        assert i or name == "PLOT"
    text = show(capsys, "ablation", *HERE, "--shots", "1", "16", "--out", str(tmp_path))
    shown = {row[0]: row[1:] for row in grid(text)[1:]}
    assert list(shown) == ["CoOp", *rows]
    for i, name in enumerate(rows):
        assert shown[name][3] == f"{50 + 2.5 * i:.2f} ± {i * 0.5**0.5:.2f} (2)"
        assert shown[name][4].startswith(f"{2.5 * i:+.2f}" if i else "–")
    asked = [line for line in commands(text) if " 1 " in line or line.endswith(" 1")]
    assert (
        f"OUT={tmp_path} bash scripts/plot/main.sh symbols 1 TRAINER.PLOT.MATCH global TRAINER.PLOT.VARIANCE 1.0"
        in asked
    )
    texts = f"TRAINER.PLOT.MATCH global TRAINER.PLOT.CTX_INIT '{plot.TEXTS}'"
    assert f"OUT={tmp_path} bash scripts/plot/main.sh symbols 1 {texts}" in asked
    assert len(asked) == 7 and "our reading" in text.replace("\n", " ")
    (path,) = (tmp_path / "tables").glob("ablation_symbols*.csv")
    kept = [r for r in records(path) if r["shots"] == "16" and r["setting"] in rows]
    assert [float(r["mean"]) for r in kept] == [50 + 2.5 * i for i in range(len(rows))]


def test_an_old_run_lacks_an_option_and_has_its_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uniform = {"MATCH": "uniform"}
    write_run(tmp_path, "PLOT", "symbols", overrides={"TRAINER.PLOT.MATCH": "uniform"}, options=uniform)
    rows = {row[0]: row[1] for row in grid(show(capsys, "ablation", *HERE, "--shots", "16", "--out", str(tmp_path)))}
    assert rows["M: the feature map"] == "90.00 (1)"
    assert rows["M + V: with variance between the prompts"] == ""


def test_base_to_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = {"DATASET.SUBSAMPLE_CLASSES": "base"}
    for method, base, new in (("PLOTCoCoOp", 80.0, 60.0), ("CoOp", 90.0, 50.0)):
        run = write_run(
            *(tmp_path, method, "symbols", 16, 1, base), overrides=part, folder="base", subsample_classes="base"
        )
        tested = json.loads((run / "result.json").read_text()) | {"accuracy": new, "subsample_classes": "new"}
        (run / "eval/symbols_new").mkdir(parents=True)
        (run / "eval/symbols_new/result.json").write_text(json.dumps(tested))
    for name, accuracy in (("base", 70.0), ("new", 65.0)):
        write_run(
            *(tmp_path, "ZeroshotCLIP", "symbols", 0, 1, accuracy),
            overrides={"DATASET.SUBSAMPLE_CLASSES": name},
            folder=name,
            subsample_classes=name,
        )
    write_run(tmp_path, "CoOp", "symbols", 16, 1, 10.0)  # on all classes: not of this table
    text = show(capsys, "base-to-new", *HERE, "--out", str(tmp_path))
    rows = {row[2]: row[3:] for row in grid(text)[1:]}
    assert rows["PLOT + CoCoOp"] == ["80.00 (1)", "60.00 (1)", "68.57"]
    assert rows["CoOp"] == ["90.00 (1)", "50.00 (1)", "64.29"] and rows["zero-shot CLIP"][:2] == ["70.00", "65.00"]
    assert rows["PLOT"] == ["", "", ""]
    assert f"OUT={tmp_path} TRAINERS=plot bash scripts/protocols/base_to_new.sh symbols 16" in commands(text)


def test_what_serves_no_other_classes_has_no_row_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dataset in ("symbols", "imagenet"):
        write_run(tmp_path, "LinearProbe", dataset)
        found = {}
        for table in ("few-shot", "base-to-new", "domain"):
            text = show(capsys, table, "--dataset", dataset, "--shots", "16", "--out", str(tmp_path))
            found[table] = "linear probe" in {word for row in grid(text) for word in row}
        assert found == {"few-shot": True, "base-to-new": False, "domain": dataset == "symbols"}


def test_adapters_with_and_without_transport(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "TipAdapterF", "symbols", 16, 1, 70.0)
    text = show(capsys, "adapters", *HERE, "--shots", "16", "--out", str(tmp_path))
    rows = {row[1]: row[2] for row in grid(text)[1:]}
    assert rows == {"Tip-Adapter": "", "Tip-Adapter-F": "70.00 (1)", "PLOT-Adapter": ""}
    assert f"OUT={tmp_path} bash scripts/plot_adapter/main.sh symbols 16" in commands(text)


def test_time_by_the_number_of_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "CoOp", "symbols", seconds={"total": 1.0, "step_seconds": 0.1})
    for n in (1, 4, 8):
        overrides, seconds = {} if n == 4 else {"TRAINER.PLOT.N": n}, {"total": 1.0, "step_seconds": 0.1 * n}
        write_run(tmp_path, "PLOT", "symbols", overrides=overrides, options={"N": n}, seconds=seconds)
    text = show(capsys, "time", *HERE, "--out", str(tmp_path))
    rows = {row[2]: row[3] for row in grid(text)[1:]}
    assert rows == {
        "CoOp": "100.0",
        "PLOT, N = 1": "100.0",
        "PLOT, N = 2": "",
        "PLOT, N = 4": "400.0",
        "PLOT, N = 8": "800.0",
    }
    assert f"OUT={tmp_path} N=2 bash scripts/plot/main.sh symbols 16" in commands(text)


def test_leaks_are_found_from_the_methods_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaky = Option("AS_PUBLISHED", False, "chooses by the test set")
    monkeypatch.setattr(plot.PLOT, "options", (*plot.PLOT.options, leaky))
    for seed in (1, 2, 3):
        write_run(tmp_path, "PLOT", "symbols", 16, seed, 50.0 + seed)
        leak = {"overrides": {"TRAINER.PLOT.AS_PUBLISHED": True}, "options": {"AS_PUBLISHED": True}}
        write_run(tmp_path, "PLOT", "symbols", 16, seed, 52.0 + 2 * seed, test_selected=True, **leak)
    text = show(capsys, "leaks", *HERE, "--out", str(tmp_path))
    rows = {row[2]: row[3:] for row in grid(text)[1:]}
    assert rows["PLOT"][:3] == ["52.00 ± 1.00", "56.00 ± 2.00¹", "+4.00 ± 1.00"]
    assert "¹ chosen on the test set." in text
    clean = show(capsys, "few-shot", *HERE, "--shots", "16", "--out", str(tmp_path))
    assert {row[1]: row[2] for row in grid(clean)[1:]}["PLOT"] == "52.00 ± 1.00"  # a flagged run enters no clean cell


def test_leaks_of_methods_on_different_backbones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PLOT++ needs a ViT. One method on two backbones is refused still."""
    vit = {"name": "ViT-B/16", "sha256": "5806e77cd80f"}
    write_run(tmp_path, "TipAdapter", "dtd")
    write_run(tmp_path, "PLOT", "dtd")
    write_run(tmp_path, "PLOTPP", "dtd", backbone=vit)
    argv = ["--dataset", "dtd", "--out", str(tmp_path)]
    assert "No row for PLOT++" in show(capsys, "few-shot", *argv)
    text = show(capsys, "leaks", *argv)
    assert "No row" not in text
    rows = {row[2]: row[3] for row in grid(text)[1:]}
    assert rows["PLOT++"] and rows["Tip-Adapter"] and not rows["Tip-Adapter-F"]
    (line,) = (line for line in commands(text) if "plotpp" in line and "AS_PUBLISHED" in line)
    assert "BACKBONE=" not in line
    write_run(tmp_path, "PLOTPP", "dtd", seed=2)
    assert tables.main(["leaks", *argv]) == 2
    assert "mixed backbones: " in capsys.readouterr().err


def test_published_figures_of_other_methods_have_their_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = show(capsys, "published", "--out", str(tmp_path))
    assert "RN50" in text and "ViT-B/16" in text and "chosen" not in text.split("# ")[0]
    rows = {row[0]: row[1:] for part in (0, 1) for row in grid(text, part)[1:]}
    assert [float(re.sub("[^0-9.]", "", cell)) for cell in rows["PLOT++"][1:]] == [70.71, 74.0, 76.92, 79.65, 82.09]
    mark = rows["PLOT++"][5].removeprefix("82.09")
    assert f"{mark} seeds 2 and 3 start from prompts trained on the shots of seed 1." in text
    assert rows["CLIP-SVD"][5] == "82.97" and rows["GalLoP"][5].startswith("84.4")


def test_figures_of_another_backbone_stand_beside_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vit = {"name": "ViT-B/16", "sha256": "5806e77cd80f"}
    write_run(tmp_path, "CoOp", "dtd", accuracy=70.0, backbone=vit, config="vit_b16")
    argv = ["few-shot", "--dataset", "dtd", "--shots", "16", "--out", str(tmp_path), "--backbone", "vit_b16"]
    figure = published("few-shot", "dtd", "CoOp", 16, "ViT-B/16")
    assert figure and published("few-shot", "dtd", "CoOp", 16) != figure
    text = show(capsys, *argv)
    row = {row[1]: row for row in grid(text)[1:]}["CoOp"]
    assert row[2:] == ["70.00 (1)", f"{figure.mean:.2f}", f"{70 - figure.mean:+.2f}"]
    assert "published/more.csv names, on ViT-B/16" in text.replace("\n", " ")


def test_all_tables_and_all_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, "all", *HERE, "--shots", "1", "--out", str(tmp_path))
    assert len(re.findall(r"^# ", text, re.M)) == len(tables.TABLES)
    found = show(capsys, "all", *HERE, "--shots", "1", "--commands", "--out", str(tmp_path)).splitlines()
    assert set(found) == set(commands(text)) and len(found) == len(set(found))
    assert all(re.match(rf"OUT={tmp_path} .*bash scripts/\S+ .*symbols", line) for line in found)
    few = show(capsys, "few-shot", *HERE, "--shots", "1", "--commands", "--out", str(tmp_path)).splitlines()
    assert found[: len(few)] == few


def test_comparisons_and_protocols_mark_a_flagged_run(tmp_path: Path) -> None:
    clean = Cell((finished(write_run(tmp_path, "CoOp", "symbols", accuracy=80.0)),))
    flagged = Cell((finished(write_run(tmp_path, "PLOT", "symbols", test_selected=True)),))
    table = compare.build({"CoOp": clean, "PLOT": flagged}, [1], "compare", "title")
    rows = {row[0]: row[1] for row in grid(table.markdown())[1:]}
    assert rows["CoOp"] == "80.00" and re.fullmatch("90.00[¹²³⁴⁵]", rows["PLOT"])
    assert f"{rows['PLOT'][-1]} chosen on the test set." in table.markdown()
    assert table.accuracy(flagged) == rows["PLOT"] and table.accuracy(clean) == "80.00"


def test_a_list_of_images_goes_to_tests_on_its_own_dataset_alone() -> None:
    job = Job("CoOp", "symbols", 4, "symbols", opts=["DATASET.FEW_SHOT_LIST", "a.jsonl", "OPTIM.LR", "0.1"])
    assert protocols.Test(job, "symbols_layout").there.opts == ["OPTIM.LR", "0.1"]
    assert protocols.Test(job, "symbols", ("A", "b")).there.opts == [*job.opts, "A", "b"]
    assert own_options("CoOp", [*job.opts]) == job.opts and own_options("ZeroshotCLIP", [*job.opts]) == []
