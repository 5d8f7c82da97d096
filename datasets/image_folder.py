"""Your own pictures: DATASET.ROOT is the folder itself, either of

    train/<class>/..., test/<class>/... and, if you like, val/<class>/...
    <class>/...                         split 50/20/30 at random with the seed, once, and kept as a split file

A class is called as its folder, with underscores read as spaces, or as ``classnames.json`` says: {folder: name}.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import UserError, list_classes, read_json
from .splits import Item, Split

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
SPLIT_FILE = "split_zhou_ImageFolder.json"
NO_CLASSES = ("split_fewshot", "__MACOSX")  # folders that the program, or a zip of a Mac's, leaves


@DATASET_REGISTRY.register()
class ImageFolder(FewShotDataset):
    dataset_dir = ""
    image_dir = ""
    template = "a photo of a {}."  # zero-shot; DATASET.TEMPLATE is another

    def prepare(self, root: Path) -> None:
        """Says which pictures have no class, being in no class folder."""
        for folder in (root, root / "val", root / "test") if has_parts(root) else (root,):
            paths = (path for path in folder.glob("[!.]*") if path.suffix.lower() in PICTURES and path.is_file())
            if loose := sorted(path.name for path in paths):
                print(f"{len(loose)} pictures in '{folder}' are left out, in no class folder: {loose[0]!r} the first")

    def read(self, folder: Path, seed: int) -> tuple[Split, str]:
        """Raises UserError, besides what a split file gives rise to, where pictures have come since it was made."""
        self.split_file = "" if has_parts(folder) else SPLIT_FILE
        split, digest = super().read(folder, seed)
        if self.split_file:
            listed = {item.file for part in split for item in part}
            if new := sorted({f"{c}/{file}" for c, files in pictures(folder).items() for file in files} - listed):
                raise UserError(
                    f"{len(new)} pictures have come to '{folder}' since its split was made, {new[0]!r} the first; "
                    f"remove '{self.split_file}' (there, or in the cache folder), and it is made anew"
                )
        names = class_names(folder, sorted({item.file.split("/")[-2] for part in split for item in part}))
        named = ([item._replace(classname=names[item.file.split("/")[-2]]) for item in part] for part in split)
        return Split(*named), digest

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        return read_parts(folder) if has_parts(folder) else split_at_random(pictures(folder), rng)


def has_parts(folder: Path) -> bool:
    """Whether ``train/`` is one of three parts; one that holds pictures itself is a class called train."""
    train = folder / "train"
    if not train.is_dir():
        return False
    return not any(path.suffix.lower() in PICTURES for path in train.iterdir())


def pictures(folder: Path) -> dict[str, list[str]]:
    """Class folders and the pictures in each, both sorted.

    Raises:
        UserError: there are no class folders, or one has no pictures.
    """
    found = {}
    for name, files in list_classes(folder, NO_CLASSES).items():
        found[name] = [file for file in files if file.lower().endswith(PICTURES)]
        if not found[name]:
            raise UserError(
                f"the class folder {str(folder / name)!r} has no pictures in it ({' '.join(PICTURES)}); "
                "fill it or remove it"
            )
    return found


def class_names(folder: Path, classes: Iterable[str]) -> dict[str, str]:
    """Names by class folder.

    Raises:
        UserError: ``classnames.json`` is no {folder: name} of these folders, or two classes have one name.
    """
    names = {name: name.replace("_", " ") for name in classes}
    path = folder / "classnames.json"
    if path.is_file():
        given = read_json(path)
        if not isinstance(given, dict) or not all(isinstance(name, str) and name.strip() for name in given.values()):
            raise UserError(f"'{path}' should be a JSON object of class folders and their names, both text")
        if odd := [name for name in given if name not in names]:
            raise UserError(f"'{path}' names '{odd[0]}', which is no class folder; there are {', '.join(names)}")
        names.update(given)
    folders: dict[str, str] = {}
    for name, text in names.items():
        if folders.setdefault(text, name) != name:
            raise UserError(f"the classes {folders[text]!r} and {name!r} in '{folder}' have one name, {text!r}")
    return names


def read_parts(folder: Path) -> Split:
    """Without ``test/``, ``val/`` is both, as in CoOp's ImageNet; without ``val/`` there are no validation images.

    Raises:
        UserError: there is nothing to test on, or a class is not one of ``train/``.
    """
    if not (folder / "test").is_dir() and not (folder / "val").is_dir():
        raise UserError(f"'{folder}' has train/ but no test/ (nor val/) beside it; what should be tested on?")
    labels: dict[str, int] = {}
    parts: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for part, items in parts.items():
        if not (folder / part).is_dir():
            continue
        found = pictures(folder / part)
        labels = labels or {name: label for label, name in enumerate(found)}
        for name, files in found.items():
            if name not in labels:
                raise UserError(f"{str(folder / part / name)!r} is no class of train/: {', '.join(labels)}")
            items += [Item(f"{part}/{name}/{file}", labels[name], name) for file in files]
    return Split(parts["train"], parts["val"], parts["test"] or parts["val"])


def split_at_random(found: dict[str, list[str]], rng: random.Random) -> Split:
    """CoOp's 50/20/30, class by class; a small class keeps at least one picture to train and one to test on.

    Raises:
        UserError: a class has a single picture.
    """
    split = Split([], [], [])
    for label, (name, files) in enumerate(found.items()):
        if len(files) < 2:
            raise UserError(f"the class folder {name!r} has one picture; two are needed, to train and to test on")
        items = [Item(f"{name}/{file}", label, name) for file in files]
        rng.shuffle(items)
        n_train = round(len(items) * 0.5)
        n_val = min(round(len(items) * 0.2), len(items) - n_train - 1)
        split.train.extend(items[:n_train])
        split.val.extend(items[n_train : n_train + n_val])
        split.test.extend(items[n_train + n_val :])
    return split
