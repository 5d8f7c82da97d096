"""The generic trainer: models with their optimizers and schedulers by name, checkpoints, and the loop.

Its hooks (`before_train`, `run_epoch`, `after_epoch`, ...) are Dassl's. `check_training`, `before_test`, `after_test`,
`set_epoch` and `trainer_state` are ours: by the last two a resumed run ends at the same bits as one that was never
interrupted.
"""

import os.path as osp
import threading
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from dassl.utils import (
    UserError,
    list_checkpoints,
    listdir_nohidden,
    load_checkpoint,
    load_weights,
    remove_interrupted,
    remove_rolling,
    restore,
    save_checkpoint,
    save_interrupted,
)


def _leave_to_the_writer(error: threading.ExceptHookArgs) -> None:
    """What TensorBoard's thread finds of a full disk comes up again at the next write, where it ends the run."""
    if not type(error.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(error)


class TrainerBase:
    """A trainer of registered models; subclasses say what an epoch and a test are."""

    learns: ClassVar[bool] = True  # False: there is nothing to train or to load

    def __init__(self) -> None:
        self._models: dict[str, nn.Module] = {}
        self._optims: dict[str, Any] = {}
        self._scheds: dict[str, Any] = {}
        self._writer: Any = None
        self.start_epoch = self.epoch = self.max_epoch = 0
        self.batch_idx = self.num_batches = 0  # in an epoch

    def register_model(self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None) -> None:
        """Hand over a model, which is saved, loaded and stepped under `name`."""
        if "_models" not in self.__dict__:
            raise AttributeError("register_model() comes after super().__init__()")
        if name in self._models:
            raise ValueError(f"a model called {name!r} is already registered")
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """All registered names, or `names` after a check that they are registered."""
        if names is None:
            return list(self._models)
        names = [names] if isinstance(names, str) else names
        for name in names:
            if name not in self._models:
                raise ValueError(f"no model called {name!r} is registered, only {list(self._models)}")
        return names

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
        rolling: bool = False,
    ) -> None:
        """Write `directory/<name>/model.pth.tar-<epoch + 1>`, or `model_name`, for every model."""
        for name in self.get_model_names():
            folder = osp.join(directory, name)
            state = {**self._state(name, epoch + 1), "val_result": val_result}
            save_checkpoint(state, folder, is_best=is_best, model_name=model_name, rolling=rolling)
            if not model_name:
                remove_interrupted(folder)

    def save_within_epoch(self, directory: str) -> None:
        """Write the state in the middle of `self.epoch` for every model; the next whole epoch removes it."""
        for name in self.get_model_names():
            file = save_interrupted(self._state(name, self.epoch), osp.join(directory, name))
            print(f"Checkpoint saved to {osp.join(directory, name, file)}")

    def remove_rolling(self, directory: str) -> None:
        for name in self.get_model_names():
            remove_rolling(osp.join(directory, name))

    def not_finite(self, what: str, files: Iterable[str]) -> UserError:
        look = f", and look at its images: {', '.join(files)}" if files else ""
        return UserError(
            f"{what} is not finite in epoch {self.epoch + 1}, batch {self.batch_idx + 1} of {self.num_batches}; the "
            f"checkpoints of before are as they were. Try a lower OPTIM.LR or PREC fp32{look}"
        )

    def _state(self, name: str, epochs: int) -> dict[str, Any]:
        """What goes on with `epochs` finished."""
        optim, sched = self._optims[name], self._scheds[name]
        dataset = getattr(getattr(self, "dm", None), "dataset", None)
        return {
            "classnames": list(getattr(dataset, "classnames", ())),
            "state_dict": self._models[name].state_dict(),
            "epoch": epochs,
            "optimizer": None if optim is None else optim.state_dict(),
            "scheduler": None if sched is None else sched.state_dict(),
            "trainer": self.trainer_state(),
        }

    def resume_model_if_exist(self, directory: str) -> int:
        """Load the newest whole checkpoints under `directory`, if all models have them; the epoch to start from.

        One that is damaged is reported, and the one before it taken.
        """
        for file in self.find_checkpoints(directory):
            paths = {name: osp.join(directory, name, file) for name in self.get_model_names()}
            try:
                loaded = {name: load_checkpoint(path) for name, path in paths.items()}
            except UserError as error:
                print(f"Damaged: {error}; going back to the one before")
                continue
            print(f"Found checkpoint at {directory} (will resume training)")
            for name, path in paths.items():
                print(f'Loading checkpoint from "{path}"')
                checkpoint = loaded[name]
                start_epoch = restore(checkpoint, path, self._models[name], self._optims[name], self._scheds[name])
            try:
                self.load_trainer_state(checkpoint.get("trainer", {}))
            except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"the trainer's state in {path} does not fit: {error}") from None
            print(f"Previous epoch: {start_epoch}")
            return start_epoch
        print("No checkpoint found, train from scratch")
        return 0

    def find_checkpoints(self, directory: str) -> list[str]:
        """The names of the checkpoints that every model has under `directory`, newest first."""
        # Killed between two models' saves, the first is an epoch ahead; its file before is still there.
        listed = [list_checkpoints(osp.join(directory, name)) for name in self.get_model_names()]
        common = set(listed[0]).intersection(*listed) if listed else set()
        return [listed[0][done] for done in sorted(common, reverse=True)]

    def trainer_state(self) -> dict[str, Any]:
        """Numbers beyond models, optimizers and schedulers that a resumed run needs; saved with each."""
        return {}

    def load_trainer_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `trainer_state` gave; {} where the checkpoint has none."""

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load every model's weights of that epoch, or the best ones. UserError: they are not there."""
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            folder = osp.join(directory, name)
            path = osp.join(folder, file)
            if not osp.isfile(path):
                there = listdir_nohidden(folder, sort=True) if osp.isdir(folder) else []
                found = ", ".join(f for f in there if f.startswith("model")) or "nothing"
                raise UserError(f"no model at {path}; found there: {found} (--load-epoch chooses)")
            checkpoint = load_checkpoint(path)
            if "state_dict" not in checkpoint:
                raise UserError(f"{path} is no checkpoint: it has no state_dict")
            load_weights(self._models[name], checkpoint["state_dict"], path)
            result = checkpoint.get("val_result")
            note = f", val_result={result:.1f}" if isinstance(result, (int, float)) else ""
            print(f"Load {path} to {name} (epoch={checkpoint.get('epoch')}{note})")

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        if mode not in ("train", "test", "eval"):
            raise KeyError(mode)
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the schedulers; a trainer calls it at the end of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss).all():
            raise FloatingPointError("Loss is infinite or NaN!")

    def init_writer(self, log_dir: str) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._writer = SummaryWriter(log_dir=log_dir)
            threading.excepthook = _leave_to_the_writer

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """To TensorBoard; nothing before `init_writer`, which training alone calls."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """The loop; `before_train` may move `start_epoch`, to `max_epoch` even."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        self.epoch = max(self.start_epoch - 1, 0)
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.set_epoch(epoch)
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def check_training(self) -> None:
        """Raise UserError where training lacks something; called before a run writes anything."""

    def set_epoch(self, epoch: int) -> None:
        """Make what is random in the coming epoch a function of its number."""

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_epoch(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def before_test(self, split: str) -> None:
        pass

    def after_test(self, split: str) -> None:
        pass

    def run_epoch(self) -> None:
        raise NotImplementedError

    def test(self) -> Any:
        raise NotImplementedError

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        raise NotImplementedError

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> Any:
        raise NotImplementedError

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        """FloatingPointError: the loss is not finite."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss: torch.Tensor, names: str | list[str] | None = None) -> None:
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)
