"""What a trainer does when several processes share its run ; in a run of one process each of these does nothing.

Each step is one of the global batch: gradients are averaged with each process's share as its weight, losses likewise,
and a signal to one process stops all of them after the same step. The first process alone writes.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dassl.extras.distributed import check_shares, gathered, is_main, launched, summed, world_size
from dassl.extras.interrupts import interrupt, signalled, uninterrupted
from dassl.utils import UserError

from .base import TrainerBase


class ParallelTrainer(TrainerBase):
    """`loss_weight` is what a process's mean loss counts in the global batch's, times the number of processes."""

    device: torch.device
    loss_weight = 1.0
    check_shares = staticmethod(check_shares)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module to compute with in training, that its gradients be averaged over the processes."""
        if not launched():
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # Deprecated since PyTorch 2.13, but its successor sends the buffers once, and with the classes split they
            # are each process's own; there PyTorch advises the old one.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's, weighed by their part of the global batch. Interrupted: one of the processes has a signal."""
        if not launched():
            yield from loader
            return
        with uninterrupted():  # signals wait until the processes tell each other
            for batch in loader:
                n = len(batch["label"])
                total, signals = summed([n, signalled() is not None], self.device)
                if signals:
                    interrupt()
                self.loss_weight = n * world_size() / total
                yield batch

    def end_step(self, summary: dict[str, float]) -> dict[str, float]:
        """The means over the global batch of the means over a process's share."""
        if not launched():
            return summary
        share = self.loss_weight / world_size()
        return dict(zip(summary, summed([value * share for value in summary.values()], self.device), strict=True))

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """FloatingPointError, in all processes, if the loss of one is not finite."""
        if summed([not torch.isfinite(loss).all()], self.device)[0]:
            raise FloatingPointError("Loss is infinite or NaN!")

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        if is_main():
            super().save_model(*args, **kwargs)

    def save_within_epoch(self, directory: str) -> None:
        if is_main():
            super().save_within_epoch(directory)

    def init_writer(self, log_dir: str) -> None:
        if is_main():
            super().init_writer(log_dir)

    def resume_model_if_exist(self, directory: str) -> int:
        """UserError: the processes do not see the same checkpoints."""
        start_epoch = super().resume_model_if_exist(directory)
        found = gathered((start_epoch, getattr(self, "start_batch", 0)))
        if len(set(found)) > 1:
            raise UserError(
                f"the processes see different checkpoints in '{directory}' (epochs and batches done: {found}); "
                "it must lie on storage that all nodes share"
            )
        return start_epoch

    def all_files(self, batch: Mapping[str, Any]) -> list[str]:
        """The images of the global batch."""
        return [path for paths in gathered(list(batch.get("impath", []))) for path in paths]
