"""The registry of trainers."""

from typing import Any

from yacs.config import CfgNode

from dassl.utils import Registry

TRAINER_REGISTRY = Registry("trainer")


def build_trainer(cfg: CfgNode) -> Any:
    """The trainer called cfg.TRAINER.NAME. UserError if there is none."""
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return trainer(cfg)
