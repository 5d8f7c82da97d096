"""SUN397 (Xiao, Hays, Ehinger, Oliva and Torralba, 2010) with CoOp's split: 15,880 / 3,970 / 19,850 images.

Without the split file: ``ClassName.txt``, a line "/a/apartment_building/outdoor", and ``Training_01.txt`` and
``Testing_01.txt``, a line "/a/apartment_building/outdoor/sun_x.jpg". This class is called "outdoor apartment_building".
"""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import read_lines
from .splits import Item, Split, split_train_val


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        labels = {line[1:]: label for label, line in enumerate(read_lines(folder / "ClassName.txt"))}

        def items(part: str) -> list[Item]:
            files = [line[1:] for line in read_lines(folder / f"{part}_01.txt")]
            return [_item(file, labels[file.rpartition("/")[0]]) for file in files]

        return split_train_val(items("Training"), items("Testing"), rng)


def _item(file: str, label: int) -> Item:
    _, *words, _ = file.split("/")  # the first is the initial letter
    return Item(file, label, " ".join(reversed(words)))
