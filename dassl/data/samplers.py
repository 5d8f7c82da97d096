"""Samplers whose order is a function of (seed, epoch), whatever process or interruption.

They yield indices that carry their epoch, so that an image's augmentation can depend on it in any worker.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from yacs.config import CfgNode

from dassl.utils import UserError, check_availability, derive_seed

SAMPLERS = ("RandomSampler", "SequentialSampler", "RandomClassSampler")


class EpochIndex(int):
    """An image's index, for use as any other int, with the `epoch` in which it is drawn."""

    epoch: int

    def __new__(cls, index: int, epoch: int = 0) -> "EpochIndex":
        self = super().__new__(cls, index)
        self.epoch = epoch
        return self


class EpochSampler(Sampler[int]):
    """`set_epoch` before iterating chooses the epoch's order, and how many of its images are left out in front."""

    def __init__(self, data_source: Sequence[Any], seed: int = 0) -> None:
        self.data_source = data_source
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.epoch = epoch
        self.skip = skip
        self.indices = self.order(derive_seed(self.seed, epoch))

    def order(self, seed: int) -> Sequence[int]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[EpochIndex]:
        return (EpochIndex(index, self.epoch) for index in self.indices[self.skip :])

    def __len__(self) -> int:
        return len(self.indices)


class SequentialSampler(EpochSampler):
    def order(self, seed: int) -> Sequence[int]:
        return range(len(self.data_source))


class RandomSampler(EpochSampler):
    """A permutation of the data each epoch."""

    def order(self, seed: int) -> Sequence[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(self.data_source), generator=generator).tolist()


class RandomClassSampler(EpochSampler):
    """Batches of `batch_size // n_ins` random classes with `n_ins` images each (fewer repeat).

    An epoch ends when too few classes have images left, so its length may vary with the epoch.
    """

    def __init__(self, data_source: Sequence[Any], batch_size: int, n_ins: int, seed: int = 0) -> None:
        if not 1 <= n_ins <= batch_size:
            raise UserError(f"N_INS is {n_ins}; expected 1 to the batch size, {batch_size}")
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        self.by_label: defaultdict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.by_label[item.label].append(index)
        if len(self.by_label) < self.ncls_per_batch:
            raise UserError(
                f"batch size {batch_size} with N_INS {n_ins} takes {self.ncls_per_batch} classes a batch; "
                f"there are {len(self.by_label)}"
            )
        super().__init__(data_source, seed)

    def order(self, seed: int) -> Sequence[int]:
        rng = random.Random(seed)
        groups: dict[int, list[list[int]]] = {}
        for label, indices in self.by_label.items():
            short = len(indices) < self.n_ins
            drawn = rng.choices(indices, k=self.n_ins) if short else rng.sample(indices, len(indices))
            whole = len(drawn) - len(drawn) % self.n_ins
            groups[label] = [drawn[i : i + self.n_ins] for i in range(0, whole, self.n_ins)]
        order: list[int] = []
        while len(groups) >= self.ncls_per_batch:
            for label in rng.sample(list(groups), self.ncls_per_batch):
                order += groups[label].pop(0)
                if not groups[label]:
                    del groups[label]
        return order


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sequence[Any] = (),
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
    seed: int = 0,
) -> EpochSampler:
    """The sampler of that name. UserError: there is none. `cfg` and `n_domain` are Dassl's, unused here."""
    check_availability(sampler_type, SAMPLERS, "sampler (DATALOADER.*.SAMPLER)")
    if sampler_type == "RandomClassSampler":
        return RandomClassSampler(data_source, batch_size, n_ins, seed)
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source, seed)
    return SequentialSampler(data_source, seed)
