"""Our own implementation of the part of Dassl's public API that CoOp-family code imports.

Upstream (github.com/KaiyangZhou/Dassl.pytorch) is on no package registry and fails on current PyTorch,
so its names, defaults and behaviour are kept here, on torch, torchvision and yacs alone.
"""

import os

# OpenMP reads this when torch is first imported. A thread that spins while it waits takes its core from the loader's
# workers and from other runs: with two busy processes on two cores, steps took 15 times as long as with sleeping ones.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


__version__ = "0.1.0"
