"""Runs on this machine: one after another, or several at once, each with its share of the cores and GPUs."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from dassl.data.data_manager import available_cpus
from runs.process import KILL, Child

from .task import POLL, Outcome, Run


class LocalEngine:
    def __init__(self, jobs: int, environment: Mapping[str, str]) -> None:
        self.slots, self.environment = jobs, environment
        self.running: dict[int, tuple[Run, Child, float]] = {}  # by slot

    @property
    def free(self) -> bool:
        return len(self.running) < self.slots

    def start(self, run: Run) -> None:
        slot = min(set(range(self.slots)) - set(self.running))
        child = run.task.within(resources(slot, self.slots, self.environment)).start()
        self.running[slot] = (run, child, time.monotonic())

    def wait(self) -> list[tuple[Run, Outcome]]:
        """The runs that have ended; waits a moment if none has."""
        ended = []
        for slot, (run, child, begin) in list(self.running.items()):
            if (code := child.poll()) is not None:
                del self.running[slot]
                ended.append((run, run.task.outcome(code, time.monotonic() - begin)))
        if not ended:
            time.sleep(POLL)
        return ended

    def stop(self, number: int) -> None:
        """Passes a signal on; the runs save their state and leave."""
        for _, child, _ in self.running.values():
            child.send_signal(number)

    def close(self) -> None:
        self.stop(KILL)
        for _, child, _ in self.running.values():
            child.wait()


def resources(slot: int, slots: int, environment: Mapping[str, str]) -> dict[str, str]:
    """One run's cores and GPU when several run at once; the user's own variables win."""
    if slots == 1:
        return {}
    threads = str(max(1, available_cpus() // slots))
    given = {} if "OMP_NUM_THREADS" in environment else {"OMP_NUM_THREADS": threads}
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = chosen.split(",") if chosen else [str(i) for i in range(torch.cuda.device_count())]
    if len(gpus) > 1 and chosen != "":
        given["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return given
