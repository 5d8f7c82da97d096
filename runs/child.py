"""``train.py`` for a child process: all that a run imports is imported here, so that a server can do it in advance."""

import torch.utils.tensorboard  # noqa: F401 -- a run imports it as it begins to train

from .command_line import main

__all__ = ["main"]
