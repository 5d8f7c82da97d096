"""Oxford-IIIT Pets (Parkhi, Vedaldi, Zisserman and Jawahar, 2012) with CoOp's split: 2,944 / 736 / 3,669 images.

Otherwise from ``annotations/{trainval,test}.txt``, a line "Breed_Name_NUMBER LABEL SPECIES BREED", labels from 1.
"""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import read_lines
from .splits import Item, Split, split_train_val


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    dataset_dir = "oxford_pets"
    split_file = "split_zhou_OxfordPets.json"
    template = "a photo of a {}, a type of pet."

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        def items(part: str) -> list[Item]:
            rows = (line.split(" ") for line in read_lines(folder / "annotations" / f"{part}.txt"))
            return [Item(f"{row[0]}.jpg", int(row[1]) - 1, row[0].rpartition("_")[0].lower()) for row in rows]

        return split_train_val(items("trainval"), items("test"), rng)
