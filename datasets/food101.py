"""Food-101 (Bossard, Guillaumin and Van Gool, 2014) with CoOp's split: 50,500 / 20,200 / 30,300 images."""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .splits import Split, split_by_folder


@DATASET_REGISTRY.register()
class Food101(FewShotDataset):
    dataset_dir = "food-101"
    split_file = "split_zhou_Food101.json"
    template = "a photo of {}, a type of food."

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        return split_by_folder(folder / self.image_dir, rng)
