"""Disks that are full, read-only or gone: one clear line, and earlier files stay."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import train
from dassl.extras.features.store import FeatureStore, Writer
from runs.result import read_result
from tests import children

from .test_interrupted import argv_of

pytestmark = pytest.mark.medium


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "size=400k")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "ro")


def fill(disk: Path, left: int) -> None:
    """Writes a file that leaves so many bytes free."""
    (disk / "filler").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - left)))


def one_line(argv: list[str], log: Path) -> str:
    """The error of a run that fails by the disk, in a child process."""
    assert children.run(argv, log) == 2
    said = log.read_text()
    assert "Traceback" not in said and said.count("error: ") == 1
    return next(line for line in said.splitlines() if line.startswith("error: "))


def test_a_full_disk(small_disk: Path, run_args: list[str], tmp_path: Path) -> None:
    assert train.main(argv_of(run_args, "CoOp", small_disk / "earlier", "OPTIM.MAX_EPOCH", "1")) == 0
    earlier = read_result(small_disk / "earlier")
    fill(small_disk, 24 * 1024)
    line = one_line(argv_of(run_args, "CoOp", small_disk / "run"), tmp_path / "log")
    assert line.startswith("error: No space left on device")
    assert read_result(small_disk / "earlier") == earlier
    assert not list(small_disk.rglob("*.tmp-*"))
    (small_disk / "filler").unlink()
    assert train.main(argv_of(run_args, "CoOp", small_disk / "run")) == 0


def test_a_disk_that_fills_while_features_are_kept(small_disk: Path) -> None:
    store, key, n = FeatureStore(small_disk), {"k": 1}, 100
    with Writer(store, key, n) as writer:
        writer.add({"pooled": torch.ones(1, 500)})
        assert writer.problem is None
        fill(small_disk, 24 * 1024)
        for _ in range(n - 1):
            writer.add({"pooled": torch.ones(1, 500)})
    assert writer.problem is not None and writer.problem.errno == errno.ENOSPC
    assert store.open(key, ["pooled"]) is None and [p.name for p in small_disk.iterdir()] == ["filler"]


def test_a_read_only_output(read_only_disk: Path, run_args: list[str], tmp_path: Path) -> None:
    line = one_line(argv_of(run_args, "CoOp", read_only_disk / "run"), tmp_path / "log")
    assert line.startswith(f"error: Read-only file system: '{read_only_disk / 'run'}'")


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_directory_that_vanishes(epoch: int, run_args: list[str], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()

    def vanish_in_epoch() -> None:
        from dassl.engine import TrainerX

        step = TrainerX._step

        def then(self, batch):  # type: ignore[no-untyped-def]
            if self.epoch == epoch:
                shutil.rmtree(tmp_path / "run", ignore_errors=True)
            return step(self, batch)

        TrainerX._step = then  # type: ignore[method-assign]

    log = tmp_path / "log"
    assert children.run(argv_of(run_args, "CoOp", tmp_path / "run"), log, vanish_in_epoch) == 2
    said = log.read_text()
    assert "Traceback" not in said and said.count("error: ") == 1 and "has vanished" in said
    assert not (tmp_path / "run").exists() and (tmp_path / "other").is_dir()
