"""FGVC-Aircraft (Maji, Rahtu, Kannala, Blaschko and Vedaldi, 2013), its variants: 3,334 / 3,333 / 3,333 images.

The dataset's own lists are the split, as in CoOp: ``images_variant_{train,val,test}.txt``, a line "NUMBER VARIANT".
"""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import read_rows
from .splits import Item, Split, check_files


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    dataset_dir = "fgvc_aircraft"
    annotation = "variants.txt"
    other_names = ("fgvc-aircraft-2013b",)
    template = "a photo of a {}, a type of aircraft."

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        variants = read_rows(folder / "variants.txt", r"(\S.*)", "707-320", str)
        labels = {name: label for label, name in enumerate(variants)}

        def item(number: str, variant: str) -> Item:
            return Item(f"{number}.jpg", labels[variant], variant)

        def items(part: str) -> list[Item]:
            return read_rows(folder / f"images_variant_{part}.txt", r"(\d+) (.+)", "1025794 707-320", item)

        split = Split(items("train"), items("val"), items("test"))
        check_files(split, folder / self.image_dir, f"'{folder}/images_variant_*.txt'")
        return split
