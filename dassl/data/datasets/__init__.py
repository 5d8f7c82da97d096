"""The registry of datasets, and what each is built on."""

from typing import Any

from yacs.config import CfgNode

from dassl.utils import Registry

from .base_dataset import DatasetBase, Datum

DATASET_REGISTRY = Registry("dataset")


def build_dataset(cfg: CfgNode) -> Any:
    """The dataset called cfg.DATASET.NAME. UserError if there is none."""
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)


__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset"]
