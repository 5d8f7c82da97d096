"""predict.py: the predictions of the run's own test, new classes, and pictures that cannot be read."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import train
from dassl.utils import UserError
from runs.prediction import main as predict_main
from runs.prediction import open_run, predict
from runs.result import load_result
from tests.conftest import CLASSES
from tests.runs.test_train import SHORT, command, one_result

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def run_of(weights: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each trainer."""
    out = tmp_path_factory.mktemp("runs")
    flags = ["--root", str(data_root), "--seed", "1", "--backbone", str(weights)]
    configs = {"PLOT": "rn50", "CoOp": "rn50_ep50", "CoCoOp": "rn50_c4_ep10_batch1_ctxv1", "ZeroshotCLIP": "rn50"}
    configs["PLOTCoCoOp"] = configs["CoCoOp"]
    for trainer, config in configs.items():
        extra = ["TRAINER.PLOT.N", "2"] if trainer == "PLOT" else []
        argv = ["--output-dir", str(out / trainer), *command(flags, trainer, config), *SHORT, *extra]
        assert train.main(argv) == 0
    return {trainer: out / trainer for trainer in configs}


@pytest.fixture
def images(data_root: Path) -> Path:
    return data_root / "caltech-101" / "101_ObjectCategories"


@pytest.mark.parametrize("trainer", ["PLOT", "CoOp", "CoCoOp", "PLOTCoCoOp", "ZeroshotCLIP"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_predictions_of_the_runs_own_test(
    trainer: str, batch_size: int, run_of: dict[str, Path], data_root: Path
) -> None:
    kept = json.loads((run_of[trainer] / "predictions.json").read_text())
    files = [data_root / image for image in kept["image"]]
    found = list(predict(run_of[trainer], files, batch_size=batch_size))
    assert [prediction.image for prediction in found] == [str(file) for file in files]
    result = load_result(run_of[trainer] / "result.json")
    names = result["classnames"]
    assert [p.top[0][0] for p in found] == [names[label] for label in kept["prediction"]]
    assert [file.parent.name for file in files] == [names[label] for label in kept["label"]]
    right = sum(a == b for a, b in zip(kept["label"], kept["prediction"], strict=True))
    assert len(set(files)) == 35 and result["accuracy"] == pytest.approx(100 * right / 35, abs=1e-3)
    for prediction in found:
        values = [probability for _, probability in prediction.top]
        assert len(values) == 5 and values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)


def test_new_classes_with_the_learned_context(run_of: dict[str, Path], images: Path) -> None:
    """The old names in another order keep their probabilities."""
    files = sorted(images.glob("face/*.jpg"))[:3]
    old = list(predict(run_of["PLOT"], files))
    names = [name.replace("_", " ") for name in reversed(CLASSES)]
    new = list(predict(run_of["PLOT"], files, classes=names))
    for a, b in zip(old, new, strict=True):
        theirs = {name.replace("_", " "): p for name, p in a.top}
        assert dict(b.top) == pytest.approx(theirs, rel=1e-4)
    other = next(predict(run_of["PLOT"], files, classes=["cat", "dog"]))
    assert {name for name, _ in other.top} == {"cat", "dog"}


def test_formats(run_of: dict[str, Path], images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--run", str(run_of["PLOT"]), "--top", "2", str(images / "leopard")]
    outputs = {}
    for form in ("text", "csv", "jsonl"):
        assert predict_main([*argv[:-1], "--format", form, argv[-1]]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        outputs[form] = captured.out
    lines = [json.loads(line) for line in outputs["jsonl"].splitlines()]
    rows = list(csv.DictReader(io.StringIO(outputs["csv"])))
    assert len(lines) == 18 and len(rows) == 36  # all pictures of the folder, sorted
    assert [line["image"] for line in lines] == sorted(line["image"] for line in lines)
    assert rows[1]["class"] == lines[0]["top"][1]["class"] and rows[1]["rank"] == "2"
    assert float(rows[0]["probability"]) == pytest.approx(lines[0]["top"][0]["probability"])
    best = lines[0]["top"][0]
    assert outputs["text"].splitlines()[:2] == [
        lines[0]["image"],
        f"  {100 * best['probability']:6.2f}%  {best['class']}",
    ]


def test_an_image_that_cannot_be_read_does_not_stop_the_others(
    run_of: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    good = sorted(images.glob("face/*.jpg"))[:2]
    argv = ["--run", str(run_of["CoOp"]), "--format", "jsonl", str(good[0]), str(bad), "nowhere.png", str(good[1])]
    assert predict_main(argv) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["image"] for line in captured.out.splitlines()] == [str(good[0]), str(good[1])]
    errors = captured.err.splitlines()
    assert len(errors) == 2 and str(bad) in errors[0] and "nowhere.png" in errors[1]


@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_names_that_standard_output_does_not_take(
    form: str, run_of: dict[str, Path], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).write_bytes(next(images.glob("face/*.jpg")).read_bytes())
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii", errors="strict"))
    assert predict_main(["--run", str(run_of["PLOT"]), "--format", form, str(tmp_path / name)]) == 0
    sys.stdout.flush()
    text = printed.getvalue().decode("ascii")
    assert ascii(name)[1:-1] in text if form != "jsonl" else json.loads(text)["image"] == str(tmp_path / name)


def test_the_function_takes_one_picture_and_refuses_what_it_would_misread(
    run_of: dict[str, Path], images: Path
) -> None:
    opened, picture = open_run(run_of["PLOT"]), str(next(images.glob("face/*.jpg")))
    assert list(predict(opened, picture)) == list(predict(opened, [picture]))
    with pytest.raises(TypeError, match="classes is 'cat,dog'"):
        next(predict(run_of["PLOT"], [picture], classes="cat,dog"))
    for wrong in ({"top": 0}, {"batch_size": 0}, {"batch_size": -1}):
        with pytest.raises(ValueError, match="1 or more"):
            next(predict(opened, [picture], **wrong))


def test_closed_standard_output(
    run_of: dict[str, Path], images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert predict_main(["--run", str(run_of["PLOT"]), str(next(images.glob("face/*.jpg")))]) == 2
    assert capsys.readouterr().err == "error: standard output is closed; there is nothing to print to\n"


def test_what_is_no_finished_run(
    run_of: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished, damaged, without = (
        Path(shutil.copytree(run_of["PLOT"], tmp_path / name)) for name in ("unfinished", "damaged", "without")
    )
    (unfinished / "result.json").unlink()
    (damaged / "result.json").write_text("{")
    shutil.rmtree(without / "prompt_learner")
    (tmp_path / "empty").mkdir()
    picture = str(next(images.glob("face/*.jpg")))
    for argv, says in (
        (["--run", "nowhere", picture], "'nowhere' is no run"),
        (["--run", str(unfinished), picture], "is unfinished: looked for"),
        (["--run", str(damaged), picture], "is damaged"),
        (["--run", str(without), picture], "no checkpoint in"),
        (["--run", str(run_of["PLOT"]), str(tmp_path / "empty")], "no pictures in"),
        (["--run", str(run_of["PLOT"]), "--classes", "cat,,dog", picture], "--classes is 'cat,,dog'"),
        (["--run", str(run_of["PLOT"]), "--top", "0", picture], "--top is 0"),
        (["--run", str(run_of["PLOT"]), "--format", "csv", picture, ""], "an IMAGE's name is empty"),
    ):
        assert predict_main(argv) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and says in captured.err, captured.err


def test_other_weights_than_the_runs_are_refused(run_of: dict[str, Path], weights: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(run_of["PLOT"], directory)
    state = torch.load(weights, weights_only=True)
    state["logit_scale"] = state["logit_scale"] * 1.5
    torch.save(state, tmp_path / "other.pt")
    config = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(config.replace(str(weights), str(tmp_path / "other.pt")))
    with pytest.raises(UserError, match=r"other.pt' are not those .* was trained with"):
        open_run(directory)


def test_class_specific_contexts_fit_their_own_classes_alone(run_args: list[str], images: Path, tmp_path: Path) -> None:
    assert train.main([*command(run_args, "CoOp", "rn50_ep50"), *SHORT, "TRAINER.COOP.CSC", "True"]) == 0
    directory, _ = one_result(tmp_path / "output")
    with pytest.raises(UserError, match="class-specific contexts"):
        open_run(directory, classes=["cat", "dog"])
    assert open_run(directory).classnames == list(CLASSES)
