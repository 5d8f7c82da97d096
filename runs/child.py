"""``train.py`` for a child process: all that a run imports is imported here, so that a server can do it in advance."""

import torch.utils.tensorboard  # noqa: F401 -- a run imports it as it begins to train

from .command_line import main
from .result import git_commit

git_commit()  # of the code that is imported now: the files may change before a run starts

__all__ = ["main"]
