"""Predicts pictures with a finished run; ``python predict.py --help`` lists its flags."""

import sys

from dassl import startup

if __name__ == "__main__":
    startup.before_imports()

from runs.prediction import main

if __name__ == "__main__":
    sys.exit(main())
