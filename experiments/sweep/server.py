"""Forks the runs of Ray workers, which stay small and have threads.

Of one worker: python -m experiments.sweep.server DESCRIPTOR, which makes the imports that the runs are spared. Of all
that are on the driver's machine: ``beside`` it, a fork of the driver, which has made them. Over a connection comes a
task at a time; its process's number goes back and, in the end, its exit code; signals for it come meanwhile.
"""

from __future__ import annotations

import hmac
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Listener
from multiprocessing.process import BaseProcess

from dassl import startup

if __name__ == "__main__":
    startup.before_imports()

from dassl.extras.interrupts import uninterrupted
from runs import forks

from . import process, tied
from .process import POLL, Address


def serve(worker: Connection) -> None:
    """Until the worker is no more, which its run does not outlive."""
    with suppress(EOFError, OSError):
        while True:
            task = worker.recv()
            if not isinstance(task, process.Task):
                continue  # a signal, which came as its run ended
            run = process.fork(task, forks.Fork)
            try:
                worker.send(run.pid)
                while run.poll() is None:
                    if worker.poll(POLL):
                        run.send_signal(worker.recv())
            except BaseException:
                run.send_signal(signal.SIGKILL)
                raise
            finally:
                code = run.wait()
            worker.send(code)


@contextmanager
def beside() -> Iterator[Address | None]:
    """Of a driver, before it has threads: workers of its machine reach this server, no one else. None: not safe here.

    The socket's name is an abstract one of Linux's: there is no file that would be left behind.
    """
    if not forks.possible():
        yield None
        return
    address = Address(f"\0plot-{secrets.token_hex(8)}", secrets.token_bytes(32))
    server: BaseProcess | None = None
    try:
        with uninterrupted(), Listener(address.name, "AF_UNIX") as listener:
            server = forks.begin(listen, listener, address.key, os.getpid(), daemon=True)
        yield address
    finally:
        if server is not None:
            server.kill()
            server.join()


def listen(listener: Listener, key: bytes, driver: int) -> None:
    """A fork for each worker; out of reach of the terminal's Ctrl-C, which is for the driver to pass on."""
    os.setsid()
    tied.tie(driver)
    while True:
        with suppress(OSError), listener.accept() as worker:
            forks.begin(serve_with_key, worker, key, os.getpid())


def serve_with_key(worker: Connection, key: bytes, parent: int) -> None:
    """Who does not begin with the key, and no more, is not served; a stranger that says nothing is waited for here."""
    tied.tie(parent)
    with suppress(EOFError, OSError):
        if hmac.compare_digest(worker.recv_bytes(len(key)), key):
            serve(worker)


if __name__ == "__main__":
    startup.after_imports()
    serve(Connection(int(sys.argv[1])))
