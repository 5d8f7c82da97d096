"""The parts of a dataset: files to download, their places in the dataset's folder, and the known numbers of images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from datasets.files import UserError


@dataclass(frozen=True)
class File:
    """One file to download: an archive, or a plain file that keeps its name in the dataset's folder.

    Attributes:
        urls: addresses, tried in this order; "drive:ID" is a file on Google Drive.
        unpacks: {path in the archive: path under the dataset's folder}. If all places exist, nothing is downloaded.
        checksum: "md5:..." or "sha256:...", empty if unknown.
        name: on disk and on a mirror; by default the end of the first address.
        inner: an archive in the archive, which holds everything.
        optional: only needed to draw the split again; a dataset is ready without it.
    """

    urls: tuple[str, ...]
    unpacks: dict[str, str] | None = None
    checksum: str = ""
    name: str = ""
    inner: str = ""
    optional: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.urls[0].rpartition("/")[2])

    @property
    def places(self) -> tuple[str, ...]:
        """Paths under the dataset's folder that exist once this file is laid out."""
        return tuple(self.unpacks.values()) if self.unpacks else (self.name,)


@dataclass(frozen=True)
class Source:
    """A dataset.

    Attributes:
        dataset: registered name.
        counts: images for training, validation and test, None where CoOp has no such set.
        steps: instructions for the user, with {folder} in place of the dataset's folder.
        by_hand: places that these steps fill.
    """

    dataset: str
    classes: int
    counts: tuple[int | None, int | None, int]
    files: tuple[File, ...]
    steps: str = ""
    by_hand: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The dataset's folder under the data root."""
        return DATASET_REGISTRY.get(self.dataset).dataset_dir

    @property
    def needs(self) -> list[str]:
        """Paths under the dataset's folder that exist once it is ready."""
        return [*self.by_hand, *(place for file in self.files if not file.optional for place in file.places)]

    def located(self, root: Path) -> tuple[Path, Path]:
        """The dataset's folder and its image folder where they are, or where they will be."""
        dataset = DATASET_REGISTRY.get(self.dataset)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return dataset.locate(root)
        except UserError:
            return root / self.folder, root / self.folder / dataset.image_dir

    def missing(self, root: Path, places: Iterable[str] | None = None) -> list[str]:
        """Those of the places, by default of what the dataset needs, that do not exist."""
        folder, images = self.located(root)
        image_dir = DATASET_REGISTRY.get(self.dataset).image_dir

        def path(place: str) -> Path:
            within = PurePath(place).is_relative_to(image_dir)
            return images / PurePath(place).relative_to(image_dir) if within else folder / place

        return [place for place in (self.needs if places is None else places) if not path(place).exists()]


def drive(ident: str, name: str, optional: bool = False) -> File:
    """A plain file of CoOp's on Google Drive."""
    return File((f"drive:{ident}",), name=name, optional=optional)


def archive(url: str, checksum: str, *entries: str, under: str = "", **others: Any) -> File:
    """An archive. ``entries`` of its folder ``under`` keep their names when unpacked."""
    return File((url,), {f"{under}{name}": name for name in entries}, checksum, **others)
