"""Samplers whose order is a function of (seed, epoch), in every process and after an interruption.

They yield indices that carry their epoch, so that an image's augmentation can depend on it in any worker.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from dassl.utils import derive_seed


class EpochIndex(int):
    """An image's index, with the `epoch` in which it is drawn."""

    epoch: int

    def __new__(cls, index: int, epoch: int = 0) -> "EpochIndex":
        self = super().__new__(cls, index)
        self.epoch = epoch
        return self


class SequentialSampler(Sampler[int]):
    """The data in order. `set_epoch` sets the epoch and how many of its first images are left out."""

    def __init__(self, data_source: Sequence[Any], seed: int = 0) -> None:
        self.data_source = data_source
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.epoch = epoch
        self.skip = skip

    def order(self) -> Sequence[int]:
        return range(len(self.data_source))

    def __iter__(self) -> Iterator[EpochIndex]:
        return (EpochIndex(index, self.epoch) for index in self.order()[self.skip :])

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(SequentialSampler):
    """A permutation of the data in each epoch."""

    def order(self) -> Sequence[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        return torch.randperm(len(self.data_source), generator=generator).tolist()


SAMPLERS = {kind.__name__: kind for kind in (RandomSampler, SequentialSampler)}
