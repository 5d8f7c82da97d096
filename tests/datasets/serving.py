"""Helpers for tests of datasets.prepare: small datasets packed as official files, and the command."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datasets import prepare
from datasets.get.checks import load
from datasets.get.sources import SOURCES
from tests.datasets.trees import LAYOUTS, publish_split

REPOSITORY = Path(prepare.__file__).resolve().parents[1]


def pack(archive: Path, content: dict[str, Path | bytes]) -> None:
    """Writes a .zip or .tar file of {path in the archive: folder, file or bytes}."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name, what in content.items():
                if isinstance(what, bytes):
                    file.writestr(name, what)
                    continue
                for path in [what] if what.is_file() else what.rglob("*"):
                    file.write(path, (name / path.relative_to(what)).as_posix() if path != what else name)
        return
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as file:
        for name, what in content.items():
            if isinstance(what, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(what)
                file.addfile(info, io.BytesIO(what))
            else:
                file.add(what, name)


def small(name: str, folder: Path, served: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """Serves a small dataset as its official files, and fits the table to it; returns what its loader reads."""
    LAYOUTS[name](folder)
    source = SOURCES[name]
    loaded = load(source.dataset, folder)  # makes the split file
    here = folder / source.folder
    publish_split(here)
    for file in source.files:
        unpacks = file.unpacks or {}
        if file.inner:
            inner = served / "inner" / Path(file.inner).name
            pack(inner, {path: here / place for path, place in unpacks.items()})
            pack(served / file.name, {file.inner: inner})
        elif unpacks:
            pack(served / file.name, {Path(path): here / place for path, place in unpacks.items()})  # type: ignore[misc]
        else:
            served.mkdir(exist_ok=True)
            (served / file.name).write_bytes((here / file.name).read_bytes())
    counts = tuple(len(loaded[part]) if known else None for part, known in zip(loaded, source.counts, strict=True))
    files = tuple(dataclasses.replace(file, checksum="") for file in source.files)
    n_cls = len({label for _, label in loaded["train"]})
    fitted = dataclasses.replace(source, counts=counts, classes=n_cls, files=files)
    monkeypatch.setitem(SOURCES, name, fitted)
    return loaded


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line on stderr."""
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def run_command(*arguments: str, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "datasets.prepare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, preexec_fn=before, timeout=300)


def whatever_is_there(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
