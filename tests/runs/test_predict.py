"""predict.py: the predictions of the run's own test, new classes, and pictures that cannot be read."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.evaluation import Classification
from dassl.utils import UserError
from predict import load, predict
from runs.directory import REPOSITORY
from runs.prediction import main as predict_main
from runs.result import load_result
from tests.conftest import CLASSES
from tests.runs.test_train import SHORT, SMALL, command, one_result

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
    opened, picture = load(run_of["PLOT"]), str(next(images.glob("face/*.jpg")))
    assert list(predict(opened, picture)) == list(predict(opened, [picture]))
    with pytest.raises(TypeError, match="classes is 'cat,dog'"):
        next(predict(run_of["PLOT"], [picture], classes="cat,dog"))
    with pytest.raises(ValueError, match="a loaded run has its own"):
        next(predict(opened, [picture], classes=["cat", "dog"]))
    for wrong in ({"top": 0}, {"batch_size": 0}, {"batch_size": -1}):
        with pytest.raises(ValueError, match="1 or more"):
            next(predict(opened, [picture], **wrong))


def test_of_a_folder_everything_is_used_or_named(
    run_of: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links are followed; hidden and other files are counted on stderr."""
    picture = next(images.glob("face/*.jpg"))
    for name in ("a.jpg", "below/b.jpg", ".hidden/c.jpg", "notes.txt", "raw.heic2", "Thumbs.db"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, tmp_path / "mine" / name)
    (tmp_path / "mine/linked").symlink_to(images / "face")
    (tmp_path / "mine/broken.png").symlink_to("nothing")
    assert predict_main(["--run", str(run_of["PLOT"]), "--format", "csv", "--top", "1", str(tmp_path / "mine")]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1 + 2 + len([*(images / "face").glob("*.jpg")])
    assert said.err == (
        f"Not used of '{tmp_path / 'mine'}': 2 hidden files ('.hidden/c.jpg' the first), "
        "3 other files ('broken.png' the first)\n"
    )


def test_a_loaded_run_takes_paths_pictures_and_arrays(run_of: dict[str, Path], images: Path, tmp_path: Path) -> None:
    """All four give the same logits, which are those behind ``predict``; the plans and features make them."""
    run, path = load(run_of["PLOT"]), next(images.glob("face/*.jpg"))
    picture = Image.open(path)
    array = np.asarray(picture)
    logits = run.logits([path, str(path), picture, array])
    assert logits.shape == (4, 5) and all(torch.equal(row, logits[0]) for row in logits)
    assert torch.allclose(run.logits(array), logits[:1], atol=1e-5)
    (found,) = predict(run, path, top=1)
    assert run.classes([picture, array]) == [found.top[0][0]] * 2
    assert logits[0].softmax(dim=0).max().item() == pytest.approx(found.top[0][1], rel=1e-4)
    features, plans = run.features([picture, array, path]), run.plans([picture, array, path])
    assert {name: x.shape for name, x in features.items()} == {"pooled": (3, 64), "local": (3, 4, 64)}
    f, g = F.normalize(features["local"][0], dim=-1), F.normalize(run.text_features(), dim=-1)
    score = torch.einsum("kmn,md,nkd->k", plans[0], f, g)
    torch.testing.assert_close(score * run.trainer.model.logit_scale.exp(), logits[0], rtol=1e-3, atol=1e-4)

    other = load(run_of["CoCoOp"])
    with pytest.raises(UserError, match="keeps no transport plans"):
        other.plans(picture)
    with pytest.raises(UserError, match="depend on the image"):
        other.text_features()
    for wrong in (array / 255, array[0, 0], np.dstack([array, array])):
        with pytest.raises(UserError, match="an array holds uint8"):
            run.logits(wrong)
    grey = Image.fromarray(array[..., 0])
    assert torch.equal(run.logits(grey), run.logits(array[..., 0]))
    with pytest.raises(UserError, match="image not found"):
        run.logits([picture, tmp_path / "none.png"])
    assert run.logits([]).shape == (0, 5)


@pytest.mark.parametrize("trainer", ["PLOT", "CoCoOp", "ZeroshotCLIP"])
def test_features_are_saved(
    trainer: str, run_of: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad.jpg", sorted(map(str, images.glob("face/*.jpg")))[:3]
    bad.write_bytes(b"no picture")
    file = tmp_path / "features.npz"
    argv = ["--run", str(run_of[trainer]), "--batch-size", "2", "--features", str(file), good[0], str(bad), *good[1:]]
    assert predict_main(argv) == 1
    saved, run = np.load(file), load(run_of[trainer])
    assert saved["image"].tolist() == good and saved["class"].tolist() == run.classnames
    features = run.features(good)
    assert {"local", "pooled", "text"} & {*saved} == {*features} | ({"text"} if trainer != "CoCoOp" else set())
    for name, x in features.items():
        np.testing.assert_allclose(saved[name], x.numpy(), rtol=1e-4, atol=1e-5)
    assert trainer == "CoCoOp" or np.array_equal(saved["text"], run.text_features().numpy())
    capsys.readouterr()
    argv[argv.index(str(file))] = str(tmp_path / "nowhere" / "features.npz")
    assert predict_main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "its folder does not exist" in captured.err


def test_the_parameters_are_those_of_a_test(
    run_args: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer whose test has other parameters than those it has trained puts them in place in ``before_test``."""
    kind, tested = TRAINER_REGISTRY.get("CoOp"), list[torch.Tensor]()

    def before_test(self: Any, split: str) -> None:
        with torch.no_grad():
            self.model.prompt_learner.ctx.mul_(20).add_(1)

    monkeypatch.setattr(kind, "before_test", before_test)
    process = Classification.process
    monkeypatch.setattr(Classification, "process", lambda self, *x: process(self, *x) or tested.append(x[0]))
    run, root = tmp_path / "run", Path(run_args[1])
    assert train.main(["--output-dir", str(run), *command(run_args, "CoOp"), *SHORT]) == 0
    files = [root / image for image in json.loads((run / "predictions.json").read_text())["image"]]
    logits = torch.cat(tested)
    torch.testing.assert_close(load(run).logits(files), logits, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(kind, "before_test", lambda self, split: None)
    assert (load(run).logits(files) - logits).abs().max() > 1e-2


def test_a_picture_that_is_too_large_can_be_allowed(
    run_of: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is cut behind its header, so that an allowed picture is refused for that."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    huge = tmp_path / "huge.png"
    Image.new("1", (18000, 10000)).save(huge)
    huge.write_bytes(huge.read_bytes()[:200])
    argv = ["--run", str(run_of["CoOp"]), str(huge)]
    assert predict_main(argv) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is too large" in error and "INPUT.MAX_PIXELS (--max-pixels)" in error
    assert predict_main([*argv[:2], "--max-pixels", "180000000", *argv[2:]]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "too large" not in error and "cannot decode image" in error


@pytest.mark.slow
def test_a_run_whose_output_is_not_utf_8_keeps_its_result(run_args: list[str], images: Path, tmp_path: Path) -> None:
    """Real processes, in a folder with an umlaut: a test, and a prediction with it."""
    run, picture = tmp_path / "für" / "lauf", tmp_path / "größe.jpg"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY)}
    shutil.copy(next(images.glob("face/*.jpg")), picture)
    tested = ["train.py", "--output-dir", str(run), *command(run_args, "ZeroshotCLIP"), *SMALL]
    for argv, shown in ((tested, r"f\xfcr"), (["predict.py", "--run", str(run), str(picture)], r"gr\xf6\xdfe.jpg")):
        program = [sys.executable, str(REPOSITORY / argv[0]), *argv[1:]]
        done = subprocess.run(program, capture_output=True, env=environment, check=True)
        assert shown in done.stdout.decode("ascii")
    assert "für" in (run / "log.txt").read_text(encoding="utf-8") and load_result(run / "result.json")


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
        load(directory)


def test_class_specific_contexts_fit_their_own_classes_alone(run_args: list[str], images: Path, tmp_path: Path) -> None:
    assert train.main([*command(run_args, "CoOp", "rn50_ep50"), *SHORT, "TRAINER.COOP.CSC", "True"]) == 0
    directory, _ = one_result(tmp_path / "output")
    with pytest.raises(UserError, match="class-specific contexts"):
        load(directory, classes=["cat", "dog"])
    assert load(directory).classnames == list(CLASSES)
