"""Predicts pictures with a trained run; ``python predict.py --help`` lists its flags. For Python: load, predict."""

import sys

from dassl import startup

if __name__ == "__main__":
    startup.before_imports()

from runs.loaded import load
from runs.prediction import main, predict

__all__ = ["load", "main", "predict"]

if __name__ == "__main__":
    sys.exit(main())
