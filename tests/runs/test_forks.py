"""Runs as forks, by a program of ours, which pytest is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from dassl import startup
from runs import forks
from runs.directory import REPOSITORY

from .test_interrupted import argv_of, assert_same_bits

pytestmark = pytest.mark.medium

PROGRAM = """
import json, signal, sys, threading, time
from pathlib import Path
from dassl import startup
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as its parent may have left it
startup.before_imports()
from runs import forks
from dassl.extras.interrupts import interruptible, uninterrupted

one, two, bad, endless = json.loads(sys.argv[1])
assert forks.possible()
waiting = threading.Event()
thread = threading.Thread(target=waiting.wait)
thread.start()
assert not forks.possible()
waiting.set()
thread.join()

with interruptible():
    with uninterrupted():
        first = forks.start(one)
    assert isinstance(first, forks.Fork)
    codes = [first.wait(), forks.Fork(two).wait(), forks.Fork(bad).wait()]
    for number in (signal.SIGINT, signal.SIGKILL):
        with uninterrupted():  # what the parent is at is not the fork's
            run = forks.Fork(endless)
        while not list(Path(endless[1]).glob("prompt_learner/checkpoint")):
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(number)
        codes.append(run.wait())
        run.send_signal(number)  # it is no more
    with uninterrupted():
        run = forks.Fork(endless)
        run.send_signal(signal.SIGTERM)  # at once, when its handlers are still the parent's
    codes.append(run.wait())
forks.begin(time.sleep, 1000, daemon=True)  # is not waited for at the end
print(json.dumps(codes))
"""


def test_a_fork_is_the_run_that_a_process_is(run_args: list[str], tmp_path: Path) -> None:
    """To the bit, one after the other too; its exit codes and what signals do are those of train.py."""
    one, two, endless = (argv_of(run_args, "PLOT", tmp_path / name) for name in ("one", "two", "endless"))
    endless += ["OPTIM.MAX_EPOCH", "100000"]
    words = json.dumps([one, two, [*one, "OPTIM.NO_SUCH", "1"], endless])
    program = [sys.executable, "-c", PROGRAM, words]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(program, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *codes, at_once = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0, 2, 130, -9] and at_once in (-15, 143)  # 143: it was on its way already
    assert done.stderr.count("error: ") == 1 and "OPTIM.NO_SUCH" in done.stderr
    assert train.main(argv_of(run_args, "PLOT", tmp_path / "process")) == 0
    assert_same_bits(tmp_path / "one", tmp_path / "process")
    assert_same_bits(tmp_path / "two", tmp_path / "process")


def test_elsewhere_a_run_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not startup.is_program and not forks.possible()
    (tmp_path / "train.py").write_text("import sys; sys.exit(int(sys.argv[1]))")
    monkeypatch.setattr(forks, "REPOSITORY", tmp_path)
    child = forks.start(["7"])
    assert isinstance(child, subprocess.Popen) and child.wait() == 7
    monkeypatch.setattr(startup, "is_program", True)
    monkeypatch.setattr("runs.forks.threading.active_count", lambda: 1)  # other tests leave some
    monkeypatch.setattr("runs.forks.sys.platform", "linux")
    monkeypatch.setattr("runs.forks.torch.cuda.is_available", lambda: False)
    assert forks.possible()
    for name, value in (("sys.platform", "darwin"), ("torch.cuda.is_available", lambda: True)):
        with monkeypatch.context() as patch:
            patch.setattr(f"runs.forks.{name}", value)
            assert not forks.possible()
