"""train.py in a child process, forked after the imports, which a test can kill or send signals to."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import train

STARTED: list[BaseProcess] = []


def start(argv: list[str], log: Path, prepare: Callable[[], object] = lambda: None) -> BaseProcess:
    """Runs ``prepare`` and then train.main(argv) in a child process, whose output goes to ``log``."""

    def child() -> None:
        os.setpgid(0, 0)
        with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            prepare()
            code = train.main(argv)
        sys.stderr.flush()
        os._exit(code)

    log.touch()
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    STARTED.append(process)
    return process


def kill_all() -> None:
    """Kills the processes that a failed test has left running; pytest would wait for them."""
    for process in STARTED:
        if process.exitcode is None:
            process.kill()
            process.join()
    STARTED.clear()


def run(argv: list[str], log: Path, prepare: Callable[[], object] = lambda: None) -> int:
    """Returns the exit code, -9 for a killed process."""
    process = start(argv, log, prepare)
    process.join(timeout=120)
    assert process.exitcode is not None
    return process.exitcode


def killed_at(event: int) -> Callable[[], None]:
    """For ``prepare``: the process kills itself at its n-th event, a training step or a part of a write to disk."""

    def prepare() -> None:
        from dassl.engine import TrainerX

        count = 0

        def counted(do: Callable[..., object]) -> Callable[..., object]:
            def event_then_do(*args: object, **kwargs: object) -> object:
                nonlocal count
                count += 1
                if count == event:
                    os.kill(os.getpid(), signal.SIGKILL)
                return do(*args, **kwargs)

            return event_then_do

        for name in ("fsync", "replace", "remove"):
            setattr(os, name, counted(getattr(os, name)))
        TrainerX._step = counted(TrainerX._step)  # type: ignore[method-assign]

    return prepare


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.005)


def alive(pid: int | str) -> bool:
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_of(group: int) -> list[int]:
    """The living processes of a process group, such as one from ``start`` with its workers."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == group and alive(pid):
                found.append(pid)
    return found
