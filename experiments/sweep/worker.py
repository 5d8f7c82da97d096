"""What a Ray worker does: it has a run started, by a server of forks where it can, and waits for what comes of it.

Imports the standard library alone, so that the worker stays small.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Client, Connection
from pathlib import Path

from . import process
from .process import POLL, REPOSITORY, TRAIN, Address, Outcome, Task, outcome


class Server:
    """What forks a Ray worker's runs: the one beside the driver, or the worker's own."""

    def __init__(self, connection: Connection, own: subprocess.Popen[bytes] | None = None) -> None:
        self.connection, self.own = connection, own

    def start(self, task: Task) -> Served:
        """Raises EOFError or OSError if the server is no more."""
        try:
            self.connection.send(task)
            return Served(self, self.connection.recv())
        except BaseException:
            self.close()  # or the run would start after all
            raise

    def close(self) -> None:
        """Ends its run, too."""
        self.connection.close()
        if self.own is not None:
            self.own.kill()
            self.own.wait()


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
            self.server.close()
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(POLL)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(OSError):  # its server has died this moment
                self.server.connection.send(number)


_server: Server | None = None  # this worker's


def start(task: Task, beside: Address | None = None) -> Served | subprocess.Popen[bytes]:
    """Of a Ray worker: by a server, where that is safe (see ``forks.py``); else, or if that fails, by itself."""
    global _server
    no_gpu = task.environment.get("CUDA_VISIBLE_DEVICES") == ""
    if not no_gpu or sys.platform != "linux" or task.script != TRAIN:
        return process.start(task)
    try:
        if _server is None or _server.connection.closed:
            _server = (beside and reached(beside)) or started(task)
        return _server.start(task)
    except (EOFError, OSError):
        return process.start(task)


def reached(beside: Address) -> Server | None:
    """The server beside the driver; None on another machine."""
    try:
        connection = Client(beside.name, "AF_UNIX")
        connection.send_bytes(beside.key)
    except OSError:
        return None
    return Server(connection)


def started(task: Task) -> Server:
    """A server of this worker's own."""
    ours, theirs = Pipe()
    with theirs:
        end = theirs.fileno()
        module = ["-m", f"{__package__}.server", str(end)]
        return Server(ours, process.popen(task, module, REPOSITORY, pass_fds=(end,)))


def run(task: Task, token: Path, beside: Address | None = None) -> Outcome:
    """A whole run, in a Ray worker.

    Args:
        token: a file of the driver's; where it is not to be seen, the run's files go back with the outcome.
        beside: the server beside the driver, for runs on its machine.
    """
    came: list[int] = []  # Ray's interrupts, which may come at any line
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        begin = time.monotonic()
        child = start(task, beside)
        while (code := child.poll()) is None and not came:
            time.sleep(POLL)  # not wait(): Ray's interrupt would not wake it
        if code is None:
            child.send_signal(signal.SIGINT)
            child.wait()
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    ended = outcome(task, code, time.monotonic() - begin)
    files = {} if token.exists() or ended.code else small_files(task.directory)
    return Outcome(ended.code, ended.seconds, ended.last, files)


def small_files(directory: Path) -> dict[str, bytes]:
    """All that a run leaves but TensorBoard's curves; result.json, which says that it is finished, last."""
    paths = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    kept = sorted((p for p in paths if p.parts[0] != "tensorboard"), key=lambda p: p.name == "result.json")
    return {path.as_posix(): (directory / path).read_bytes() for path in kept}
