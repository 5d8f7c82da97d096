"""Where a run's child process begins. The server of ``process.py`` imports this in advance, and no one else does."""

from . import process

process.enter()  # before torch is imported

import torch.utils.tensorboard  # noqa: E402, F401 -- a run imports it as it begins to train

from .command_line import main  # noqa: E402

__all__ = ["main"]
