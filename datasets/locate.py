"""Finds a dataset's folder and its image folder, also in layouts other than that of DATASETS.md.

A folder may have other capitals or hyphens, one of the names that archives give it, or be up to three levels deeper.
It is used if it is the only one. Otherwise the error names what is near by, and the one command that puts it right.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .files import UserError

DEPTH = 3  # levels below the dataset's folder that are searched
WIDE = 20  # subfolders beyond which a folder is taken for an image folder, and not searched


FOUND = "found near by, this puts it right"


class Absent(UserError):  # type: ignore[misc, valid-type]
    """No folder of the dataset was found."""


def locate(dataset: Any, root: Path) -> tuple[Path, Path]:
    """The folder of a dataset's annotations, and its image folder.

    Args:
        dataset: a ``FewShotDataset``, or its class.

    Raises:
        UserError: there is no image folder, or there are several. Absent: there is no folder of the dataset either.
    """
    folder, images = root / dataset.dataset_dir, root / dataset.dataset_dir / dataset.image_dir
    name = getattr(dataset, "__name__", type(dataset).__name__)
    if not root.is_dir():
        near = [path for path in subfolders(root.parent) if plain(path.name) == plain(root.name)]
        raise Absent(_error("data root", name, root, [f"--root {_quoted(path)}" for path in near]))
    if _is_laid_out(images, dataset):
        return folder, images
    names = {plain(other) for other in (dataset.dataset_dir, name, *dataset.other_names)}
    homes = [path for path in (*subfolders(root), root) if plain(path.name) in names]
    found = _image_folders(dataset, homes)
    if len(found) == 1:
        print(f"{name}: the images are in '{found[0]}' (looked for '{images}')")
        return _folder_of_annotations(dataset, [folder, *homes], found[0]), found[0]
    if images.is_dir():  # what it lacks is said by its reader
        return folder, images
    if found:
        commands = [_link(path, folder, images) for path in found]
    elif homes:
        commands = [_link(path, folder, images) for home in homes for path in subfolders(home) if subfolders(path)]
    else:
        above = (root.parent, *subfolders(root))
        commands = [f"--root {_quoted(path)}" for path in above if (path / dataset.dataset_dir).is_dir()]
        raise Absent(_error("dataset folder", name, folder, commands, root))
    raise UserError(_error("image folder", name, images, commands, homes[0]))


def plain(name: str) -> str:
    """A name without its capitals, spaces and punctuation."""
    return re.sub(r"[\W_]", "", name.lower())


def subfolders(folder: Path) -> list[Path]:
    """Sorted, without hidden ones; none if the folder cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return []


def _is_laid_out(images: Path, dataset: Any) -> bool:
    """Whether it is an image folder. One in itself, as of an archive unpacked in a folder of its name, is none."""
    nested = dataset.dataset_dir and (images / images.name).is_dir()
    return images.is_dir() and not nested and all((images / part).is_dir() for part in dataset.image_parts)


def _image_folders(dataset: Any, homes: Iterable[Path]) -> list[Path]:
    """Those in and below ``homes``: by the dataset's parts, by the first image of its split file, or else by name."""
    below = {os.path.realpath(path): path for home in homes for path in _walk(home)}.values()
    listed = _listed_image(dataset, homes)
    if dataset.image_parts:
        return [path for path in below if all((path / part).is_dir() for part in dataset.image_parts)]
    if listed:
        return [path for path in below if (path / listed).is_file()]
    for names in ([dataset.image_dir], dataset.other_names):
        known = {plain(name) for name in names if name}
        found = [path for path in below if plain(path.name) in known]
        if found := [path for path in found if not any(other.parent == path for other in found)]:
            return found
    return []


def _walk(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    yield folder
    inside = subfolders(folder) if depth else []
    for path in inside if len(inside) <= WIDE else ():
        yield from _walk(path, depth - 1)


def _listed_image(dataset: Any, homes: Iterable[Path]) -> str:
    """An image of the split file; "" without one that can be read."""
    for home in homes if dataset.split_file else ():
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return json.loads((home / dataset.split_file).read_bytes())["test"][0][0].replace("\\", "/")
    return ""


def _folder_of_annotations(dataset: Any, homes: Iterable[Path], images: Path) -> Path:
    """The first of the folders that has the split file, or the annotation that the dataset needs."""
    needed = dataset.split_file or dataset.annotation
    above = [images, *images.parents[: DEPTH + 1]]
    homes = list(homes)
    inside = [path for path in above if any(path.is_relative_to(home) for home in homes)]
    named = [path for path in (*homes, *inside) if needed and (path / needed).is_file()]
    return next(iter([*named, *inside[1:2], *inside]))


def _how_to_fetch(dataset: str) -> str:
    from .get.sources import SOURCES

    name = next((name for name, source in SOURCES.items() if source.dataset == dataset), "")
    return f"; to fetch it: python -m datasets.prepare {name}" if name else ""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _link(found: Path, folder: Path, images: Path) -> str:
    """The command that links an image folder into its place."""
    if folder.exists():
        return f"ln -s {_quoted(found)} {_quoted(images)}"
    return f"mkdir -p {_quoted(images.parent)} && ln -s {_quoted(found)} {_quoted(images)}"


def _error(what: str, name: str, path: Path, commands: list[str], near: Path | None = None) -> str:
    looked = f"no {what} for {name}: looked for '{path}'"
    if commands:
        return f"{looked}; {FOUND}: {' or '.join(dict.fromkeys(commands))}"
    advice = "DATASETS.md says how it is laid out"
    if what != "image folder":
        advice = "name the folder that holds the datasets with --root, or DATA for the scripts" + _how_to_fetch(name)
    here = [inside.name for inside in subfolders(near)] if near else []
    return f"{looked}{f'; {str(near)!r} holds ' + ', '.join(here[:8]) if here else ''}; {advice}"
