"""Describable Textures (Cimpoi, Maji, Kokkinos, Mohamed and Vedaldi, 2014) with CoOp's split: 2,820 / 1,128 / 1,692."""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .splits import Split, split_by_folder


@DATASET_REGISTRY.register()
class DescribableTextures(FewShotDataset):
    dataset_dir = "dtd"
    split_file = "split_zhou_DescribableTextures.json"
    template = "{} texture."

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        return split_by_folder(folder / self.image_dir, rng)
