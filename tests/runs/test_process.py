"""Runs as child processes: what they find, how they end, and what ends with them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

import train
from runs import process
from tests import children

from .test_interrupted import argv_of, assert_same_bits

pytestmark = pytest.mark.medium

REPORT, PEAK, SLEEP = (f"tests.runs.reports:{name}" for name in ("report", "peak", "sleep"))


@pytest.fixture
def server() -> Iterator[forkserver.ForkServer]:
    """A new one, which preloads what the test starts first."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    yield forkserver._forkserver
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def test_a_child_is_the_run_that_a_process_is(
    run_args: list[str], tmp_path: Path, server: forkserver.ForkServer
) -> None:
    """To the bit, one after the other too; its exit codes, and what signals do, are those of train.py."""
    log = tmp_path / "log"
    one, two, endless = (argv_of(run_args, "PLOT", tmp_path / name) for name in ("one", "two", "endless"))
    endless += ["OPTIM.MAX_EPOCH", "100000"]
    assert [process.start(argv, log=log).wait() for argv in (one, two, [*one, "OPTIM.NO_SUCH", "1"])] == [0, 0, 2]
    assert log.read_text().startswith("error: ") and log.read_text().count("\n") == 1
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        child = process.start(endless, log=log)
        children.wait_for(lambda: list(tmp_path.glob("endless/prompt_learner/checkpoint")))
        child.send_signal(number)
        assert child.wait() == code
        child.send_signal(number)  # it is no more
    child = process.start(endless, log=log)
    child.send_signal(signal.SIGTERM)  # before it has a handler
    assert child.wait() == 143
    assert train.main(argv_of(run_args, "PLOT", tmp_path / "process")) == 0
    assert_same_bits(tmp_path / "one", tmp_path / "process")
    assert_same_bits(tmp_path / "two", tmp_path / "process")


PROGRAM = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as its parent may have left it
print("the main module", flush=True)
from runs import process
"""


def program(folder: Path, code: str, *words: str) -> subprocess.Popen[str]:
    """A program that runs in another folder, where a module has the name of one of ours."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    if sys.version_info >= (3, 11):
        (elsewhere / "runs.py").write_text("raise RuntimeError('not ours')")
    (folder / "program.py").write_text(PROGRAM + code)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "program.py"), str(process.REPOSITORY), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=elsewhere, env=env, text=True, start_new_session=True, **pipes)


REPORTS = f"""
process.METHOD, folder = sys.argv[2:]
process.before_imports()
server = process.forkserver._forkserver._forkserver_pid
for number in (signal.SIGINT, signal.SIGTERM) if server else ():
    os.kill(server, number)
os.environ["LATER"] = "x"
given = {{"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "7"}}
codes = [process.start(["one"], {REPORT!r}).wait()]
codes += [process.start(["two"], {REPORT!r}, given, folder, process.Path(folder, "log")).wait()]
codes += [process.start(["three"], {REPORT!r}, silent=True).wait()]
print(json.dumps([codes, server]))
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_what_a_child_finds(method: str, tmp_path: Path) -> None:
    """From another folder, too, the imports are there. Arguments decide, not the environment of the server's start."""
    (tmp_path / "two").mkdir()
    out, error = program(tmp_path, REPORTS, method, str(tmp_path / "two")).communicate(timeout=300)
    codes, server = json.loads(out.splitlines()[-1])
    assert codes == [3, 3, 3] and out.count("the main module") == out.count("output") == 1  # the third is silent
    assert error == 2 * (tmp_path / "two/log").read_text() == 2 * "error\n"
    one, two = (json.loads(path.read_text()) for path in (tmp_path / "elsewhere/one", tmp_path / "two/two"))
    forked = method == "forkserver"
    for found in (one, two):
        assert found["environment"]["LATER"] == "x" and "PYTHONPATH" not in found["environment"]
        assert not found["blocked"] and not found["cuda"] and found["preloaded"] == forked
        assert found["loaders"] == multiprocessing.get_start_method()
        assert not forked or (found["server"], found["server_threads"]) == (server, 1)
    assert two["environment"] == one["environment"] | {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "7"}
    assert [one["folder"], two["folder"]] == [str(tmp_path / name) for name in ("elsewhere", "two")]
    assert (one["leader"], two["leader"]) == (False, True)
    assert not forked or (one["threads"], two["threads"]) == (int(one["environment"]["OMP_NUM_THREADS"]), 3)


def test_a_childs_peak_memory_is_its_own(server: forkserver.ForkServer) -> None:
    """Whatever its parent holds, and another child has held."""
    before, large, after = (process.start([size], PEAK).wait() for size in ("1", "200", "1"))
    assert before <= after <= before + 1 and large >= after + 19 and after < 20


@pytest.mark.parametrize("seconds", [0, 1])  # as the child begins, and later
def test_a_killed_server_ends_its_child_and_the_next_one_has_another(
    seconds: int, server: forkserver.ForkServer
) -> None:
    child = process.start([], SLEEP)
    time.sleep(seconds)
    os.kill(server._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert child.wait() == -signal.SIGKILL
    children.wait_for(lambda: not children.alive(child.pid), seconds=5)
    assert process.start(["1"], PEAK).wait() < 20


def test_a_server_that_dies_as_it_starts_is_said(
    server: forkserver.ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("import os; os._exit(1)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ChildProcessError, match="has died"):
        process.start([])


def test_a_killed_program_ends_its_run_and_the_loader_workers(run_args: list[str], tmp_path: Path) -> None:
    argv = argv_of(run_args, "CoOp", tmp_path / "run", "DATALOADER.NUM_WORKERS", "2", "OPTIM.MAX_EPOCH", "100000")
    driver = program(tmp_path, "process.before_imports()\nprocess.start(sys.argv[2:]).wait()", *argv)
    # The program, the tracker of multiprocessing's resources, the server, the run and its workers.
    children.wait_for(lambda: list(tmp_path.glob("run/prompt_learner/checkpoint")), seconds=300)
    assert len(children.processes_of(driver.pid)) == 6
    driver.kill()
    children.wait_for(lambda: not children.processes_of(driver.pid), seconds=5)
    driver.communicate()
