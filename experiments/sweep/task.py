"""One run of a sweep as a child process, what came of it, and the same as a Ray task.

Imports the standard library alone, so that a Ray worker stays small.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from runs import process

POLL = 0.02  # seconds
PROGRAM = process.RUN  # tests have another


@dataclass(frozen=True)
class Task:
    """``train.py ARGUMENT...`` with further environment variables, from ``cwd`` where that exists.

    Standard error goes to the file ``log``; standard output is in the run's own log.txt.
    """

    arguments: tuple[str, ...]
    directory: Path
    log: Path
    environment: dict[str, str]
    cwd: str = field(default_factory=os.getcwd)
    program: str = field(default_factory=lambda: PROGRAM)

    @property
    def command(self) -> str:
        """The same for a shell, from any folder."""
        places = [f"{key}={value}" for key, value in self.environment.items()]
        words = ["env", *places, sys.executable, str(process.REPOSITORY / "train.py"), *self.arguments]
        return f"cd {shlex.quote(self.cwd)} && {shlex.join(words)}"

    def within(self, environment: Mapping[str, str]) -> Task:
        return replace(self, environment={**self.environment, **environment})

    def start(self) -> process.Child:
        """Raises OSError: the log cannot be written."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        cwd = self.cwd if os.path.isdir(self.cwd) else process.REPOSITORY
        return process.start(self.arguments, self.program, self.environment, cwd, self.log)

    def outcome(self, code: int, seconds: float) -> Outcome:
        """Of the ended process. An empty log is removed, if another sweep has not done so."""
        lines: list[str] = []
        with suppress(OSError):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            if not lines:
                self.log.unlink()
        last = lines[-1].strip() if lines and code >= 0 else f"killed by signal {-code}" if code < 0 else ""
        return Outcome(code, seconds, last)


@dataclass(frozen=True)
class Run:
    """One start of ``train.py``, with what its time depends on. ``epochs`` is 0 where nothing is trained."""

    name: str
    trainer: str
    dataset: str
    shots: int
    epochs: int
    backbone: str
    task: Task
    needs: tuple[Run, ...] = ()  # to be finished before

    @property
    def directory(self) -> Path:
        return self.task.directory

    @property
    def finished(self) -> bool:
        return (self.directory / "result.json").is_file()

    @property
    def resumable(self) -> bool:
        return not self.finished and any(self.directory.glob("*/*.pth.tar*"))


@dataclass(frozen=True)
class Outcome:
    """Exit code, negative for a signal, and the last line of standard error.

    ``files``: the run's files by their path in its directory, if the driver does not share its storage.
    """

    code: int
    seconds: float = 0.0
    last: str = ""
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def lost(self) -> bool:
        """Ended from outside: by a signal, or with its worker or node."""
        return self.code < 0 or self.code in (128 + signal.SIGINT, 128 + signal.SIGTERM)


@contextmanager
def recorded(*numbers: int) -> Iterator[list[int]]:
    """A scope in which these signals are only recorded, in their order."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def run(task: Task, token: Path) -> Outcome:
    """The whole of a task, in a Ray worker.

    Args:
        token: a file of the driver's. Where it does not exist, the run's files are returned with the outcome.
    """
    with recorded(signal.SIGINT) as came:  # Ray's interrupts, which may come at any line
        begin = time.monotonic()
        child = task.start()
        while (code := child.poll()) is None and not came:
            time.sleep(POLL)  # not wait(): Ray's interrupt would not wake it
        if code is None:
            child.send_signal(signal.SIGINT)
            child.wait()
            raise KeyboardInterrupt
    ended = task.outcome(code, time.monotonic() - begin)
    files = {} if token.exists() or ended.code else small_files(task.directory)
    return replace(ended, files=files)


def small_files(directory: Path) -> dict[str, bytes]:
    """The files of a run except TensorBoard's; result.json, which marks it as finished, is the last."""
    paths = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    kept = sorted((p for p in paths if p.parts[0] != "tensorboard"), key=lambda p: p.name == "result.json")
    return {path.as_posix(): (directory / path).read_bytes() for path in kept}
