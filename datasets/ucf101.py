"""UCF101's middle frames (Soomro, Zamir and Shah, 2012) with CoOp's split: 7,639 / 1,898 / 3,783 images.

Without the split file: in ``ucfTrainTestlist/``, ``classInd.txt``, a line "1 ApplyEyeMakeup", and ``trainlist01.txt``
and ``testlist01.txt``, a line "ApplyEyeMakeup/v_x.avi". This video's frame is ``Apply_Eye_Makeup/v_x.jpg``.
"""

import random
import re
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import read_rows
from .splits import Item, Split, split_train_val


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    template = "a photo of a person doing {}."

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        lists = folder / "ucfTrainTestlist"
        form, example = r"([1-9]\d*) (\w+)", "1 ApplyEyeMakeup"
        labels = dict(read_rows(lists / "classInd.txt", form, example, lambda number, name: (name, int(number) - 1)))

        def item(action: str, video: str) -> Item:
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            return Item(f"{name}/{video}.jpg", labels[action], name)

        def items(part: str) -> list[Item]:  # the training list has the label behind the video
            example = "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"
            return read_rows(lists / f"{part}list01.txt", r"(\w+)/(\S+)\.avi(?: \d+)?", example, item)

        return split_train_val(items("train"), items("test"), rng)
