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
from multiprocessing import AuthenticationError, Pipe
from multiprocessing.connection import Client, Connection
from pathlib import Path

from . import process
from .process import POLL, REPOSITORY, TRAIN, Address, Outcome, Task, outcome


class Server:
    """What forks a Ray worker's runs: the one beside the driver, or the worker's own."""

    def __init__(self, connection: Connection, own: subprocess.Popen[bytes] | None = None) -> None:
        self.connection, self.own = connection, own
        self.run: Served | None = None

    @property
    def usable(self) -> bool:
        """Not if it has died; nor if its last run has not ended, of a task that a second interrupt has cut short."""
        return not self.connection.closed and (self.run is None or self.run.returncode is not None)

    def start(self, task: Task) -> Served:
        """Raises EOFError or OSError if the server is no more."""
        try:
            self.connection.send(task)
            self.run = Served(self, self.connection.recv())
        except BaseException:
            self.close()  # or the run would start after all
            raise
        return self.run

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
    if _server is not None and not _server.usable:
        _server.close()
        _server = None
    try:
        if _server is None:
            _server = (beside and reached(beside)) or started(task)
        return _server.start(task)
    except (EOFError, OSError):
        return process.start(task)


def reached(beside: Address) -> Server | None:
    """The server beside the driver; None on another machine."""
    try:
        return Server(Client(beside.name, "AF_UNIX", authkey=beside.key))
    except (EOFError, OSError, AuthenticationError):
        return None


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
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A node that was started in a script's background hands that down, and Ray's interrupt would be lost.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    begin, child = time.monotonic(), None
    try:
        child = start(task, beside)
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
