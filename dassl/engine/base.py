"""The generic trainer: models with their optimizers and schedulers by name, checkpoints, and the loop.

Its hooks (`before_train`, `run_epoch`, `after_epoch`, ...) are Dassl's. `before_test`, `after_test`, `set_epoch`
and `trainer_state` are ours: by the last two a resumed run ends at the same bits as one that was never interrupted.
"""

import os.path as osp
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dassl.utils import (
    UserError,
    listdir_nohidden,
    load_checkpoint,
    load_weights,
    restore,
    save_checkpoint,
    tolist_if_not,
)
from dassl.utils.checkpoints import newest_checkpoint


class TrainerBase:
    """A trainer of registered models; subclasses say what an epoch and a test are."""

    def __init__(self) -> None:
        self._models: dict[str, nn.Module] = {}
        self._optims: dict[str, Any] = {}
        self._scheds: dict[str, Any] = {}
        self._writer: Any = None
        self.start_epoch = self.epoch = self.max_epoch = 0

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
        names = tolist_if_not(names)
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
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
                "trainer": self.trainer_state(),
            }
            save_checkpoint(state, osp.join(directory, name), is_best=is_best, model_name=model_name, rolling=rolling)

    def resume_model_if_exist(self, directory: str) -> int:
        """Load the newest checkpoints under `directory`, if all models have one; the epoch to start from."""
        file = self.find_checkpoint(directory)
        if file is None:
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        for name in self.get_model_names():
            path = osp.join(directory, name, file)
            print(f'Loading checkpoint from "{path}"')
            checkpoint = load_checkpoint(path)
            start_epoch = restore(checkpoint, path, self._models[name], self._optims[name], self._scheds[name])
        self.load_trainer_state(checkpoint.get("trainer", {}))
        print(f"Previous epoch: {start_epoch}")
        return start_epoch

    def find_checkpoint(self, directory: str) -> str | None:
        """The name of the newest checkpoint that every model has under `directory`."""
        files = [newest_checkpoint(osp.join(directory, name)) for name in self.get_model_names()]
        if not files or None in files:
            return None
        # Killed between two models' saves, the first is an epoch ahead; its file before is still there.
        return min(filter(None, files), key=lambda file: [int(n) for n in re.findall(r"-(\d+)$", file)])

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
