"""Oxford-IIIT Pets (Parkhi, Vedaldi, Zisserman and Jawahar, 2012) with CoOp's split: 2,944 / 736 / 3,669 images.

Otherwise from ``annotations/{trainval,test}.txt``, a line "Breed_Name_NUMBER LABEL SPECIES BREED", labels from 1.
The static functions have CoOp's names and arguments: datasets written for CoOp call them here. They take and give lists
of ``Datum`` and draw from Python's global generator.
"""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .base import FewShotDataset, subsample_classes, to_datums
from .files import read_rows, write_atomically
from .splits import Item, Split, normalized, read_split, split_train_val

Datums = list[Datum]
GLOBAL: Any = random  # Python's global generator


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

    @staticmethod
    def read_split(filepath: str, path_prefix: str) -> tuple[Datums, Datums, Datums]:
        """Training, validation and test images of a split file, in the folder ``path_prefix``."""
        train, val, test = (to_datums(part, Path(path_prefix)) for part in read_split(Path(filepath))[0])
        return train, val, test

    @staticmethod
    def save_split(train: Datums, val: Datums, test: Datums, filepath: str, path_prefix: str) -> None:
        split = normalized(Split(*map(to_items, (train, val, test))), Path(path_prefix).absolute())
        write_atomically(Path(filepath), split.to_json(), True)

    @staticmethod
    def split_trainval(trainval: Datums, p_val: float = 0.2) -> tuple[Datums, Datums]:
        train, val, _ = split_train_val(to_items(trainval), [], GLOBAL, p_val)
        return to_datums(train), to_datums(val)

    @staticmethod
    def subsample_classes(*args: Datums, subsample: str = "all") -> list[Datums]:
        return [to_datums(part) for part in subsample_classes(*map(to_items, args), subsample=subsample)]


def to_items(datums: Iterable[Datum]) -> list[Item]:
    """Images by their whole paths."""
    return [Item(datum.impath, datum.label, datum.classname) for datum in datums]
