"""Training images that are decoded once a run: the same bits, once, and only where they fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.data import DataManager, decoded
from dassl.utils import UserError

from .conftest import CLASSES, MakeCfg


@pytest.fixture
def pictures(image_root: Path, tmp_path: Path) -> Path:
    """Training images of every kind that the loader reads, of several sizes."""
    root = shutil.copytree(image_root, tmp_path / "pictures")
    rng = np.random.default_rng(1)
    for label, (mode, size) in enumerate([("L", (31, 50)), ("CMYK", (40, 20)), ("RGB", (1, 97))]):
        image = Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).convert(mode)
        image.save(root / f"{CLASSES[label]}_0.jpg", quality=60 + 10 * label)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(image_root / "ant_1.jpg").save(root / "ant_1.jpg", exif=turned)
    palette = Image.open(image_root / "bee_1.jpg").convert("P")
    palette.save(root / "bee_1.jpg", format="PNG")
    return root


def epochs(cfg: Any, remove: Path | None = None) -> Iterator[list[dict[str, Any]]]:
    """The batches of three epochs; the files of ``remove`` vanish after the first."""
    loader = DataManager(cfg).train_loader_x
    try:
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            yield list(loader)
            if remove is not None and epoch == 0:
                shutil.rmtree(remove)
    finally:
        loader.close()


@pytest.mark.medium
@pytest.mark.parametrize("workers", [0, 2])
def test_the_bits_are_the_same_and_each_file_is_read_once(
    workers: int, pictures: Path, make_cfg: MakeCfg, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"DATASET__ROOT": str(pictures), "DATALOADER__NUM_WORKERS": workers, "DATALOADER__TRAIN_X__BATCH_SIZE": 4}
    expected = list(epochs(make_cfg(**options, DATALOADER__DECODED_GB=0.0)))
    assert "decoded" not in capsys.readouterr().out
    found = list(epochs(make_cfg(**options), remove=pictures))
    assert capsys.readouterr().out.count("Training images are decoded once and kept: 0 MB") == 1
    for ours, theirs in zip(found, expected, strict=True):
        for batch, other in zip(ours, theirs, strict=True):
            assert batch["impath"] == other["impath"] and torch.equal(batch["img"], other["img"])
    assert sum(len(batch["label"]) for batch in found[0]) == 12


@pytest.mark.medium
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("options", "free", "line"),
    [
        ({"DATALOADER__DECODED_GB": 1e-5}, 1e9, "they are more than 1e-05 GB (DATALOADER.DECODED_GB)"),
        ({}, 1e5, "they are more than 2.5e-05 GB (a quarter of the free shared memory)"),
        ({"OPTIM__MAX_EPOCH": 1}, 1e9, ""),
    ],
)
def test_off_where_it_does_not_fit_or_saves_nothing(
    workers: int,
    options: dict[str, Any],
    free: float,
    line: str,
    make_cfg: MakeCfg,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(decoded, "free_bytes", lambda: free)
    dm = DataManager(make_cfg(DATALOADER__NUM_WORKERS=workers, **options))
    assert len(list(dm.train_loader_x)) == 2
    out = capsys.readouterr().out
    kept = free == 1e5 and not workers  # without workers no memory is shared
    assert (dm.train_loader_x.dataset.decoded is not None) == kept  # type: ignore[attr-defined]
    assert ("decoded" in out) == bool(line) and (not line or kept or line in out)
    dm.train_loader_x.close()


def test_only_training_images_are_kept_and_until_the_loader_is_closed(make_cfg: MakeCfg) -> None:
    dm = DataManager(make_cfg())
    list(dm.test_loader), list(dm.train_loader_x)
    assert dm.test_loader.dataset.decoded is None  # type: ignore[attr-defined]
    kept = dm.train_loader_x.dataset.decoded  # type: ignore[attr-defined]
    assert len(kept.pixels) == 12 * 3 * 36 * 48 and int(kept.there.sum()) == 10, "two are in no batch"
    dm.train_loader_x.close()
    assert dm.train_loader_x.dataset.decoded is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_an_unreadable_image_is_named_when_its_turn_comes(damage: str, make_cfg: MakeCfg, pictures: Path) -> None:
    bad = pictures / "crab_2.jpg"
    whole = bad.read_bytes()
    dm = DataManager(make_cfg(DATASET__ROOT=str(pictures), DATALOADER__TRAIN_X__BATCH_SIZE=12))
    bad.unlink()
    if damage != "missing":
        bad.write_bytes(whole[:400] if damage == "truncated" else b"no picture")
    with pytest.raises(UserError, match=r"image not found|cannot decode image") as error:
        list(dm.train_loader_x)
    assert str(bad) in str(error.value)


def test_an_image_of_another_size_than_its_header_said_is_decoded_each_time(make_cfg: MakeCfg, pictures: Path) -> None:
    dm = DataManager(make_cfg(DATASET__ROOT=str(pictures), DATALOADER__TRAIN_X__BATCH_SIZE=12))
    dataset: Any = dm.train_loader_x.dataset
    dataset.keep_decoded(False)
    Image.new("RGB", (7, 9), (200, 0, 0)).save(pictures / "crab_2.jpg")
    index = next(i for i, item in enumerate(dataset.data_source) if item.impath.endswith("crab_2.jpg"))
    images = [dataset[index]["img"] for _ in range(2)]
    assert torch.equal(*images) and not dataset.decoded.there[index]
