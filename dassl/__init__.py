"""Our own implementation of the part of Dassl's public API that CoOp-family code imports.

Upstream (github.com/KaiyangZhou/Dassl.pytorch) is on no package registry and fails on current PyTorch,
so its names, defaults and behaviour are kept here, on torch, torchvision and yacs alone.
"""

from . import startup  # first: it sets OMP_WAIT_POLICY, which OpenMP reads when torch is imported

__all__ = ["startup"]
__version__ = "0.1.0"
