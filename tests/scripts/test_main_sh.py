"""The shell entry points: recipes, the user's mistakes, and a whole run to its table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import runs
from scripts import few_shot

pytestmark = pytest.mark.medium

CTX = ["INPUT.SIZE", "(64, 64)", "OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0"]


def bash(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    command = ["bash", str(runs.REPOSITORY / "scripts" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def recipe(trainer: str, dataset: str, shots: int, cfg: str = "") -> tuple[str, str]:
    call = f"CFG={cfg}; recipe {trainer} {dataset} {shots}"
    code = f'source {runs.REPOSITORY}/scripts/recipe.sh; {call}; echo "$CFG|$RECIPE"'
    done = subprocess.run(["bash", "-euc", code], capture_output=True, text=True, check=True)
    name, _, pairs = done.stdout.strip().partition("|")
    return name, pairs


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
    assert recipe("PLOT", "caltech101", 16, cfg="vit_b16") == ("vit_b16", "OPTIM.MAX_EPOCH 200")
    assert recipe("ZeroshotCLIP", "dtd", 1) == ("rn50", "")


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["caltech101"], {}, "usage: "),
        (["caltech101", "sixteen"], {}, "SHOTS is 'sixteen'"),
        (["caltech101", "0"], {}, "SHOTS is '0'"),
        (["caltech102", "1"], {}, "no config 'caltech102': .*'caltech101'"),
    ],
)
def test_a_mistake_gives_one_line(arguments: list[str], environment: dict[str, str], says: str, tmp_path: Path) -> None:
    done = bash("plot/main.sh", *arguments, OUT=str(tmp_path / "out"), **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert re.search(says, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("environment", "config", "says"),
    [
        ({"SEEDS": "1 two"}, "rn50", "SEEDS is '1 two'"),
        ({"SEEDS": "0"}, "rn50", "SEEDS is '0'"),
        ({"N": "-1"}, "rn50", "N is '-1'"),
        ({"N": "2 3"}, "rn50", "N is '2 3'; it must be one"),
        ({}, "rn55", "no config 'rn55': .*'rn50'"),
    ],
)
def test_a_mistake_in_the_environment(
    environment: dict[str, str],
    config: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    flags = ["--trainer", "PLOT", "--dataset", "caltech101", "--shots", "1", "--config", config]
    assert few_shot.main(flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and re.search(says, err), err
    assert not (tmp_path / "out").exists()


def test_without_a_network_the_weights_are_asked_for(data_root: Path, tmp_path: Path) -> None:
    nowhere = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "SEEDS": "1"}
    done = bash(
        "plot/main.sh",
        *("caltech101", "1", "MODEL.BACKBONE.CLIP_ROOT", str(tmp_path / "clip")),
        DATA=str(data_root),
        OUT=str(tmp_path / "out"),
        **nowhere,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "SHA-256 afeb0e10f9e5" in done.stderr and "RN50.pt" in done.stderr
    assert not (tmp_path / "out").exists()


def in_process(trainer: str, shots: int, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What main.sh's Python prints, without another start of it."""
    config, pairs = recipe(trainer, "caltech101", shots)
    asked = ["--trainer", trainer, "--dataset", "caltech101", "--shots", str(shots), "--config", config]
    capsys.readouterr()
    assert few_shot.main([*asked, "--recipe", pairs, *arguments]) == 0
    return capsys.readouterr().out


def test_seeds_to_a_table_and_again(
    data_root: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["MODEL.BACKBONE.NAME", str(weights), *CTX]
    environment = {"DATA": str(data_root), "OUT": str(tmp_path / "out"), "SEEDS": "1 2", "N": "2"}
    done = bash("plot/main.sh", "caltech101", "1", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    results = [runs.read_result(p.parent) for p in sorted((tmp_path / "out").rglob("result.json"))]
    accuracy = [r["accuracy"] for r in results if r]
    table = done.stdout.split("PLOT on caltech101, 1 shots")[1]
    for seed, value in zip((1, 2), accuracy, strict=True):
        assert re.search(rf"^{seed} +{value:.2f} ", table, re.M)
    assert re.search(rf"^mean +{sum(accuracy) / 2:.2f} ", table, re.M)
    assert all(r and r["N"] == 2 for r in results)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    again = in_process("PLOT", 1, arguments, capsys)
    assert again.count("finished before") == 2 and again.split("PLOT on caltech101, 1 shots")[1] == table


def test_zero_shot_runs_once_whatever_the_shots(
    data_root: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATA", str(data_root))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    arguments = ["MODEL.BACKBONE.NAME", str(weights), *CTX]
    first = in_process("ZeroshotCLIP", 1, arguments, capsys)
    second = in_process("ZeroshotCLIP", 16, arguments, capsys)
    assert "finished before" not in first and "finished before" in second
    assert len(list((tmp_path / "out").rglob("result.json"))) == 1 and "mean" not in second


@pytest.mark.parametrize("shots", [[], ["16"]])
def test_zero_shot_may_be_asked_without_shots(shots: list[str], tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    done = bash("zsclip/main.sh", "caltech101", *shots, "TEST.FEATURE_CACHE", "False", PYTHON=str(stub))
    assert done.returncode == 0, done.stderr
    asked = f"--trainer ZeroshotCLIP --dataset caltech101 --shots {shots[0] if shots else 1} --config "
    assert asked in done.stdout and done.stdout.endswith(" TEST.FEATURE_CACHE False\n")
