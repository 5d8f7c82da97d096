"""`Datum`, an image with its label, and `DatasetBase`, lists of them for training, validation and test."""

import os.path as osp
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from dassl.utils import UserError


@dataclass(unsafe_hash=True)  # not frozen: that doubles the time for ImageNet's million
class Datum:
    """UserError: `impath` is no file."""

    impath: str = ""
    label: int = 0
    domain: int = 0
    classname: str = ""

    def __post_init__(self) -> None:
        if not osp.isfile(self.impath):
            raise UserError(f"image not found: {self.impath!r} (class {self.classname!r})")

    @classmethod
    def listed(cls, impath: str, label: int, classname: str) -> "Datum":
        """Returns a datum without looking its file up. The caller has seen the file in a listing of its folder."""
        datum = object.__new__(cls)
        datum.impath, datum.label, datum.domain, datum.classname = impath, label, 0, classname
        return datum


class DatasetBase:
    """The splits of a dataset. The training split gives the number of classes and their names."""

    dataset_dir = ""
    domains: list[str] = []  # noqa: RUF012 -- a constant of each subclass

    def __init__(
        self,
        train_x: list[Datum],
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        if not train_x:
            raise UserError(f"dataset {type(self).__name__} has no training images")
        self.train_x = train_x
        self.val = val
        self.test = test
        self.num_classes = max(item.label for item in train_x) + 1
        self.lab2cname = {item.label: item.classname for item in train_x}
        self.classnames = [self.lab2cname[label] for label in sorted(self.lab2cname)]

    def generate_fewshot_dataset(self, *data_sources: list[Datum], num_shots: int = -1) -> Any:
        """Returns `num_shots` random images per class, all if a class has fewer; the classes as they first appear.

        The draws are from Python's global generator. Several sources give a list of lists. If num_shots < 1, the
        sources are returned as they are.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        output = []
        for data_source in data_sources:
            groups = defaultdict(list)
            for item in data_source:
                groups[item.label].append(item)
            drawn = (random.sample(items, num_shots) if len(items) >= num_shots else items for items in groups.values())
            output.append([item for items in drawn for item in items])
        return output[0] if len(output) == 1 else output
