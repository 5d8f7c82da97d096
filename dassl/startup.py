"""Settings of a process that must be made before torch is imported.

Imports the standard library alone. ``dassl/extras/interrupts.py`` handles the signals once the imports are done.
"""

import atexit
import ctypes
import gc
import os
import signal
from typing import Any

# OpenMP reads this when torch is first imported. A thread that spins while it waits takes its core from the loader's
# workers and from other runs. The user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT = 32 << 20  # bytes; with 64, a step of ImageNet's thousand classes takes more memory and more time

begun = collector_waits = False


def before_imports() -> None:
    """SIGINT (Ctrl-C) and SIGTERM end the process at once; there is nothing to save yet, or nothing any more.

    What imports make stays, and the garbage collector would go through it again and again, for two seconds at the exit
    alone: it is off until ``after_imports``, and looks only at what comes then. A second call changes nothing.
    """
    global collector_waits
    collector_waits = collector_waits or gc.isenabled()
    gc.disable()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _end)
    atexit.register(_ignore_signals)  # Python's own end gives them back to the system, whose handlers kill
    if hasattr(signal, "SIGCHLD"):  # ignored, as some parents hand it down, no child is seen to end
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    keep_memory()


def keep_memory() -> None:
    """Blocks of up to ``KEPT`` bytes that are freed stay with the process, where glibc has its memory.

    By default it gives the large ones back, and the system then zeroes every page of them anew: a tenth of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and mallopt(_MMAP_THRESHOLD, KEPT):  # if it refuses, its own thresholds are better
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def after_imports() -> None:
    global begun, collector_waits
    begun = True
    if collector_waits:
        collector_waits = False
        gc.freeze()
        gc.enable()


def _ignore_signals() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _end(signum: int, _: Any) -> None:
    if begun:  # the program has said what there is to say, and is about to end
        return
    os.write(2, f"\ninterrupted by {signal.Signals(signum).name} before anything was begun\n".encode())
    os._exit(128 + signum)
