"""Many runs, on this machine or on a Ray cluster; ``python sweep.py --help`` lists its flags."""

import sys

from dassl import startup

if __name__ == "__main__":
    startup.before_imports()

from experiments.sweep.command import main

if __name__ == "__main__":
    sys.exit(main())
