"""What a Ray worker does, without Ray: its server forks real runs, and neither outlives the other's end for long."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.sweep import command, process, worker
from scripts.sweep.plan import Run, plan_of
from scripts.sweep.spec import spec_of
from tests.scripts.sweep.conftest import alive, until

TWO = ["--trainers", "PLOT", "--datasets", "caltech101", "--shots", "1", "--seeds", "1,2"]
CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def no_server() -> Iterator[None]:
    worker._server = None
    yield
    if worker._server is not None:
        worker._server.process.kill()
        worker._server.process.wait()
        worker._server = None


def planned(*opts: str) -> list[Run]:
    return plan_of(spec_of(command.build_parser(None).parse_args([*TWO, *opts]))).runs


def test_a_server_forks_the_runs(tiny: list[str], no_server: None, tmp_path: Path) -> None:
    first, second = planned(*tiny)
    assert worker.run(first.task(CPU), tmp_path).code == 0
    server = worker._server
    assert server is not None and first.finished and not first.log.exists()

    run = planned(*tiny, "OPTIM.MAX_EPOCH", "100000")[0]
    child = worker.start(run.task(CPU))
    assert isinstance(child, worker.Served) and child.server is server and Path(f"/proc/{child.pid}").is_dir()
    until(lambda: run.resumable)
    child.send_signal(signal.SIGINT)
    assert child.wait() == 130 and "interrupted by SIGINT" in run.log.read_text()
    child = worker.start(run.task(CPU))
    server.process.kill()
    assert child.wait() == -signal.SIGKILL
    until(lambda: not alive(child.pid), 5)

    bad = process.Task((*second.arguments, "OPTIM.NO_SUCH", "1"), second.directory, second.log, CPU)
    outcome = worker.run(bad, tmp_path)  # by another server
    assert worker._server is not server and outcome.code == 2 and "OPTIM.NO_SUCH" in outcome.last


def test_without_a_server_a_run_is_a_process_of_its_own(
    no_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, or where the server does not start."""
    stub, log = tmp_path / "train.py", tmp_path / "log"
    stub.write_text("import sys; sys.exit('not served')")
    monkeypatch.setattr(worker, "TRAIN", stub)
    outcome = worker.run(process.Task((), tmp_path, log, {}, stub), tmp_path)
    assert (outcome.code, outcome.last, worker._server) == (1, "not served", None)
    monkeypatch.setattr(worker, "REPOSITORY", tmp_path)  # where there is no such module
    outcome = worker.run(process.Task((), tmp_path, log, CPU, stub), tmp_path)
    assert worker._server is not None and worker._server.process.wait() == 1
    assert (outcome.code, outcome.last) == (1, "not served")
