"""Caltech-101 (Li, Andreeto, Ranzato and Perona, 2004) with CoOp's split: 4,128 / 1,649 / 2,465 images."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    template = "a photo of a {}."
