"""One run as a process of its own, on any machine: started, waited for, and what came of it.

Imports the standard library alone: a Ray worker, which only waits, stays small.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "train.py"
POLL = 0.05  # seconds


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
    task.log.parent.mkdir(parents=True, exist_ok=True)
    tied = [sys.executable, "-IS", str(Path(__file__).with_name("tied.py")), str(os.getpid())]
    with task.log.open("wb") as log:
        return subprocess.Popen(
            [*tied, sys.executable, str(task.script), *task.arguments],
            cwd=task.cwd if os.path.isdir(task.cwd) else REPOSITORY,
            env={**os.environ, **task.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )


def outcome(task: Task, code: int, seconds: float) -> Outcome:
    """Of a process that has ended; a log without a word is removed, if another sweep has not done so."""
    lines: list[str] = []
    with suppress(OSError):
        lines = [line for line in task.log.read_text(errors="replace").splitlines() if line.strip()]
        if not lines:
            task.log.unlink()
    last = lines[-1].strip() if lines and code >= 0 else f"killed by signal {-code}" if code < 0 else ""
    return Outcome(code, seconds, last)


def run(task: Task, token: Path) -> Outcome:
    """A whole run, in a Ray worker.

    Args:
        token: a file of the driver's; where it is not to be seen, the run's files go back with the outcome.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A node that was started in a script's background hands that down, and Ray's interrupt would be lost.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    begin, process = time.monotonic(), None
    try:
        process = start(task)
        while process.poll() is None:
            time.sleep(POLL)  # not wait(): Ray's interrupt would not wake it
    except BaseException:
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait()
        raise
    ended = outcome(task, process.returncode, time.monotonic() - begin)
    files = {} if token.exists() or ended.code else small_files(task.directory)
    return Outcome(ended.code, ended.seconds, ended.last, files)


def small_files(directory: Path) -> dict[str, bytes]:
    """All that a run leaves but TensorBoard's curves; result.json, which says that it is finished, last."""
    paths = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    kept = sorted((p for p in paths if p.parts[0] != "tensorboard"), key=lambda p: p.name == "result.json")
    return {path.as_posix(): (directory / path).read_bytes() for path in kept}
