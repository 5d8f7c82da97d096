"""An image with its label, and a dataset as lists of those for training, validation and test."""

import os.path as osp
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dassl.utils import UserError


@dataclass(unsafe_hash=True)  # meant to stay as it is made; frozen, ImageNet's million would take twice as long
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
        """One whose file the caller has seen in its folder's listing: a million are not looked up one by one."""
        datum = object.__new__(cls)
        datum.impath, datum.label, datum.domain, datum.classname = impath, label, 0, classname
        return datum


class DatasetBase:
    """A dataset's splits; classes are counted and named by the training split."""

    dataset_dir = ""
    domains: list[str] = []  # noqa: RUF012 -- a constant of each subclass

    def __init__(
        self,
        train_x: list[Datum],
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        if not train_x:
            raise UserError(f"dataset {type(self).__name__} has no training images")
        self.train_x = train_x
        self.train_u = train_u
        self.val = val
        self.test = test
        self.num_classes = self.get_num_classes(train_x)
        self.lab2cname, self.classnames = self.get_lab2cname(train_x)

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        """Label to name, and the names in the order of their labels."""
        names = {item.label: item.classname for item in data_source}
        return names, [names[label] for label in sorted(names)]

    def generate_fewshot_dataset(self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False) -> Any:
        """`num_shots` random images per class, classes in the order in which they first appear.

        Draws from Python's global generator. A class with fewer gives all it has or, with `repeat`, draws
        with replacement. A list for one source, a list of lists for several; num_shots < 1 changes nothing.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        output = []
        for data_source in data_sources:
            sampled: list[Datum] = []
            for items in self.split_dataset_by_label(data_source).values():
                if len(items) >= num_shots:
                    sampled += random.sample(items, num_shots)
                else:
                    sampled += random.choices(items, k=num_shots) if repeat else items
            output.append(sampled)
        return output[0] if len(output) == 1 else output

    def split_dataset_by_label(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        groups = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups
