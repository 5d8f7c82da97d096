"""The store of image features: complete or absent, shared, bounded; and the command that cleans it."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dassl.extras.features import FeatureStore
from dassl.extras.features.__main__ import main
from dassl.extras.features.store import ABANDONED, Writer

pytestmark = pytest.mark.medium

KEY = {"weights": "a", "batch_size": 4}
NAMES = ["pooled", "local"]


def fill(store: FeatureStore, key: dict, seed: int = 0, n: int = 10, dtype: torch.dtype = torch.float32) -> dict:
    generator = torch.Generator().manual_seed(seed)
    arrays = {"pooled": torch.randn(n, 3, generator=generator), "local": torch.randn(n, 2, 3, generator=generator)}
    arrays = {name: x.to(dtype) for name, x in arrays.items()}
    with Writer(store, key, n) as writer:
        for start in range(0, n, 4):
            writer.add({name: x[start : start + 4] for name, x in arrays.items()})
    assert not writer.problem
    return arrays


def assert_read(store: FeatureStore, key: dict, arrays: dict, start: int = 0, stop: int = 10) -> None:
    found = store.open(key, NAMES)
    assert found is not None
    for name, rows in found.read(start, stop).items():
        assert torch.equal(rows, arrays[name][start:stop]) and rows.dtype == arrays[name].dtype
    found.close()


def path_of(store: FeatureStore, name: str) -> Path:
    (path,) = store.folder.glob(f"*-{name}-*.npy")
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_what_was_written_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "new" / "folder")
    assert store.open(KEY, ["pooled"]) is None
    arrays = fill(store, KEY, dtype=dtype)
    assert_read(store, KEY, arrays)
    assert_read(store, KEY, arrays, 7, 9)
    assert np.array_equal(np.load(path_of(store, "local")), arrays["local"].numpy())
    assert store.open({**KEY, "batch_size": 5}, ["pooled"]) is None
    assert store.open(KEY, ["pooled", "other"]) is None


def test_nothing_is_kept_of_what_is_not_finished(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    with pytest.raises(KeyboardInterrupt), Writer(store, KEY, 10) as writer:
        writer.add({"pooled": torch.ones(4, 3)})
        raise KeyboardInterrupt
    with Writer(store, KEY, 10) as writer:  # fewer rows than there are images
        writer.add({"pooled": torch.ones(4, 3)})
    assert store.open(KEY, ["pooled"]) is None and not list(tmp_path.iterdir())


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


DAMAGE = {
    "cut": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "a bit of a number": lambda data: flipped(data, 200),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_removed(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore(tmp_path)
    fill(store, KEY)
    path = path_of(store, "pooled")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert store.open(KEY, NAMES) is None
    assert capsys.readouterr().out == f"Image features: '{path}' is damaged; they are computed again\n"
    assert_read(store, KEY, fill(store, KEY))


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    for age, k in ((30, "a"), (20, "b"), (10, "c")):
        before = set(store.files())
        fill(store, {"k": k})
        for path, stat in set(store.files()) - before:
            os.utime(path, (stat.st_mtime - age,) * 2)
    size = sum(stat.st_size for _, stat in store.files())
    assert store.open({"k": "a"}, NAMES) is not None  # marks it as used
    store.max_bytes = size
    fill(store, {"k": "d"})
    assert {k for k in "abcd" if store.open({"k": k}, NAMES)} == {"a", "c", "d"}
    assert sum(stat.st_size for _, stat in store.files()) <= size


def _compete(folder: str, barrier: Any) -> None:
    """Writes what the other process writes at that moment, and reads what either has left."""
    for max_bytes, at_least in ((math.inf, 50), (1000, 10)):  # the other may remove what is beyond the bound
        store, whole = FeatureStore(folder, max_bytes), 0
        for seed in range(50):
            barrier.wait(60)
            arrays = fill(store, {"k": seed, "bound": max_bytes}, seed)
            found = store.open({"k": seed, "bound": max_bytes}, NAMES)
            if found is not None:
                whole += 1
                assert all(torch.equal(rows, arrays[name]) for name, rows in found.read(0, 10).items())
                found.close()
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
    assert 0 < len(list(tmp_path.iterdir())) == len(FeatureStore(tmp_path).files()) <= 6


def test_one_makes_what_others_wait_for(tmp_path: Path) -> None:
    """A second process waits, and finds what the first has made; other keys do not wait."""
    store, context = FeatureStore(tmp_path), multiprocessing.get_context("fork")
    order = context.SimpleQueue()

    def second() -> None:
        with ExitStack() as lock:
            order.put(("second", store.claim(KEY, NAMES, lock) is not None))

    process = context.Process(target=second)
    with ExitStack() as lock:
        assert store.claim(KEY, NAMES, lock) is None and store.claim({"k": "other"}, NAMES, lock) is None
        process.start()
        time.sleep(0.5)
        order.put(("first", False))
        fill(store, KEY)
    process.join(30)
    assert [order.get() for _ in range(2)] == [("first", False), ("second", True)]
    assert len(store.files()) == len(list(tmp_path.iterdir()))


def resident(what: str) -> int:
    """The process's resident memory in KB, now (VmRSS) or at its highest (VmHWM)."""
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0])


def test_a_file_removed_while_it_is_read_can_be_read_on_and_is_not_kept_in_memory(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    with Writer(store, KEY, 1000) as writer:
        for i in range(10):
            writer.add({"pooled": torch.full((100, 20_000), float(i))})  # 80 MB in all
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before = resident("VmRSS")
    found = store.open(KEY, ["pooled"])
    assert store.shrink(0) == 1 and found is not None
    assert all((found.read(100 * i, 100 * i + 100)["pooled"] == i).all() for i in range(10))
    assert resident("VmHWM") - before < 40_000
    found.close()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore(tmp_path)
    for k in "ab":
        fill(store, {"k": k})
    old, young = tmp_path / "x.tmp", tmp_path / "y.tmp"
    for path in (old, young):
        path.write_text("begun")
    os.utime(old, (os.stat(old).st_mtime - 2 * ABANDONED,) * 2)
    folder = ["--folder", str(tmp_path)]
    assert main(folder) == 0 and "4 files" in capsys.readouterr().out
    assert main([*folder, "--max-gb", "1"]) == 0 and "Removed 0 files" in capsys.readouterr().out
    assert not old.exists() and young.exists()
    assert main([*folder, "--max-gb", "-1"]) == 2 and "--max-gb is -1" in capsys.readouterr().err
    assert main(["--folder", str(tmp_path / "none")]) == 2 and "there is no folder" in capsys.readouterr().err
    assert main([*folder, "--clear", "--max-gb", "1"]) == 2
    assert re.fullmatch(r"error: .*not allowed.*\n", capsys.readouterr().err)
    assert main([*folder, "--clear"]) == 0 and "Removed 4 files" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_program_and_its_folder(tmp_path: Path) -> None:
    """Through a real process, with the folder from the environment; a folder that is not there is empty."""
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "dassl.extras.features"], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == f"{tmp_path / 'plot' / 'features'}: 0 files, 0.000 GB\n"
