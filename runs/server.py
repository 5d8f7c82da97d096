"""The first import of the server that ``process.py`` forks runs from, and of nothing else."""

import os

from . import process

process.enter()
if os.environ.get(process.DRIVER) != str(os.getppid()):  # the driver died before the line above
    os._exit(1)
