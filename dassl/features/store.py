"""A folder of arrays with one row an image, each named by the hash of all that its values depend on.

Files are NumPy's .npy. A file is written under another name and renamed when whole, so processes can share the folder:
what is there is complete, and what two make at once is the same. Reading marks a file as used; beyond a bound the
files unused for longest go.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

ABANDONED = 24 * 3600  # seconds after which an unfinished file belongs to no living process


class Rows:
    """The rows of a finished array file, read as they are asked for.

    Read, not mapped: mapped pages would count as the process's own memory.

    Raises:
        ValueError, OSError: the file is damaged or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.file: Any = path.open("rb")
        try:
            if np.lib.format.read_magic(self.file) != (1, 0):
                raise ValueError(f"'{path}' has another format")
            shape, _, self.dtype = np.lib.format.read_array_header_1_0(self.file)
            self.start, self.n, self.shape = self.file.tell(), shape[0], shape[1:]
            self.row_bytes = math.prod(self.shape) * self.dtype.itemsize
            if path.stat().st_size != self.start + self.n * self.row_bytes:
                raise ValueError(f"'{path}' is cut short")
        except BaseException:
            self.file.close()
            raise

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop [stop - start, ...], a tensor of its own."""
        array = np.empty((stop - start, *self.shape), self.dtype)
        self.file.seek(self.start + start * self.row_bytes)
        if self.file.readinto(array) != array.nbytes:
            raise OSError("a file of image features ended early")
        return torch.from_numpy(array)

    def close(self) -> None:
        self.file.close()


class FeatureStore:
    """The folder, of ``max_bytes`` at most."""

    def __init__(self, folder: str | Path = "", max_bytes: float = math.inf) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        self.folder = Path(folder).expanduser() if folder else cache / "plot" / "features"
        self.max_bytes = max_bytes

    def path(self, key: Mapping[str, Any], name: str) -> Path:
        """Where the array called ``name`` of all that has this ``key`` lies, once it is made."""
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}-{name}.npy"

    def open(self, key: Mapping[str, Any], names: Sequence[str]) -> dict[str, Rows] | None:
        """The arrays of these names, marked as used; None if one is not there, whole."""
        found: dict[str, Rows] = {}
        for name in names:
            path = self.path(key, name)
            try:
                found[name] = Rows(path)
                with suppress(OSError):
                    os.utime(path)
            except FileNotFoundError:
                return None
            except (OSError, ValueError):  # as good as not there; what is made anew takes its place
                return None
        return found

    def write(self, key: Mapping[str, Any], n: int) -> Writer:
        """For arrays of n rows, to be given batch by batch inside a ``with``."""
        return Writer(self, key, n)

    def files(self) -> list[tuple[Path, os.stat_result]]:
        """The finished files, the longest unused first."""
        found = []
        for path in self.folder.glob("*.npy"):
            with suppress(FileNotFoundError):  # another process has removed it
                found.append((path, path.stat()))
        return sorted(found, key=lambda item: item[1].st_mtime_ns)

    def shrink(self, max_bytes: float | None = None, keep: Sequence[Path] = ()) -> int:
        """Removes the longest unused files until the rest fit; how many. ``keep`` stays."""
        limit = self.max_bytes if max_bytes is None else max_bytes
        files, removed = self.files(), 0
        total = sum(stat.st_size for _, stat in files)
        for path, stat in files:
            if total > limit and path not in keep:
                path.unlink(missing_ok=True)
                total -= stat.st_size
                removed += 1
        for path in self.folder.glob("*.npy.part-*"):
            with suppress(FileNotFoundError):
                if limit == 0 or time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
        return removed


class Writer:
    """Writes arrays row by row; they appear when all n rows are there and the ``with`` ends without an error.

    What goes wrong with the disk ends the writing, not the run: ``problem`` then says what.
    """

    def __init__(self, store: FeatureStore, key: Mapping[str, Any], n: int) -> None:
        self.store, self.key, self.n = store, key, n
        self.parts: dict[str, tuple[Path, BinaryIO]] = {}
        self.rows, self.problem = 0, ""

    def __enter__(self) -> Writer:
        return self

    def add(self, features: Mapping[str, Tensor]) -> None:
        """The next rows, {name: [rows, ...]}."""
        if self.problem:
            return
        arrays = {name: x.detach().cpu().contiguous().numpy() for name, x in features.items()}
        try:
            if not self.parts:
                self._start(arrays)
            for name, array in arrays.items():
                if not self.problem:
                    self.parts[name][1].write(array.data)
            self.rows += len(next(iter(arrays.values())))
        except OSError as error:
            self.problem = f"{error.strerror} ('{self.store.folder}')"

    def _start(self, arrays: Mapping[str, np.ndarray]) -> None:
        needed = sum(self.n * array[0].nbytes for array in arrays.values())
        if needed > self.store.max_bytes:
            self.problem = f"{needed / 1e9:.2f} GB, more than the bound of {self.store.max_bytes / 1e9:.2f} GB"
            return
        self.store.folder.mkdir(parents=True, exist_ok=True)
        if needed > shutil.disk_usage(self.store.folder).free:
            self.problem = f"{needed / 1e9:.2f} GB, more than is free in '{self.store.folder}'"
            return
        for name, array in arrays.items():
            final = self.store.path(self.key, name)
            path = final.with_name(f"{final.name}.part-{os.getpid()}-{id(self)}")
            file = path.open("wb")
            self.parts[name] = path, file
            descr = np.lib.format.dtype_to_descr(array.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (self.n, *array.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        whole = kind is None and not self.problem and self.rows == self.n
        for name, (part, file) in self.parts.items():
            try:
                file.close()
                if whole:
                    part.replace(self.store.path(self.key, name))
            except OSError as failed:
                self.problem, whole = f"{failed.strerror} ('{self.store.folder}')", False
            with suppress(OSError):
                part.unlink(missing_ok=True)
        if whole:
            with suppress(OSError):
                self.store.shrink(keep=[self.store.path(self.key, name) for name in self.parts])
