"""``sweep.py`` with the stub's runs, as a program: for what ``drive`` cannot fork, such as Ray's own cluster."""

from __future__ import annotations

import sys

from experiments.sweep import command, task

if __name__ == "__main__":
    task.PROGRAM = "tests.experiments.sweep.stub:main"
    sys.exit(command.main())
