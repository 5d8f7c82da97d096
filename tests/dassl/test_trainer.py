"""Whole runs of the toy trainer: resume to the same bits, what is kept, what is printed, and what goes wrong."""

from __future__ import annotations

import os
import re
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dassl.engine import TrainerBase, build_trainer
from dassl.evaluation import Classification
from dassl.extras.interrupts import Interrupted
from dassl.utils import UserError, set_random_seed

from .conftest import MakeCfg, ToyTrainer

pytestmark = pytest.mark.medium


def start(cfg: Any) -> ToyTrainer:
    set_random_seed(cfg.SEED)
    return build_trainer(cfg)


class Killed(Exception):
    pass


def kill_before_epoch(trainer: ToyTrainer, epoch: int) -> None:
    def before_epoch() -> None:
        if trainer.epoch == epoch:
            raise Killed

    trainer.before_epoch = before_epoch  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.train()


def final(out: Path, epoch: int = 4) -> dict[str, Any]:
    return torch.load(out / "toy" / f"model.pth.tar-{epoch}", weights_only=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_run_ends_at_the_same_bits(optimizer: str, make_cfg: MakeCfg, tmp_path: Path) -> None:
    """Killed in epoch 3 with 2 workers and resumed without any, against a run that was never interrupted."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trainer = start(make_cfg(OUTPUT_DIR=str(whole), OPTIM__NAME=optimizer))
    trainer.train()
    cfg = make_cfg(OUTPUT_DIR=str(broken), OPTIM__NAME=optimizer, DATALOADER__NUM_WORKERS=2)
    kill_before_epoch(start(cfg), 2)
    assert not (broken / "toy" / "model.pth.tar-4").exists()
    cfg.DATALOADER.NUM_WORKERS = 0
    resumed = start(cfg)
    resumed.train()
    assert resumed.start_epoch == 2
    expected, got = final(whole), final(broken)
    assert (got["epoch"], got["scheduler"]) == (4, {"last_epoch": 4})
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(tensor, got["state_dict"][name])
    for i, slots in expected["optimizer"]["state"].items():
        for slot, value in slots.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(got["optimizer"]["state"][i][slot]))
    assert resumed.results == trainer.results


def test_a_run(make_cfg: MakeCfg, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer = start(make_cfg(TRAIN__CHECKPOINT_FREQ=2, OPTIM__MAX_EPOCH=5))
        trainer.train()
    printed = capsys.readouterr()
    line = (
        r"epoch \[1/5\] batch \[1/2\] time \d+\.\d{3} \(\d+\.\d{3}\) data \d+\.\d{3} \(\d+\.\d{3}\) "
        r"loss \d+\.\d{4} \(\d+\.\d{4}\) acc \d+\.\d{4} \(\d+\.\d{4}\) lr 1\.0000e-05 eta 0:00:0\d\n"
    )
    assert re.search(line, printed.out)
    assert "No checkpoint found, train from scratch" in printed.out
    assert printed.err == "", "no bar and no warning where stderr is no terminal"
    # 2 and 4 by the frequency, 5 as the last; the rolling ones are gone with the run
    kept = {f"model.pth.tar-{epoch}" for epoch in (2, 4, 5)}
    assert {p.name for p in (out / "toy").iterdir()} == {"checkpoint", *kept}
    assert any("tfevents" in name for name in os.listdir(out / "tensorboard"))
    assert set(trainer.results) == {"test"}
    assert isinstance(trainer.evaluator, Classification)
    assert trainer.evaluator.y_true == [item.label for item in trainer.dm.dataset.test]
    accuracy = trainer.results["test"]["accuracy"]
    assert trainer.test() == accuracy == trainer.evaluator.evaluate()["accuracy"]
    assert set(trainer.timing) == {"train_seconds", "step_seconds", "test_images_per_second"}
    assert all(value > 0 for value in trainer.timing.values())
    assert trainer.timing["train_seconds"] > 9 * trainer.timing["step_seconds"] / 2


def test_a_finished_run_goes_to_the_test_at_once(make_cfg: MakeCfg) -> None:
    cfg = make_cfg()
    first = start(cfg)
    first.train()
    again = start(cfg)
    again.run_epoch = lambda: pytest.fail("trained")  # type: ignore[method-assign]
    again.train()
    assert again.results == first.results and again.epoch == 3
    assert again.timing["train_seconds"] == first.timing["train_seconds"]
    assert again.timing["step_seconds"] == first.timing["step_seconds"]


def test_best_val_is_deployed_and_survives_a_resume(make_cfg: MakeCfg, tmp_path: Path) -> None:
    scores = [50.0, 80.0, 60.0, 70.0]

    def with_scores(trainer: ToyTrainer) -> ToyTrainer:
        plain = trainer.test

        def test(split: str | None = None) -> float:
            result = plain(split)
            return scores[trainer.epoch] if split == "val" else result

        trainer.test = test  # type: ignore[method-assign]
        return trainer

    cfg = make_cfg(TEST__FINAL_MODEL="best_val")
    kill_before_epoch(with_scores(start(cfg)), 3)
    trainer = with_scores(start(cfg))
    trainer.train()
    assert trainer.best_result == 80.0, "the best of before the interruption counts"
    best = torch.load(tmp_path / "out" / "toy" / "model-best.pth.tar", weights_only=True)
    assert (best["epoch"], best["val_result"]) == (2, 80.0)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, best["state_dict"][name])
    assert set(trainer.results) == {"val", "test"}


def test_two_models_resume_at_the_epoch_both_have(make_cfg: MakeCfg, tmp_path: Path) -> None:
    def two(cfg: Any) -> ToyTrainer:
        trainer = start(cfg)
        trainer.register_model("second", nn.Linear(1, 1))
        return trainer

    cfg = make_cfg()
    kill_before_epoch(two(cfg), 2)
    (tmp_path / "out" / "second" / "checkpoint").write_text("model.pth.tar-1\n")
    trainer = two(cfg)
    assert trainer.resume_model_if_exist(cfg.OUTPUT_DIR) == 1
    assert trainer.sched.last_epoch == 1


def test_resume_from_elsewhere(make_cfg: MakeCfg, tmp_path: Path) -> None:
    kill_before_epoch(start(make_cfg(OUTPUT_DIR=str(tmp_path / "old"))), 3)
    trainer = start(make_cfg(RESUME=str(tmp_path / "old")))
    trainer.train()
    assert trainer.start_epoch == 3 and final(tmp_path / "out")["epoch"] == 4
    again = start(make_cfg(RESUME=str(tmp_path / "old")))  # the same command: its own checkpoints are newer
    again.before_train()
    assert again.start_epoch == 4
    with pytest.raises(UserError, match=r"nothing to resume from in .*none: looked for .*toy/checkpoint"):
        start(make_cfg(RESUME=str(tmp_path / "none"), OUTPUT_DIR=str(tmp_path / "new"))).train()


def test_load_model(make_cfg: MakeCfg, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = make_cfg(OPTIM__MAX_EPOCH=1)
    trained = start(cfg)
    trained.train()
    fresh = start(make_cfg(SEED=5))
    fresh.load_model(cfg.OUTPUT_DIR, epoch=1)
    assert torch.equal(fresh.model[2].weight, trained.model[2].weight)  # type: ignore[index]
    assert fresh.test() == trained.results["test"]["accuracy"]
    with pytest.raises(UserError, match=r"no model at .*model-best.pth.tar; found there: model.pth.tar-1 "):
        fresh.load_model(cfg.OUTPUT_DIR)
    capsys.readouterr()
    fresh.load_model("")
    assert "skipped" in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_loss_that_is_not_finite(optimizer: str, make_cfg: MakeCfg, tmp_path: Path) -> None:
    """The line names the step and the batch's files; what was saved before is untouched."""
    kill_before_epoch(start(make_cfg(OPTIM__NAME=optimizer)), 2)
    before = {path: path.read_bytes() for path in (tmp_path / "out/toy").iterdir()}
    trainer = start(make_cfg(OPTIM__NAME=optimizer))
    plain = trainer.parse_batch_train
    batches: list[Any] = []

    def spoilt(batch: dict[str, Any]) -> Any:
        batches.append(batch)
        image, *rest = plain(batch)
        return image * float("nan") if trainer.batch_idx == 1 else image, *rest

    trainer.parse_batch_train = spoilt  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"the loss is not finite in epoch 3, batch 2 of 2; .* OPTIM.LR") as error:
        trainer.train()
    assert "\n" not in str(error.value)
    assert len(batches) == 2 and all(path in str(error.value) for path in batches[1]["impath"])
    assert {path: path.read_bytes() for path in (tmp_path / "out/toy").iterdir()} == before


class Waiting(ToyTrainer):
    """Its summaries stay tensors, which the host would have to wait for; ``bad`` (epoch, batch) is one of NaN."""

    bad: tuple[int, int] | None = None
    looks: list[int]

    def model_backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def forward_backward(self, batch: dict[str, Any]) -> Any:
        spoilt = (self.epoch, self.batch_idx) == self.bad
        found = super().forward_backward({**batch, "img": batch["img"] * (float("nan") if spoilt else 1)})
        return {name: torch.tensor([value]) for name, value in found.items()}

    def look(self) -> list[dict[str, float]]:
        self.looks = [*getattr(self, "looks", []), self.batch_idx]
        return super().look()


def test_summaries_on_the_device_are_looked_at_every_few_steps(make_cfg: MakeCfg, tmp_path: Path) -> None:
    """By the same meters, so that the same scalars are written; each step has a time."""
    small = {"DATALOADER__TRAIN_X__BATCH_SIZE": 2, "TRAIN__PRINT_FREQ": 4, "OPTIM__MAX_EPOCH": 1}
    written: list[Any] = []
    for kind in (ToyTrainer, Waiting):
        torch.manual_seed(0)
        trainer = kind(make_cfg(**small, OUTPUT_DIR=str(tmp_path / kind.__name__)))
        scalars = {}
        trainer.write_scalar = lambda tag, value, step=None, of=scalars: of.update({(tag, step): value})  # type: ignore
        trainer.train()
        assert len(trainer.step_times) == 6
        written.append(scalars)
    assert isinstance(trainer, Waiting) and trainer.looks == [3, 5]
    assert written[1] == {key: written[0][key] for key in written[1]}
    assert {step for tag, step in written[1] if tag == "train/loss"} == {3, 5}


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_loss_that_is_not_finite_and_was_not_looked_at(interrupted: bool, make_cfg: MakeCfg, tmp_path: Path) -> None:
    """It is named at the next look, which comes before any checkpoint: that of an interruption too."""
    trainer = Waiting(make_cfg(DATALOADER__TRAIN_X__BATCH_SIZE=2))
    step, files = trainer.forward_backward, []
    trainer.bad = (1, 2)

    def then_interrupted(batch: dict[str, Any]) -> Any:
        if (trainer.epoch, trainer.batch_idx) == trainer.bad:
            files.extend(batch["impath"])
        if interrupted and (trainer.epoch, trainer.batch_idx) == (1, 4):
            raise Interrupted(signal.SIGTERM)
        return step(batch)

    trainer.forward_backward = then_interrupted  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the loss is not finite in epoch 2, batch 3 of 6") as error:
        trainer.train()
    assert len(files) == 2 and all(path in str(error.value) for path in files)
    assert [path.name for path in (tmp_path / "out/toy").glob("model*")] == ["model.pth.tar-1"]


def test_weights_that_are_not_finite_are_not_saved(make_cfg: MakeCfg, tmp_path: Path) -> None:
    trainer = start(make_cfg())
    plain = trainer.forward_backward

    def poisoned(batch: dict[str, Any]) -> dict[str, float]:
        summary = plain(batch)
        if trainer.epoch == 1 and trainer.batch_idx == 1:
            trainer.model[2].weight.data[0, 0] = float("inf")  # type: ignore[index]
        return summary

    trainer.forward_backward = poisoned  # type: ignore[method-assign]
    with pytest.raises(UserError, match="what was learned is not finite in epoch 2"):
        trainer.train()
    assert (tmp_path / "out/toy/checkpoint").read_text() == "model.pth.tar-1\n"


def test_no_test_and_freezing(make_cfg: MakeCfg) -> None:
    trainer = start(make_cfg(TEST__NO_TEST=True, OPTIM__MAX_EPOCH=1))
    trainer.train()
    assert trainer.results == {}
    trainer.set_model_mode("eval")
    assert not trainer.model.training
    trainer.set_model_mode("train", "toy")
    assert trainer.model.training
    with pytest.raises(KeyError):
        trainer.set_model_mode("other")
    with pytest.raises(ValueError, match="no model called 'tou'"):
        trainer.set_model_mode("train", "tou")


def test_registering() -> None:
    class Early(TrainerBase):
        def __init__(self) -> None:
            self.register_model("model")

    with pytest.raises(AttributeError, match="super"):
        Early()
    trainer = TrainerBase()
    trainer.register_model("a", nn.Linear(1, 1))
    with pytest.raises(ValueError, match="already registered"):
        trainer.register_model("a", nn.Linear(1, 1))
    assert trainer.get_model_names() == ["a"] and trainer.get_model_names("a") == ["a"]
