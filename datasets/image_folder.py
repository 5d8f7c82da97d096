"""A folder of the user's own pictures. DATASET.ROOT is the folder itself, with one of two layouts:

    train/<class>/..., test/<class>/..., optionally val/<class>/...
    <class>/...                         split 50/20/30 once, at random with the seed, and kept as a split file

A class has its folder's name with underscores read as spaces, or its name in ``classnames.json``: {folder: name}.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import UserError, list_classes, read_json
from .splits import Item, Split, split_classes

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
SPLIT_FILE = "split_zhou_ImageFolder.json"
NO_CLASSES = ("split_fewshot", "__MACOSX")  # folders made by this program, or by a zip from macOS


@DATASET_REGISTRY.register()
class ImageFolder(FewShotDataset):
    dataset_dir = ""
    image_dir = ""

    def prepare(self, root: Path) -> None:
        """Prints how many pictures are in no class folder."""
        for folder in (root, root / "val", root / "test") if has_parts(root) else (root,):
            paths = (path for path in folder.glob("[!.]*") if path.suffix.lower() in PICTURES and path.is_file())
            if loose := sorted(path.name for path in paths):
                print(f"{len(loose)} pictures in '{folder}' are left out, in no class folder: {loose[0]!r} the first")

    def read(self, folder: Path, seed: int) -> tuple[Split, str]:
        """As the base's; also raises UserError if pictures were added since the split file was made."""
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
        if has_parts(folder):
            return read_parts(folder)
        found = enumerate(pictures(folder).items())
        classes = [[Item(f"{name}/{file}", label, name) for file in files] for label, (name, files) in found]
        return split_classes(classes, rng, least=2)


def has_parts(folder: Path) -> bool:
    """Whether ``train/`` is a part. If it holds pictures itself, it is a class called train."""
    train = folder / "train"
    return train.is_dir() and not any(path.suffix.lower() in PICTURES for path in train.iterdir())


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
        UserError: ``classnames.json`` is not {folder: name} of these folders, or two classes have the same name.
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
    """The parts by their folders. Without ``test/``, ``val/`` is also the test set, as in CoOp's ImageNet.

    Raises:
        UserError: there is neither ``test/`` nor ``val/``, or a class is not in ``train/``.
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
