"""Trainers: the registry, the generic loop, and what supervised trainers build on."""

from .base import TrainerBase
from .build import TRAINER_REGISTRY, build_trainer
from .trainer import SimpleTrainer, TrainerX

__all__ = ["TRAINER_REGISTRY", "SimpleTrainer", "TrainerBase", "TrainerX", "build_trainer"]
