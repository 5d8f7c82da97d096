"""Unpacks an archive into a dataset's folder: refused whole if it reaches out of it, and never half there.

All members are read before the first is written. It is unpacked into a folder beside, and what is asked for is then
renamed into place.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from datasets.files import UserError

from .download import require_room

DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression that Python does not know
    RuntimeError,  # a password is asked for
    KeyError,  # a hard link to what is not there
    ValueError,  # a header or a name that makes no sense
)


class Unusable(Exception):
    """What the archive is or lacks, where fetching it anew may help."""


class Unsafe(Exception):
    """A member would be written, or point, outside."""


class Member(NamedTuple):
    name: str
    is_special: bool  # neither a file nor a folder nor a link that can be unpacked
    symlink: str = ""  # what it points to
    hard_link: str = ""


def unpack(archive: Path, unpacks: Mapping[str, str], folder: Path, inner: str = "") -> None:
    """Takes ``unpacks`` {path in the archive: path under ``folder``} out of a .zip or .tar file; what is there stays.

    Raises:
        UserError: the archive is damaged, reaches out of the folder, or lacks what is asked for; it is then removed,
            as a link to one that the user gave is. Or there is no room for it.
        OSError: the disk is full, or cannot be written. Nothing that was unpacked then remains.
    """
    temporary = archive.with_name(archive.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        _unpack(archive, unpacks, folder, inner, temporary)
    except Unusable as error:
        its = "" if archive.is_symlink() else "; it was removed, the same command fetches it anew"
        archive.unlink()
        raise UserError(f"'{archive.name}' {error}{its}") from error
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack(archive: Path, unpacks: Mapping[str, str], folder: Path, inner: str, temporary: Path) -> None:
    try:
        content = temporary / "outer"
        _extract(archive, content)
        if inner and (content / inner).is_file():
            _extract(content / inner, temporary / "inner")
            content = temporary / "inner"
        missing = [name for name in unpacks if not (content / name).exists()]
        if missing:
            raise Unusable(f"has no {', '.join(missing)} in it; is it the right archive?")
        for name, place in unpacks.items():
            if not (folder / place).exists():
                (content / name).rename(folder / place)
    except Unsafe as error:
        raise Unusable(f"is refused, nothing was unpacked: {error}") from error
    except UserError:  # no room
        raise
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"is damaged or no archive ({reason})") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise Unusable("is refused, nothing was unpacked: the name of a member is too long") from error


def check_members(members: Iterable[Member]) -> None:
    """Raises Unsafe where a path is absolute or goes up, where a link leaves, and where a path goes through a link."""
    members = list(members)
    symlinks = {posixpath.normpath(m.name) for m in members if m.symlink}
    for name, is_special, symlink, hard_link in members:
        folder = posixpath.dirname(name)
        if ".." in name.split("/"):
            raise Unsafe(f"the member {name!r} leaves the folder that it is unpacked into")
        _walk(folder, symlinks, f"the member {name!r}")
        _walk(name, set(), f"the member {name!r}")
        if is_special:
            raise Unsafe(f"the member {name!r} is neither a file nor a folder")
        if symlink:
            _walk(symlink, symlinks, f"the link {name!r}", folder)
        if hard_link:
            _walk(hard_link, symlinks, f"the link {name!r}")


def _walk(path: str, symlinks: set[str], what: str, start: str = "") -> None:
    """Follows ``path`` step by step from ``start``; it may neither leave the archive nor meet a symbolic link."""
    if path.startswith("/"):
        raise Unsafe(f"{what} leaves the folder that it is unpacked into")
    at = [step for step in start.split("/") if step not in ("", ".")]
    for step in path.split("/"):
        if step == ".." and not at:
            raise Unsafe(f"{what} leaves the folder that it is unpacked into")
        if step == "..":
            at.pop()
        elif step not in ("", "."):
            at.append(step)
        if "/".join(at) in symlinks:
            raise Unsafe(f"{what} goes through the link {'/'.join(at)!r}")


def _extract(archive: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    (_extract_zip if archive.suffix == ".zip" else _extract_tar)(archive, folder)


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        infos = file.infolist()
        modes = [info.external_attr >> 16 for info in infos]
        # Python unpacks a link in a zip as a file that holds the target's name; no data set has one.
        check_members(
            Member(info.filename, bool(stat.S_IFMT(mode)) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)))
            for info, mode in zip(infos, modes, strict=True)
        )
        require_room(folder, sum(info.file_size for info in infos))
        for info in tqdm(infos, unit=" files", desc=archive.name, disable=None):
            file.extract(info, folder)


def _extract_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        infos = file.getmembers()
        check_members(
            Member(
                info.name,
                not (info.isfile() or info.isdir() or info.issym() or info.islnk()),
                info.linkname if info.issym() else "",
                info.linkname if info.islnk() else "",
            )
            for info in infos
        )
        require_room(folder, sum(info.size for info in infos))
        # A second fence, which also drops owners and odd permissions; Python has it from 3.10.12 on.
        fence: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        for info in tqdm(infos, unit=" files", desc=archive.name, disable=None):
            file.extract(info, folder, **fence)
