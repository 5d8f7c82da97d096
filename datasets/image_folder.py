"""A folder of the user's own pictures. DATASET.ROOT is the folder itself, with one of two layouts:

    train/<class>/..., test/<class>/..., optionally val/<class>/...
    <class>/...                         split 50/20/30 once, at random with the seed, and kept as a split file

The parts may be called training, valid, validation and testing, in any case. A class has its folder's name with
underscores read as spaces, or its name in ``classnames.json``: {folder: name}.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import UserError, files_below, is_hidden, is_picture, kept, list_classes, read_json, unused_line
from .locate import subfolders
from .splits import Item, Split, split_classes

PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLIT_FILE = "split_zhou_ImageFolder.json"
NO_CLASSES = ("split_fewshot", "__MACOSX")  # folders made by this program, or by a zip from macOS


@DATASET_REGISTRY.register()
class ImageFolder(FewShotDataset):
    dataset_dir = ""
    image_dir = ""

    def prepare(self, root: Path) -> None:
        """Prints how many files are not used, and the first of each kind."""
        found = parts(root) if root.is_dir() else {}
        folders = [root / name for name in found.values()] or [root]
        classes = {path for folder in folders for path in folder.glob("[!.]*") if path.is_dir()}
        unused: dict[str, list[str]] = {}
        for name in files_below(root) if root.is_dir() else ():
            path, picture = root / name, is_picture(name.name) and (root / name).is_file()
            if (path.parent in classes and picture) or is_ours(name):
                continue
            if is_hidden(name):
                kind = "hidden files"
            elif not picture:
                kind = "other files"
            elif classes & {*path.parents}:
                kind = "pictures below a class folder"
            elif path.parent in (root, *folders):
                kind = "pictures in no class folder"
            else:
                kind = f"pictures in no part ({', '.join(found.values())})"
            unused.setdefault(kind, []).append(str(name))
        if unused:
            print(unused_line(root, unused))

    def read(self, folder: Path, seed: int) -> tuple[Split, str]:
        """As the base's; also raises UserError if pictures were added since the split file was made."""
        self.split_file = "" if parts(folder) else SPLIT_FILE
        split, digest = super().read(folder, seed)
        if self.split_file:
            listed = {item.file for part in split for item in part}
            found = {f"{name}/{file}" for name, files in list_classes(folder, NO_CLASSES).items() for file in files}
            if new := sorted(found - listed):
                raise UserError(
                    f"{len(new)} pictures have come to '{folder}' since its split was made, {new[0]!r} the first; "
                    f"remove '{kept(folder, self.split_file)}', and it is made anew"
                )
        names = class_names(folder, sorted({item.file.split("/")[-2] for part in split for item in part}))
        named = ([item._replace(classname=names[item.file.split("/")[-2]]) for item in part] for part in split)
        return Split(*named), digest

    def make_split(self, folder: Path, rng: random.Random) -> Split:
        if parts(folder):
            return read_parts(folder, parts(folder))
        found = enumerate(list_classes(folder, NO_CLASSES).items())
        classes = [[Item(f"{name}/{file}", label, name) for file in files] for label, (name, files) in found]
        return split_classes(classes, rng, least=2)


def parts(folder: Path) -> dict[str, str]:
    """The folders of "train", "val" and "test" by any of their usual names; none without one for training.

    A folder that holds pictures and no folders is a class, whatever its name.

    Raises:
        UserError: a part has two folders.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        part = next((part for part, names in PARTS.items() if path.name.lower() in names), "")
        if not part or not path.is_dir():
            continue
        if not subfolders(path) and any(is_picture(inside.name) for inside in path.iterdir()):
            continue
        if found.setdefault(part, path.name) != path.name:
            raise UserError(f"'{folder}' has two folders for one part, '{found[part]}' and '{path.name}'; remove one")
    return {part: found[part] for part in PARTS if part in found} if "train" in found else {}


def is_ours(name: Path) -> bool:
    """Whether a file is read or was written by this program."""
    return name.parts[0] == "split_fewshot" or str(name) in (SPLIT_FILE, "classnames.json")


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


def read_parts(folder: Path, found: dict[str, str]) -> Split:
    """The parts by their folders. Without ``test/``, ``val/`` is also the test set, as in CoOp's ImageNet.

    Raises:
        UserError: there is neither ``test/`` nor ``val/``, or a class is not in ``train/``.
    """
    train = found["train"]
    if len(found) == 1:
        raise UserError(f"'{folder}' has {train}/ but no test/ (nor val/) beside it; what should be tested on?")
    labels = {name: label for label, name in enumerate(list_classes(folder / train, NO_CLASSES))}
    items: dict[str, list[Item]] = {part: [] for part in PARTS}
    for part, place in found.items():
        for name, files in list_classes(folder / place, NO_CLASSES).items():
            if name not in labels:
                raise UserError(f"{str(folder / place / name)!r} is no class of {train}/: {', '.join(labels)}")
            items[part] += [Item(f"{place}/{name}/{file}", labels[name], name) for file in files]
    return Split(items["train"], items["val"], items["test"] or items["val"])
