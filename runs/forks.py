"""Runs of ``train.py``, by a program that has imported it: as forks of it, which are spared the imports.

These are most of a short run's time. Where a fork is not safe a run is a process of its own: in a notebook or a test,
whose threads a fork would lack, on macOS, and on a GPU, which a fork may find in use.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch
import torch.utils.tensorboard  # which a run imports as it begins to train

from dassl import startup
from dassl.extras import interrupts
from runs.command_line import main

from .directory import REPOSITORY


class Child(Protocol):
    """The part of subprocess.Popen that a fork has too."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


class Fork:
    """``train.py ARGUMENT...``; ``enter`` is called in the new process first."""

    def __init__(self, arguments: Sequence[str], enter: Callable[[], None] | None = None) -> None:
        self._process = begin(_run, list(arguments), enter)
        self.pid: int = self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode or 0

    def send_signal(self, number: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def possible() -> bool:
    alone = startup.is_program and threading.active_count() == 1
    return alone and sys.platform == "linux" and not torch.cuda.is_available()


def start(arguments: Sequence[str]) -> Child:
    if possible():
        return Fork(arguments)
    return subprocess.Popen([sys.executable, str(REPOSITORY / "train.py"), *arguments])


def begin(function: Callable[..., None], *args: Any, daemon: bool = False) -> BaseProcess:
    """A fork that has nothing of its parent's signals, calls the function and ends.

    daemon: a parent that ends without having ended it does so with SIGTERM, and does not wait for it.
    """
    process = multiprocessing.get_context("fork").Process(target=_call, args=(function, *args), daemon=daemon)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, interrupts.SIGNALS)  # one for it waits till it can take it
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def _call(function: Callable[..., None], *args: Any) -> None:
    for number in interrupts.SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    interrupts.forget()
    multiprocessing.current_process().daemon = False  # those may not have children
    signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts.SIGNALS)
    function(*args)


def _run(arguments: list[str], enter: Callable[[], None] | None) -> None:
    if enter is not None:
        enter()
    threads = os.environ.get("OMP_NUM_THREADS", "")  # read when torch was imported, and perhaps set for this run alone
    if threads.isdigit() and int(threads):
        torch.set_num_threads(int(threads))
    sys.exit(main(arguments))
