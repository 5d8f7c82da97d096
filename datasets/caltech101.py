"""Caltech-101 (Li, Andreeto, Ranzato and Perona, 2004) with CoOp's split: 4,128 / 1,649 / 2,465 images."""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .splits import Split, split_by_folder

IGNORED = ("BACKGROUND_Google", "Faces_easy")
RENAMED = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        return split_by_folder(folder / self.image_dir, rng, IGNORED, RENAMED)
