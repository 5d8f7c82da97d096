"""What a Ray worker does: it has a run started, by a server of forks where it can, and waits for what comes of it.

Imports the standard library alone, so that the worker stays small.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path

from . import process
from .process import POLL, REPOSITORY, TRAIN, Outcome, Task, outcome


class Server:
    """Of a Ray worker: ``server.py``, which has imported what runs import, and forks them."""

    def __init__(self, first: Task) -> None:
        self.connection, theirs = Pipe()
        end = theirs.fileno()
        module = ["-m", f"{__package__}.server", str(end)]
        self.process = process.popen(first, module, REPOSITORY, pass_fds=(end,))
        theirs.close()

    def start(self, task: Task) -> Served:
        """Raises EOFError if the server is no more."""
        try:
            self.connection.send(task)
            return Served(self, self.connection.recv())
        except BaseException:
            self.process.kill()  # or the run would start after all
            raise


@dataclass
class Served:
    """A run of a server's, as far as subprocess.Popen is asked for here."""

    server: Server
    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        try:
            if self.returncode is None and self.server.connection.poll():
                self.returncode = self.server.connection.recv()
        except (EOFError, OSError):
            self.returncode = -signal.SIGKILL  # with its server
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(POLL)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # its server has not told yet
                os.kill(self.pid, number)


_server: Server | None = None  # this worker's


def start(task: Task) -> Served | subprocess.Popen[bytes]:
    """Of a Ray worker: by its server, where that is safe (see ``forks.py``); else, or if that fails, by itself."""
    global _server
    no_gpu = task.environment.get("CUDA_VISIBLE_DEVICES") == ""
    if not no_gpu or sys.platform != "linux" or task.script != TRAIN:
        return process.start(task)
    if _server is None or _server.process.poll() is not None:
        _server = Server(task)
    try:
        return _server.start(task)
    except (EOFError, OSError):
        return process.start(task)


def run(task: Task, token: Path) -> Outcome:
    """A whole run, in a Ray worker.

    Args:
        token: a file of the driver's; where it is not to be seen, the run's files go back with the outcome.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A node that was started in a script's background hands that down, and Ray's interrupt would be lost.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    begin, child = time.monotonic(), None
    try:
        child = start(task)
        while (code := child.poll()) is None:
            time.sleep(POLL)  # not wait(): Ray's interrupt would not wake it
    except BaseException:
        if child is not None:
            child.send_signal(signal.SIGINT)
            child.wait()
        raise
    ended = outcome(task, code, time.monotonic() - begin)
    files = {} if token.exists() or ended.code else small_files(task.directory)
    return Outcome(ended.code, ended.seconds, ended.last, files)


def small_files(directory: Path) -> dict[str, bytes]:
    """All that a run leaves but TensorBoard's curves; result.json, which says that it is finished, last."""
    paths = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    kept = sorted((p for p in paths if p.parts[0] != "tensorboard"), key=lambda p: p.name == "result.json")
    return {path.as_posix(): (directory / path).read_bytes() for path in kept}
