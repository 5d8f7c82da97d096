"""A run as a task of this machine's, of a Ray worker's and of a shell's."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from pathlib import Path

import pytest

from experiments.sweep import task
from experiments.sweep.task import Outcome, Task
from tests.children import wait_for as until
from tests.experiments.sweep.conftest import Place, plan

pytestmark = pytest.mark.medium

ONE = ("--trainers", "PLOT", "--datasets", "symbols", "--shots", "1", "--seeds", "1")


def test_an_interrupt_of_rays_ends_the_run_in_order(place: Place) -> None:
    """Twice, even where the node was started with SIGINT ignored; and the handler is what it was."""
    (run,) = plan(*ONE).runs
    place.slow(60)

    def interrupt() -> None:
        until(lambda: place.starts)
        for _ in range(2):
            _thread.interrupt_main()  # as Ray does it
            time.sleep(0.2)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            task.run(run.task, place.out)
        assert (place.orders / "left1").exists() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_without_shared_storage_the_files_come_back(place: Place) -> None:
    (run,) = plan(*ONE).runs
    for name in ("prompt_learner/checkpoint", "tensorboard/events"):
        (run.directory / name).parent.mkdir(parents=True)
        (run.directory / name).write_text("x")
    assert task.run(run.task, token=place.orders).files == {}  # it sees what the driver has made
    back = task.run(run.task, token=place.orders / "not here")
    assert list(back.files) == ["prompt_learner/checkpoint", "result.json"]
    assert back.files["result.json"] == (run.directory / "result.json").read_bytes()


def test_a_log_that_another_sweep_has_removed(tmp_path: Path) -> None:
    assert Task((), tmp_path, tmp_path / "gone.txt", {}).outcome(2, 1.0) == Outcome(2, 1.0)
