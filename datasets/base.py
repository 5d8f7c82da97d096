"""What the few-shot datasets share: split files in CoOp's format, few-shot sampling, base and new classes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dassl.utils
from dassl.data.datasets import DatasetBase, Datum

UserError: type[Exception] = getattr(dassl.utils, "UserError", ValueError)  # upstream Dassl has none

MAX_VAL_SHOTS = 4  # CoOp validates on min(shots, 4) images a class
SUBSAMPLES = ("all", "base", "new")


class FewShotDataset(DatasetBase):
    """A dataset that a split file describes; a subclass sets the class attributes below.

    Attributes:
        dataset_dir: folder under DATASET.ROOT.
        image_dir: folder of the images in it.
        split_file: JSON in CoOp's format in it: {"train"|"val"|"test": [[image, label, class name], ...]}.
        template: hand-written zero-shot prompt.
    Raises:
        UserError: the root, the folder, the split file or a listed part of it is missing.
    """

    dataset_dir: str
    image_dir: str = "images"
    split_file: str
    template: str = "a photo of a {}."

    def __init__(self, cfg: Any) -> None:
        root = Path(cfg.DATASET.ROOT or "data").expanduser().absolute()
        self.prepare(root)
        train, val, test = self.read(root)
        if (shots := cfg.DATASET.NUM_SHOTS) >= 1:
            rng = random.Random(cfg.SEED if cfg.SEED >= 0 else None)
            train = few_shot(train, shots, rng)
            val = few_shot(val, min(shots, MAX_VAL_SHOTS), rng)
        train, val, test = subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    def prepare(self, root: Path) -> None:
        """Called before reading; a dataset that makes its own pictures does so here."""

    def read(self, root: Path) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """The whole training, validation and test sets."""
        folder = root / self.dataset_dir
        images, split = folder / self.image_dir, folder / self.split_file
        for path, what in (
            (root, "data root"),
            (folder, "dataset folder"),
            (images, "image folder"),
            (split, "split file"),
        ):
            if not path.exists():
                raise UserError(
                    f"no {what} for {type(self).__name__}: looked for '{path}'; "
                    "name the folder that holds the datasets with --root, or DATA for the scripts"
                )
        return read_split(split, images)


def read_split(path: Path, images: Path) -> tuple[list[Datum], list[Datum], list[Datum]]:
    """The three parts of a split file; image paths are relative to ``images``.

    Raises:
        UserError: the file is not JSON in CoOp's format.
    """
    try:
        split = json.loads(path.read_text(encoding="utf-8"))
        train, val, test = (
            [Datum(impath=f"{images}/{file}", label=int(label), classname=name) for file, label, name in split[part]]
            for part in ("train", "val", "test")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{path}' is no split file: {type(error).__name__}: {error}; it should be JSON with train, val and test, "
            "each a list of [image, label, class name]"
        ) from error
    return train, val, test


def few_shot(data: Sequence[Datum], shots: int, rng: random.Random) -> list[Datum]:
    """``shots`` images of each class, or all where there are fewer.

    Classes in the order in which they first appear, each drawn by ``rng.sample``: with ``Random(seed)``, and the
    training set drawn before the validation set, the sets that CoOp draws.
    """
    by_class: dict[int, list[Datum]] = {}
    for item in data:
        by_class.setdefault(item.label, []).append(item)
    chosen: list[Datum] = []
    for items in by_class.values():
        chosen += rng.sample(items, shots) if len(items) >= shots else items
    return chosen


def subsample_classes(*parts: Sequence[Datum], subsample: str = "all") -> list[list[Datum]]:
    """Each part reduced to the first half of the classes (base) or the second (new), relabelled from 0.

    Raises:
        UserError: ``subsample`` is none of all, base, new.
    """
    if subsample not in SUBSAMPLES:
        raise UserError(f"DATASET.SUBSAMPLE_CLASSES '{subsample}' is none of {', '.join(SUBSAMPLES)}")
    if subsample == "all":
        return [list(part) for part in parts]
    labels = sorted({item.label for item in parts[0]})
    half = math.ceil(len(labels) / 2)
    selected = labels[:half] if subsample == "base" else labels[half:]
    relabel = {label: i for i, label in enumerate(selected)}
    return [
        [
            Datum(impath=item.impath, label=relabel[item.label], classname=item.classname)
            for item in part
            if item.label in relabel
        ]
        for part in parts
    ]
