"""The shell entry points: recipes, the user's mistakes, and a whole run to its table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import jobs
from experiments.recipes import recipe
from runs.directory import REPOSITORY
from runs.result import read_result

pytestmark = pytest.mark.medium

CTX = ["INPUT.SIZE", "(64, 64)", "OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0"]


def bash(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    command = ["bash", str(REPOSITORY / "scripts" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (8, 200), (16, 200)])
def test_epochs_by_shots(shots: int, epochs: int) -> None:
    assert recipe("PLOT", "caltech101", shots) == ("rn50", f"OPTIM.MAX_EPOCH {epochs}")
    assert recipe("CoOp", "dtd", shots) == ("rn50" if epochs == 200 else f"rn50_ep{epochs}", "")
    assert recipe("CoCoOp", "dtd", shots) == ("vit_b16_c4_ep10_batch1_ctxv1", "")


def test_what_the_recipe_knows_of_datasets_and_configs() -> None:
    for dataset in ("oxford_flowers", "fgvc_aircraft", "stanford_cars"):
        assert recipe("PLOT", dataset, 1)[1] == "OPTIM.MAX_EPOCH 50 DATALOADER.TRAIN_X.BATCH_SIZE 32"
    assert recipe("PLOT", "imagenet", 16)[1] == "OPTIM.MAX_EPOCH 50 TRAINER.PLOT.GLOBAL_LOGITS True"
    assert recipe("CoOp", "imagenet", 16) == ("rn50_ep50", "")
    assert recipe("PLOT", "symbols", 16) == ("symbols", "")
    assert recipe("PLOT", "caltech101", 1, cfg="symbols") == ("symbols", "")
    assert recipe("PLOT", "symbols", 16, cfg="symbols_vit") == ("symbols_vit", "")
    assert recipe("PLOTPP", "symbols", 16) == recipe("PLOTPP", "symbols_layout", 1) == ("symbols_vit", "")
    assert recipe("PLOTPP", "caltech101", 16) == ("vit_b16", "OPTIM.MAX_EPOCH 200")
    assert recipe("PLOTPP", "imagenet", 16)[1].startswith("OPTIM.MAX_EPOCH 50 TRAINER.PLOTPP.CTX_INIT 'a photo of a|")
    assert recipe("PLOT", "caltech101", 16, cfg="vit_b16") == ("vit_b16", "OPTIM.MAX_EPOCH 200")
    assert recipe("ZeroshotCLIP", "dtd", 1) == ("rn50", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["caltech101"], "SHOTS is missing"),
        (["caltech101", "sixteen"], "SHOTS is 'sixteen'"),
    ],
)
def test_a_mistake_gives_one_line(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = bash("plot/main.sh", *arguments, OUT=str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert re.search(says, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def test_seeds_to_a_table(data_root: Path, weights: Path, tmp_path: Path) -> None:
    arguments = ["MODEL.BACKBONE.NAME", str(weights), *CTX]
    environment = {"DATA": str(data_root), "OUT": str(tmp_path / "out"), "SEEDS": "1 2", "N": "2"}
    done = bash("plot/main.sh", "caltech101", "1", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    results = [read_result(p.parent) for p in sorted((tmp_path / "out").rglob("result.json"))]
    accuracy = [r["accuracy"] for r in results if r]
    table = done.stdout.split("PLOT on caltech101, 1 shots")[1]
    for seed, value in zip((1, 2), accuracy, strict=True):
        assert re.search(rf"^{seed} +{value:.2f} ", table, re.M)
    assert re.search(rf"^mean +{sum(accuracy) / 2:.2f} ", table, re.M)
    assert all(r and r["N"] == 2 for r in results)


@pytest.mark.parametrize("shots", [[], ["16"]])
def test_zero_shot_may_be_asked_without_shots(
    shots: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(jobs, "run_train", started.append)
    assert jobs.main(["zsclip", "caltech101", *shots, "TEST.FEATURE_CACHE", "False"]) == 2  # nothing has run
    assert "result.json' is damaged" in capsys.readouterr().err
    assert started[0][-4:] == ["DATASET.NUM_SHOTS", "0", "TEST.FEATURE_CACHE", "False"]
