"""Checkpoints that CoOp, CoCoOp and PLOT wrote: tested, resumed, started from, predicted with, and looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from dassl.utils import load_checkpoint
from experiments.pictures import visualize, words
from runs.prediction import main as predict_main
from runs.result import read_result

from .test_train import CONFIGS, SMALL, command

CONFIG = {"PLOT": "rn50", "CoOp": "rn50_ep50", "CoCoOp": "rn50_c4_ep10_batch1_ctxv1"}
CTX = {"PLOT": (2, 3, 64), "CoOp": (3, 64), "CoCoOp": (4, 64)}


def publish(directory: Path, trainer: str, prefix: str) -> Path:
    """A checkpoint of epoch 1 in the published format: class tokens, a pickled scheduler, maybe a prefix."""
    learner = directory / "prompt_learner"
    learner.mkdir(parents=True)
    generator = torch.Generator().manual_seed(5)
    state = {"ctx": torch.randn(CTX[trainer], generator=generator)}
    if trainer == "CoCoOp":
        shapes = {"linear1.weight": (4, 64), "linear1.bias": (4,), "linear2.weight": (64, 4), "linear2.bias": (64,)}
        state |= {f"meta_net.{name}": torch.randn(s, generator=generator) * 0.01 for name, s in shapes.items()}
    parameters = [torch.nn.Parameter(value) for value in state.values()]
    optimizer = torch.optim.SGD(parameters, lr=0.002, momentum=0.9, weight_decay=5e-4)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
    del optimizer.step  # torch wraps it in a local function, which older versions could pickle
    state |= {"token_prefix": torch.zeros(5, 1, 64), "token_suffix": torch.zeros(5, 70, 64)}
    checkpoint: dict[str, Any] = {
        "state_dict": {prefix + name: value for name, value in state.items()},
        "epoch": 1,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": successor, "last_epoch": 1},
        "val_result": None,
    }
    torch.save(checkpoint, learner / "model.pth.tar-1")
    (learner / "checkpoint").write_text("model.pth.tar-1\n")
    return directory


@pytest.mark.parametrize(
    ("trainer", "prefix"),
    [
        pytest.param("PLOT", "module.", marks=pytest.mark.medium),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("PLOT", ""), ("CoOp", "module."), ("CoCoOp", ""))),
    ],
)
def test_a_published_checkpoint_is_used_like_our_own(
    trainer: str, prefix: str, run_args: list[str], data_root: Path, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    theirs = publish(tmp_path / "theirs", trainer, prefix)
    options = ["TRAINER.PLOT.N", "2", "TRAINER.PLOT.N_CTX", "3"] if trainer == "PLOT" else []
    options = ["TRAINER.COOP.N_CTX", "3"] if trainer == "CoOp" else options
    short = [*SMALL, "OPTIM.MAX_EPOCH", "2", "DATASET.NUM_SHOTS", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", *options]

    def run(output: str, *flags: str, opts: tuple[str, ...] = ()) -> str:
        argv = ["--output-dir", str(tmp_path / output), *command(run_args, trainer, CONFIG[trainer], *flags)]
        assert train.main([*argv, *short, *opts]) == 0
        return capsys.readouterr().out

    assert "(epoch 1)" in run("tested", "--eval-only", "--model-dir", str(theirs))
    resumed = run("resumed", "--resume", str(theirs))
    assert "Previous epoch: 1" in resumed and "epoch [2/2]" in resumed and "epoch [1/2]" not in resumed
    checkpoint = str(theirs / "prompt_learner/model.pth.tar-1")
    started = run("started", opts=("MODEL.INIT_WEIGHTS", checkpoint, "OPTIM.LR", "1e-12", "OPTIM.WARMUP_CONS_LR", "0"))
    assert "pretrained weights" in started and "discarded" not in started
    ctx = load_checkpoint(checkpoint)["state_dict"]["ctx"]
    learned = load_checkpoint(str(tmp_path / "started/prompt_learner/model.pth.tar-2"))["state_dict"]["ctx"]
    torch.testing.assert_close(learned, ctx)

    # The options that the context's shape shows are not given here.
    (tmp_path / "small.yaml").write_text(
        f"_BASE_: {CONFIGS}/trainers/{trainer}/{CONFIG[trainer]}.yaml\nINPUT: {{SIZE: [64, 64]}}"
    )
    flags = ["--trainer", trainer, "--config-file", str(tmp_path / "small.yaml"), "--backbone", str(weights)]
    dataset = ["--dataset-config-file", str(CONFIGS / "datasets/caltech101.yaml"), "--root", str(data_root)]
    kept = json.loads((tmp_path / "tested/predictions.json").read_text())
    files = [str(data_root / name) for name in kept["image"]]
    argv = ["--run", str(theirs), *flags]
    assert predict_main([*argv, *dataset, "--format", "jsonl", "--top", "1", *files]) == 0
    names = (read_result(tmp_path / "tested") or {})["classnames"]
    said = capsys.readouterr()
    found = [json.loads(line)["top"][0]["class"] for line in said.out.splitlines()]
    assert found == [names[k] for k in kept["prediction"]]
    assert predict_main([*argv, "--classes", "cat,dog", files[0]]) == 0
    assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]} == {"cat", "dog"}

    assert words.main([str(theirs), *flags, "--classes", "cat,dog", "--top", "1"]) == 0
    assert capsys.readouterr().out.count("prompt ") == (2 if trainer == "PLOT" else 1)
    code = visualize.main([str(theirs), *flags, *dataset, "--to", str(tmp_path / "drawn"), files[0]])
    assert (code, len(list(tmp_path.glob("drawn/*.png")))) == ((0, 1) if trainer == "PLOT" else (2, 0))


def test_what_a_published_checkpoint_does_not_say_is_asked_for(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, config = publish(tmp_path / "theirs", "CoOp", ""), str(CONFIGS / "trainers/CoOp/rn50.yaml")
    for flags, says in (
        ([], "has no config.yaml; a checkpoint that other code wrote needs --trainer, --config-file, and --classes"),
        (["--trainer", "CoOp", "--config-file", config], "and --classes or --dataset-config-file"),
        (["--trainer", "PLOT", "--config-file", config, "--classes", "a"], "holds no context of PLOT"),
    ):
        argv = ["--run", str(theirs), "--backbone", str(weights), *flags, "picture.png"]
        assert predict_main(argv) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and says in error, error
