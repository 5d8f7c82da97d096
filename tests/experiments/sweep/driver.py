"""``sweep.py`` with the stub in the place of train.py, as a program of its own: what ``drive`` cannot fork, Ray's."""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.sweep import command, process

if __name__ == "__main__":
    process.SCRIPT = Path(__file__).with_name("stub.py")
    sys.exit(command.main())
