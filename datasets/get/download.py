"""Downloads one file over HTTP or from Google Drive: resumed after a break, checked, and either whole or absent.

torchvision's downloader starts again whenever a connection breaks, too often for the larger archives (37 GB). Here a
download grows in ``NAME.part``. ``NAME.part.from`` holds its address and version, so that only bytes of the same file
are appended (HTTP's ``Range`` with ``If-Range``).
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from datasets.files import UserError

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte
TRIES = 4  # successive ones without a new byte
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BROKEN_OFF = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class Unavailable(Exception):
    """An address does not give the file; the next one may."""


def download(urls: Sequence[str], target: Path, checksum: str = "", by_hand: Path | None = None) -> None:
    """Fetches ``target`` from the first of ``urls`` that has it. An existing file is only checked.

    Args:
        by_hand: where the user may save a file that Google Drive gives to browsers only.

    Raises:
        UserError: no address has it, or its checksum differs; the file is then removed.
        OSError: the disk is full (the part is then removed), or cannot be written.
    """
    if not target.is_file():
        part = target.with_name(target.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            _first_available(urls, part, by_hand or target)
        except OSError as error:
            if error.errno in DISK_FULL:
                remove(part)
            error.filename = error.filename or str(target)
            raise
        part.replace(target)
        _origin(part).unlink(missing_ok=True)
    algorithm, _, expected = checksum.partition(":")
    if expected and (found := digest(target, algorithm)) != expected:
        target.unlink()
        raise UserError(
            f"'{target.name}' has the {algorithm.upper()} sum {found} where {expected} is expected; it was removed, "
            f"the same command fetches it anew (from {urls[0]})"
        )


def remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    _origin(part).unlink(missing_ok=True)


def digest(path: Path, algorithm: str) -> str:
    summed = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            summed.update(chunk)
    return summed.hexdigest()


def require_room(folder: Path, size: int) -> None:
    """Raises UserError if ``size`` bytes do not fit."""
    if size > (free := shutil.disk_usage(folder).free):
        need, have = f"{size / 1e6:,.1f} MB", f"{free / 1e6:,.1f} MB"
        raise UserError(
            f"the disk is full: '{folder}' needs {need} more, {have} are free; make room and repeat the command"
        )


def _first_available(urls: Sequence[str], part: Path, by_hand: Path) -> None:
    refusals = []
    for url in urls:
        try:
            if url.startswith("drive:"):
                _fetch_from_drive(url.removeprefix("drive:"), part, by_hand)
            else:
                _fetch(url, part)
            return
        except Unavailable as error:
            refusals.append(str(error))
    raise UserError("; ".join(refusals))


def _fetch(url: str, part: Path) -> None:
    """Tries again when the connection breaks, as long as new bytes arrive."""
    tries, had = 0, -1
    while True:
        try:
            if _transfer(url, part):
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in (408, 416, 429):
                reason = " ".join(error.reason.split())  # it has several lines for a redirect loop
                raise Unavailable(f"{url} answers {error.code} {reason}") from error
            if error.code == 416:  # the part is the whole file, or longer than it
                if error.headers.get("Content-Range") == f"bytes */{_size(part)}":
                    return
                remove(part)
            reason = f"{error.code} {error.reason}"
        except BROKEN_OFF as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        tries = tries + 1 if _size(part) <= had else 1
        had = max(had, _size(part))
        if tries == TRIES:
            kept = f"; {had:,} bytes are kept, the same command goes on" if had else ""
            raise Unavailable(f"{url} cannot be fetched: {reason}{kept}")
        time.sleep(tries - 1)


def _transfer(url: str, part: Path) -> bool:
    """Makes one request; returns whether the part is then whole."""
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})
    have, validator = 0, ""
    if _origin(part).is_file():
        origin, _, validator = _origin(part).read_text(encoding="utf-8").partition("\n")
        have = _size(part) if origin == url else 0
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator:
            request.add_header("If-Range", validator)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:  # the whole file: the server takes no ranges, or has another version
            have = 0
        total = None if response.length is None else have + response.length
        require_room(part.parent, response.length or 0)
        tag = response.headers.get("ETag", "")
        if tag.startswith("W/"):  # weak: the bytes may differ
            tag = ""
        _origin(part).write_text(f"{url}\n{tag or response.headers.get('Last-Modified', '')}", encoding="utf-8")
        with (
            open(part, "ab" if have else "wb") as out,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
        ):
            while chunk := response.read1(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(part) == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _origin(part: Path) -> Path:
    return part.with_name(part.name + ".from")


def _fetch_from_drive(ident: str, part: Path, by_hand: Path) -> None:
    name = by_hand.name
    remedy = f"open https://drive.google.com/file/d/{ident}/view in a browser and save it as '{by_hand}'"
    try:
        import gdown
    except ImportError:
        raise Unavailable(f"'{name}' is on Google Drive, which takes gdown: pip install gdown, or {remedy}") from None
    try:
        # gdown keeps a part of its own beside the output, and resumes it.
        output = part.with_name(f"{name}.drive")
        fetched = gdown.download(id=ident, output=str(output), quiet=True, resume=True)
    except Exception as error:  # gdown's types differ between versions
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            for its_part in part.parent.glob(f"{name}.drive*"):
                its_part.unlink()
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unavailable(f"Google Drive does not give '{name}' ({reason}); {remedy}") from error
    if not fetched:  # older versions do not raise
        raise Unavailable(f"Google Drive does not give '{name}'; {remedy}")
    output.replace(part)
