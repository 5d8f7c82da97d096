"""UCF101's middle frames (Soomro, Zamir and Shah, 2012) with CoOp's split: 7,639 / 1,898 / 3,783 images.

Without the split file: in ``ucfTrainTestlist/``, ``classInd.txt``, a line "1 ApplyEyeMakeup", and ``trainlist01.txt``
and ``testlist01.txt``, a line "ApplyEyeMakeup/v_x.avi". This video's frame is ``Apply_Eye_Makeup/v_x.jpg``.
"""

import random
import re
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import read_lines
from .splits import Item, Split, split_train_val


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    template = "a photo of a person doing {}."

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        lists = folder / "ucfTrainTestlist"
        numbered = (line.split(" ") for line in read_lines(lists / "classInd.txt"))
        labels = {action: int(number) - 1 for number, action in numbered}

        def item(line: str) -> Item:
            action, video = line.split(" ")[0].split("/")  # the training list has the label behind it
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            return Item(f"{name}/{video.replace('.avi', '.jpg')}", labels[action], name)

        trainval, test = (
            [item(line) for line in read_lines(lists / f"{part}list01.txt")] for part in ("train", "test")
        )
        return split_train_val(trainval, test, rng)
