"""Describable Textures (Cimpoi, Maji, Kokkinos, Mohamed and Vedaldi, 2014) with CoOp's split: 2,820 / 1,128 / 1,692.

``read_and_split_data`` has CoOp's name and arguments: datasets written for CoOp call it here.
"""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, to_datums
from .oxford_pets import GLOBAL, Datums
from .splits import Split, split_by_folder


@DATASET_REGISTRY.register()
class DescribableTextures(FewShotDataset):
    dataset_dir = "dtd"
    split_file = "split_zhou_DescribableTextures.json"
    template = "{} texture."

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        return split_by_folder(folder / self.image_dir, rng)

    @staticmethod
    def read_and_split_data(
        image_dir: str,
        p_trn: float = 0.5,
        p_val: float = 0.2,
        ignored: Iterable[str] = (),
        new_cnames: Mapping[str, str] | None = None,
    ) -> tuple[Datums, Datums, Datums]:
        """Training, validation and test images of a folder with one subfolder a class."""
        split = split_by_folder(Path(image_dir), GLOBAL, ignored, new_cnames, p_trn, p_val)
        train, val, test = (to_datums(part, Path(image_dir)) for part in split)
        return train, val, test
