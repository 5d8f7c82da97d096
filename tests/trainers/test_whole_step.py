"""The whole step as one graph, on a CPU: a tape stands for the CUDA graph, and all else is the code of a GPU's run.

Like a graph, the tape repeats operators on the memory that they had, runs no Python, leaves versions alone, and refuses
what asks for a number. The capture itself needs a GPU: tests/trainers/test_cuda.py.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import trainers.clip_trainer
import trainers.prompt_trainer
import trainers.sinkhorn
from dassl.engine import build_trainer
from dassl.utils import UserError
from runs.command_line import build_parser
from runs.config import setup_cfg
from tests.runs.test_train import SHORT, command
from trainers.clip.graphs import WholeStep

pytestmark = pytest.mark.medium
CONFIGS = {"PLOT": "rn50", "CoOp": "rn50_ep50", "CoCoOp": "rn50_c4_ep10_batch1_ctxv1", "PLOTPP": "vit_b16"}
STEPS = ["DATALOADER.TRAIN_X.BATCH_SIZE", "2", "TRAIN.PRINT_FREQ", "3", "TRAIN.CHECKPOINT_FREQ", "1"]  # 5 an epoch


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            for new, own in zip(tree_leaves(func(*args, **kwargs)), tree_leaves(out), strict=True):
                if isinstance(own, torch.Tensor) and new.data_ptr() != own.data_ptr():
                    own.copy_(new)


tapes: list[Tape] = []


def taped(function: Any, stream: None) -> tuple[Callable[[], None], Any]:
    """``record`` without a GPU: what the recorded step changed is put back, as a capture changes nothing."""
    whole, tape = function.__self__, Tape()
    state = [x for p in whole.learned for x in (p, *whole.optimizer.state.get(p, {}).values())]
    before = [x.detach().clone() for x in state]
    with tape:
        result = function()
    with torch.no_grad():
        for x, was in zip(state, before, strict=True):
            x.copy_(was)

    def replay() -> None:
        with torch.autograd._unsafe_preserve_version_counter(tuple(whole.learned)):
            tape.replay()

    tapes.append(tape)
    return replay, result


@pytest.fixture(autouse=True)
def _tape(monkeypatch: pytest.MonkeyPatch) -> None:
    """WHOLE_STEP_GRAPH on a CPU; Sinkhorn, whose kernel needs a GPU, does not ask when to stop."""
    tapes.clear()
    monkeypatch.setattr(trainers.prompt_trainer, "WholeStep", functools.partial(WholeStep, record=taped))
    monkeypatch.setattr(trainers.prompt_trainer.PromptTrainer, "can_be_whole", lambda self: True)
    monkeypatch.setattr(trainers.sinkhorn, "_all_stopped", lambda active, i: False)
    monkeypatch.setattr(trainers.clip_trainer, "cpu_has_bf16", lambda: True)


def trained(run_args: list[str], trainer: str, output: Path, *options: str) -> Any:
    """A trainer after its training."""
    made = build(run_args, trainer, output, *options)
    made.train()
    return made


def build(run_args: list[str], trainer: str, output: Path, *options: str) -> Any:
    argv = [*command(run_args, trainer, CONFIGS[trainer]), *SHORT, *STEPS, *options]
    cfg, _ = setup_cfg(build_parser().parse_args(argv))
    cfg.OUTPUT_DIR = str(output)
    torch.manual_seed(0)
    return build_trainer(cfg)


WHOLE = ("TRAINER.WHOLE_STEP_GRAPH", "True")


@pytest.mark.parametrize(
    ("trainer", "options", "graphs"),
    [
        ("PLOT", ["TRAINER.PLOT.N", "2", "TRAINER.PLOT.PREC", "fp32"], 1),
        ("PLOT", ["TRAINER.PLOT.MATCH", "mean", "TRAINER.PLOT.VARIANCE", "1.0", "TRAINER.PLOT.PREC", "bf16"], 1),
        ("CoOp", ["TRAINER.COOP.PREC", "fp32", "TEST.FINAL_MODEL", "best_val"], 1),
        ("CoOp", ["DATALOADER.CACHED_VIEWS", "2", "OPTIM.MOMENTUM", "0.0"], 1),
        ("CoCoOp", [], 1),
        ("PLOTPP", ["TRAINER.PLOTPP.M", "2"], 2),  # a graph for each stage
    ],
)
def test_a_run_learns_the_same(
    trainer: str, options: list[str], graphs: int, run_args: list[str], vit: Path, tmp_path: Path
) -> None:
    """Contexts, momentum, losses and results; the rate changes with the epoch, and resuming goes on from either."""
    if trainer == "PLOTPP":
        run_args = [*run_args[:-1], str(vit)]
    plain = trained(run_args, trainer, tmp_path / "plain", *options)
    assert not tapes
    ours = trained(run_args, trainer, tmp_path / "whole", *options, *WHOLE)
    assert len(tapes) == graphs and not ours.graphed_step.fails and ours.graphed_step.replay is not None
    for (name, own), (_, expected) in zip(
        ours.model.prompt_learner.named_parameters(), plain.model.prompt_learner.named_parameters(), strict=True
    ):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6, msg=name)
    moved, expected = (run.optim.state_dict() for run in (ours, plain))
    assert moved["param_groups"] == expected["param_groups"], "numbers, as in a checkpoint of any run"
    torch.testing.assert_close(moved["state"], expected["state"], rtol=1e-4, atol=1e-6)
    assert ours.results == plain.results
    assert len(ours.step_times) == len(plain.step_times) == 5 * (4 if trainer == "PLOTPP" else 2)
    again = build(run_args, trainer, tmp_path / "whole", *options, "OPTIM.MAX_EPOCH", "3")
    if trainer != "PLOTPP":  # of whose epochs one more moves the second stage
        again.train()
        assert again.start_epoch == 2


def test_an_epoch_of_one_batch_is_graphed_too(run_args: list[str], tmp_path: Path) -> None:
    """Its diagnostics, which ask for numbers, take a pass of their own."""
    one = ["DATALOADER.TRAIN_X.BATCH_SIZE", "10", "OPTIM.MAX_EPOCH", "4", "TRAINER.PLOT.PREC", "fp32"]
    trainer = trained(run_args, "PLOT", tmp_path / "out", *one, *WHOLE)
    assert trainer.num_batches == 1 and len(tapes) == 1 and trainer.graphed_step.replay is not None


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(run_args: list[str], tmp_path: Path) -> None:
    """Looked at two steps later; nothing is saved after it."""
    trainer = build(run_args, "CoOp", tmp_path / "out", *WHOLE)
    plain, files = trainer.parse_batch_train, []

    def spoilt(batch: dict[str, Any]) -> Any:
        image, label = plain(batch)
        if spoil := (trainer.epoch, trainer.batch_idx) == (1, 3):
            files.extend(batch["impath"])
        return image * float("nan") if spoil else image, label

    trainer.parse_batch_train = spoilt
    with pytest.raises(UserError, match="the loss is not finite in epoch 2, batch 4 of 5") as error:
        trainer.train()
    assert trainer.graphed_step.replay is not None
    assert files and all(path in str(error.value) for path in files)
    saved = sorted(path.name for path in (tmp_path / "out/prompt_learner").iterdir())
    assert saved == ["checkpoint", "model.pth.tar-1"]


def test_kept_text_features_are_of_the_last_step(run_args: list[str], tmp_path: Path) -> None:
    trainer = build(run_args, "CoOp", tmp_path / "out", *WHOLE)
    trainer.set_model_mode("train")
    trainer.num_batches, batch = 99, next(iter(trainer.train_loader_x))
    for step in range(5):
        trainer.forward_backward(batch)
        with torch.no_grad():
            kept = trainer.model.text_features()
            assert torch.equal(kept, trainer.model.encode_text()), step
    assert len(tapes) == 1


def test_other_shapes_and_another_state_are_captured_anew(run_args: list[str], tmp_path: Path) -> None:
    trainer = build(run_args, "CoOp", tmp_path / "out", *WHOLE)
    trainer.set_model_mode("train")
    trainer.num_batches, batch = 99, next(iter(trainer.train_loader_x))

    def after(steps: int, **given: Any) -> int:
        for _ in range(steps):
            trainer.forward_backward({**batch, **given})
        return len(tapes)

    assert (after(2), after(3)) == (0, 1)
    one = {"img": batch["img"][:1], "label": batch["label"][:1]}
    assert (after(1, **one), after(1), after(1)) == (1, 1, 2)
    trainer.optim.load_state_dict(copy.deepcopy(trainer.optim.state_dict()))  # new memory
    assert (after(1), after(2)) == (2, 3)


def test_what_cannot_be_captured_is_computed_plainly(
    run_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here Sinkhorn asks; the run goes on to what the plain one learns."""
    monkeypatch.setattr(trainers.sinkhorn, "_all_stopped", lambda active, i: not bool(active.any()))
    plain = trained(run_args, "PLOT", tmp_path / "plain", "TEST.NO_TEST", "True")
    with pytest.warns(UserWarning, match="without one graph of the step .*: operation not permitted"):
        ours = trained(run_args, "PLOT", tmp_path / "whole", *WHOLE, "TEST.NO_TEST", "True")
    assert torch.equal(ours.model.prompt_learner.ctx, plain.model.prompt_learner.ctx)
    assert ours.graphed_step is None and ours.replayed is not None, "the towers' graphs take over"


@pytest.mark.parametrize(
    ("device", "options", "line"),
    [
        ("cpu", [], "needs a GPU"),
        ("cuda", ["OPTIM.NAME", "adam"], "needs OPTIM.NAME sgd"),
        ("cuda", ["TRAINER.PLOT.PREC", "amp"], "needs another PREC than amp"),
        ("cuda", [], "needs TRAINER.FUSED_HEAD, without which Sinkhorn asks when to stop"),
        ("cuda", ["TRAINER.PLOT.MATCH", "mean"], ""),
    ],
)
def test_a_line_says_what_it_lacks(
    device: str,
    options: list[str],
    line: str,
    run_args: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    trainer = build(run_args, "PLOT", tmp_path / "out", "TRAINER.PLOT.PREC", "fp32", *options, *WHOLE)
    assert trainer.graphed_step is None and "WHOLE_STEP_GRAPH needs a GPU" in capsys.readouterr().out
    trainer.device, trainer.scaler = torch.device(device), "a scaler" if "amp" in options else None
    assert trainer.can_be_whole() == (not line)
    assert (line or "") in capsys.readouterr().out
