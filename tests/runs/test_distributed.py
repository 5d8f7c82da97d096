"""One run by two processes, as torchrun starts them: the same context and predictions as one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
import trainers.prompt_trainer
from dassl.utils import load_checkpoint
from tests.children import wait_for
from tests.double_precision import load_double
from tests.runs.test_train import command
from tests.trainers import toys as registered

pytestmark = pytest.mark.medium

REPOSITORY = Path(__file__).parents[2]
METHODS = {"PLOT": "rn50", "CoOp": "rn50_ep50", "CoCoOp": "rn50_c4_ep10_batch1_ctxv1"}
# 20 images in batches of 5: 32 steps. Neither the batch nor the 35 test images are even.
STEPS = [
    "DATASET.NUM_SHOTS",
    "4",
    "DATALOADER.TRAIN_X.BATCH_SIZE",
    "5",
    "OPTIM.MAX_EPOCH",
    "8",
    "INPUT.SIZE",
    "(64,64)",
]
SPLIT = ["TRAINER.SPLIT_CLASSES", "True"]


def launch(commands: list[list[str]], until: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun run train.py's command lines in float64; SIGTERM once ``until`` exists."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    program = [sys.executable, *torchrun, "-m", "tests.double_precision", json.dumps(commands)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(program, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if until is not None:
            wait_for(until.exists)
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(program, process.returncode, out, err)


@pytest.fixture(scope="module")
def runs(weights: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each method's run by one process, by two, and by two with the classes split."""
    out = tmp_path_factory.mktemp("distributed")
    base = ["--root", str(data_root), "--seed", "1", "--backbone", str(weights)]

    def commands(kind: str, more: list[str]) -> list[list[str]]:
        return [
            [*command(["--output-dir", str(out / kind / name), *base], name, config), *STEPS, *more]
            for name, config in METHODS.items()
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers.prompt_trainer, "load_clip", load_double)
        assert [train.main(argv) for argv in commands("alone", [])] == [0, 0, 0]
    done = launch(commands("two", []) + commands("split", SPLIT))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return out


@pytest.mark.parametrize("kind", ["two", "split"])
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_learn_what_one_does(name: str, kind: str, runs: Path) -> None:
    alone, other = (
        load_checkpoint(str(runs / k / name / "prompt_learner" / "model.pth.tar-8"))["state_dict"]
        for k in ("alone", kind)
    )
    assert alone["ctx"].dtype == torch.float64
    for key in alone:
        torch.testing.assert_close(other[key], alone[key], rtol=0, atol=1e-9)
    results = [json.loads((runs / k / name / "result.json").read_text()) for k in ("alone", kind)]
    predictions = [json.loads((runs / k / name / "predictions.json").read_text()) for k in ("alone", kind)]
    assert predictions[0] == predictions[1] and len(predictions[1]["image"]) == 35
    assert [result["processes"] for result in results] == [1, 2]
    if name == "PLOT":
        for key, value in results[0]["diagnostics"].items():
            assert results[1]["diagnostics"][key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.slow
def test_two_processes_average_visual_parameters(run_args: list[str], vit: Path, tmp_path: Path) -> None:
    """A token that is learned in the image tower."""

    def argv(name: str) -> list[str]:
        flags = ["--output-dir", str(tmp_path / name), *run_args[:-1], str(vit), "--trainer", "ToyVisualToken"]
        dataset = ["--dataset-config-file", str(REPOSITORY / "configs/datasets/caltech101.yaml")]
        toys = ["--import", str(REPOSITORY / "tests/trainers/toys.py")]
        return [*toys * (name != "alone"), *flags, *dataset, *STEPS, "OPTIM.NAME", "sgd", "OPTIM.LR", "0.1"]

    def learned(name: str) -> dict[str, torch.Tensor]:
        return load_checkpoint(str(tmp_path / name / "prompt_learner" / "model.pth.tar-8"))["state_dict"]

    assert registered.VisualToken  # here they are; the two processes import them
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers.prompt_trainer, "load_clip", load_double)
        assert train.main(argv("alone")) == 0
    done = launch([argv("two")])
    assert done.returncode == 0, done.stderr
    assert learned("alone")["visual"].dtype == torch.float64
    for key, value in learned("alone").items():
        torch.testing.assert_close(learned("two")[key], value, rtol=0, atol=1e-9)


def test_a_mistake_of_all_is_said_once(run_args: list[str], tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/result.json").write_text("{")
    argv = ["--output-dir", str(tmp_path / "damaged"), *command(run_args, "PLOT"), *STEPS]
    done = launch([argv])
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and len(said) == 1 and "result.json' is damaged" in said[0], done.stderr
    assert "_checked" not in done.stderr  # no traceback of ours


@pytest.mark.slow
def test_a_signal_ends_all_after_the_same_step_and_one_process_can_go_on(
    run_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def argv(name: str) -> list[str]:
        more = ["--output-dir", str(tmp_path / name), *run_args]
        return [*command(more, "PLOT"), *STEPS, "OPTIM.MAX_EPOCH", "12", "TRAIN.PRINT_FREQ", "1"]

    def context(name: str) -> torch.Tensor:
        return load_checkpoint(str(tmp_path / name / "prompt_learner" / "model.pth.tar-12"))["state_dict"]["ctx"]

    monkeypatch.setattr(trainers.prompt_trainer, "load_clip", load_double)
    assert train.main(argv("alone")) == 0
    done = launch([argv("two")], until=tmp_path / "two" / "prompt_learner" / "model.pth.tar-2")
    assert done.returncode != 0 and "goes on with" in done.stderr
    assert not (tmp_path / "two" / "result.json").exists()
    assert train.main(argv("two")) == 0
    torch.testing.assert_close(context("two"), context("alone"), rtol=0, atol=1e-9)
