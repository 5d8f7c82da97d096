"""Oxford-IIIT Pets (Parkhi, Vedaldi, Zisserman and Jawahar, 2012) with CoOp's split: 2,944 / 736 / 3,669 images.

Otherwise from ``annotations/{trainval,test}.txt``, a line "Breed_Name_NUMBER LABEL SPECIES BREED", labels from 1.
"""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import read_rows
from .splits import Item, Split, split_train_val


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    dataset_dir = "oxford_pets"
    other_names = ("oxford-iiit-pet",)
    split_file = "split_zhou_OxfordPets.json"
    template = "a photo of a {}, a type of pet."

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        def item(image: str, breed: str, label: str) -> Item:
            return Item(f"{image}.jpg", int(label) - 1, breed.lower())

        def items(part: str) -> list[Item]:
            path, form = folder / "annotations" / f"{part}.txt", r"((\S+)_\d+) ([1-9]\d*) \d+ \d+"
            return read_rows(path, form, "Abyssinian_100 1 1 1", item)

        return split_train_val(items("trainval"), items("test"), rng)
