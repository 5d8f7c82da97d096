"""Runs on this machine: one after another, or several at once, each with its share of the cores and GPUs."""

from __future__ import annotations

import os
import signal
import time

import torch

from dassl.data.data_manager import available_cpus
from runs import forks

from . import process
from .plan import Run
from .process import POLL, TRAIN, Outcome, Task, outcome


class LocalEngine:
    def __init__(self, jobs: int) -> None:
        self.slots = jobs
        self.running: dict[int, tuple[Run, Task, forks.Child, float]] = {}  # by slot

    @property
    def free(self) -> bool:
        return len(self.running) < self.slots

    def start(self, run: Run) -> None:
        slot = min(set(range(self.slots)) - set(self.running))
        task = run.task(share(slot, self.slots))
        forked = task.script == TRAIN and forks.possible()
        child = process.fork(task, forks.Fork) if forked else process.start(task)
        self.running[slot] = (run, task, child, time.monotonic())

    def wait(self) -> list[tuple[Run, Outcome]]:
        """Those that have ended; waits a moment if none has."""
        ended = []
        for slot, (run, task, child, begin) in list(self.running.items()):
            if (code := child.poll()) is not None:
                del self.running[slot]
                ended.append((run, outcome(task, code, time.monotonic() - begin)))
        if not ended:
            time.sleep(POLL)
        return ended

    def stop(self, number: int) -> None:
        """Passes a signal on; the runs save their state and leave."""
        for _, _, child, _ in self.running.values():
            child.send_signal(number)

    def close(self) -> None:
        self.stop(signal.SIGKILL)
        for _, _, child, _ in self.running.values():
            child.wait()


def share(slot: int, slots: int) -> dict[str, str]:
    """Of several runs at once, one's cores and one of the GPUs; what the user has set wins."""
    given: dict[str, str] = {}
    if slots > 1 and "OMP_NUM_THREADS" not in os.environ:
        given["OMP_NUM_THREADS"] = str(max(1, available_cpus() // slots))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = chosen.split(",") if chosen else [str(i) for i in range(torch.cuda.device_count())]
    if slots > 1 and len(gpus) > 1 and chosen != "":
        given["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return given
