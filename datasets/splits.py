"""Splits of a dataset into training, validation and test images: CoOp's JSON files, and CoOp's way of making them.

The format is {"train"|"val"|"test": [[image, label, class name], ...]}, images relative to the dataset's image folder.
CoOp draws from Python's global generator. Here the generator is an argument, and the draws have the same order.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .files import UserError, list_classes, missing_files

PARTS = ("train", "val", "test")


class Item(NamedTuple):
    """An image, by its path relative to the image folder."""

    file: str
    label: int
    classname: str


class Split(NamedTuple):
    train: list[Item]
    val: list[Item]
    test: list[Item]

    def to_json(self) -> str:
        return json.dumps(self._asdict(), indent=1)


def read_split(path: Path) -> tuple[Split, str]:
    """A split file, and its SHA-256.

    Raises:
        UserError: it is no file, or not JSON in CoOp's format.
    """
    if not path.is_file():
        what = "a link to nothing" if path.is_symlink() and not path.exists() else "no file"
        raise UserError(f"'{path}' should be a split file, but is {what}; mend or remove it")
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        parts = [items_of(content[part]) for part in PARTS]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"'{path}' is no split file: {reason}; it should be JSON with train, val and test, "
            "each a list of [image, label, class name]"
        ) from error
    return Split(*parts), hashlib.sha256(raw).hexdigest()


def items_of(rows: Iterable[tuple[str, int, str]]) -> list[Item]:
    """Raises ValueError if a row is not [image, label, class name], TypeError if there are no rows."""
    items = []
    for row in rows:
        try:
            item = Item(*row)
        except TypeError:
            raise ValueError(f"{row!r:.80} is not [image, label, class name]") from None
        if type(item.label) is not int:
            raise ValueError(f"the label {item.label!r:.40} is no whole number: {row!r:.80}")
        if not (isinstance(item.file, str) and isinstance(item.classname, str)):
            raise ValueError(f"an image or a class name is no text: {row!r:.80}")
        if not item.classname.strip():
            raise ValueError(f"the class name of label {item.label} is empty: {row!r:.80}")
        items.append(item)
    return items


def normalized(split: Split, images: Path) -> Split:
    """Paths with slashes, relative to the image folder. Those of a file may be Windows', or absolute.

    An absolute one may be of another machine, where the folder has the same name.
    """
    absolute = [f"{folder.as_posix()}/" for folder in (images, images.resolve())]

    def inside(file: str) -> str:
        file = file.replace("\\", "/").removeprefix("./").removeprefix(absolute[0]).removeprefix(absolute[1])
        return file.rpartition(f"/{images.name}/")[2] if re.match("/|[A-Za-z]:/", file) else file

    return Split(*([item._replace(file=inside(item.file)) for item in part] for part in split))


def digest_of(split: Split) -> str:
    """SHA-256 of the images' paths, in order, for a dataset without a split file."""
    parts = ["\n".join([item.file for item in part]) for part in split]
    return hashlib.sha256("\n\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def check_labels(split: Split, where: str) -> None:
    """Checks that labels count from 0 without gaps, and that each has one name and images to train on.

    Raises:
        UserError: one does not; ``where`` names the file or folder.
    """
    names: dict[int, str] = {}
    for part in split:
        for item in part:
            if names.setdefault(item.label, item.classname) != item.classname:
                first, second = names[item.label], item.classname
                raise UserError(f"{where}: label {item.label} has two names, {first!r} and {second!r}")
    if not names:
        raise UserError(f"{where}: it lists no images")
    n_cls = len(names)
    if (gap := next((label for label in range(n_cls) if label not in names), None)) is not None:
        raise UserError(f"{where}: the labels have gaps: {n_cls} classes, but none has the label {gap}")
    if empty := sorted(set(names) - {item.label for item in split.train}):
        shown = ", ".join(repr(names[label]) for label in empty[:3])
        raise UserError(f"{where}: {len(empty)} of {n_cls} classes have no training images: {shown}")


def check_files(split: Split, images: Path, where: str) -> None:
    """Checks that paths stay in the image folder and exist, and that none is both a training and a test image.

    Raises:
        UserError: one does not; ``where`` names the file or folder. Missing files are counted, and three are named.
    """
    files = dict.fromkeys(item.file for part in split for item in part)
    if outside := next((file for file in files if file.startswith("/") or ".." in file.split("/")), None):
        raise UserError(
            f"{where}: {outside!r} leaves the image folder; paths must be relative to '{images}', inside it"
        )
    tested = set() if split.train is split.test else {item.file for item in split.test}  # one list: a test-only dataset
    if both := next((item.file for item in split.train if item.file in tested), None):
        raise UserError(f"{where}: {both!r} is both a training and a test image; list it in one part only")
    if missing := missing_files(images, files):
        shown = ", ".join(repr(file) for file in missing[:3])
        raise UserError(f"{where}: {len(missing)} of {len(files)} files are not in '{images}': {shown}")


def by_label(items: Iterable[Item]) -> list[list[Item]]:
    """The items of each class, classes in the order in which they first appear."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return list(groups.values())


def split_by_folder(
    images: Path,
    rng: random.Random,
    ignored: Iterable[str] = (),
    names: Mapping[str, str] | None = None,
    p_train: float = 0.5,
    p_val: float = 0.2,
) -> Split:
    """One folder a class, each split at random, in the folders' sorted order. ``names`` renames classes.

    CoOp shuffles a folder's unsorted listing. Here it is sorted first, so the split does not depend on the file system.

    Raises:
        UserError: a folder has too few images for three parts.
    """
    classes = []
    for label, (folder, files) in enumerate(list_classes(images, ignored).items()):
        name = (names or {}).get(folder, folder)
        classes.append([Item(f"{folder}/{file}", label, name) for file in files])
    return split_classes(classes, rng, p_train=p_train, p_val=p_val)


def split_classes(
    classes: Iterable[Sequence[Item]], rng: random.Random, least: int = 4, p_train: float = 0.5, p_val: float = 0.2
) -> Split:
    """Each class shuffled and split, by default 50/20/30, in the given order of classes.

    Args:
        least: images that a class must have; 4 give every part one, 2 leave validation empty.
        p_train, p_val: the shares of training and validation.

    Raises:
        UserError: a class has fewer.
    """
    split = Split([], [], [])
    for items in map(list, classes):
        if len(items) < least:
            raise UserError(f"class {items[0].classname!r} has {len(items)} images; a split takes {least} or more")
        rng.shuffle(items)
        n_train = round(len(items) * p_train)
        n_val = min(round(len(items) * p_val), len(items) - n_train - 1)
        split.train.extend(items[:n_train])
        split.val.extend(items[n_train : n_train + n_val])
        split.test.extend(items[n_train + n_val :])
    return split


def split_train_val(trainval: Iterable[Item], test: list[Item], rng: random.Random, p_val: float = 0.2) -> Split:
    """A given test set; of the other images the share ``p_val`` of each class, at random, is for validation.

    Raises:
        UserError: a class has too few images.
    """
    split = Split([], [], test)
    for items in by_label(trainval):
        n_val = round(len(items) * p_val)
        if not n_val:
            raise UserError(f"class {items[0].classname!r} has {len(items)} images, too few to split in two")
        rng.shuffle(items)
        split.val.extend(items[:n_val])
        split.train.extend(items[n_val:])
    return split
