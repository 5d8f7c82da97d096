"""What the loader's workers need of the machine: shared memory for their batches, and to stay alive.

torch's workers put batches into /dev/shm, by either of its sharing strategies, and a container has 64 MB there. Where
batches do not fit, each sample goes through a pipe instead, and the main process puts the batch together.
"""

import io
import math
import os
import pickle
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.utils.data import default_collate

FOLDER = "/dev/shm"
PREFETCHED = 2  # batches a worker, torch's default
IN_USE = 2  # batches in the main process: the step's, and the one before until it is freed
SHARE = 0.5  # of the free space; other runs may need the rest


def free_bytes() -> float:
    """The free shared memory; infinite where it is no file system."""
    with suppress(OSError, AttributeError):
        stat = os.statvfs(FOLDER)
        return stat.f_bavail * stat.f_frsize
    return math.inf


def needed_bytes(batch_size: int, size: Sequence[int], workers: int) -> int:
    """Shared memory that a loader of float32 images takes; size is (h, w)."""
    return (PREFETCHED * workers + IN_USE) * batch_size * 3 * math.prod(size) * 4


def collate_function(batch_size: int, size: Sequence[int], workers: int) -> Callable[[Any], Any] | None:
    """`by_pipe` if shared memory is too small for the workers' batches, else torch's default."""
    return by_pipe if workers and needed_bytes(batch_size, size, workers) > SHARE * free_bytes() else None


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays, faster than torch does."""

    def reducer_override(self, item: Any) -> Any:
        return (torch.from_numpy, (item.numpy(),)) if isinstance(item, torch.Tensor) else NotImplemented


def by_pipe(samples: list[Any]) -> bytes:
    """A collate function: torch sends bytes through a pipe."""
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=pickle.HIGHEST_PROTOCOL).dump(samples)
    return pickled.getvalue()


def collated(batch: Any, collate: Callable[[Any], Any] = default_collate) -> Any:
    """A batch as `collate` makes it, from what a loader gives."""
    return collate(pickle.loads(batch)) if isinstance(batch, bytes) else batch


def fault(error: Exception) -> str:
    """The line for a worker that the machine has failed; "" for any other error."""
    text = str(error).strip()
    if died := re.match(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (.*?)(?:\. |\.?$)", text, re.DOTALL):
        reason = died[1]
    elif isinstance(error, OSError) and text.startswith("Caught "):
        reason = f"has failed: {text.splitlines()[-1]}"
    elif "DataLoader worker" in text and (full := re.search(r"unable to .*(shared memory|</torch_).*", text)):
        reason = f"has failed: {full[0]}"
    elif text.startswith("Too many open files. Communication with the workers"):
        reason = "cannot be reached: too many open files; 'ulimit -n' allows more"
    else:
        return ""
    room = f"{FOLDER} has {free_bytes() / 1e6:,.0f} MB free; " if os.path.isdir(FOLDER) else ""
    return f"a worker that loads images {reason}; {room}DATALOADER.NUM_WORKERS 0 does without workers"
