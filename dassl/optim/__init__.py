"""Optimizers and learning-rate schedules by their names in the config."""

from .lr_scheduler import SCHEDULES, WARMUPS, LRScheduler, build_lr_scheduler
from .optimizer import OPTIMIZERS, build_optimizer

__all__ = ["OPTIMIZERS", "SCHEDULES", "WARMUPS", "LRScheduler", "build_lr_scheduler", "build_optimizer"]
