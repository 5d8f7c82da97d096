"""Unpacks an archive into a dataset's folder: everything that is asked for, or nothing.

The archive is unpacked into a temporary folder beside it, and what is asked for is then renamed into place. An archive
is refused if a member would be written, or would point, outside the folder that it is unpacked into.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

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
    NotImplementedError,  # an unknown compression
    RuntimeError,  # a password is needed
    KeyError,  # a hard link to a missing member
    ValueError,  # an invalid header or name
)


class Unusable(Exception):
    """The archive is damaged, unsafe or the wrong one. Downloading it again may help."""


def unpack(archive: Path, unpacks: Mapping[str, str], folder: Path, inner: str = "") -> None:
    """Unpacks parts of a .zip or .tar file. Existing places stay as they are.

    Args:
        unpacks: {path in the archive: path under ``folder``}.
        inner: an archive in the archive that holds these paths.

    Raises:
        UserError: the archive is damaged, reaches out of its folder, or lacks a path. It is then removed; if it is a
            link to the user's archive, only the link is. Or there is no room for it, or Python is too old.
        OSError: the disk is full or cannot be written. Nothing unpacked remains.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"unpacking '{archive.name}' takes Python 3.10.12 or 3.11.4 or later; it checks the members")
    temporary = archive.with_name(archive.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # from a process that was killed
    try:
        content = temporary / "outer"
        _extract(archive, content)
        if inner and (content / inner).is_file():
            _extract(content / inner, temporary / "inner")
            content = temporary / "inner"
        if missing := [name for name in unpacks if not (content / name).exists()]:
            raise Unusable(f"has no {', '.join(missing)} in it; is it the right archive?")
        for name, place in unpacks.items():
            if not (folder / place).exists():
                (content / name).rename(folder / place)
    except Unusable as error:
        removed = "" if archive.is_symlink() else "; it was removed, the same command fetches it anew"
        archive.unlink()
        raise UserError(f"'{archive.name}' {error}{removed}") from error
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    try:
        (_extract_zip if archive.suffix == ".zip" else _extract_tar)(archive, folder)
    except tarfile.FilterError as error:
        raise Unusable(f"is refused, nothing was unpacked: {error}") from error
    except UserError:  # no room; upstream Dassl has no UserError, which is then a ValueError
        raise
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"is damaged or no archive ({reason})") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise Unusable("is refused, nothing was unpacked: the name of a member is too long") from error


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        infos = file.infolist()
        for info in infos:
            if info.filename.startswith("/") or ".." in info.filename.split("/"):
                reason = "would be written outside the folder"
            elif stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                reason = "is neither a file nor a folder"  # Python would write a link's target as a file
            else:
                continue
            raise Unusable(f"is refused, nothing was unpacked: {info.filename!r} {reason}")
        require_room(folder, sum(info.file_size for info in infos))
        for info in tqdm(infos, unit=" files", desc=archive.name, disable=None):
            file.extract(info, folder)


def _extract_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        infos = file.getmembers()
        require_room(folder, sum(info.size for info in infos))
        for info in tqdm(infos, unit=" files", desc=archive.name, disable=None):
            file.extract(info, folder, filter="data")
