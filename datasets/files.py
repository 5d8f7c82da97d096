"""Files of a dataset: listed, read with errors that name them, and kept in the user's cache folder.

A loader writes nothing into the data folder. A split, a few-shot set or a listing that it makes goes to the cache
folder. One that is beside the data is read first.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

import dassl.utils

T = TypeVar("T")

# What Pillow opens, but decodes by another program or not at all.
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
SYSTEM_FILES = ("Thumbs.db", "desktop.ini")  # Windows writes them into folders of pictures

# Hooks that upstream Dassl does not have. Beside it files are written plainly and nothing is locked.
UserError: type[Exception] = getattr(dassl.utils, "UserError", ValueError)
write_atomically = getattr(dassl.utils, "write_atomically", lambda path, text, replace: path.write_text(text, "utf-8"))
locked = getattr(dassl.utils, "locked", lambda path, refusal="": nullcontext(False))
cache_folder = getattr(
    dassl.utils, "cache_folder", lambda: Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "plot").expanduser()
)


def places(folder: Path, name: str) -> tuple[Path, Path]:
    """The two paths of a dataset's file ``name``: beside the data, and in the user's cache folder."""
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]  # two copies of a dataset share nothing
    return folder / name, cache_folder() / "datasets" / f"{folder.name}-{key}" / name


def kept(folder: Path, name: str) -> Path | None:
    """The dataset's file ``name``, beside the data or else in the cache folder; None if there is none."""
    return next((place for place in places(folder, name) if os.path.lexists(place)), None)


def keep(folder: Path, name: str, text: str, replace: bool = True) -> Path:
    """Writes ``text`` to the dataset's file ``name`` in the cache folder, and returns its path.

    Args:
        replace: False keeps a file that another process has written meanwhile.

    Raises:
        OSError: it cannot be written.
    """
    path = places(folder, name)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text, replace)
    return path


@contextmanager
def needs_cache(what: str) -> Iterator[None]:
    """A scope that writes ``what``, which a run cannot do without, into the cache folder. UserError: it cannot."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{what} cannot be saved in '{cache_folder()}': {error.strerror}; PLOT_CACHE names another cache folder"
        ) from error


def read_rows(path: Path, form: str, example: str, make: Callable[..., T]) -> list[T]:
    """``make(*groups)`` of each line of a text in UTF-8, with or without a byte-order mark; empty lines are skipped.

    Args:
        form: a line's regular expression, with the groups.
        example: a line as it should be, for the error.

    Raises:
        UserError: the file is missing, or a line is not understood: it has another form or encoding, or ``make`` raises
            ValueError or LookupError.
    """

    def refuse(number: int, line: str, why: str) -> UserError:  # type: ignore[valid-type]
        return UserError(f"'{path}', line {number}, {line[:80]!r}: {why}; a line should be like {example!r}")

    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise UserError(f"no annotation file '{path}'; DATASETS.md says how the dataset is laid out") from None
    rows = []
    for number, encoded in enumerate(raw.split(b"\n"), start=1):
        try:
            line = encoded.decode().strip()
        except UnicodeDecodeError as error:
            raise refuse(number, repr(encoded)[2:-1], f"it is no UTF-8 ({error.reason})") from None
        if not line:
            continue
        match = re.fullmatch(form, line)
        if not match:
            raise refuse(number, line, "not understood")
        try:
            rows.append(make(*match.groups()))
        except LookupError as error:
            raise refuse(number, line, f"{error} is not listed") from None
        except ValueError as error:
            raise refuse(number, line, str(error)) from None
    return rows


def read_json(path: Path) -> Any:
    """Raises UserError where the file is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())  # finds out the encoding, with a byte-order mark too
    except FileNotFoundError:
        raise UserError(f"no annotation file '{path}'; DATASETS.md says how the dataset is laid out") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is no JSON: {error}") from error


def read_mat(path: Path, variable: str, fields: Iterable[str] = ()) -> Any:
    """A 1 x n variable of a MATLAB file, as an array of length n.

    Args:
        fields: the fields that each of its elements has.

    Raises:
        UserError: the file is missing, no MATLAB file, or without that variable or a field.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise UserError(f"no annotation file '{path}'; DATASETS.md says how the dataset is laid out")
    try:
        found = loadmat(path)[variable][0]
    except Exception as error:  # scipy raises whatever a damaged file happens to lead to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"'{path}' is no MATLAB file with '{variable}' in it: {reason}") from error
    if lacking := [field for field in fields if field not in (found.dtype.names or ())]:
        has = ", ".join(found.dtype.names or ()) or "none"
        raise UserError(f"'{path}': '{variable}' has no field '{lacking[0]}'; it has {has}")
    return found


@functools.cache
def endings() -> frozenset[str]:
    """The endings of the pictures that Pillow decodes, in small letters with their dot."""
    known = Image.registered_extensions().items()
    return frozenset(ending for ending, form in known if form in Image.OPEN and form not in NO_PICTURES)


def is_picture(name: str) -> bool:
    """By its ending. Hidden files, such as macOS's "._0.jpg", are none."""
    return os.path.splitext(name)[1].lower() in endings() and not name.startswith(".")


def is_hidden(name: Path) -> bool:
    """Whether a file is hidden, or was made by an operating system."""
    return name.name in SYSTEM_FILES or any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def files_below(folder: Path) -> list[Path]:
    """All that is in and below a folder but folders, sorted, by paths relative to it. Links to folders are followed."""
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder around it
            folders.clear()
            continue
        seen.add(real)
        found += [Path(place, name).relative_to(folder) for name in files]
    return sorted(found)


def unused_line(folder: Path, unused: Mapping[str, list[str]]) -> str:
    """What the user is told of the files that are not used, by their kind."""
    kinds = (f"{len(names)} {kind} ({names[0]!r} the first)" for kind, names in unused.items())
    return f"Not used of '{folder}': {', '.join(kinds)}"


def missing_files(images: Path, files: Iterable[str]) -> list[str]:
    """The ``files``, paths relative to ``images``, that do not exist. Each folder is listed once."""
    listed: dict[str, set[str]] = {}
    absent = []
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder not in listed:
            try:
                with os.scandir(images / folder) as entries:
                    listed[folder] = {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):  # missing, or not a valid name
                listed[folder] = set()
        if name not in listed[folder]:
            absent.append(file)
    # A file system may spell a name differently: case, or the composition of accents.
    return [file for file in absent if not os.path.isfile(images / file)]


def list_classes(images: Path, ignored: Iterable[str] = ()) -> dict[str, list[str]]:
    """Class folders in ``images`` and the pictures in each, both sorted, without hidden ones.

    Raises:
        UserError: there is no folder, or one has no pictures.
    """
    folders = _class_folders(images, ignored)
    return {folder: _list_folder(images / folder) for folder in folders}


def list_classes_once(images: Path, dataset: Path, name: str, ignored: Iterable[str] = ()) -> dict[str, list[str]]:
    """``list_classes``, cached as ``name`` for the dataset. Only changed folders are listed again."""
    kept: dict[str, list[Any]] = {}
    for place in reversed(places(dataset, name)):
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            content = json.loads(place.read_bytes())
            kept = {folder: [modified, list(map(os.fspath, files))] for folder, (modified, files) in content.items()}
            break
    listing, changed = {}, False
    for folder in _class_folders(images, ignored):
        modified = (images / folder).stat().st_mtime_ns
        if kept.get(folder, [None])[0] != modified:
            kept[folder] = [modified, _list_folder(images / folder)]
            changed = True
        listing[folder] = kept[folder][1]
    if changed:
        with suppress(OSError):  # it can be listed again
            keep(dataset, name, json.dumps({folder: kept[folder] for folder in listing}))
    return listing


def _class_folders(images: Path, ignored: Iterable[str]) -> list[str]:
    if not images.is_dir():
        raise UserError(f"no image folder '{images}'; DATASETS.md says how the dataset is laid out")
    with os.scandir(images) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    folders = [folder for folder in folders if folder not in set(ignored)]
    if not folders:
        raise UserError(f"'{images}' holds no class folders; it should have one for each class, with its pictures")
    return folders


def _list_folder(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        files = [entry.name for entry in entries if entry.is_file()]
    if found := sorted(file for file in files if is_picture(file)):
        return found
    if below := sum(is_picture(file) for _, _, inside in os.walk(folder) for file in inside):
        advice = "move them up, or call the folders of the parts train, val and test"
        raise UserError(f"the class folder {str(folder)!r} has no pictures of its own, but {below} below it; {advice}")
    what = f"has no pictures in it ({' '.join(sorted(endings()))})" if files else "is empty"
    raise UserError(f"the class folder {str(folder)!r} {what}; fill it or remove it")
