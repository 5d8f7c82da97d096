"""Trains and tests one run; ``python train.py --help`` lists its flags, which are CoOp's."""

import sys

from dassl import startup

if __name__ == "__main__":
    startup.before_imports()

from runs.command_line import main

if __name__ == "__main__":
    sys.exit(main())
