"""Image features on disk: arrays with one row per image, as files `<key>-<array>-<CRC-32>.npy` in one folder.

The key is a hash of everything that the values depend on. Files are written under another name and renamed when they
are complete, so processes can share the folder: one makes an array, the others wait for it. Reading marks a file as
used. Beyond a bound the least recently used files are removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from dassl.extras.locks import locked
from dassl.utils import cache_folder

ABANDONED = 24 * 3600  # seconds after which an unfinished file belongs to no living process
BLOCK = 2**20  # bytes read at a time


def checksum(file: BinaryIO) -> str:
    """CRC-32 of an open file, as 8 hexadecimal digits."""
    found = 0
    file.seek(0)
    while block := file.read(BLOCK):
        found = zlib.crc32(block, found)
    return f"{found:08x}"


class Arrays:
    """Open files, read row by row. They are not mapped: mapped pages would count as the process's own memory."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[BinaryIO, int, np.dtype]] = {}
        self.opened = ExitStack()
        self.close = self.opened.close

    def add(self, name: str, path: Path) -> None:
        """Opens a file. ValueError: it is damaged."""
        file = self.opened.enter_context(path.open("rb"))
        if checksum(file) != path.stem[-8:]:
            raise ValueError("another checksum")
        array = np.lib.format.open_memmap(path, mode="r")  # reads the header; ValueError: the array holds objects
        self.files[name] = file, array.offset, np.dtype((array.dtype, array.shape[1:]))

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        """Rows start to stop of each array, {name: [stop - start, ...]}."""
        found = {}
        for name, (file, header, row) in self.files.items():
            file.seek(header + start * row.itemsize)
            found[name] = torch.from_numpy(np.fromfile(file, row, stop - start))
        return found


class FeatureStore:
    """The folder, of `max_bytes` at most."""

    def __init__(self, folder: str | Path = "", max_bytes: float = math.inf) -> None:
        self.folder = Path(folder).expanduser() if folder else cache_folder() / "features"
        self.max_bytes = max_bytes

    def open(self, key: Mapping[str, Any], names: Sequence[str]) -> Arrays | None:
        """The arrays of these names; None if one is missing. A damaged file is removed, and a line says so."""
        arrays = Arrays()
        for name in names:
            for path in self.folder.glob(f"{hash_of(key)}-{name}-*.npy"):
                with suppress(OSError):  # removed by now, or another user's
                    try:
                        arrays.add(name, path)
                        os.utime(path)
                    except ValueError:
                        print(f"Image features: '{path}' is damaged; they are computed again")
                        path.unlink()
        if len(arrays.files) == len(names):
            return arrays
        arrays.close()
        return None

    def claim(self, key: Mapping[str, Any], names: Sequence[str], lock: ExitStack) -> Arrays | None:
        """As `open`, but waits for a process that makes the arrays. If None, `lock` is held for making them."""
        arrays = self.open(key, names)
        if arrays is None:
            with suppress(OSError):  # the folder cannot be written: each process makes its own
                lock.enter_context(locked(self.folder / f"{hash_of(key)}.lock"))
            arrays = self.open(key, names)
            if arrays is not None:
                lock.close()
        return arrays

    def files(self) -> list[tuple[Path, os.stat_result]]:
        """The complete files, the least recently used first."""
        found = []
        for path in self.folder.glob("*.npy"):
            with suppress(FileNotFoundError):  # another process has removed it
                found.append((path, path.stat()))
        return sorted(found, key=lambda item: item[1].st_mtime_ns)

    def shrink(self, max_bytes: float) -> int:
        """Removes the least recently used files until the rest fit, and returns how many. Abandoned ones go too."""
        files, removed = self.files(), 0
        total = sum(stat.st_size for _, stat in files)
        for path, stat in files:
            if total > max_bytes:
                path.unlink(missing_ok=True)
                total -= stat.st_size
                removed += 1
        for path in (*self.folder.glob("*.tmp"), *self.folder.glob("*.lock")):
            with suppress(FileNotFoundError):
                if max_bytes == 0 or time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
        return removed


class Writer:
    """Writes arrays batch by batch. They are in the store when the `with` ends without an error and with all n rows.

    A disk that fails ends the writing, not the run: `problem` is then its error.
    """

    def __init__(self, store: FeatureStore, key: Mapping[str, Any], n: int) -> None:
        self.store, self.stem, self.n, self.rows = store, store.folder / hash_of(key), n, 0
        self.files: dict[str, BinaryIO] = {}
        self.opened = ExitStack()
        self.problem: OSError | None = None

    def __enter__(self) -> Writer:
        return self

    def add(self, features: Mapping[str, Tensor]) -> None:
        """The next rows, {name: [rows, ...]}."""
        if self.problem:
            return
        arrays = {name: x.detach().cpu().contiguous().numpy() for name, x in features.items()}
        try:
            if not self.files:
                self._start(arrays)
            for name, array in arrays.items():
                self.files[name].write(array.data)
            self.rows += len(next(iter(arrays.values())))
        except OSError as error:
            self.problem = error

    def _start(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.store.folder.mkdir(parents=True, exist_ok=True)
        needed = sum(self.n * array[0].nbytes for array in arrays.values())
        room = min(self.store.max_bytes, shutil.disk_usage(self.store.folder).free)
        if needed > room:
            raise OSError(errno.ENOSPC, f"they need {needed / 1e9:.2f} GB, and there is room for {room / 1e9:.2f} GB")
        for name, array in arrays.items():
            path = Path(f"{self.stem}-{name}-{os.urandom(8).hex()}.tmp")
            self.opened.callback(path.unlink, missing_ok=True)
            file = self.files[name] = self.opened.enter_context(path.open("w+b"))
            header = np.lib.format.header_data_from_array_1_0(array)
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (self.n, *array.shape[1:])})

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self.opened:
                if kind is None and not self.problem and self.rows == self.n:
                    for name, file in self.files.items():
                        path = f"{self.stem}-{name}-{checksum(file)}.npy"
                        os.replace(file.name, path)
                        os.utime(path)
                    self.store.shrink(self.store.max_bytes)
        except OSError as error:
            self.problem = error


def hash_of(key: Mapping[str, Any]) -> str:
    """40 hexadecimal digits."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:40]
