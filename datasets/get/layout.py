"""What a dataset is made of: files to fetch, where they go in its folder, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class File:
    """One file to fetch: an archive, or a plain file that lies in the dataset's folder under its own name.

    Attributes:
        urls: addresses, tried in this order; "drive:ID" is a file on Google Drive.
        unpacks: what is taken out of an archive: {path in the archive: path under the dataset's folder}. Where
            all of it is there, the file is not fetched.
        checksum: "md5:..." or "sha256:...", empty where none is known.
        name: on disk and on a mirror; by default the end of the first address.
        inner: an archive in the archive, which holds it all.
        optional: needed only to draw the split anew; what is ready does not depend on it.
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
        """What is there under the dataset's folder when this file has been laid out."""
        return tuple(self.unpacks.values()) if self.unpacks else (self.name,)


@dataclass(frozen=True)
class Source:
    """A dataset.

    Attributes:
        dataset: as registered.
        folder: under the data root.
        counts: images for training, validation and test, None where CoOp has no such set.
        steps: what only the user can do, with {folder} in the place of the dataset's folder.
        by_hand: what those steps bring.
    """

    dataset: str
    folder: str
    files: tuple[File, ...]
    classes: int
    counts: tuple[int | None, int | None, int]
    steps: str = ""
    by_hand: tuple[str, ...] = ()

    @property
    def needs(self) -> list[str]:
        """What is under the dataset's folder when it is ready."""
        return [*self.by_hand, *(place for file in self.files if not file.optional for place in file.places)]

    def missing(self, root: Path) -> list[str]:
        return [place for place in self.needs if not (root / self.folder / place).exists()]


def drive(ident: str, name: str, optional: bool = False) -> File:
    """A plain file of CoOp's on Google Drive."""
    return File((f"drive:{ident}",), name=name, optional=optional)


def entries(*names: str, under: str = "") -> dict[str, str]:
    """What keeps its name when unpacked, out of a folder of the archive."""
    return {f"{under}{name}": name for name in names}
