"""Weights files that move, and weights whose activation the file does not say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import train
from experiments.pictures import visualize, words
from runs.prediction import main as predict_main
from runs.result import read_result
from tests import children

from .test_train import SHORT, SMALL, command

pytestmark = pytest.mark.medium


@pytest.fixture
def moved(run_args: list[str], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A run that was trained with ``myclip.pt``, in a folder where that is not; and where it is now."""
    shutil.copy(weights, tmp_path / "myclip.pt")
    argv = [*command([*run_args[:-1], "myclip.pt"], "PLOT"), *SHORT, "TRAINER.PLOT.N", "2"]
    assert train.main(["--output-dir", str(tmp_path / "run"), *argv]) == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "myclip.pt").rename(tmp_path / "elsewhere" / "theirs.pt")
    return tmp_path / "run", tmp_path / "elsewhere" / "theirs.pt"


def other(weights: Path, path: Path) -> Path:
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "logit_scale": state["logit_scale"] * 1.5}, path)
    return path


def test_a_run_is_used_with_its_weights_elsewhere(
    moved: tuple[Path, Path], weights: Path, run_args: list[str], data_root: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, now = moved
    wrong, picture = other(weights, tmp_path / "wrong.pt"), str(next(data_root.rglob("face/*.jpg")))
    rest = command(run_args[:-2], "PLOT")
    before = read_result(run)
    assert before is not None

    def tested(*backbone: str) -> int:
        return train.main(["--eval-only", "--model-dir", str(run), *rest, *backbone, *SHORT])

    def resumed(*backbone: str) -> int:
        more = ["OPTIM.MAX_EPOCH", "3", "TRAINER.PLOT.N", "2", "INPUT.SIZE", "(64, 64)"]
        return train.main(["--output-dir", str(tmp_path / "on"), "--resume", str(run), *rest, *backbone, *SHORT, *more])

    def predicted(*backbone: str) -> int:
        return predict_main(["--run", str(run), *backbone, picture])

    def drawn(*backbone: str) -> int:
        return visualize.main([str(run), *backbone, picture])

    def spoken(*backbone: str) -> int:
        return words.main([str(run), *backbone])

    for use in (tested, resumed, predicted, drawn, spoken):
        capsys.readouterr()
        if use is not resumed:  # the config file of that names RN50
            assert use() == 2
            assert "--backbone FILE says where a file has moved to" in capsys.readouterr().err
        assert use("--backbone", str(wrong)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "wrong.pt' are not those that the run was trained with (SHA-256" in error
        assert use("--backbone", str(now)) == 0
        assert "compared" not in capsys.readouterr().err
    assert (read_result(run / "eval/caltech101") or {})["accuracy"] == before["accuracy"]


def test_an_unfinished_run_goes_on_with_its_weights_elsewhere(
    run_args: list[str], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(weights, tmp_path / "myclip.pt")
    argv = ["--output-dir", str(tmp_path / "run"), *command([*run_args[:-1], "myclip.pt"], "CoOp"), *SHORT]
    assert children.run(argv, tmp_path / "log", children.killed_at(14)) == -9
    (tmp_path / "myclip.pt").unlink()
    assert train.main([*argv, "MODEL.BACKBONE.NAME", str(other(weights, tmp_path / "wrong.pt"))]) == 2
    assert "another config (MODEL.BACKBONE.NAME 'myclip.pt' there" in capsys.readouterr().err
    assert train.main([*argv, "MODEL.BACKBONE.NAME", str(weights)]) == 0
    assert "Found checkpoint" in capsys.readouterr().out
    assert train.main([*argv, "MODEL.BACKBONE.NAME", str(weights)]) == 0
    assert "Finished before, kept" in capsys.readouterr().out


def test_weights_that_changed_in_their_place_are_refused(
    run_args: list[str], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(weights, tmp_path / "myclip.pt")
    argv = ["--output-dir", str(tmp_path / "run"), *command([*run_args[:-1], "myclip.pt"], "CoOp"), *SHORT]
    assert children.run(argv, tmp_path / "log", children.killed_at(14)) == -9
    other(weights, tmp_path / "myclip.pt")
    assert train.main(argv) == 2
    assert "myclip.pt' are not those that the run was trained with" in capsys.readouterr().err


def test_a_run_from_before_that_has_no_hash(
    moved: tuple[Path, Path], data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config has no such key, and its result no such field; the weights are used, and it is said."""
    run, now = moved
    config, result = yaml.safe_load((run / "config.yaml").read_text()), json.loads((run / "result.json").read_text())
    assert config["MODEL"]["BACKBONE"]["SHA256"] == result["backbone"]["sha256"]
    del config["MODEL"]["BACKBONE"]["SHA256"], config["MODEL"]["BACKBONE"]["ACTIVATION"]
    picture = str(next(data_root.rglob("face/*.jpg")))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert predict_main(["--run", str(run), "--backbone", str(now), picture]) == 0  # by the result's
    assert "compared" not in capsys.readouterr().err
    result["backbone"]["sha256"] = None
    (run / "result.json").write_text(json.dumps(result))
    assert predict_main(["--run", str(run), "--backbone", str(now), picture]) == 0
    said = f"'{run}' stores no SHA-256 of its weights: it was not compared with that of '{now}'\n"
    assert capsys.readouterr().err == said


def test_the_activation_goes_with_the_run(
    run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GELU and QuickGELU share no result: neither a run's directory nor, in half precision, kept features."""
    argv = [*command(run_args, "ZeroshotCLIP"), *SMALL]
    runs = {}
    for activation in ("", "quickgelu", "gelu"):
        output = tmp_path / f"run{activation}"
        words = ["--output-dir", str(output), *argv, "MODEL.BACKBONE.ACTIVATION", activation or "''"]
        assert train.main(words) == 0
        runs[activation] = output
    learned = [*command(run_args, "CoOp"), *SHORT]
    run = tmp_path / "learned"
    assert train.main(["--output-dir", str(run), *learned, "MODEL.BACKBONE.ACTIVATION", "gelu"]) == 0
    assert train.main(["--output-dir", str(run), *learned]) == 2
    assert "MODEL.BACKBONE.ACTIVATION 'gelu' there, '' asked for" in capsys.readouterr().err
    assert train.main(["--eval-only", "--model-dir", str(run), *learned]) == 0
    tested = yaml.safe_load((run / "eval/caltech101/config.yaml").read_text())
    assert tested["MODEL"]["BACKBONE"]["ACTIVATION"] == "gelu"
    results = [read_result(place) or {} for place in (run, run / "eval/caltech101")]
    assert results[0]["accuracy"] == results[1]["accuracy"]
