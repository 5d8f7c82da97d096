"""EuroSAT (Helber, Bischke, Dengel and Borth, 2019), its RGB pictures, with CoOp's split: 13,500 / 5,400 / 8,100."""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .splits import Split, split_by_folder

RENAMED = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


@DATASET_REGISTRY.register()
class EuroSAT(FewShotDataset):
    dataset_dir = "eurosat"
    image_dir = "2750"
    other_names = ("EuroSAT_RGB",)  # Zenodo's archive
    split_file = "split_zhou_EuroSAT.json"
    template = "a centered satellite photo of {}."

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        return split_by_folder(folder / self.image_dir, rng, names=RENAMED)
