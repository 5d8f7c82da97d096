"""Forks the runs of a Ray worker, which stays small and has threads: python -m scripts.sweep.server DESCRIPTOR

Over that end of a pipe comes a task at a time; its process's number goes back and, in the end, its exit code.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from multiprocessing.connection import Connection

import startup

if __name__ == "__main__":
    startup.before_imports()

import forks

from . import process


def serve(worker: Connection) -> None:
    """Until the worker is no more."""
    with suppress(EOFError):
        while True:
            run = process.fork(worker.recv(), forks.Fork)
            worker.send(run.pid)
            worker.send(run.wait())


if __name__ == "__main__":
    startup.after_imports()
    serve(Connection(int(sys.argv[1])))
