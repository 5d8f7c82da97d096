"""Stanford Cars (Krause, Stark, Deng and Fei-Fei, 2013) with CoOp's split: 6,509 / 1,635 / 8,041 images.

Without the split file: the devkit's ``cars_train_annos.mat`` and ``cars_meta.mat``, and
``cars_test_annos_withlabels.mat``. The year moves from the end of a class's name to its front: "AM General Hummer SUV
2000" becomes "2000 AM General Hummer SUV".
"""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import UserError, read_mat
from .splits import Item, Split, split_train_val


@DATASET_REGISTRY.register()
class StanfordCars(FewShotDataset):
    dataset_dir = "stanford_cars"
    image_dir = ""
    image_parts = ("cars_train", "cars_test")
    split_file = "split_zhou_StanfordCars.json"

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        names = []
        for name in read_mat(folder / "devkit" / "cars_meta.mat", "class_names"):
            model, _, year = name[0].rpartition(" ")
            names.append(f"{year} {model}")

        def items(images: str, annotations: str) -> list[Item]:
            rows = read_mat(folder / annotations, "annotations", ("fname", "class"))
            labelled = [(str(row["fname"][0]), int(row["class"][0, 0])) for row in rows]
            if odd := [(file, label) for file, label in labelled if not 1 <= label <= len(names)]:
                path, (file, label) = folder / annotations, odd[0]
                raise UserError(f"'{path}': '{file}' has the class {label}; cars_meta.mat names 1 to {len(names)}")
            return [Item(f"{images}/{file}", label - 1, names[label - 1]) for file, label in labelled]

        trainval = items("cars_train", "devkit/cars_train_annos.mat")
        return split_train_val(trainval, items("cars_test", "cars_test_annos_withlabels.mat"), rng)
