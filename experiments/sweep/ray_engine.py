"""Runs on a Ray cluster: one task a run, which starts a child process; each dies with the other.

Ray retries nothing itself: ``execute`` submits a run again that was lost with its worker or node, as on this machine.
Tasks belong to the driver. If it dies, Ray kills its workers, and their runs die with them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from dassl.utils import UserError
from runs.process import KILL

from . import task
from .task import Outcome, Run

LOST = -int(KILL)


class RayEngine:
    free = True  # the queue is Ray's

    def __init__(self, address: str, needs: Mapping[str, float], gpus: float | None, out: Path) -> None:
        """
        Args:
            address: the cluster's. Empty: the one that runs on this machine, else a new one.
            needs: num_cpus and memory (bytes) of a run, as Ray names them.
            gpus: of a run; None for one, if the cluster has any.
            out: the sweep's OUT.

        Raises:
            UserError: no cluster at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        check_address(address)
        before = signal.getsignal(signal.SIGTERM)
        try:
            connect(address)
        finally:
            signal.signal(signal.SIGTERM, before)  # Ray has its own, with another exit code
        # When a node dies Ray prints dozens of lines, whatever its options; a lost run has its own line.
        ray._private.worker.print_to_stdstream = lambda *args, **more: None
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        self.needs = {key: value for key, value in {**needs, "num_gpus": gpus}.items() if value}
        self.attempt: Any = ray.remote(max_retries=0, **self.needs)(task.run)
        self.running: dict[Any, Run] = {}
        self.token = out / "sweeps" / f"driver-{uuid.uuid4().hex}"
        self.token.parent.mkdir(parents=True, exist_ok=True)
        self.token.touch()

    @property
    def slots(self) -> int:
        """The number of runs that fit at once on the present nodes."""
        names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]

        def fitting(has: float, need: float) -> int:  # a run has a part of one unit, or whole units
            return int(has) * int(1 / need) if need < 1 else int(has / need)

        return sum(min(fitting(has.get(names[key], 0), need) for key, need in self.needs.items()) for has in alive)

    def start(self, run: Run) -> None:
        environment = {"OMP_NUM_THREADS": str(max(1, int(self.needs.get("num_cpus", 1))))}
        if "num_gpus" not in self.needs:
            environment["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it alone, and all runs would be on the first GPU
        self.running[self.attempt.remote(run.task.within(environment), self.token)] = run

    def wait(self) -> list[tuple[Run, Outcome]]:
        ready, _ = ray.wait(list(self.running), timeout=0.5)
        return [(self.running.pop(ref), result_of(ref)) for ref in ready]

    def stop(self, number: int) -> None:
        """Interrupts the runs, which save their state and leave, and cancels queued ones."""
        for ref in self.running:
            ray.cancel(ref)

    def close(self) -> None:
        """Ray kills what still runs."""
        self.token.unlink(missing_ok=True)
        ray.shutdown()


def connect(address: str) -> None:
    """Raises UserError: no cluster at the address."""
    try:
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
        if address:
            why = " ".join(str(error).split())
            raise UserError(f"no Ray cluster at '{address}' ({why}); start one: ray start --head") from error
        print("no Ray cluster is running: one is made on this machine, for this sweep alone", flush=True)
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def check_address(address: str) -> None:
    """Raises UserError if no one listens at HOST:PORT, where Ray itself tries for minutes and then ends the program."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not port.isdigit():
        return  # auto, local
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster at '{address}' ({error}); start one: ray start --head") from error


def result_of(ref: Any) -> Outcome:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:  # of task.run, such as a full disk
        return Outcome(1, last=str(error).strip().splitlines()[-1])
    except ray.exceptions.RayError as error:
        return Outcome(LOST, last=f"{type(error).__name__}: its worker or node died")
