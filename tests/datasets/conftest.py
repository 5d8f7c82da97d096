"""A cache folder for each test, a data root, a server of files to fill it from, and a small dtd."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.datasets.loopback import Server, serve
from tests.datasets.trees import build, dtd, publish_split


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """dtd, with its split file."""
    folder = dtd(tmp_path / "data")
    build(folder.parent, "dtd")
    publish_split(folder)
    return folder
