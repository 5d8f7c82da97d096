"""Starts a run as a child process: a fork of a server that has made the imports or, not on Linux, a new interpreter.

Imports the standard library alone. A program can thus start the server before its own imports, and a Ray worker stays
small.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any

from dassl import startup
from dassl.extras.interrupts import SIGNALS, blocked

REPOSITORY = Path(__file__).resolve().parents[1]
RUN = "runs.child:main"  # train.py
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
DRIVER = "PLOT_DRIVER"  # the server's environment variable with the process that started it
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows, SIGTERM ends a process at once
SERVER_DIED = 255  # multiprocessing's exit code for a child whose server has died
_loaded_by = os.getpid()  # in a fork: the server


class Child:
    """A started run, with the part of subprocess.Popen's interface that its callers need."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid

    def poll(self, seconds: float = 0.0) -> int | None:
        """The exit code, negative for a signal; None if it still runs after so many seconds.

        It is -SIGKILL if the server died, since its children die with it.
        """
        if seconds:
            self._process.join(seconds)
        code = self._process.exitcode
        return -KILL if code == SERVER_DIED else code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            self._process.join()
        return code

    def send_signal(self, number: int, /) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def before_imports() -> None:
    """``startup.before_imports`` for a program that starts runs: the server imports what they need at the same time."""
    startup.before_imports()
    if METHOD == "forkserver" and not {"-h", "--help", "--dry-run", "--print"} & {*sys.argv}:
        with _inherited(RUN):
            forkserver.ensure_running()


def start(
    arguments: Sequence[str],
    function: str = RUN,
    environment: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    log: Path | None = None,
    silent: bool = False,
) -> Child:
    """Starts ``function(arguments)``; its result is the exit code. To be called from the main thread.

    Args:
        function: "module:name". The first one decides which module the server preloads.
        environment: variables that the child has beside the caller's.
        cwd: the child's working folder; by default the caller's.
        log: a file for standard error. Standard output is then dropped, and the child is in a session of its own, so
            that a terminal's Ctrl-C does not reach it.
        silent: standard output is dropped; standard error, with its bar on a terminal, is the caller's.

    Raises:
        ChildProcessError: the server died meanwhile.
    """
    given = {**os.environ, **(environment or {})}
    loaders = multiprocessing.get_start_method(allow_none=True)  # the child's would otherwise be METHOD
    process: Any = multiprocessing.get_context(METHOD).Process(  # type: ignore[attr-defined]
        target=_child, args=(list(arguments), function, given, cwd, log, silent, loaders)
    )
    with _inherited(function):
        try:
            process.start()
        except (EOFError, ConnectionError) as error:
            raise ChildProcessError("the server that starts runs has died") from error
    return Child(process)


@contextmanager
def _inherited(function: str) -> Iterator[None]:
    """A scope for the start of the server and its children.

    They inherit blocked signals: the server never dies of one, and a child receives its own once it has handlers. The
    server finds the repository from any folder. No child runs the caller's main module again.
    """
    paths = filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
    variables = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", DRIVER: str(os.getpid())}
    main, environment = sys.modules["__main__"], dict(os.environ)
    with blocked():  # at its end, a signal that has come may raise
        if METHOD == "forkserver":
            multiprocessing.set_forkserver_preload([f"{__package__}.server", function.partition(":")[0]])
        if os.name == "posix":
            resource_tracker.ensure_running()  # it unblocks the signals as it starts
        with blocked():
            try:
                os.environ.update(variables)
                sys.modules["__main__"] = ModuleType("__main__")
                yield
            finally:
                sys.modules["__main__"] = main
                for key in variables:
                    os.environ.pop(key, None)
                os.environ.update(environment)


def enter() -> None:
    """Begins a child process, and the server: signals end it, and so does the death of its parent (on Linux)."""
    startup.before_imports()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, KILL)


def _child(
    arguments: list[str],
    function: str,
    environment: dict[str, str],
    cwd: str | os.PathLike[str] | None,
    log: Path | None,
    silent: bool,
    loaders: str | None,
) -> None:
    enter()
    if METHOD == "forkserver" and _loaded_by not in (os.getpid(), os.getppid()):
        os._exit(1)  # the server died before this line, and with it who would see the code
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    if log is not None:
        if hasattr(os, "setsid"):
            os.setsid()
        with open(os.devnull, "r+b") as null, log.open("wb") as file:
            for descriptor, target in enumerate((null, null, file)):
                os.dup2(target.fileno(), descriptor)
    elif silent:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 1)
    multiprocessing.set_start_method(loaders, force=True)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    module, _, name = function.partition(":")
    main = getattr(importlib.import_module(module), name)
    threads = environment.get("OMP_NUM_THREADS", "")  # the server's torch has read another environment
    if "torch" in sys.modules and threads.isdigit() and int(threads):
        sys.modules["torch"].set_num_threads(int(threads))
    sys.exit(main(arguments))
