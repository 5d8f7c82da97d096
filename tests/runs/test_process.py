"""Runs as child processes: what they find, how they end, and what ends with them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import train
from runs.process import REPOSITORY
from tests import children

from .test_interrupted import argv_of, assert_same_bits

pytestmark = pytest.mark.medium

START = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
words = json.loads(sys.argv[2])
print("the main module")
from runs import process
"""


def run_program(code: str, folder: Path, words: Any, **environment: str) -> subprocess.Popen[str]:
    """A program that is in ``folder`` and runs below it, where other modules have the names of the repository's."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    if sys.version_info >= (3, 11):
        (elsewhere / "runs.py").write_text("raise RuntimeError('not the repository')")
    (folder / "program.py").write_text(START + code)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    return subprocess.Popen(
        [sys.executable, str(folder / "program.py"), str(REPOSITORY), json.dumps(words)],
        cwd=elsewhere,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def printed(program: subprocess.Popen[str]) -> Any:
    """What the program prints last, as JSON; its main module runs once."""
    out, error = program.communicate(timeout=300)
    assert program.returncode == 0, error
    first, *_, last = out.splitlines()
    assert first == "the main module" and out.count(first) == 1
    return json.loads(last), error


RUNS = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as its parent may have left it
process.before_imports()
one, two, bad, endless = words
codes = [process.start(argv).wait() for argv in (one, two, bad)]
for number in (signal.SIGINT, signal.SIGKILL):
    run = process.start(endless)
    while not list(Path(endless[1]).glob("prompt_learner/checkpoint")):
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(number)
    codes.append(run.wait())
    run.send_signal(number)  # it is no more
run = process.start(endless)
run.send_signal(signal.SIGTERM)  # before it has a handler
codes.append(run.wait())
assert "torch" not in sys.modules
print(json.dumps(codes))
"""


def test_a_child_is_the_run_that_a_process_is(run_args: list[str], tmp_path: Path) -> None:
    """To the bit, one after the other too; its exit codes, and what signals do, are those of train.py."""
    one, two, endless = (argv_of(run_args, "PLOT", tmp_path / name) for name in ("one", "two", "endless"))
    endless += ["OPTIM.MAX_EPOCH", "100000"]
    codes, error = printed(run_program(RUNS, tmp_path, [one, two, [*one, "OPTIM.NO_SUCH", "1"], endless]))
    assert codes == [0, 0, 2, 130, -9, 143]
    assert error.count("error: ") == 1 and "OPTIM.NO_SUCH" in error
    assert train.main(argv_of(run_args, "PLOT", tmp_path / "process")) == 0
    assert_same_bits(tmp_path / "one", tmp_path / "process")
    assert_same_bits(tmp_path / "two", tmp_path / "process")


REPORTS = """
process.METHOD = words[0]
process.before_imports()
server = process.forkserver._forkserver._forkserver_pid
for number in (signal.SIGINT, signal.SIGTERM) if server else ():
    os.kill(server, number)
os.environ["LATER"] = "x"
codes = [process.start(["one"], "tests.runs.reports:report").wait()]
given = {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "7"}
log = Path("log").absolute()
codes += [process.start(["two"], "tests.runs.reports:report", given, words[1], log).wait()]
print(json.dumps([codes, server, log.read_text()]))
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_what_a_child_finds(method: str, tmp_path: Path) -> None:
    """From another folder, too, the imports are there. Arguments decide, not the environment of the server's start."""
    (tmp_path / "two").mkdir()
    variables = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    program = run_program(REPORTS, tmp_path, [method, str(tmp_path / "two")], **variables)
    (codes, server, log), error = printed(program)
    assert (codes, log, error) == ([3, 3], "to the log\n", "to the log\n")
    one, two = (json.loads(path.read_text()) for path in (tmp_path / "elsewhere/one", tmp_path / "two/two"))
    forked = method == "forkserver"
    for found, folder in ((one, "elsewhere"), (two, "two")):
        assert found["folder"] == str(tmp_path / folder) and found["environment"]["LATER"] == "x"
        assert "PYTHONPATH" not in found["environment"] and not found["blocked"] and not found["cuda"]
        assert found["preloaded"] == forked and found["loaders"] == multiprocessing.get_start_method()
        if forked:
            assert (found["server"], found["server_threads"]) == (server, 1)
    assert two["environment"] == one["environment"] | {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "7"}
    assert (one["leader"], two["leader"]) == (False, True)
    assert (one["threads"], two["threads"]) == ((1, 3) if forked else (None, None))


PEAKS = """
held = b"x" * (400 << 20)
print(json.dumps([process.start([size], "tests.runs.reports:peak").wait() for size in ("1", "200", "1")]))
"""


def test_a_childs_peak_memory_is_its_own(tmp_path: Path) -> None:
    """Whatever the program holds, and another child has held."""
    (before, large, after), _ = printed(run_program(PEAKS, tmp_path, []))
    assert before <= after <= before + 1 and large >= after + 19 and after < 20


KILLED_SERVER = """
codes, pids = [], []
for seconds in (0, 1):  # as the child begins, and later
    run = process.start([], "tests.runs.reports:sleep")
    time.sleep(seconds)
    os.kill(process.forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    codes.append(run.wait())
    pids.append(run.pid)
codes.append(process.start(["report"], "tests.runs.reports:report").wait())
print(json.dumps([codes, pids]))
"""


def test_a_killed_server_ends_its_children_and_the_next_start_has_another(tmp_path: Path) -> None:
    (codes, pids), _ = printed(run_program(KILLED_SERVER, tmp_path, []))
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 3]
    children.wait_for(lambda: not any(map(children.alive, pids)), seconds=5)


def test_a_killed_program_ends_its_run_and_the_loader_workers(run_args: list[str], tmp_path: Path) -> None:
    words = argv_of(run_args, "CoOp", tmp_path / "run", "DATALOADER.NUM_WORKERS", "2", "OPTIM.MAX_EPOCH", "100000")
    program = run_program("process.before_imports()\nprocess.start(words).wait()", tmp_path, words)
    # The program, the tracker of multiprocessing's resources, the server, the run and its workers.
    children.wait_for(lambda: list(tmp_path.glob("run/prompt_learner/checkpoint")), seconds=300)
    assert len(children.processes_of(program.pid)) == 6
    program.kill()
    children.wait_for(lambda: not children.processes_of(program.pid), seconds=5)
    program.communicate()


NO_SERVER = """
Path("torch").mkdir()
Path("torch/__init__.py").write_text("import os; os._exit(1)")
os.environ["PYTHONPATH"] = os.getcwd()
try:
    process.start(["report"], "runs.child:main")
except ChildProcessError as error:
    print(json.dumps(str(error)))
"""


def test_a_server_that_dies_at_its_start_is_said(tmp_path: Path) -> None:
    assert "has died" in printed(run_program(NO_SERVER, tmp_path, []))[0]
