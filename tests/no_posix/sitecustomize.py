"""Takes away what Windows' Python lacks, in this process and its children: ``PYTHONPATH=tests/no_posix python ...``.

Python imports a module of this name as it starts. Python's own modules have been given what they need before.
"""

import multiprocessing.popen_spawn_posix
import multiprocessing.resource_tracker
import os
import signal
import subprocess  # noqa: F401
import sys

LACKING = {
    signal: ("SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "pthread_sigmask", "sigtimedwait", "setitimer"),
    os: ("fork", "killpg", "sched_getaffinity", "setsid"),
}

for module, names in LACKING.items():
    for name in names:
        delattr(module, name)
for name in ("fcntl", "resource", "grp", "pwd", "termios"):
    sys.modules[name] = None  # type: ignore[assignment]  # an import raises ModuleNotFoundError
multiprocessing.resource_tracker._HAVE_SIGMASK = False  # type: ignore[attr-defined]
multiprocessing.set_start_method("spawn")
