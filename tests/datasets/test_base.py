"""Few-shot sets are CoOp's; base and new classes; mistakes in the data folder."""

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

import datasets  # noqa: F401 - registers them
import trainers
from dassl.config import get_cfg_default
from dassl.data.datasets import Datum, build_dataset
from dassl.utils import UserError
from datasets.base import few_shot, subsample_classes

REAL = Path(os.environ.get("PLOT_DATA", Path(__file__).parents[3] / "shared" / "data"))


def config(root: Path, **dataset: object):
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.SEED = str(root), "Caltech101", 1
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    return cfg


def as_coop_draws(items: list[list], val: list[list], shots: int, seed: int) -> list[list[str]]:
    """CoOp's procedure, spelled out: Python's own generator, seeded; training first, then validation."""
    random.seed(seed)
    drawn = []
    for part, n in ((items, shots), (val, min(shots, 4))):
        by_label: dict[int, list[str]] = {}
        for path, label, _ in part:
            by_label.setdefault(label, []).append(path)
        drawn.append(
            [p for paths in by_label.values() for p in (random.sample(paths, n) if len(paths) >= n else paths)]
        )
    return drawn


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 16])
def test_few_shot_sets_are_coops(data_root: Path, shots: int, seed: int) -> None:
    cfg = config(data_root, NUM_SHOTS=shots)
    cfg.SEED = seed
    random.seed(99)  # what others drew before does not matter
    dataset = build_dataset(cfg)
    split = json.loads((data_root / "caltech-101/split_zhou_Caltech101.json").read_text())
    images = data_root / "caltech-101" / "101_ObjectCategories"
    train, val = as_coop_draws(split["train"], split["val"], shots, seed)
    assert [d.impath for d in dataset.train_x] == [f"{images}/{p}" for p in train]
    assert [d.impath for d in dataset.val] == [f"{images}/{p}" for p in val]
    assert [d.impath for d in dataset.test] == [f"{images}/{p}" for p, _, _ in split["test"]]


@pytest.mark.skipif(not (REAL / "caltech-101").is_dir(), reason="the real Caltech-101 is not there; set PLOT_DATA")
def test_the_real_caltech101() -> None:
    whole = build_dataset(config(REAL))
    assert [len(whole.train_x), len(whole.val), len(whole.test), whole.num_classes] == [4128, 1649, 2465, 100]
    few = build_dataset(config(REAL, NUM_SHOTS=16))
    split = json.loads((REAL / "caltech-101/split_zhou_Caltech101.json").read_text())
    train, val = as_coop_draws(split["train"], split["val"], 16, 1)
    assert [d.impath.split("101_ObjectCategories/")[1] for d in few.train_x] == train
    assert [d.impath.split("101_ObjectCategories/")[1] for d in few.val] == val


def datums(folder: Path, labels: Sequence[int]) -> list[Datum]:
    """An item for each label, with an empty file as its image."""
    for i in range(len(labels)):
        (folder / str(i)).touch()
    return [Datum(impath=str(folder / str(i)), label=k, classname=f"c{k}") for i, k in enumerate(labels)]


def test_a_class_with_too_few_images_gives_all_of_them(tmp_path: Path) -> None:
    data = datums(tmp_path, [0, 0, 0])
    assert few_shot(data, 5, random.Random(1)) == data


def test_base_and_new_are_halves_relabelled(tmp_path: Path) -> None:
    data = datums(tmp_path, [4, 2, 0, 1, 3])
    (base,) = subsample_classes(data, subsample="base")
    (new,) = subsample_classes(data, subsample="new")
    files = {str(tmp_path / str(i)): i for i in range(5)}
    assert [(files[d.impath], d.label, d.classname) for d in base] == [(1, 2, "c2"), (2, 0, "c0"), (3, 1, "c1")]
    assert [(files[d.impath], d.label, d.classname) for d in new] == [(0, 1, "c4"), (4, 0, "c3")]
    with pytest.raises(UserError, match="'old' is none of all, base, new"):
        subsample_classes(data, subsample="old")


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        ("", "data root"),
        ("caltech-101", "dataset folder"),
        ("caltech-101/101_ObjectCategories", "image folder"),
        ("caltech-101/split_zhou_Caltech101.json", "split file"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, missing: str, what: str) -> None:
    root = tmp_path / "data"
    if missing:
        (root / missing).parent.mkdir(parents=True)
    if what == "split file":
        (root / "caltech-101/101_ObjectCategories").mkdir()
    with pytest.raises(UserError, match=f"no {what} for Caltech101: looked for '{(root / missing)}'"):
        build_dataset(config(root))


@pytest.mark.parametrize("text", ["", "[1]", '{"train": [], "val": []}', '{"train": [1], "val": [], "test": []}'])
def test_a_damaged_split_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "caltech-101/101_ObjectCategories").mkdir(parents=True)
    (tmp_path / "caltech-101/split_zhou_Caltech101.json").write_text(text)
    with pytest.raises(UserError, match=r"split_zhou_Caltech101.json' is no split file"):
        build_dataset(config(tmp_path))
