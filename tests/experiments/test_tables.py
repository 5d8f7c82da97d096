"""The paper's tables from result.json files: numbers, blanks with their commands, refused inputs."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from pathlib import Path

import pytest
from scipy import stats

from experiments.recipes import compared_methods
from experiments.tables import __main__ as tables
from experiments.tables.published import published
from experiments.tables.render import WIDTH, Section, Table
from experiments.tables.suite import DATASETS, SHIFTED, SHOTS
from runs.recipes import method_of
from runs.result import hash_of_checkpoints
from tests.experiments.trees import write_run, write_table


def show(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert tables.main(list(argv)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def grid(text: str, part: int = 0) -> list[list[str]]:
    """The cells of the part-th Markdown table, of the file that was written if any: headers, then rows."""
    if written := re.search(r"^Written: (.*?\.md), ", text, re.M):
        text = Path(written[1]).read_text()
    found = re.findall(r"((?:^\|.*\|\n)+)", text, re.M)
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in found[part].splitlines()]
    return [rows[0], *rows[2:]]


def commands(text: str) -> list[str]:
    return re.findall(r"^.*bash scripts/.*$", text, re.M)


def records(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_the_published_table_beside_an_empty_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, "few-shot", "--out", str(tmp_path))
    rows = grid(text)
    assert len(rows) == 1 + (len(DATASETS) + 1) * len(compared_methods()) and all(len(row) == 17 for row in rows)
    lines = (tmp_path / "tables/few_shot.md").read_text().splitlines()
    assert len({len(line) for line in lines if line.startswith("| ") and line.count("|") == 18}) == 1  # no gap
    for row in rows[1:]:
        assert row[2::3] == [""] * 5 and row[4::3] == [""] * 5  # ours and the differences
        assert all(row[3::3]) == (row[1] != "CoCoOp")
    (average,) = (row for row in rows if row[:2] == ["average", "PLOT"])
    assert [float(cell) for cell in average[3::3]] == pytest.approx([62.59, 65.23, 68.60, 71.23, 73.94], abs=0.031)
    assert "no results of this project" in text.replace("\n", " ")
    assert len(commands(text)) == len(DATASETS) * (1 + 3 * len(SHOTS))


def test_the_published_figures_are_tested_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = grid(show(capsys, "few-shot", "--out", str(tmp_path)), 1)
    (row,) = (row for row in rows if row[:3] == ["CoOp", "16", "published"])
    figures = [[published("few-shot", d, m, 16) for d in DATASETS] for m in ("PLOT", "CoOp")]
    a, b = ([figure.mean for figure in side if figure] for side in figures)
    assert row[3] == "11" and row[5] == f"{stats.ttest_rel(a, b).pvalue:.3f}"
    assert row[6] == f"{stats.wilcoxon(a, b, method='exact').pvalue:.3f}"


def test_numbers_averages_and_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, ("caltech101", "dtd", "food101"), (1, 16))
    text = show(
        capsys, "few-shot", "--out", str(tmp_path), "--dataset", "caltech101", "dtd", "food101", "--shots", "1", "16"
    )
    assert commands(text) == [] and "(n)" not in text
    kept = {
        (r["table"], r["dataset"], r["method"], r["shots"]): r
        for r in records(next(tmp_path.glob("tables/few_shot*.csv")))
    }
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]

    def accuracies(dataset: str, method: str, shots: int) -> list[float]:
        runs = [r for r in found if (r["dataset"], r["trainer"], r["shots"]) == (dataset, method, shots)]
        return [r["accuracy"] for r in sorted(runs, key=lambda r: r["seed"])]

    means = {}
    for dataset in ("caltech101", "dtd", "food101"):
        for method in compared_methods()[1:]:
            values = accuracies(dataset, method, 16)
            means[method, dataset] = statistics.fmean(values)
            row = kept["few-shot", dataset, method, "16"]
            assert float(row["mean"]) == pytest.approx(statistics.fmean(values)) and row["runs"] == "3"
            assert float(row["std"]) == pytest.approx(statistics.stdev(values))
    average = statistics.fmean(means["PLOT", d] for d in ("caltech101", "dtd", "food101"))
    assert float(kept["few-shot", "average", "PLOT", "16"]["mean"]) == pytest.approx(average)
    a, b = ([means[m, d] for d in ("caltech101", "dtd", "food101")] for m in ("PLOT", "CoOp"))
    tested = kept["PLOT against CoOp (ours)", "all", "PLOT", "16"]
    expected = stats.ttest_rel(a, b).pvalue
    assert float(tested["t_test_p"]) == pytest.approx(expected)
    shown = {tuple(row[:2]): row for row in grid(text)[1:]}
    mean, std = means["PLOT", "dtd"], statistics.stdev(accuracies("dtd", "PLOT", 16))
    assert shown["dtd", "PLOT"][5:] == [f"{mean:.2f} ± {std:.2f}", "65.60 ± 0.82", f"{mean - 65.60:+.2f}"]
    zero_shot = shown["dtd", "zero-shot CLIP"]
    assert zero_shot[2] == zero_shot[5] == "62.00" and "±" not in "".join(zero_shot)  # one run, no deviation


def test_what_is_missing_is_blank_and_has_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "PLOT", seed=2)
    write_run(tmp_path, "CoOp", seed=1)
    write_run(tmp_path, "ZeroshotCLIP")
    text = show(capsys, "few-shot", "--out", str(tmp_path), "--dataset", "caltech101", "--shots", "16")
    here = f"OUT={tmp_path}"
    assert commands(text) == [
        f"{here} SEEDS='2 3' bash scripts/coop/main.sh caltech101 16",
        f"{here} BACKBONE=rn50 bash scripts/cocoop/main.sh caltech101 16",
        f"{here} SEEDS='1 3' bash scripts/plot/main.sh caltech101 16",
    ]
    rows = {row[1]: row for row in grid(text)[1:]}
    assert rows["PLOT"][2] == "90.00 (1)" and rows["CoCoOp"][2] == "" and rows["zero-shot CLIP"][2] == "90.00"
    assert "(n): of n runs, fewer than the seeds asked for." in text
    tests = {row[0]: row for row in grid(text, 1)}
    assert tests["zero-shot CLIP"][5:] == ["–¹"] * 2 and tests["CoOp"][5:] == ["–²"] * 2
    assert "¹ zero-shot CLIP has no seeds: no test over seeds." in text
    assert "² fewer than two seeds with both methods: no test." in text


def test_one_dataset_is_tested_over_its_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, plot, coop in ((1, 51.0, 50.0), (2, 52.0, 50.0), (3, 53.0, 50.0)):
        write_run(tmp_path, "PLOT", "symbols", 16, seed, plot)
        write_run(tmp_path, "CoOp", "symbols", 16, seed, coop)
    text = show(capsys, "few-shot", "--dataset", "symbols", "--out", str(tmp_path), "--shots", "16")
    (row,) = (row for row in grid(text, 1) if row[0] == "CoOp")
    assert row[3:] == ["3", "+2.00 ± 1.00", "0.074", "0.250"]
    assert "published" not in " ".join(grid(text)[0])


def test_mixed_backbones_are_named_and_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        write_run(tmp_path, seed=seed, accuracy=80.0)
    write_run(tmp_path, seed=3, accuracy=86.0, backbone={"name": "ViT-B/16", "sha256": "5806e77cd80f"})
    argv = ["few-shot", "--dataset", "caltech101", "--shots", "16", "--out", str(tmp_path)]
    assert tables.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and captured.out == ""
    assert re.search(r"mixed backbones: RN50 .*2 runs.*ViT-B/16 .*1 runs.*--mixed", captured.err), captured.err
    text = show(capsys, *argv, "--mixed")
    assert "82.00 ± 3.46" in text and "Mixed, as asked for" in text


def test_a_further_method_on_another_backbone_has_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PLOT++, which needs a ViT; but it has one where it shares a backbone, is alone, or is asked for."""
    vit = {"name": "ViT-B/16", "sha256": "5806e77cd80f"}
    further = write_run(tmp_path, "PLOTPP", backbone=vit)
    argv = ["--dataset", "caltech101", "--shots", "16", "--out", str(tmp_path)]
    assert "PLOT++" in [row[1] for row in grid(show(capsys, "few-shot", *argv))[1:]]
    write_run(tmp_path)
    for table in ("few-shot", "cost", "diagnostics"):
        text = show(capsys, table, *argv)
        assert "PLOT++" not in [word for row in grid(text)[1:] for word in row]
        assert f"No row for PLOT++: its runs are on another backbone, such as '{further}'" in " ".join(text.split())
    assert "PLOT++" in [row[1] for row in grid(show(capsys, "few-shot", *argv, "--backbone", "ViT-B/16"))[1:]]
    assert "PLOT++" in [row[1] for row in grid(show(capsys, "few-shot", *argv, "--mixed"))[1:]]
    write_run(tmp_path, "TipAdapter")
    assert "Tip-Adapter" in [row[1] for row in grid(show(capsys, "few-shot", *argv))[1:]]


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"epochs": 3, "overrides": {"OPTIM.MAX_EPOCH": 3}}, "PLOT, MAX_EPOCH 3"),
        ({"epochs": 50}, "PLOT, 50 epochs"),  # by a config for other shots
        ({"overrides": {"OPTIM.LR": 0.1, "TRAINER.PLOT.N": 8}, "options": {"N": 8}}, "PLOT, LR 0.1, N 8"),
        (
            {"overrides": {"TRAIN.CHECKPOINT_FREQ": 5}},
            "PLOT, TRAIN.CHECKPOINT_FREQ 5",
        ),  # where there is the same without
        ({"config": "rn50_ctxv1"}, "PLOT, config rn50_ctxv1"),
    ],
)
def test_a_quick_try_is_counted_or_has_a_row(
    change: dict, row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path, seed=seed, accuracy=80.0 + seed)
        write_run(tmp_path, dataset="dtd", seed=seed, accuracy=60.0)
    tried = write_run(tmp_path, folder="try", accuracy=50.0, **change)
    for table in ("few-shot", "cost", "prompts", "match", "diagnostics"):
        argv = [table, "--dataset", "caltech101", "dtd", "--shots", "16", "--out", str(tmp_path)]
        text = show(capsys, *argv)
        line = f"Left out: 1 finished run with other options than this table's, such as '{tried}'; few-shot and cost"
        if not (table == "diagnostics" and "N 8" in row):
            assert line in text.replace("\n", " ") and "50.00" not in text, table
        if table in ("few-shot", "cost"):
            text = show(capsys, *argv, "--overrides")
            rows = {line[-3 if table == "few-shot" else 2] for line in grid(text)} | {line[1] for line in grid(text)}
            assert row in rows or f"{row} (1)" in rows, rows
            assert ("50.00 (1)" in text) == (table == "few-shot") and "Left out" not in text


def test_base_to_new_counts_the_runs_of_the_base_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run on all classes is no candidate for the table; one on the base classes with other options is."""
    write_run(tmp_path, accuracy=80.0)
    tried = write_run(tmp_path, subsample_classes="base", overrides={"OPTIM.LR": 0.1}, epochs=3, accuracy=50.0)
    text = show(capsys, "base-to-new", "--dataset", "caltech101", "--shots", "16", "--out", str(tmp_path))
    assert f"Left out: 1 finished run with other options than this table's, such as '{tried}'" in text.replace(
        "\n", " "
    )


def test_a_run_without_a_seed_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Earlier versions wrote -1; a zero-shot run is whole without one."""
    write_run(tmp_path, seed=1, accuracy=80.0)
    run = write_run(tmp_path, seed=-1, accuracy=50.0)
    write_run(tmp_path, "ZeroshotCLIP", seed=-1, accuracy=40.0)
    for table in [*tables.TABLES]:
        text = show(capsys, table, *([] if table == "domain" else ["--dataset", "caltech101"]), "--out", str(tmp_path))
        assert f"Left out: 1 finished run without a seed, such as '{run}'." in text.replace("\n", " ")
        assert "50.00" not in text
        if table == "few-shot":
            rows = {row[1]: row for row in grid(text)}
            assert (rows["PLOT"][14], rows["zero-shot CLIP"][14]) == ("80.00 (1)", "40.00")


def test_one_backbone_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, accuracy=80.0)
    vit = {"name": "ViT-B/16", "sha256": "5806e77cd80f"}
    write_run(tmp_path, accuracy=90.0, folder="vit", backbone=vit, config="vit_b16")
    argv = ["few-shot", "--dataset", "caltech101", "--shots", "16", "--out", str(tmp_path)]
    assert tables.main(argv) == 2
    capsys.readouterr()
    for name in ("vit_b16", "ViT-B/16", "5806e"):
        assert grid(show(capsys, *argv, "--backbone", name))[4][2] == "90.00 (1)"
    text = show(capsys, *argv, "--backbone", "vit_b16")
    assert grid(text)[4][4] == ""  # no difference to a figure on another backbone
    assert f"OUT={tmp_path} SEEDS='2 3' BACKBONE=vit_b16 bash scripts/plot/main.sh caltech101 16" in text


def test_runs_with_other_settings_or_classes_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, accuracy=80.0)
    write_run(tmp_path, accuracy=10.0, overrides={"OPTIM.LR": 0.1})
    write_run(tmp_path, accuracy=11.0, overrides={"TRAINER.PLOT.N": 8}, options={"N": 8})
    write_run(tmp_path, accuracy=12.0, overrides={"TRAINER.PLOT.MATCH": "mean"}, options={"MATCH": "mean"})
    write_run(tmp_path, accuracy=13.0, folder="ctxv1", config="rn50_ctxv1")
    base = {"DATASET.SUBSAMPLE_CLASSES": "base"}
    write_run(tmp_path, accuracy=14.0, overrides=base, subsample_classes="base")
    text = show(capsys, "few-shot", "--dataset", "caltech101", "--shots", "16", "--out", str(tmp_path))
    assert grid(text)[4][2] == "80.00 (1)"


def test_a_place_with_two_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    write_run(tmp_path, folder="copy")
    assert tables.main(["few-shot", "--out", str(tmp_path)]) == 2
    assert re.search(r"error: two runs for one place .*copy/seed1.*default/seed1", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ('{"accuracy": 90', "Expecting"),
        ("[1]", "no mapping"),
        ('{"accuracy": NaN, "seed": 1}', "is damaged"),
        *(({field: True}, f"'{field}' is True") for field in ("accuracy", "seed", "config", "options", "diagnostics")),
        *(({field: "1"}, f"'{field}' is '1'") for field in ("batch_size", "peak_memory_bytes", "classnames")),
        ({"accuracy": 101.0}, "'accuracy' is 101"),
        ({"device": "a\nb"}, "'device' is no name"),
        ({"backbone": {"name": "RN50", "sha256": 5}}, "'backbone.sha256' is 5"),
        ({"seconds": {"step_seconds": 10**400}}, "'seconds.step_seconds' is 1000"),
    ],
)
@pytest.mark.parametrize("table", list(tables.TABLES))
def test_a_damaged_result_is_named(
    table: str, damage: str | dict[str, object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path) / "result.json"
    whole = json.loads(path.read_text())
    path.write_text(damage if isinstance(damage, str) else json.dumps(whole | damage))
    assert tables.main([table, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error and says in error


def test_what_a_result_may_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nulls = dict.fromkeys(("config", "diagnostics", "batch_size", "parameters"))
    write_run(tmp_path, backbone={"name": "RN50", "sha256": None}, seconds={}, counts={}, **nulls)
    assert grid(show(capsys, "few-shot", "--dataset", "caltech101", "--out", str(tmp_path)))[4][14] == "90.00 (1)"


def test_what_is_named_twice_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = ["--dataset", "symbols", "--shots", "1", "--out", str(tmp_path)]
    twice = ["--dataset", "symbols", "symbols", "--shots", "1", "1", "--out", str(tmp_path)]
    for table in tables.TABLES:
        assert show(capsys, table, *twice) == show(capsys, table, *once)


def test_an_out_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in ("new", "mistyped/new"):
        monkeypatch.setenv("OUT", str(tmp_path / out))
        text = show(capsys, "cost", "--dataset", "symbols")
        assert grid(text)[1][3:6] == [""] * 3
        assert ("Not written: there is no folder" in text) == (out != "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_matching_variants_and_whether_the_plan_matters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ot alone is right on image 0 in two seeds; uniform alone on 1 to 6 in seed 2."""
    right = {
        ("ot", 1): [0] * 8,
        ("uniform", 1): [1] + [0] * 7,
        ("ot", 2): [0] + [1] * 6 + [0],
        ("uniform", 2): [1] + [0] * 7,
    }
    for (kind, seed), predictions in right.items():
        overrides = {} if kind == "ot" else {"TRAINER.PLOT.MATCH": kind}
        accuracy = 100 * predictions.count(0) / 8
        write_run(
            *(tmp_path, "PLOT", "symbols", 16, seed, accuracy),
            overrides=overrides,
            options={"MATCH": kind},
            predictions=predictions,
        )
    text = show(capsys, "match", "--dataset", "symbols", "--out", str(tmp_path))
    rows = {row[2]: row for row in grid(text)[1:]}
    assert rows["ot"][5:] == ["–", "–", "–"] and rows["mean"][3:] == ["", "", "", "", ""]
    p = stats.ttest_rel([87.5, 87.5], [100, 25]).pvalue
    assert rows["uniform"][5:] == ["+25.00 ± 53.03", f"{p:.3f}", "1.000 0.125"]
    assert grid(text, 1)[1] == ["symbols", "16", "ot", "0.9700", "0.1000", "0.500", "12.00"]
    assert f"OUT={tmp_path} bash scripts/plot/main.sh symbols 16 TRAINER.PLOT.MATCH max" in commands(text)
    (line,) = (r for r in records(tmp_path / "tables/match_symbols.csv") if r["variant"] == "uniform")
    assert (line["only_this_right"], line["only_base_right"]) == ("0 6", "1 1")


def test_runs_without_predictions_get_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, dataset="symbols", diagnostics=None)
    uniform = {"overrides": {"TRAINER.PLOT.MATCH": "uniform"}, "options": {"MATCH": "uniform"}}
    write_run(tmp_path, dataset="symbols", **uniform, diagnostics=None)
    text = show(capsys, "match", "--dataset", "symbols", "--out", str(tmp_path))
    assert grid(text)[2][6:] == ["–¹", "–²"] and "The plans" not in text and "Plans, over all" not in text
    assert "¹ fewer than two seeds that both have: no test." in text and "² no paired predictions" in text


def test_damaged_predictions_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, dataset="symbols", predictions=[0, 1])
    uniform = {"TRAINER.PLOT.MATCH": "uniform"}
    bad = write_run(tmp_path, dataset="symbols", overrides=uniform, options={"MATCH": "uniform"}, predictions=[0])
    (bad / "predictions.json").write_text('{"image": [')
    assert tables.main(["match", "--dataset", "symbols", "--out", str(tmp_path)]) == 2
    assert re.search(r"predictions.json' is damaged", capsys.readouterr().err)


def test_the_number_of_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n, gain in ((1, 0.0), (2, 1.0), (4, 2.0)):
        for seed in (1, 2, 3):
            overrides = {} if n == 4 else {"TRAINER.PLOT.N": n}
            accuracy = 50 + gain + seed * (1 + gain)
            write_run(tmp_path, "PLOT", "symbols", 16, seed, accuracy, overrides=overrides, options={"N": n})
    text = show(capsys, "prompts", "--dataset", "symbols", "--out", str(tmp_path))
    rows = {row[2]: row for row in grid(text)[1:]}
    assert rows["4"][3] == "58.00 ± 3.00"
    expected = stats.ttest_rel([55, 58, 61], [51, 52, 53]).pvalue
    assert rows["4"][5:7] == ["+6.00 ± 2.00", f"{expected:.3f}"] and rows["8"][3] == ""
    assert commands(text) == [f"OUT={tmp_path} N=8 bash scripts/plot/main.sh symbols 16"]


def test_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "PLOT", "symbols", peak_gpu_memory_bytes=2**31, device="cuda")
    write_run(tmp_path, "ZeroshotCLIP", "symbols")
    read = {"total": 9.0, "kept_test_images_per_second": 36000.0, "step_seconds": 0.5}
    write_run(tmp_path, "PLOT", "symbols", seed=2, peak_gpu_memory_bytes=2**31, device="cuda", seconds=read)
    write_run(tmp_path, "CoCoOp", "symbols", seconds=read)
    rows = {row[2]: row for row in grid(show(capsys, "cost", "--dataset", "symbols", "--out", str(tmp_path)))[1:]}
    assert rows["PLOT (2)"][3:] == ["64.0", "200.0", "500.0", "2048", "8192", "cuda"]
    assert rows["zero-shot CLIP"][3:] == ["–¹", "200.0", "–¹", "1024", "0", "cpu"]
    assert rows["CoOp"][3:] == [""] * 6 and rows["CoCoOp (1)"][4] == "–²"


def test_rates_and_times_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps of 0.1 and 0.9 s at batch 32: 64 images a second, not the mean of 320 and 36."""
    for seed, step, test in ((1, 0.1, 100.0), (2, 0.9, 300.0)):
        seconds = {"total": 9.0, "test_images_per_second": test, "step_seconds": step}
        write_run(tmp_path, "PLOT", "symbols", seed=seed, seconds=seconds)
    rows = {row[2]: row for row in grid(show(capsys, "cost", "--dataset", "symbols", "--out", str(tmp_path)))}
    assert rows["PLOT (2)"][3:6] == ["64.0", "150.0", "500.0"]


def test_an_interval_of_an_accuracy_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, low, high in ((1, 20.0, 95.0), (2, 45.0, 99.0)):
        write_run(tmp_path, "PLOT", "symbols", 16, seed, low, {"TRAINER.PLOT.N": 1}, {"N": 1})
        write_run(tmp_path, "PLOT", "symbols", 16, seed, high)
    rows = {row[2]: row for row in grid(show(capsys, "prompts", "--dataset", "symbols", "--out", str(tmp_path)))}
    assert rows["1"][4] == "0.00 to 100.00" and rows["4"][4] == "71.59 to 100.00"


def test_a_test_of_checkpoints_that_are_no_more_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, "CoOp", "symbols")
    (run / "prompt_learner").mkdir()
    (run / "prompt_learner/model.pth.tar-15").write_text("learned")
    tested = json.loads((run / "result.json").read_text()) | {"dataset": "symbols_layout", "accuracy": 70.0}
    (run / "eval/symbols_layout").mkdir(parents=True)
    for hash_of, shown in ((hash_of_checkpoints(run), "70.00 (1)"), (None, "70.00 (1)"), ("another", "")):
        (run / "eval/symbols_layout/result.json").write_text(json.dumps(tested | {"tested": hash_of}))
        rows = grid(show(capsys, "domain", "--dataset", "symbols", "--out", str(tmp_path)))
        assert next(row for row in rows if "CoOp" in row[:2]).count("70.00 (1)") == bool(shown)


def test_diagnostics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, dataset="symbols")
    single = {"plan_entropy": 1.0, "text_cosine": None}
    write_run(
        tmp_path,
        dataset="symbols",
        overrides={"TRAINER.PLOT.N": 1},
        options={"N": 1},
        diagnostics={**single, "plan_distance": 0.0},
    )
    rows = grid(show(capsys, "diagnostics", "--dataset", "symbols", "--out", str(tmp_path)))
    assert rows[1][2:5] == ["1", "ot", "90.00 (1)"] and rows[1][5] == "1.0000" and rows[1][11] == "–¹"
    assert rows[2][5:] == ["0.9700", "0.1000", "0.500", "12.00", "4.50", "9.00", "0.900", "3.90"]


def test_domain_generalization_shows_both_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = {"TRAINER.PLOT.GLOBAL_LOGITS": True}
    options = {"N": 4, "MATCH": "ot"}
    run = write_run(
        *(tmp_path, "PLOT", "symbols", 16, 1, 60.0), overrides=head, options={**options, "GLOBAL_LOGITS": True}
    )
    write_run(tmp_path, "PLOT", "symbols", accuracy=1.0)  # without the global logits: not of this table
    for target, on, off in (("symbols_layout", 50.0, 40.0), ("symbols_outline", 30.0, 20.0)):
        for kept, accuracy in ((True, on), (False, off)):
            place = write_run(tmp_path / "made", "PLOT", target, 16, 1, accuracy, folder=str(kept))
            result = json.loads((place / "result.json").read_text())
            result["options"]["GLOBAL_LOGITS"] = kept
            result["overrides"] = {} if kept else {"TRAINER.PLOT.GLOBAL_LOGITS": False}
            there = run / "eval" / (target if kept else f"{target}_GLOBAL_LOGITSFalse")
            there.mkdir(parents=True)
            (there / "result.json").write_text(json.dumps(result))
            (place / "result.json").unlink()
    text = show(capsys, "domain", "--dataset", "symbols", "--out", str(tmp_path))
    rows = {row[0]: row for row in grid(text)[1:]}
    assert rows["PLOT, tested as trained"][1:] == ["60.00 (1)", "50.00 (1)", "30.00 (1)", "", "", ""]
    assert rows["PLOT, tested as published"][1:] == ["60.00 (1)", "40.00 (1)", "20.00 (1)", "", "", ""]
    assert f"OUT={tmp_path} TRAINERS=coop bash scripts/protocols/domain_generalization.sh symbols 16" in commands(text)
    published_rows = grid(show(capsys, "domain", "--out", str(tmp_path)))
    (row,) = (r for r in published_rows if r[0] == "PLOT, tested as published")
    assert row[2::3][:5] == ["63.01", "55.11", "33.00", "21.86", "55.61"]


def test_markdown_csv_and_latex_are_written_beside_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, ("symbols",), (1, 16))
    text = show(capsys, "few-shot", "--dataset", "symbols", "--out", str(tmp_path), "--shots", "1", "16")
    folder = tmp_path / "tables"
    assert grid(text) == grid((folder / "few_shot_symbols_1-16shots.md").read_text())
    latex = (folder / "few_shot_symbols_1-16shots.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")]
    assert body.count(r"\\") == 4 and all(line.count("&") == 3 for line in body.splitlines() if "&" in line)
    assert r"$\pm$" in latex and "±" not in latex and "%" not in re.sub(r"\\%", "", latex)
    assert {r["shots"] for r in records(folder / "few_shot_symbols_1-16shots.csv")} == {"1", "16"}


def test_latex_of_signs_and_of_wide_tables() -> None:
    rows = [["-1.50 ± 0.20", "<0.001", "a > b | c", "rn50-x"]]
    narrow = Table("", "n - 1", [Section("", list("abcd"), rows)]).latex()
    row = r"$-$1.50 $\pm$ 0.20 & \ensuremath{<}0.001 & a \ensuremath{>} b \textbar{} c & rn50-x"
    assert row in narrow and "resizebox" not in narrow
    wide = Table("", "wide", [Section("", ["x" * 30] * 4, rows)]).latex()
    assert wide.count("{") == wide.count("}")
    assert r"\resizebox{\textwidth}{!}{\begin{tabular}" in wide and r"\end{tabular}}" in wide


def every_option(out: Path, dataset: str, shots: int) -> None:
    """Runs of all methods, seeds and variants, with wide numbers, and a test on each shifted set."""
    for method in compared_methods():
        for seed in (1, 2, 3) if method_of(method).has_seeds else (1,):
            variants = [{}, {"GLOBAL_LOGITS": True}, *({"N": n} for n in (1, 2, 8)), {"MATCH": "uniform"}]
            for options in variants if method == "PLOT" and shots == 16 else [{}]:
                overrides = {f"TRAINER.PLOT.{key}": value for key, value in options.items()}
                fields = {"parameters": 10**7 * (method != "ZeroshotCLIP"), "peak_memory_bytes": 2**36}
                accuracy = 10.0 + seed * 25 + 0.01 * len(str(options))
                place = (method, dataset, shots, seed, accuracy, overrides, options, [seed, 0, 0])
                run = write_run(out, *place, device="cuda:0", **fields)
                for target in SHIFTED[dataset] if shots == 16 else ():
                    there = run / "eval" / target
                    there.mkdir(parents=True, exist_ok=True)
                    result = json.loads((run / "result.json").read_text()) | {"dataset": target}
                    (there / "result.json").write_text(json.dumps(result))
    write_run(out, "PLOT", dataset, shots, 1, 9.0, {"OPTIM.MAX_EPOCH": 3, "OPTIM.LR": 0.00123}, epochs=3)


@pytest.mark.medium
def test_no_table_is_wider_than_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all cells full; the files have each table whole, and every footnote its mark."""
    for dataset, shots in (*(("symbols", n) for n in SHOTS), ("imagenet", 16)):
        every_option(tmp_path, dataset, shots)
    everything = [[table, *more] for table in tables.TABLES for more in ([], ["--dataset", "symbols"])]
    everything += [[table, "--dataset", "symbols", "--overrides"] for table in ("few-shot", "cost")]
    everything += [["variants", "--variant", "PLOT.N"], ["variants", "--variant", "PLOT.CTX_INIT"]]
    for argv in everything:
        text = show(capsys, *argv, "--out", str(tmp_path))
        table, _, _ = text.partition("\nBlank cells")
        wide = [line for line in table.splitlines() if len(line) > WIDTH and "/" not in line]
        assert not wide, (argv, wide[0])
        shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line[:1] == "|"]
        for row in grid(text):
            assert any(set(row) >= set(part) for part in shown) and all(any(c in part for part in shown) for c in row)
        marks = {sign for sign in "¹²³⁴⁵" if re.search(f"^{sign} ", table, re.M)}
        assert all(re.search(rf"[–\d]{sign}", table) for sign in marks), argv
        assert ("(n):" in table) == bool(re.search(r"\(\d\) ", table)), argv
    (cost,) = tmp_path.glob("tables/cost_symbols.md")
    assert cost.read_text().count("img/s") == 2


def test_any_option_of_a_method_makes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the values of finished runs and the default; prompts and match are two of them."""
    for seed in (1, 2, 3):
        write_run(tmp_path, "PLOT", "symbols", 16, seed, 50.0 + seed)
        write_run(tmp_path, "PLOT", "symbols", 16, seed, 60.0 + 2 * seed, {"TRAINER.PLOT.EPS": 0.05}, {"EPS": 0.05})
    write_run(tmp_path, "PLOT", "symbols", 16, 1, 1.0, {"TRAINER.PLOT.EPS": 0.7, "OPTIM.LR": 1.0}, {"EPS": 0.7})
    write_run(tmp_path, "CoOp", "symbols", 16, 1, 40.0, {"TRAINER.COOP.CSC": True}, {"CSC": True})
    place = ["--dataset", "symbols", "--out", str(tmp_path)]
    text = show(capsys, "variants", "--variant", "PLOT.EPS", *place)
    rows = {row[2]: row for row in grid(text)}
    assert list(rows) == ["EPS", "0.05", "0.1"] and "weight of the plan's entropy" in text
    assert rows["0.05"][3] == "64.00 ± 2.00" and rows["0.05"][5] == "+12.00 ± 1.00" and rows["0.1"][5] == "–"
    write_run(tmp_path, "PLOT", "symbols", 16, 1, 70.0, {"TRAINER.PLOT.N": 2}, {"N": 2}, diagnostics={"iterations": 1})
    text = show(capsys, "variants", "--variant", "PLOT.N,PLOT.EPS", *place)
    rows = {(row[2], row[3]): row for row in grid(text)[1:]}
    assert list(rows) == [("2", "0.1"), ("4", "0.05"), ("4", "0.1")] and "diff. to N = 4, EPS = 0.1" in text
    assert rows["4", "0.05"][4:7:2] == ["64.00 ± 2.00", "+12.00 ± 1.00"] and rows["2", "0.1"][4] == "70.00 (1)"
    assert [row[2:4] for row in grid(text, 1)[1:]] == [["4", "0.05"], ["4", "0.1"]]  # the other has no plans
    assert (tmp_path / "tables/PLOT.N_PLOT.EPS_symbols.csv").is_file()
    for bad in ("PLOT.EPS,COOP.CSC", "PLOT.EPS,PLOT.EPS"):
        assert tables.main(["variants", "--variant", bad, *place]) == 2
        assert "options of one method, each once" in capsys.readouterr().err
    text = show(capsys, "variants", "--variant", "COOP.CSC", *place)
    assert [row[2:4] for row in grid(text)[1:]] == [["False", ""], ["True", "40.00 (1)"]]
    assert f"OUT={tmp_path} SEEDS='2 3' bash scripts/coop/main.sh symbols 16 TRAINER.COOP.CSC True" in commands(text)
    for short, option in (("prompts", "PLOT.N"), ("match", "PLOT.MATCH")):
        assert grid(show(capsys, short, *place)) == grid(show(capsys, "variants", "--variant", option, *place))


def test_tables_of_other_options_are_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "PLOT", "symbols")
    for more in ([], ["--shots", "16"], ["--backbone", "RN50"], ["--mixed"], ["--overrides"]):
        show(capsys, "few-shot", "--dataset", "symbols", "--out", str(tmp_path), *more)
    assert len(list(tmp_path.glob("tables/few_shot_symbols*.md"))) == 5
