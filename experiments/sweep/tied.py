"""Becomes the command it is given, tied to the process that started it: python tied.py PARENT COMMAND...

However its parent dies, by SIGKILL too, the command is killed with it, so that no run goes on that nobody waits for,
holding a directory that the next attempt at it needs. By Linux alone; elsewhere the run's lock keeps the two apart.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def tie(parent: int) -> None:
    """Ties this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what Ray starts has SIGINT blocked, and would hand that down
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getppid() != parent:
        sys.exit("its parent died before it started")


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
