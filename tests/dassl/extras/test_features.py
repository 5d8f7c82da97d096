"""The store of image features: whole or absent, shared, bounded; and the command that cleans it."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dassl.extras.features import FeatureStore
from dassl.extras.features.__main__ import main
from dassl.extras.features.store import ABANDONED, Rows

pytestmark = pytest.mark.medium

KEY = {"weights": "a", "batch_size": 4}


def fill(store: FeatureStore, key: dict, seed: int = 0, n: int = 10, dtype: torch.dtype = torch.float32) -> dict:
    generator = torch.Generator().manual_seed(seed)
    arrays = {"pooled": torch.randn(n, 3, generator=generator), "local": torch.randn(n, 2, 3, generator=generator)}
    arrays = {name: x.to(dtype) for name, x in arrays.items()}
    with store.write(key, n) as writer:
        for start in range(0, n, 4):
            writer.add({name: x[start : start + 4] for name, x in arrays.items()})
    assert not writer.problem
    return arrays


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_what_was_written_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "new" / "folder")
    assert store.open(KEY, ["pooled"]) is None
    arrays = fill(store, KEY, dtype=dtype)
    found = store.open(KEY, ["pooled", "local"])
    assert found is not None
    for name, rows in found.items():
        assert torch.equal(rows.read(0, 10), arrays[name]) and rows.read(0, 10).dtype == dtype
        assert torch.equal(rows.read(7, 9), arrays[name][7:9])
        rows.close()
    assert store.open({**KEY, "batch_size": 5}, ["pooled"]) is None
    assert store.open(KEY, ["pooled", "other"]) is None


def test_nothing_is_kept_of_what_is_not_finished(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.write(KEY, 10) as writer:
        writer.add({"pooled": torch.ones(4, 3)})
        raise KeyboardInterrupt
    with store.write(KEY, 10) as writer:  # fewer rows than there are images
        writer.add({"pooled": torch.ones(4, 3)})
    assert store.open(KEY, ["pooled"]) is None and not list(tmp_path.iterdir())


DAMAGE = {
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "emptied": lambda data: b"",
    "no array": lambda data: b"x" * 500,
    "a bit of the header": lambda data: flipped(data, 50),
    "a bit of a number": lambda data: flipped(data, 200),
    "a bit of the checksum": lambda data: flipped(data, len(data) - 1),
}


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_as_good_as_none(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore(tmp_path)
    fill(store, KEY)
    path = store.path(KEY, "pooled")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert store.open(KEY, ["local", "pooled"]) is None
    assert capsys.readouterr().out == f"Image features: '{path}' is damaged; they are computed anew\n"
    arrays = fill(store, KEY)
    found = store.open(KEY, ["pooled"])
    assert found is not None and torch.equal(found["pooled"].read(0, 10), arrays["pooled"])


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path, _ in _filled(tmp_path / "one", 1).files())
    store = _filled(tmp_path / "many", 3)
    for age, path in ((30, "a"), (20, "b"), (10, "c")):
        for name in ("pooled", "local"):
            when = os.stat(store.path({"k": path}, name)).st_mtime - age
            os.utime(store.path({"k": path}, name), (when, when))
    assert store.open({"k": "a"}, ["pooled", "local"]) is not None  # marks it as used
    store.max_bytes = 3 * size
    fill(store, {"k": "d"})
    there = {k for k in "abcd" if store.open({"k": k}, ["pooled", "local"])}
    assert there == {"a", "c", "d"}
    assert sum(stat.st_size for _, stat in store.files()) <= 3 * size


def _filled(folder: Path, entries: int) -> FeatureStore:
    store = FeatureStore(folder)
    for k in "abc"[:entries]:
        fill(store, {"k": k})
    return store


def test_what_does_not_fit_or_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(store: FeatureStore) -> str:
        with store.write(KEY, 10) as writer:
            for _ in range(5):
                writer.add({"pooled": torch.ones(2, 3)})
        assert store.open(KEY, ["pooled"]) is None
        return writer.problem

    assert "more than the bound" in problem(FeatureStore(tmp_path / "a", max_bytes=100))
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in problem(FeatureStore(tmp_path / "file"))
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "more than is free" in problem(FeatureStore(tmp_path / "b"))


def test_two_writers_of_the_same(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    with store.write(KEY, 4) as one, store.write(KEY, 4) as two:
        for writer in (one, two):
            writer.add({"pooled": torch.arange(12.0).view(4, 3)})
    found = store.open(KEY, ["pooled"])
    assert found is not None and torch.equal(found["pooled"].read(0, 4), torch.arange(12.0).view(4, 3))
    assert len(list(tmp_path.iterdir())) == 1


def _compete(folder: str, barrier: Any) -> None:
    """Writes what the other process writes at that moment, and reads what either has left."""
    for max_bytes, at_least in ((math.inf, 50), (1000, 10)):  # the other may remove what is beyond the bound
        store, whole = FeatureStore(folder, max_bytes), 0
        for seed in range(50):
            barrier.wait(60)
            arrays = fill(store, {"k": seed, "bound": max_bytes}, seed)
            found = store.open({"k": seed, "bound": max_bytes}, ["pooled", "local"])
            if found is not None:
                whole += 1
                assert all(torch.equal(rows.read(0, 10), arrays[name]) for name, rows in found.items())
        assert whole >= at_least


def test_two_processes_fill_one_folder_at_once(tmp_path: Path) -> None:
    """With room for all that they write, and then with so little that each removes what the other has just written."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_compete, args=(str(tmp_path), barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert not list(tmp_path.glob("*.tmp-*"))
    files = FeatureStore(tmp_path).files()
    assert 0 < len(files) <= 6 and all(Rows(path).n == 10 for path, _ in files)


def test_one_makes_what_others_wait_for(tmp_path: Path) -> None:
    """A second process waits for its turn, and finds what the first has made; other keys do not wait."""
    store, order = FeatureStore(tmp_path), multiprocessing.get_context("fork").Queue()

    def second() -> None:
        with store.turn(KEY):
            order.put(("second", store.open(KEY, ["pooled"]) is not None))

    process = multiprocessing.get_context("fork").Process(target=second)
    with store.turn(KEY), store.turn({"k": "other"}):
        process.start()
        time.sleep(0.5)
        order.put(("first", False))
        time.sleep(0.2)  # a queue's thread writes
        fill(store, KEY)
    process.join(30)
    assert [order.get(timeout=5) for _ in range(2)] == [("first", False), ("second", True)]
    assert not list(tmp_path.glob("*.lock"))


def test_a_file_removed_while_it_is_read_can_be_read_on(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    arrays = fill(store, KEY)
    found = store.open(KEY, ["local"])
    assert store.shrink(0) == 2 and found is not None
    assert torch.equal(found["local"].read(4, 8), arrays["local"][4:8])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _filled(tmp_path, 2)
    old, young = tmp_path / "x.npy.tmp-1-1", tmp_path / "y.npy.tmp-2-2"
    for path in (old, young):
        path.write_text("begun")
    os.utime(old, (os.stat(old).st_mtime - 2 * ABANDONED,) * 2)
    folder = ["--folder", str(tmp_path)]
    assert main(folder) == 0 and "4 files" in capsys.readouterr().out
    assert main([*folder, "--max-gb", "1"]) == 0 and "Removed 0 files" in capsys.readouterr().out
    assert not old.exists() and young.exists()
    assert main([*folder, "--max-gb", "-1"]) == 2 and "--max-gb is -1" in capsys.readouterr().err
    assert main(["--folder", str(tmp_path / "none")]) == 2 and "there is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*folder, "--clear", "--max-gb", "1"])
    assert re.fullmatch(r"error: .*not allowed.*\n", capsys.readouterr().err)
    assert main([*folder, "--clear"]) == 0 and "Removed 4 files" in capsys.readouterr().out
    assert not store.files() and not young.exists()


def test_the_program_and_its_folder(tmp_path: Path) -> None:
    """Through a real process, with the folder from the environment; a folder that is not there is empty."""
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "dassl.extras.features"], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == f"{tmp_path / 'plot' / 'features'}: 0 files, 0.000 GB\n"
