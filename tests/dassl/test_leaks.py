"""No choice sees a test image: training cannot read them, and the best epoch needs validation images of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import build_trainer
from dassl.utils import UserError

from .conftest import MakeCfg, ToyImages, ToyTrainer

pytestmark = pytest.mark.medium

WAYS: dict[str, Callable[[ToyTrainer], Any]] = {
    "a test": lambda trainer: trainer.test(split="test"),
    "TEST.SPLIT": lambda trainer: trainer.test(),
    "its loader": lambda trainer: next(iter(trainer.test_loader)),
    "the data manager's loader": lambda trainer: next(iter(trainer.dm.test_loader)),
}


@pytest.mark.parametrize("hook", ["before_epoch", "after_epoch", "forward_backward"])
@pytest.mark.parametrize("way", WAYS)
def test_a_trainer_that_asks_for_the_test_images_while_it_trains_is_refused(
    way: str, hook: str, make_cfg: MakeCfg
) -> None:
    def peek(*args: Any) -> None:
        WAYS[way](trainer)

    trainer = build_trainer(make_cfg())
    setattr(trainer, hook, peek)
    with pytest.raises(UserError, match="ToyTrainer asks for the test images before its training is over"):
        trainer.train()
    assert len(list(trainer.test_loader)) == 2  # what comes after training may read them


def test_without_validation_images_a_validation_in_training_is_no_test(make_cfg: MakeCfg) -> None:
    trainer = build_trainer(make_cfg())
    trainer.val_loader = None
    trainer.after_epoch = lambda: trainer.test(split="val")
    with pytest.raises(UserError, match="asks for the test images"):
        trainer.train()


def test_a_method_that_says_so_may_choose_by_them(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyTrainer, "test_selected", True)
    trainer, seen = build_trainer(make_cfg()), []
    trainer.before_epoch = lambda: seen.append(trainer.test(split="test"))
    trainer.train()
    assert len(seen) == 4


def test_the_test_images_are_read_once_at_the_end(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    before_test = ToyTrainer.before_test

    def counted(self: ToyTrainer, split: str) -> None:
        read.append((split, self.epoch + 1))
        before_test(self, split)

    monkeypatch.setattr(ToyTrainer, "before_test", counted)
    build_trainer(make_cfg(TEST__FINAL_MODEL="best_val")).train()
    assert read == [*(("val", epoch) for epoch in (1, 2, 3, 4)), ("test", 4)]


@pytest.fixture
def other_validation(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives the toy dataset no validation images, or its test images for such."""

    def change(what: str) -> None:
        class Changed(ToyImages):
            def __init__(self, cfg: Any) -> None:
                super().__init__(cfg)
                self.val = self.test if what == "the test images" else []

        monkeypatch.setitem(DATASET_REGISTRY._objects, "ToyImages", Changed)

    return change


@pytest.mark.parametrize(
    ("what", "says"),
    [("none", "there are no validation images"), ("the test images", "6 validation images are test images")],
)
def test_the_best_epoch_is_not_chosen_by_the_test_images(
    what: str, says: str, make_cfg: MakeCfg, other_validation: Callable[[str], None]
) -> None:
    other_validation(what)
    trainer = build_trainer(make_cfg(TEST__FINAL_MODEL="best_val"))
    with pytest.raises(UserError, match=f"TEST.FINAL_MODEL is best_val, but {says}; choose TEST.FINAL_MODEL last_step"):
        trainer.train()
    build_trainer(make_cfg(OPTIM__MAX_EPOCH=1)).train()  # the last epoch needs no validation
