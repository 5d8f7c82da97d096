"""Oxford Flowers-102 (Nilsback and Zisserman, 2008) with CoOp's split: 4,093 / 1,633 / 2,463 images.

Without the split file: ``imagelabels.mat`` has the labels, from 1, of image_00001.jpg and so on, ``cat_to_name.json``
their names.
"""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import UserError, read_json, read_mat
from .splits import Item, Split, by_label, split_classes


@DATASET_REGISTRY.register()
class OxfordFlowers(FewShotDataset):
    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    other_names = ("flowers-102", "102flowers")
    split_file = "split_zhou_OxfordFlowers.json"
    template = "a photo of a {}, a type of flower."

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        path = folder / "cat_to_name.json"
        names = read_json(path)
        labels = list(map(int, read_mat(folder / "imagelabels.mat", "labels")))
        if unnamed := [label for label in labels if not isinstance(names, dict) or str(label) not in names]:
            raise UserError(f"'{path}' has no name for class {unnamed[0]}; it should be an object of names by class")
        if (folder / self.image_dir / f"image_{len(labels) + 1:05d}.jpg").exists():
            raise UserError(f"'{folder}/imagelabels.mat' has {len(labels)} labels; there are more pictures")
        items = [Item(f"image_{i:05d}.jpg", label - 1, names[str(label)]) for i, label in enumerate(labels, start=1)]
        return split_classes(by_label(items), rng)
