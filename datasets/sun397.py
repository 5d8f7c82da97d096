"""SUN397 (Xiao, Hays, Ehinger, Oliva and Torralba, 2010) with CoOp's split: 15,880 / 3,970 / 19,850 images.

Without the split file: ``ClassName.txt``, a line "/a/apartment_building/outdoor", and ``Training_01.txt`` and
``Testing_01.txt``, a line "/a/apartment_building/outdoor/sun_x.jpg". This class is called "outdoor apartment_building".
"""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import read_rows
from .splits import Item, Split, split_train_val


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        classes = read_rows(folder / "ClassName.txt", r"/(\w/\S+)", "/a/abbey", str)
        labels = {name: label for label, name in enumerate(classes)}

        def item(place: str, file: str) -> Item:
            _, *words = place.split("/")  # the first is the initial letter
            return Item(f"{place}/{file}", labels[place], " ".join(reversed(words)))

        def items(part: str) -> list[Item]:
            return read_rows(folder / f"{part}_01.txt", r"/(\w/\S+)/(\S+)", "/a/abbey/sun_aaalbzqrimafwbiv.jpg", item)

        return split_train_val(items("Training"), items("Testing"), rng)
