"""A run as a task of this machine's, of a Ray worker's and of a shell's."""

from __future__ import annotations

import _thread
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from experiments.sweep import command, task
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


def test_printed_commands_run_from_any_folder(
    tiny: list[str], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the runs that are not finished, and nothing else; also with folders that only the sweep's sees."""
    monkeypatch.delenv("SEEDS")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUT", "out of this")
    (tmp_path / "tiny.pt").symlink_to(weights)
    tiny[tiny.index(str(weights))] = "tiny.pt"
    argv = ["--trainers", "PLOT", "--datasets", "caltech101", "--shots", "1", "--seeds", "1,2", "--print", *tiny]
    assert command.main(argv) == 0
    lines = capsys.readouterr().out
    assert lines.count("\n") == 2 and not (tmp_path / "out of this").exists()
    xargs = "tr '\\n' '\\0' | xargs -0 -n 1 -P 2 sh -c"
    subprocess.run(["sh", "-c", xargs], input=lines, text=True, cwd="/", check=True, stdout=subprocess.DEVNULL)
    assert len(list((tmp_path / "out of this").rglob("result.json"))) == 2
    assert command.main(argv) == 0 and capsys.readouterr().out == ""
