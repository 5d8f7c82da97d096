"""What a Ray worker does, without Ray: its server forks real runs, and neither outlives the other's end for long."""

from __future__ import annotations

import _thread
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from experiments.sweep import command, process, worker
from experiments.sweep.plan import Run, plan_of
from experiments.sweep.spec import spec_of
from runs.directory import REPOSITORY
from tests.children import wait_for as until
from tests.experiments.sweep.conftest import alive

TWO = ["--trainers", "PLOT", "--datasets", "caltech101", "--shots", "1", "--seeds", "1,2"]
CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


# A driver: it says where the server beside it is, and lives until it is told to end.
DRIVER = """
import json, sys
from dassl import startup
startup.before_imports()
from experiments.sweep import server

pytestmark = pytest.mark.medium
startup.after_imports()
with server.beside() as beside:
    print(json.dumps([beside.name, beside.key.hex()]), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def no_server() -> Iterator[None]:
    worker._server = None
    yield
    if worker._server is not None:
        worker._server.close()
        worker._server = None


def planned(*opts: str) -> list[Run]:
    return plan_of(spec_of(command.build_parser(None).parse_args([*TWO, *opts]))).runs


def test_a_server_forks_the_runs(tiny: list[str], no_server: None, tmp_path: Path) -> None:
    first, second = planned(*tiny)
    assert worker.run(first.task(CPU), tmp_path).code == 0
    server = worker._server
    assert server is not None and server.own is not None and first.finished and not first.log.exists()

    run = planned(*tiny, "OPTIM.MAX_EPOCH", "100000")[0]
    child = worker.start(run.task(CPU))
    assert isinstance(child, worker.Served) and child.server is server and Path(f"/proc/{child.pid}").is_dir()
    until(lambda: run.resumable)
    child.send_signal(signal.SIGINT)
    assert child.wait() == 130 and "interrupted by SIGINT" in run.log.read_text()
    child = worker.start(run.task(CPU))
    server.own.kill()
    assert child.wait() == -signal.SIGKILL
    until(lambda: not alive(child.pid), 5)

    bad = process.Task((*second.arguments, "OPTIM.NO_SUCH", "1"), second.directory, second.log, CPU)
    outcome = worker.run(bad, tmp_path)  # by another server
    assert worker._server is not server and outcome.code == 2 and "OPTIM.NO_SUCH" in outcome.last


def test_the_server_beside_the_driver(tiny: list[str], no_server: None, tmp_path: Path) -> None:
    """It forks the runs of the machine's workers, and no one else's; these end with the worker, and with the driver."""
    first, second = planned(*tiny)
    endless = planned(*tiny, "OPTIM.MAX_EPOCH", "100000")[0].task(CPU)
    command = [sys.executable, "-c", DRIVER]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        name, key = json.loads(driver.stdout.readline())
        mute = socket.socket(socket.AF_UNIX)  # a stranger that says nothing, and stays
        mute.connect(name)
        for guess in ("00" * 32, "00" * 33, key[2:]):
            with Client(name, "AF_UNIX") as stranger:
                stranger.send_bytes(bytes.fromhex(guess))
                with pytest.raises((EOFError, OSError)):
                    stranger.send(first.task(CPU))
                    stranger.recv()
        assert not first.directory.exists()
        beside = process.Address(name, bytes.fromhex(key))

        assert worker.run(first.task(CPU), tmp_path, beside).code == 0 and first.finished
        server = worker._server
        assert server is not None and server.own is None
        child = worker.start(endless, beside)
        assert isinstance(child, worker.Served) and child.server is server
        child.send_signal(signal.SIGTERM)
        assert child.wait() in (-15, 143)
        child.send_signal(signal.SIGTERM)  # it is no more

        child = worker.start(endless, beside)
        server.connection.close()  # as when the worker dies
        until(lambda: not alive(child.pid), 5)
        assert worker.run(second.task(CPU), tmp_path, beside).code == 0 and second.finished

        child = worker.start(endless, beside)
        driver.kill()
        assert child.wait() == -signal.SIGKILL and worker.reached(beside) is None
        until(lambda: not alive(child.pid), 5)
        mute.close()


def test_an_interrupt_of_rays_ends_the_run_in_order(no_server: None, tmp_path: Path) -> None:
    """Twice, even where the node was started with SIGINT ignored; and the handler is what it was."""
    stub = tmp_path / "train.py"
    stub.write_text(
        "import pathlib, time\n"
        "try: pathlib.Path('begun').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt: time.sleep(0.5); pathlib.Path('left').touch()\n"
    )

    def interrupt() -> None:
        until((tmp_path / "begun").exists)
        for _ in range(2):
            _thread.interrupt_main()  # as Ray does it
            time.sleep(0.2)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            worker.run(process.Task((), tmp_path, tmp_path / "log", {}, stub, str(tmp_path)), tmp_path)
        assert (tmp_path / "left").exists() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


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
    assert worker._server is not None and worker._server.connection.closed
    assert (outcome.code, outcome.last) == (1, "not served")
