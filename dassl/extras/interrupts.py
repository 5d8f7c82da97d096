"""SIGINT (Ctrl-C) and SIGTERM as an exception between the steps of a training, never within one.

`uninterrupted()` holds code that must not be cut in two (a step, a checkpoint) and raises a signal at its end. Later
signals are ignored: there is time to save the state and to end the loader's workers.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """`signum` is the signal that has come."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class _State:
    depth = 0  # of `uninterrupted`
    came: int | None = None
    raised = False


def _on_signal(signum: int, _: Any) -> None:
    if _State.came is None:
        _State.came = signum
    if not _State.depth:
        _raise_once()


def _raise_once() -> None:
    if _State.came is not None and not _State.raised:
        _State.raised = True
        raise Interrupted(_State.came)


def signalled() -> int | None:
    """The signal that has come."""
    return _State.came


def raise_again() -> None:
    """Raises Interrupted if a signal has come: Python drops an exception that a handler raises within a finalizer."""
    if _State.came is not None and not _State.depth:
        raise Interrupted(_State.came)


def interrupt() -> None:
    """Interrupted: by the signal that waits or, where another process has got one, as if by SIGTERM."""
    _State.raised = True
    raise Interrupted(_State.came or signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """A scope in which the two signals raise `Interrupted`. Only a program's main thread can have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(signum, signal.signal(signum, _on_signal)) for signum in SIGNALS]
    try:
        yield
    finally:
        for signum, handler in before:
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        _State.came, _State.raised = None, False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A scope that no signal cuts; one that has come is raised at its end."""
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
    if not _State.depth:
        _raise_once()


@contextmanager
def blocked() -> Iterator[None]:
    """A scope in which the two signals wait; processes started in it inherit that. Windows has no such thing."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def kept_from_children() -> Iterator[None]:
    """A scope in which processes are started that the two signals, often sent to a whole group, leave alone."""
    with uninterrupted(), blocked():
        yield


def follow_parent(_: int = 0) -> None:
    """In a child: it ends when its parent says so (by SIGTERM) or dies, not when the terminal or a scheduler does."""
    if not hasattr(signal, "sigtimedwait"):  # macOS and Windows: who sends a signal cannot be told apart
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        return
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(started_by: int) -> None:
    parent = parent_process()
    while os.getppid() == started_by:
        info = signal.sigtimedwait([signal.SIGTERM], 1.0)
        if info is not None and parent is not None and info.si_pid == parent.pid:
            break
    os._exit(0)
