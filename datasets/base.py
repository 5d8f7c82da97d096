"""The base of all datasets: a split from its file or from the annotations, few-shot sets, base and new classes."""

from __future__ import annotations

import gc
import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dassl.data.datasets import DatasetBase, Datum

from .few_shot import few_shot_set, hold_out
from .files import UserError, keep, places
from .splits import Item, Split, check_files, check_labels, digest_of, items_of, normalized, read_split

SUBSAMPLES = ("all", "base", "new")


class FewShotDataset(DatasetBase):
    """A dataset with a split file. A subclass sets the class attributes below.

    Attributes:
        dataset_dir: folder under DATASET.ROOT.
        image_dir: folder of the images in it, "" for the dataset's own.
        split_file: JSON in CoOp's format in it, "" if the dataset's own annotations are the split.
        template: zero-shot CLIP's prompt; DATASET.TEMPLATE replaces it.
        test_only: the dataset is for testing only; as in CoOp, its test images also fill the training set.
        validate_on_test: the test images are also the validation images.
        held_out: where they are, of a few-shot run: as many training images in their place, none of the few-shot set.

    Raises:
        UserError: the root, the folder, the split file or a listed image is missing or damaged.
    """

    dataset_dir: str
    image_dir: str = "images"
    split_file: str = ""
    template: str = "a photo of a {}."
    test_only: bool = False
    validate_on_test: bool = False

    def __init__(self, cfg: Any) -> None:
        with collector_paused():
            root = Path(cfg.DATASET.ROOT or "data").expanduser().absolute()
            parts = self._load(root, cfg)
            images = root / self.dataset_dir / self.image_dir
            train_x, val, test, self.held_out = (to_datums(part, images) for part in parts)
            super().__init__(train_x=train_x, val=val, test=test)

    def _load(self, root: Path, cfg: Any) -> list[list[Item]]:
        """The images of the run, by its few-shot set and its classes."""
        self.prepare(root)
        folder = root / self.dataset_dir
        self._check_folders(root, folder, folder / self.image_dir)
        split, digest = self.read(folder, cfg.SEED)
        train, val, test = split
        held_out: list[Item] = []
        if cfg.DATASET.NUM_SHOTS >= 1 and not self.test_only:
            train, val = few_shot_set(split, digest or digest_of(split), folder, cfg.DATASET.NUM_SHOTS, cfg.SEED)
            held_out = hold_out(split.train, train, cfg.DATASET.NUM_SHOTS, cfg.SEED) if self.validate_on_test else []
        if self.validate_on_test:
            val = test
        return subsample_classes(train, val, test, held_out, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)

    def prepare(self, root: Path) -> None:
        """Called before reading. A dataset that draws its own pictures does it here."""

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        """The split by the original annotations in ``folder``, called without a split file; the result is saved as one.

        ``rng`` starts from the seed, as Python's global generator does in CoOp, where this is the first to draw.
        """
        raise UserError(
            f"no split file for {type(self).__name__}: looked for '{folder / self.split_file}'; "
            "DATASETS.md says where it comes from"
        )

    def read(self, folder: Path, seed: int) -> tuple[Split, str]:
        """The whole split, checked, and the SHA-256 of its file ("" if it has none)."""
        kept = places(folder, self.split_file) if self.split_file else ()
        path = next((place for place in kept if os.path.lexists(place)), None)
        split, digest = read_split(path) if path else (self._make_split(folder, seed), "")
        images = folder / self.image_dir
        if self.split_file:  # without one, make_split has listed the files itself
            split = normalized(split, images)
        if self.test_only:
            split = Split(split.test, [], split.test)
        where = f"'{path or folder}'"
        check_labels(split, where)
        if self.split_file:
            try:
                check_files(split, images, where)
            except UserError as error:
                if not path or type(self).make_split is FewShotDataset.make_split:
                    raise
                advice = "a split that was made here is made anew once its file is removed"
                raise UserError(f"{error}; {advice}") from None
        if self.split_file and not path:
            # If two processes make a split at once, the first to write wins, and both read its file.
            try:
                path = keep(folder, self.split_file, split.to_json(), replace=False)
            except OSError as error:
                where = " nor ".join(f"'{place.parent}'" for place in places(folder, self.split_file))
                reason = f"{error.strerror}; XDG_CACHE_HOME names another cache folder"
                raise UserError(f"the split that was made can be saved neither in {where}: {reason}") from error
            print(
                f"Split of {type(self).__name__} made from its annotations, as '{path}'. It is not the published one: "
                "for that, see DATASETS.md, and put its file in the place of this"
            )
            return self.read(folder, seed)
        return split, digest

    def _make_split(self, folder: Path, seed: int) -> Split:
        try:
            split = self.make_split(folder, random.Random(seed if seed >= 0 else None))
            return Split(*map(items_of, split)) if self.split_file else split  # checked, so that it can be read again
        except UserError:
            raise
        except (ValueError, LookupError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"the annotations in '{folder}' are damaged or do not fit together: {reason}") from error

    def _check_folders(self, root: Path, folder: Path, images: Path) -> None:
        for path, what in ((root, "data root"), (folder, "dataset folder"), (images, "image folder")):
            if not path.is_dir():
                raise UserError(
                    f"no {what} for {type(self).__name__}: looked for '{path}'; "
                    "name the folder that holds the datasets with --root, or DATA for the scripts"
                )


@contextmanager
def collector_paused() -> Iterator[None]:
    """For ImageNet's million images: looking for garbage among them again and again takes longer than reading them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def to_datums(items: Sequence[Item], images: Path) -> list[Datum]:
    """The engine's items. Our ``Datum.listed`` skips the look-up of each file, since their folders were listed."""
    make = getattr(Datum, "listed", lambda file, label, name: Datum(impath=file, label=label, classname=name))
    prefix = f"{images}/"
    return [make(prefix + file, label, name) for file, label, name in items]


def subsample_classes(*parts: Sequence[Item], subsample: str = "all") -> list[list[Item]]:
    """Each part reduced to the first half of the classes (base) or the second (new), relabelled from 0.

    Raises:
        UserError: ``subsample`` is not all, base or new.
    """
    if subsample not in SUBSAMPLES:
        raise UserError(f"DATASET.SUBSAMPLE_CLASSES '{subsample}' is none of {', '.join(SUBSAMPLES)}")
    if subsample == "all":
        return [list(part) for part in parts]
    labels = sorted({item.label for item in parts[0]})
    half = math.ceil(len(labels) / 2)
    selected = labels[:half] if subsample == "base" else labels[half:]
    relabel = {label: i for i, label in enumerate(selected)}
    return [[item._replace(label=relabel[item.label]) for item in part if item.label in relabel] for part in parts]
