"""train, evaluate, load and compare from Python: the runs that commands make, and their mistakes as exceptions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import experiments.compare
from dassl.utils import UserError
from runs import evaluate, load, train
from runs.directory import REPOSITORY
from runs.python import Result

SMALL = {"INPUT.SIZE": (64, 64), "DATALOADER.TRAIN_X.BATCH_SIZE": 4, "OPTIM.MAX_EPOCH": 1, "DATALOADER.NUM_WORKERS": 0}


@pytest.fixture
def options(weights: Path) -> dict[str, object]:
    return {"MODEL.BACKBONE.NAME": weights, **SMALL}


@pytest.mark.medium
def test_a_run_is_trained_tested_and_loaded(
    options: dict[str, object],
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("runs.python.SHOWN_EVERY", 0.02)
    result = train("PLOT", "caltech101", 1, options={"N": 2, "N_CTX": 3, **options}, data=data_root, out=tmp_path)
    assert result.directory.parent.name.startswith("n2_nctx3_") and result.directory.name == "seed1"
    assert result.record["options"]["N"] == 2 and result.accuracy == result.record["accuracy"]
    made = (result.directory / "result.json").stat().st_mtime_ns
    again = train("PLOT", "caltech101", 1, options={"N": 2, "N_CTX": 3, **options}, data=data_root, out=tmp_path)
    assert re.match(r"epoch \[\d+/\d+\] .* eta 0:00:\d\d$", capsys.readouterr().err.splitlines()[0])
    assert again == result and (result.directory / "result.json").stat().st_mtime_ns == made  # kept
    assert len(result.predictions()["image"]) == result.record["counts"]["test"]

    test = evaluate(result, options={"DATALOADER.NUM_WORKERS": 0}, data=data_root)
    assert test.directory == result.directory / "eval/caltech101" and test.accuracy == result.accuracy
    classes = {"DATASET.SUBSAMPLE_CLASSES": "new", "DATALOADER.NUM_WORKERS": 0}
    new = evaluate(result.directory, options=classes, data=data_root)
    assert new.directory.name == "caltech101_new" and new.record["counts"]["classes"] == 2

    run = load(result.directory)
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    (best,) = run.predict(picture, top=2)
    assert len(best) == 2 and best[0][0] == run.classes(picture)[0] and best[0][1] >= best[1][1]
    assert len(run.predict([picture, Image.fromarray(picture)])) == 2
    n_cls = len(run.classnames)
    assert run.plans(picture).numpy().shape[:2] == (1, n_cls) and run.features(picture)["pooled"].numpy().ndim == 2


@pytest.mark.medium
def test_what_a_run_meets_is_raised(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset folder"):
        train("ZeroshotCLIP", "caltech101", 1, options=options, data=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_are_found_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr("runs.process.start", None)
    with pytest.raises(UserError, match="PLOT"):
        train("PLAT", "symbols", 16)
    with pytest.raises(UserError, match="nearest there is 'symbols'"):
        train("PLOT", "symbol", 16)
    with pytest.raises(UserError, match="positive integer, or 'all'"):
        train("PLOT", "symbols", 0)
    with pytest.raises(UserError, match=r"TRAINER\.PLOT\.N is 0"):
        train("PLOT", "symbols", 16, options={"N": 0})
    with pytest.raises(UserError, match="no finished run"):
        evaluate(tmp_path)
    with pytest.raises(UserError, match="none of ZeroshotCLIP"):
        experiments.compare("symbols", 16, ["clap"])


@pytest.mark.medium
def test_compare_gives_a_table_that_a_notebook_shows(
    options: dict[str, object], data_root: Path, tmp_path: Path
) -> None:
    from experiments import compare

    methods = ["ZeroshotCLIP", "plot"]
    table = compare("caltech101", 1, methods, (1, 2), options, data=data_root, out=tmp_path)
    assert [record["method"] for record in table.records] == ["ZeroshotCLIP", "PLOT"]
    assert table.records[1]["runs"] == 2
    html = table._repr_html_()
    assert "<table>" in html and "zero-shot CLIP" in html and html.count("<tr>") == 3


def test_importing_runs_does_not_import_torch() -> None:
    """A program starts the server of its runs, and a Ray worker begins, before torch."""
    code = "import sys, runs, experiments; assert callable(runs.__getattr__) and 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_a_result_is_shown_in_a_line() -> None:
    assert repr(Result(Path("run"), 57.2, {"seconds": {}})).count("\n") == 0
