"""The shell entry points: recipes, the user's mistakes, and a whole run to its table."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import train
from experiments import compare, jobs, protocols
from experiments.recipes import prescribed_epochs
from experiments.sweep import command as sweep
from experiments.tables import __main__ as tables
from runs import process
from runs.directory import REPOSITORY
from runs.prediction import main as predict_main
from runs.recipes import config_file, recipe
from runs.result import read_result
from trainers.method import methods

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
    for shots, epochs in ((1, 50), (2, 100), (3, 60), (4, 60), (8, 30)):  # of the dataset's own config
        for method in ("PLOT", "CoOp"):
            assert recipe(method, "symbols", shots) == ("symbols", f"OPTIM.MAX_EPOCH {epochs}")
            assert prescribed_epochs(method, "symbols", shots) == epochs
    assert recipe("PLOT", "symbols", 16) == ("symbols", "") and prescribed_epochs("PLOT", "symbols", 16) == 15
    assert recipe("CoCoOp", "symbols", 1) == ("symbols", "")  # 10 epochs at any number of shots, in the paper
    assert recipe("PLOTCoCoOp", "dtd", 16) == ("rn50_c4_ep10_batch1_ctxv1", "")
    assert recipe("PLOT", "caltech101", 1, cfg="symbols") == ("symbols", "OPTIM.MAX_EPOCH 50")
    assert recipe("PLOT", "symbols", 16, cfg="symbols_vit") == ("symbols_vit", "")
    assert recipe("PLOTPP", "symbols", 16) == recipe("PLOTPP", "symbols_layout", 1) == ("symbols_vit", "")
    assert recipe("PLOTPP", "caltech101", 16) == ("vit_b16", "OPTIM.MAX_EPOCH 200")
    assert recipe("PLOTPP", "imagenet", 16)[1].startswith("OPTIM.MAX_EPOCH 50 TRAINER.PLOTPP.CTX_INIT 'a photo of a|")
    assert recipe("PLOT", "caltech101", 16, cfg="vit_b16") == ("vit_b16", "OPTIM.MAX_EPOCH 200")
    assert recipe("ZeroshotCLIP", "dtd", 1) == ("rn50", "")


def test_photographs_have_rates_and_epochs_of_their_own() -> None:
    """By dataset and shots, for CFG and BACKBONE alike; a config without any follows the paper's recipe."""
    for trainer in ("PLOT", "CoOp"):
        by_dataset = yaml.safe_load(config_file(trainer, "photo").read_text())["_DATASETS_"]
        assert {"caltech101", "eurosat"} <= by_dataset.keys()
        for dataset, values in by_dataset.items():
            for shots, epochs in values["_EPOCHS_"].items():
                found = recipe(trainer, dataset, shots, cfg="photo")
                assert found == ("photo", f"OPTIM.LR {values['OPTIM']['LR']} OPTIM.MAX_EPOCH {epochs}")
                assert found == recipe(trainer, dataset, shots, backbone="photo")
                assert prescribed_epochs(trainer, dataset, shots, "photo") == epochs
        assert recipe(trainer, "dtd", 16, cfg="photo") == ("photo", "")
        assert prescribed_epochs(trainer, "dtd", 16, "photo") == 20
    published = "TRAINER.TIP_ADAPTER.BETA_MAX 12 TRAINER.TIP_ADAPTER.ALPHA_MAX 10"
    assert recipe("TipAdapter", "eurosat", 16, cfg="photo") == ("photo", published)


def test_every_method_but_those_of_a_vit_has_a_config_for_photographs() -> None:
    files = {name: config_file(name, recipe(name, "caltech101", 16, cfg="photo")[0]) for name in methods()}
    without = [name for name, file in files.items() if not file.is_file() and not name.startswith("Toy")]
    assert without == ["PLOTPP"]


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
    table = done.stdout.split("PLOT on caltech101, 1 shot")[1]
    for seed, value in zip((1, 2), accuracy, strict=True):
        assert re.search(rf"^{seed} +{value:.2f} ", table, re.M)
    assert re.search(rf"^mean +{sum(accuracy) / 2:.2f} ", table, re.M)
    assert all(r and r["N"] == 2 for r in results)
    lines = done.stdout.splitlines()  # a line a run; the rest is in its log.txt
    assert lines[0].startswith("PLOT on caltech101, config rn50: ") and len(lines) < 13
    assert re.fullmatch(rf"\[1/2\] PLOT, caltech101, 1 shot, seed 1: {accuracy[0]:.2f}% in \d+ s; ~\S+ to go", lines[1])
    assert re.fullmatch(rf"\[2/2\] PLOT, caltech101, 1 shot, seed 2: {accuracy[1]:.2f}% in \d+ s", lines[2])
    for log in (tmp_path / "out").rglob("log.txt"):
        text = log.read_text()
        for start in ("Started: 20", "Ended: 20", "Command: ", "Commit: ", "PyTorch: ", "# train_x", "epoch [1/1]"):
            assert re.search(f"^{re.escape(start)}", text, re.M), start
        assert "  PLOT:\n" in text and "COCOOP" not in text  # its own options alone


@pytest.mark.slow
def test_a_failed_run_of_several_ends_them(tmp_path: Path) -> None:
    """Its error is a line on standard error, as of a single run; no data is here."""
    (tmp_path / "data").mkdir()
    done = bash(
        "compare.sh", "dtd", "1", DATA=str(tmp_path / "data"), OUT=str(tmp_path / "out"), TRAINERS="zsclip coop"
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: no dataset folder")
    assert "python -m datasets.prepare dtd" in done.stderr
    assert (
        "[0/4, 1 failed] ZeroshotCLIP, dtd: failed (exit 2): see standard error\n" in done.stdout
        and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize("shots", [[], ["16"]])
def test_zero_shot_may_be_asked_without_shots(
    shots: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setenv("OUT", str(tmp_path))
    ended = SimpleNamespace(wait=lambda: 0)
    monkeypatch.setattr(process, "start", lambda arguments: started.append(arguments) or ended)
    assert jobs.main(["zsclip", "caltech101", *shots, "TEST.FEATURE_CACHE", "False"]) == 2  # nothing has run
    assert "result.json' is damaged" in capsys.readouterr().err
    assert started[0][-4:] == ("DATASET.NUM_SHOTS", "0", "TEST.FEATURE_CACHE", "False")


@pytest.mark.parametrize("script", [["bash", "scripts/coop/main.sh"], ["bash", "/there/run.sh", "CoOp"], []])
def test_coops_order_of_arguments_is_answered_with_ours(
    script: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DATASET CFG CTP NCTX SHOTS CSC, as in CoOp's and PLOT's own scripts."""
    words = ["symbols", "rn50_ep50", "end", "16", "1", "False"]
    monkeypatch.setenv("PLOT_COMMAND", shlex.join([*script, *words]) + " " if script else "")
    assert jobs.main(["CoOp", *words]) == 2
    error = capsys.readouterr().err
    options = "TRAINER.COOP.N_CTX 16 TRAINER.COOP.CLASS_TOKEN_POSITION end TRAINER.COOP.CSC False"
    line = f"CFG=rn50_ep50 {shlex.join(script or ['bash', 'scripts/coop/main.sh'])} symbols 1 {options}\n"
    assert error.count("\n") == 1 and error.endswith(f"CoOp's line is: {line}")


def test_coops_order_for_other_methods(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with options that the method has; a KEY VALUE pair stays, and our own order is not mistaken for CoOp's."""
    monkeypatch.delenv("PLOT_COMMAND", raising=False)
    words = ["vit_b16", "front", "4", "16", "True", "OPTIM.LR", "0.1"]
    assert jobs.main(["cocoop", "dtd", *words]) == 2
    expected = "CFG=vit_b16 bash scripts/cocoop/main.sh dtd 16 TRAINER.COCOOP.N_CTX 4 OPTIM.LR 0.1\n"
    assert capsys.readouterr().err.endswith(expected)
    assert not jobs.coops_order("PLOT", "dtd", ["16", "TRAINER.PLOT.CLASS_TOKEN_POSITION", "end"], "")


def test_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SHOTS all: no few-shot set, and the recipe's epochs for many shots."""
    started: list[tuple[str, ...]] = []
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("SEEDS", "1")
    monkeypatch.setattr(process, "start", lambda words: started.append(words) or SimpleNamespace(wait=lambda: 7))
    with pytest.raises(SystemExit, match="7"):
        jobs.main(["plot", "caltech101", "all"])
    assert started[0][-4:] == ("--recipe", "OPTIM.MAX_EPOCH 200", "DATASET.NUM_SHOTS", "0")
    assert jobs.shots_of("1 2 all") == [1, 2, 0] and jobs.shots_of("all") == [0]


def test_a_backbone_by_openais_name() -> None:
    for name in ("vit_b16", "ViT-B/16", "vit-b/16"):
        assert recipe("CoOp", "dtd", 1, backbone=name) == ("vit_b16_ep50", "")
    assert recipe("PLOT", "dtd", 1, backbone="RN101")[0] == "rn101"
    assert recipe("PLOT", "dtd", 1, backbone="ViT-L/14")[0] == "vit_l14"  # no config: said with the nearest


PROTOCOLS = ("few_shot", "base_to_new", "cross_dataset", "domain_generalization")
METHODS = sorted(path.relative_to(REPOSITORY / "scripts").as_posix() for path in REPOSITORY.glob("scripts/*/main.sh"))
SCRIPTS = (*METHODS, "run.sh", "compare.sh", *(f"protocols/{name}.sh" for name in PROTOCOLS))


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_was_typed_is_what_goes_on(script: str, tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nprintf "%s" "$PLOT_COMMAND"\n')
    stub.chmod(0o755)
    command = ["bash", f"scripts/{script}", "symbols", "16", "A.B", "x y"]
    env = {key: value for key, value in os.environ.items() if key != "PLOT_COMMAND"} | {"PYTHON": str(stub)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY, check=True)
    assert shlex.split(done.stdout) == command


def test_every_script_says_what_was_typed() -> None:
    """The one of the paper too, which runs many commands."""
    texts = [path.read_text() for path in REPOSITORY.glob("scripts/*/*.sh")]
    assert len(texts) > len(SCRIPTS) - 2 and all("\nexport PLOT_COMMAND=${PLOT_COMMAND:-" in text for text in texts)


@pytest.mark.parametrize(
    ("main", "argv", "names"),
    [
        (jobs.main, ["PLOT", "--help"], "DATA OUT SEEDS CFG BACKBONE N"),
        (jobs.main, ["PLOT", "symbols", "16", "-h"], "DATA OUT SEEDS CFG BACKBONE N"),
        (compare.main, ["symbols", "--help"], "DATA OUT SEEDS TRAINERS CFG BACKBONE N"),
        (protocols.main, ["few_shot", "--help"], "DATA OUT SEEDS TRAINERS TARGETS CFG BACKBONE N"),
        (tables.main, ["--help"], "OUT SEEDS"),
        (sweep.main, ["--datasets", "dtd", "OPTIM.LR", "--help"], "DATA OUT SEEDS CFG BACKBONE N"),
        (predict_main, ["--help"], ""),
        (train.main, ["--help"], "DATA OUT PLOT_CACHE"),
    ],
)
def test_help_names_variables_and_defaults(
    main: Callable[..., int],
    argv: list[str],
    names: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLOT_COMMAND", "bash scripts/x/main.sh symbols 16")
    with pytest.raises(SystemExit, match="0"):
        main(argv)
    text = capsys.readouterr().out
    scripted = main in (jobs.main, compare.main, protocols.main)
    assert text.startswith("usage: bash scripts/x/main.sh " if scripted else "usage: python ")
    variables = text.partition("from the environment:")[2].splitlines()[1:]
    assert {line.split()[0] for line in variables if line} == {*names.split()}
    if main is predict_main:
        assert all(f"(default: {value})" in text for value in ("text", 5, 32))
    assert "(default: )" not in text and "(default: None)" not in text and "(default: False)" not in text


@pytest.mark.parametrize(
    "words", [["plot", "symbols", "16"], ["coop", "symbols_layout", "1"], ["plotpp", "symbols", "1"]]
)
def test_a_backbone_that_would_be_ignored_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BACKBONE", "vit_b16")
    assert jobs.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"config for {words[1]} has its own" in error and "CFG=vit_b16" in error
    assert compare.main(words[1:]) == 2
    assert "BACKBONE is 'vit_b16'" in capsys.readouterr().err
