"""Loaders: what a batch holds, that randomness is a function of (seed, epoch, index), and unreadable images."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from dassl.data import DataManager
from dassl.data.datasets import DatasetBase, Datum
from dassl.data.samplers import EpochIndex, RandomSampler
from dassl.utils import UserError

from .conftest import CLASSES, MakeCfg


def an_epoch(dm: DataManager, epoch: int) -> list[dict[str, Any]]:
    dm.train_loader_x.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(dm.train_loader_x)


def images_by_index(batches: list[dict[str, Any]]) -> dict[int, torch.Tensor]:
    return {int(i): img for b in batches for i, img in zip(b["index"], b["img"], strict=True)}


def test_batches(make_cfg: MakeCfg, capsys: pytest.CaptureFixture[str]) -> None:
    dm = DataManager(make_cfg())
    assert "# train_x  12" in capsys.readouterr().out
    assert (dm.num_classes, dm.lab2cname) == (3, dict(enumerate(CLASSES)))
    assert dm.dataset.classnames == list(CLASSES)
    batches = an_epoch(dm, 0)
    assert [len(b["label"]) for b in batches] == [5, 5], "12 images: the short third batch is dropped"
    assert set(batches[0]) == {"label", "domain", "impath", "index", "img"}
    for batch in batches:
        assert batch["img"].shape == (5, 3, 16, 16)
        for label, path, index in zip(batch["label"], batch["impath"], batch["index"], strict=True):
            assert CLASSES[label] in Path(path).name and dm.dataset.train_x[index].impath == path
    test = list(dm.test_loader)
    assert [int(i) for b in test for i in b["index"]] == list(range(6)), "the test set is whole and in order"
    assert dm.val_loader is not None


def test_a_single_short_batch_is_kept(make_cfg: MakeCfg) -> None:
    dm = DataManager(make_cfg(DATALOADER__TRAIN_X__BATCH_SIZE=32))
    assert [len(b["label"]) for b in an_epoch(dm, 0)] == [12]


def test_augmentation_depends_on_seed_epoch_and_index_alone(make_cfg: MakeCfg) -> None:
    alone = DataManager(make_cfg())
    dataset = alone.train_loader_x.dataset
    workers = DataManager(make_cfg(DATALOADER__NUM_WORKERS=2))
    before = torch.get_rng_state()
    an_epoch(workers, 0)
    for epoch in (1, 3):
        expected = images_by_index(an_epoch(alone, epoch))
        batches = an_epoch(workers, epoch)
        assert [i for b in batches for i in b["index"].tolist()] == list(expected), "the order"
        for index, img in images_by_index(batches).items():
            assert torch.equal(img, expected[index])
            assert torch.equal(dataset[EpochIndex(index, epoch)]["img"], img), "any order of access"
    assert torch.equal(torch.get_rng_state(), before), "loading leaves the global generator alone"
    assert not torch.equal(dataset[EpochIndex(2, 3)]["img"], dataset[EpochIndex(2, 4)]["img"])
    resumed = DataManager(make_cfg())
    assert torch.equal(an_epoch(resumed, 3)[1]["img"], batches[1]["img"])
    other = DataManager(make_cfg(SEED=2)).train_loader_x.dataset
    assert not torch.equal(dataset[EpochIndex(2, 3)]["img"], other[EpochIndex(2, 3)]["img"])


def test_without_a_seed_runs_differ(make_cfg: MakeCfg) -> None:
    first, second = (DataManager(make_cfg(SEED=-1)) for _ in range(2))
    key = EpochIndex(0, 0)
    assert not torch.equal(first.train_loader_x.dataset[key]["img"], second.train_loader_x.dataset[key]["img"])


def test_workers_are_capped_without_a_warning(make_cfg: MakeCfg) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dm = DataManager(make_cfg(DATALOADER__NUM_WORKERS=999))
    assert 1 <= dm.train_loader_x.num_workers < 999


class Threads:
    """A transform that tells how many threads torch may use where it runs."""

    def __call__(self, image: object) -> int:
        return torch.get_num_threads()


def test_a_worker_uses_one_thread(make_cfg: MakeCfg) -> None:
    dm = DataManager(make_cfg(DATALOADER__NUM_WORKERS=1), custom_tfm_train=Threads())
    assert an_epoch(dm, 0)[0]["img"].tolist() == [1] * 5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_unreadable_image_is_one_line(
    workers: int, damage: str, make_cfg: MakeCfg, image_root: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(image_root, tmp_path / "copy")
    dm = DataManager(make_cfg(DATASET__ROOT=str(root), DATALOADER__NUM_WORKERS=workers))
    bad = Path(dm.dataset.test[5].impath)
    whole = bad.read_bytes()
    bad.unlink()
    if damage != "missing":
        bad.write_bytes(whole[:400] if damage == "truncated" else b"no picture")
    with pytest.raises(UserError) as error:
        list(dm.test_loader)
    message = str(error.value)
    assert str(bad) in message and "\n" not in message and "Traceback" not in message
    assert message.startswith("image not found" if damage == "missing" else "cannot decode image")


def labelled(image_root: Path, *counts: int) -> list[Datum]:
    path = str(image_root / "ant_0.jpg")
    return [Datum(path, label, classname=str(label)) for label, n in enumerate(counts) for _ in range(n)]


def test_random_sampler_is_a_permutation_per_epoch(image_root: Path) -> None:
    sampler = RandomSampler(labelled(image_root, 30), seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert {i.epoch for i in orders[-1]} == {epoch}
    assert orders[0] == orders[2] != orders[1]
    assert all(sorted(order) == list(range(30)) for order in orders)


def test_few_shot_sets_follow_the_global_generator(image_root: Path) -> None:
    data = labelled(image_root, 6, 2)[::-1]
    dataset = DatasetBase(train_x=data, test=data)
    random.seed(7)
    train, val = dataset.generate_fewshot_dataset(data, data, num_shots=3)
    random.seed(7)
    # label 1 comes first and has two images only, which are taken without a draw
    assert train == data[:2] + random.sample(data[2:], 3)
    assert val == data[:2] + random.sample(data[2:], 3)
    assert dataset.generate_fewshot_dataset(data, num_shots=-1) is data
    assert (dataset.num_classes, dataset.lab2cname, dataset.classnames) == (2, {0: "0", 1: "1"}, ["0", "1"])


def test_mistakes(make_cfg: MakeCfg, image_root: Path) -> None:
    with pytest.raises(UserError, match=r"unknown sampler .*did you mean 'RandomSampler'"):
        DataManager(make_cfg(DATALOADER__TEST__SAMPLER="RandmSampler"))
    with pytest.raises(UserError, match="batch size is 0"):
        DataManager(make_cfg(DATALOADER__TEST__BATCH_SIZE=0))
    with pytest.raises(UserError, match="has no training images"):
        DataManager(make_cfg(DATASET__ROOT=str(image_root / "empty")))
