"""A folder of arrays with one row an image, each named by the hash of all that its values depend on.

Files are NumPy's .npy and, behind it, the CRC-32 of all before; one that does not match it is as good as none. A file
is written under another name and renamed when whole, so processes can share the folder: what is there is complete, and
what two make at once is the same; where there are locks, one makes it and the others wait. Reading marks a file as
used; beyond a bound the files unused for longest go.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from dassl.utils import atomic_file, locked

ABANDONED = 24 * 3600  # seconds after which an unfinished file belongs to no living process
CHECKSUM = 4  # bytes
BLOCK = 2**20  # bytes read at a time to be checked


class Rows:
    """The rows of a finished array file, read as they are asked for.

    Read, not mapped: mapped pages would count as the process's own memory.

    Raises:
        ValueError, OSError: the file is damaged or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.file: Any = path.open("rb")
        try:
            left, found = os.fstat(self.file.fileno()).st_size - CHECKSUM, 0
            while left > 0 and (block := self.file.read(min(BLOCK, left))):
                left, found = left - len(block), zlib.crc32(block, found)
            if left != 0 or self.file.read() != found.to_bytes(CHECKSUM, "big"):
                raise ValueError(f"'{path}' is damaged")
            self.file.seek(0)
            if np.lib.format.read_magic(self.file) != (1, 0):
                raise ValueError(f"'{path}' has another format")
            shape, _, self.dtype = np.lib.format.read_array_header_1_0(self.file)
            if self.dtype.kind not in "fiu":
                raise ValueError(f"'{path}' holds no numbers")
            self.start, self.n, self.shape = self.file.tell(), shape[0], shape[1:]
            self.row_bytes = math.prod(self.shape) * self.dtype.itemsize
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
            except (OSError, ValueError) as error:  # as good as not there; what is made anew takes its place
                if isinstance(error, ValueError):
                    print(f"Image features: {error}; they are computed anew")
                for rows in found.values():
                    rows.close()
                return None
        return found

    @contextmanager
    def turn(self, key: Mapping[str, Any]) -> Iterator[ExitStack]:
        """The scope of making what has this key, after waiting for whoever makes it; ``close()`` ends it early."""
        path = self.path(key, "").with_suffix(".lock")
        with ExitStack() as held:
            with suppress(OSError):  # without locks, or a folder to write to, each makes its own
                held.enter_context(locked(path))
            yield held

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
        for path in (*self.folder.glob("*.npy.tmp-*"), *self.folder.glob("*.lock")):
            with suppress(FileNotFoundError):
                if limit == 0 or time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
        return removed


class _Abandoned(Exception):
    """Ends the writing of files that are not whole."""


class _Checked:
    """Sums up what is written to a file, to be put at its end."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.checksum = file, 0

    def write(self, data: Any) -> None:
        self.checksum = zlib.crc32(data, self.checksum)
        self.file.write(data)

    def seal(self) -> None:
        self.file.write(self.checksum.to_bytes(CHECKSUM, "big"))


class Writer:
    """Writes arrays row by row; they appear when all n rows are there and the ``with`` ends without an error.

    What goes wrong with the disk ends the writing, not the run: ``problem`` then says what.
    """

    def __init__(self, store: FeatureStore, key: Mapping[str, Any], n: int) -> None:
        self.store, self.key, self.n = store, key, n
        self.files: dict[str, _Checked] = {}
        self.stack = ExitStack()
        self.rows, self.problem = 0, ""

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
                if not self.problem:
                    self.files[name].write(array.data)
            self.rows += len(next(iter(arrays.values())))
        except OSError as error:
            self._fail(error)

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
            file = _Checked(self.stack.enter_context(atomic_file(str(self.store.path(self.key, name)))))
            descr = np.lib.format.dtype_to_descr(array.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (self.n, *array.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
            self.files[name] = file

    def _fail(self, error: OSError) -> None:
        self.problem = f"{error.strerror} ('{self.store.folder}')"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            with self.stack:
                if kind is not None or self.problem or self.rows != self.n:
                    raise _Abandoned
                for file in self.files.values():
                    file.seal()
        except _Abandoned:
            pass
        except OSError as failed:
            self._fail(failed)
        else:
            with suppress(OSError):
                self.store.shrink(keep=[self.store.path(self.key, name) for name in self.files])
