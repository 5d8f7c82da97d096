"""FGVC-Aircraft (Maji, Rahtu, Kannala, Blaschko and Vedaldi, 2013), its variants: 3,334 / 3,333 / 3,333 images.

The dataset's own lists are the split, as in CoOp: ``images_variant_{train,val,test}.txt``, a line "NUMBER VARIANT".
"""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import read_lines
from .splits import Item, Split, check_files


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    dataset_dir = "fgvc_aircraft"
    template = "a photo of a {}, a type of aircraft."

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        labels = {name: label for label, name in enumerate(read_lines(folder / "variants.txt"))}

        def items(part: str) -> list[Item]:
            rows = (line.split(" ", 1) for line in read_lines(folder / f"images_variant_{part}.txt"))
            return [Item(f"{number}.jpg", labels[variant], variant) for number, variant in rows]

        split = Split(items("train"), items("val"), items("test"))
        check_files(split, folder / self.image_dir, f"'{folder}/images_variant_*.txt'")
        return split
