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

from .few_shot import few_shot_set, spare_images
from .few_shot_list import listed_set
from .files import UserError, keep, kept, needs_cache
from .locate import locate
from .splits import Item, Split, check_files, check_labels, digest_of, items_of, normalized, read_split

SUBSAMPLES = ("all", "base", "new")


class FewShotDataset(DatasetBase):
    """A dataset with a split file. A subclass sets the class attributes below.

    Attributes:
        dataset_dir: folder under DATASET.ROOT.
        image_dir: folder of the images in it, "" for the dataset's own.
        split_file: JSON in CoOp's format in it, "" if the dataset's own annotations are the split.
        annotation: a file of the dataset's own that is read without a split file, by which its folder is known.
        image_parts: folders that the image folder must have.
        other_names: what archives and other programs call the dataset's folder or its image folder.
        template: zero-shot CLIP's prompt; DATASET.TEMPLATE replaces it.
        test_only: the dataset is for testing only; as in CoOp, its test images also fill the training set.
        validate_on_train: there are no validation images; few-shot runs take training images that are not among the
            shots.

    Raises:
        UserError: the root, the folder, the split file or a listed image is missing or damaged.
    """

    dataset_dir: str
    image_dir: str = "images"
    split_file: str = ""
    annotation: str = ""
    image_parts: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()
    template: str = "a photo of a {}."
    test_only: bool = False
    validate_on_train: bool = False

    def __init__(self, cfg: Any) -> None:
        with collector_paused():
            root = Path(cfg.DATASET.ROOT or "data").expanduser().absolute()
            self.prepare(root)
            folder, images = self.locate(root)
            self.standard_place, self.image_dir = Path(self.dataset_dir, self.image_dir), str(images)
            train_x, val, test = (to_datums(part, images) for part in self._load(folder, cfg))
            super().__init__(train_x=train_x, val=val, test=test)

    @classmethod
    def locate(cls, root: Path) -> tuple[Path, Path]:
        """The folder of the annotations, and the image folder. UserError: they are not found."""
        return locate(cls, root)

    def standard_path(self, path: str) -> str:
        """An image's path under the data root as DATASETS.md lays it out, wherever the images are."""
        return (self.standard_place / os.path.relpath(path, self.image_dir)).as_posix()

    def _load(self, folder: Path, cfg: Any) -> list[list[Item]]:
        """The images of the run, by its few-shot set and its classes."""
        split, digest = self.read(folder, cfg.SEED)
        train, val, test = split
        if not self.test_only:
            train, val = self._chosen(split, digest, folder, cfg)
        return subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)

    def _chosen(self, split: Split, digest: str, folder: Path, cfg: Any) -> tuple[list[Item], list[Item]]:
        """The training and validation images by DATASET.NUM_SHOTS and DATASET.FEW_SHOT_LIST."""
        shots, seed, name = cfg.DATASET.NUM_SHOTS, cfg.SEED, cfg.DATASET.get("FEW_SHOT_LIST", "")
        if shots < 1:
            if name:
                raise UserError(f"DATASET.FEW_SHOT_LIST '{name}' needs DATASET.NUM_SHOTS, which is {shots}")
            return split.train, split.val
        train, val = listed_set(name, split, folder, shots, seed) if name else (None, None)
        if train is None or val is None:
            drawn = few_shot_set(split, digest or digest_of(split), folder, shots, seed)
            train, val = train or drawn[0], drawn[1]
        return train, spare_images(split, train, shots, seed) if self.validate_on_train else val

    def prepare(self, root: Path) -> None:
        """Called first of all."""

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
        path = kept(folder, self.split_file) if self.split_file else None
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
            with needs_cache("the split that was made"):
                path = keep(folder, self.split_file, split.to_json(), replace=False)
            # One's own pictures, which have no folder's name, have no published split.
            other = "It is not the published one: DATASETS.md says where that is; a" if self.dataset_dir else "A"
            print(
                f"Split of {type(self).__name__} made here and kept as '{path}'. {other} split file in '{folder}' "
                "comes first"
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


def to_datums(items: Sequence[Item], images: Path | None = None) -> list[Datum]:
    """The engine's items, of files in a folder or by whole paths.

    Our ``Datum.listed`` skips the look-up of each file, since their folders were listed.
    """
    make = getattr(Datum, "listed", lambda file, label, name: Datum(impath=file, label=label, classname=name))
    prefix = f"{images}/" if images else ""
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
