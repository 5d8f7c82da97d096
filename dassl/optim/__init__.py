"""Optimizers and learning-rate schedules by their names in the config."""

from .lr_scheduler import LRScheduler, build_lr_scheduler
from .optimizer import build_optimizer

__all__ = ["LRScheduler", "build_lr_scheduler", "build_optimizer"]
