"""Many runs, on this machine or on a Ray cluster; ``python sweep.py --help`` lists its flags."""

import sys

from dassl import startup
from runs import process

if __name__ == "__main__":
    (startup if {"ray", "--engine=ray"} & {*sys.argv} else process).before_imports()  # on Ray the nodes start the runs

from experiments.sweep.command import main

if __name__ == "__main__":
    sys.exit(main())
