"""One run as a process of its own, on any machine: started anew or as a fork, and what came of it.

Imports the standard library alone, for ``worker.py``.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from . import tied

ForkT = TypeVar("ForkT")

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = SCRIPT = REPOSITORY / "train.py"
POLL = 0.02  # seconds


@dataclass(frozen=True)
class Task:
    """A start of ``script``, from ``cwd`` where that exists.

    Its standard error goes to the file ``log``; its output is in the run's own log.txt.
    """

    arguments: tuple[str, ...]
    directory: Path
    log: Path
    environment: dict[str, str]
    script: Path = field(default_factory=lambda: SCRIPT)
    cwd: str = field(default_factory=os.getcwd)


@dataclass(frozen=True)
class Address:
    """Of the server beside the driver, for who has the key."""

    name: str
    key: bytes


@dataclass(frozen=True)
class Outcome:
    """``code`` as subprocess has it, negative for a signal; ``last`` line of standard error.

    ``files``, by their path in the run's directory: those of a run whose storage the driver does not share.
    """

    code: int
    seconds: float = 0.0
    last: str = ""
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def lost(self) -> bool:
        """Ended from outside, not for its own reasons: by a signal, or with the worker or node that it was on."""
        return self.code < 0 or self.code in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def start(task: Task) -> subprocess.Popen[bytes]:
    """Out of reach of the terminal's Ctrl-C, which is for its parent to pass on, and never longer than its parent."""
    return popen(task, [str(task.script), *task.arguments], task.cwd)


def popen(task: Task, arguments: list[str], cwd: str | Path, **more: Any) -> subprocess.Popen[bytes]:
    """Of Python, with the task's environment and log."""
    with new_log(task) as log:
        return subprocess.Popen(
            [sys.executable, "-IS", tied.__file__, str(os.getpid()), sys.executable, *arguments],
            cwd=cwd if os.path.isdir(cwd) else REPOSITORY,
            env={**os.environ, **task.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            **more,
        )


def new_log(task: Task) -> IO[bytes]:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    return task.log.open("wb")


def fork(task: Task, make: Callable[[Sequence[str], Callable[[], None]], ForkT]) -> ForkT:
    """As ``start``; ``make`` is ``forks.Fork``, whose import takes seconds."""
    new_log(task).close()  # here, where an error has someone to be told to
    return make(task.arguments, functools.partial(enter, task, os.getpid()))


def enter(task: Task, parent: int) -> None:
    """Makes of a fork what ``start`` makes of a new process."""
    os.setsid()
    tied.tie(parent)
    os.environ.update(task.environment)
    os.chdir(task.cwd if os.path.isdir(task.cwd) else REPOSITORY)
    with open(os.devnull, "r+b") as null, task.log.open("wb") as log:
        for target, file in enumerate((null, null, log)):
            os.dup2(file.fileno(), target)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", 1, errors="backslashreplace", closefd=False) for fd in (1, 2))


def outcome(task: Task, code: int, seconds: float) -> Outcome:
    """Of a process that has ended; a log without a word is removed, if another sweep has not done so."""
    lines: list[str] = []
    with suppress(OSError):
        lines = [line for line in task.log.read_text(errors="replace").splitlines() if line.strip()]
        if not lines:
            task.log.unlink()
    last = lines[-1].strip() if lines and code >= 0 else f"killed by signal {-code}" if code < 0 else ""
    return Outcome(code, seconds, last)
