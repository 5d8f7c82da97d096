"""One run over several processes, as torchrun starts them: who a process is, and what goes from one to the others.

The global batch is the config's: each process takes its share of it, and of the test images. Process 0 alone writes.
Without torchrun there is one process, which has all of everything.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.utils.data import BatchSampler, Sampler

from dassl.utils import UserError

T = TypeVar("T")

# For what one process does alone while the others wait, such as unpacking a dataset.
TIMEOUT = timedelta(hours=2)


def local_device(use_cuda: bool) -> torch.device:
    """The device of this process."""
    if not (use_cuda and torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if launched() else torch.device("cuda")


def use_exact_convolutions() -> None:
    """Makes cuDNN compute float32 convolutions in float32; by default it rounds their inputs to 10 bits."""
    torch.backends.cudnn.allow_tf32 = False


def launched() -> bool:
    """Whether torchrun has started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    return int(os.environ.get("RANK", "0")) if launched() else 0


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def in_group() -> bool:
    """Whether the processes know of each other yet."""
    return dist.is_initialized()


@contextmanager
def process_group(use_cuda: bool) -> Iterator[None]:
    """The scope in which the processes know of each other: over NCCL on GPUs, else over gloo. Only the first prints."""
    if not launched() or in_group():
        yield
        return
    cuda = use_cuda and torch.cuda.is_available()
    if cuda:
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(f"{torch.cuda.device_count()} GPUs here for {local + 1} processes or more: fewer, please")
        torch.cuda.set_device(local)
    stdout = sys.stdout
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        yield
        dist.destroy_process_group()  # not after an error: the others may hang in the midst of a message
    finally:
        sys.stdout = stdout


def share(n: int) -> range:
    """This process's part of n things; the parts are contiguous and differ by one at most."""
    return range(n * rank() // world_size(), n * (rank() + 1) // world_size())


def gathered(value: T) -> list[T]:
    """Everybody's value, by rank."""
    if not in_group():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Process 0's value."""
    if not in_group():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def of_main(function: Callable[[], T]) -> T:
    """Process 0's value of a function that it alone computes, or its UserError."""
    value: Any = None
    fault = None
    if is_main():
        try:
            value = function()
        except UserError as error:
            fault = error
    value, fault = broadcast((value, fault))
    if fault is not None:
        raise common(fault)
    return value


def common(error: UserError) -> BaseException:
    """What to raise of a mistake that all processes find: the first says it, and the others leave."""
    gathered(None)  # the first has come as far
    return error if is_main() else SystemExit(2)


def summed(values: Sequence[float], device: torch.device) -> list[float]:
    """The sums over the processes."""
    if not in_group():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


class BatchShare(Sampler[list[int]]):
    """Of each of a sampler's batches, this process's share."""

    def __init__(self, sampler: Sampler[Any], batch_size: int, drop_last: bool) -> None:
        self.batches = BatchSampler(sampler, batch_size, drop_last)
        self.sampler, self.batch_size = sampler, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            part = share(len(batch))
            yield batch[part.start : part.stop]

    def __len__(self) -> int:
        return len(self.batches)


def check_shares(n: int, what: str) -> None:
    """UserError: there are fewer than processes."""
    if n < world_size():
        raise common(UserError(f"{n} {what} for {world_size()} processes: start fewer with torchrun --nproc_per_node"))
