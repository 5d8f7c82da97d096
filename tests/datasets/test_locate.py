"""Layouts as archives and other programs give them out: used where only one will do, else named with a command."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dassl.utils import UserError
from datasets import prepare

from .serving import small
from .test_layouts import EXPECTED, parts
from .trees import LAYOUTS, build, publish_split

# dataset: where its folder and its image folder go, below the data root; None: the image folder stays in its folder
MOVED = [
    ("eurosat", "eurosat", "eurosat/EuroSAT_RGB"),
    ("eurosat", "EuroSAT", "EuroSAT/2750/2750"),
    ("caltech101", "Caltech-101", None),
    ("caltech101", "caltech101/caltech-101", None),
    ("dtd", "DTD/dtd", None),
    ("food101", "Food 101/food-101", None),
    ("fgvc_aircraft", "fgvc-aircraft-2013b/data", None),
    ("oxford_flowers", "flowers-102", None),
    ("oxford_pets", "oxford-iiit-pet", None),
    ("stanford_cars", "stanford_cars/stanford_cars", None),
    ("sun397", "SUN397", "SUN397/SUN397"),
    ("ucf101", "UCF-101", None),
    ("imagenet", "imagenet", "imagenet"),
    ("imagenet", "ImageNet", "ImageNet/ILSVRC/Data/CLS-LOC"),
    ("imagenet_sketch", "imagenet-sketch", "imagenet-sketch/sketch"),
    ("imagenet_a", "imagenet-a", "imagenet-a"),
    ("imagenetv2", "imagenetv2/imagenetv2", None),
]


def move(name: str, root: Path, folder: str, images: str | None) -> Path:
    """Lays a dataset out otherwise, and returns its image folder."""
    standard, image_dir, *_ = EXPECTED[name]
    there = root / (images or f"{folder}/{image_dir}")
    shutil.move(root / standard, root / "moving")
    (root / folder).mkdir(parents=True)
    for path in (root / "moving").iterdir():
        into = there if path.name == image_dir and images else root / folder / path.name
        into.parent.mkdir(parents=True, exist_ok=True)
        for inside in path.iterdir() if into.is_dir() else ():
            shutil.move(inside, into / inside.name)
        if path.exists() and not into.exists():
            shutil.move(path, into)
    return there


@pytest.mark.parametrize("split_file", [True, False])
@pytest.mark.parametrize(("name", "folder", "images"), MOVED)
def test_a_layout_that_is_certain_is_used(
    name: str, folder: str, images: str | None, split_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    standard = LAYOUTS[name](tmp_path)
    first = build(tmp_path, name)
    before = parts(first, standard / EXPECTED[name][1])
    if split_file:
        publish_split(standard)
    there = move(name, tmp_path, folder, images)
    capsys.readouterr()
    dataset = build(tmp_path, name)
    assert parts(dataset, there) == before
    assert f"the images are in '{there}' (looked for '{standard / EXPECTED[name][1]}" in capsys.readouterr().out
    assert dataset.standard_path(dataset.test[0].impath) == first.standard_path(first.test[0].impath)


def error_of(root: Path, name: str) -> str:
    with pytest.raises(UserError) as error:
        build(root, name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_command_puts_it_right(tmp_path: Path) -> None:
    """Several folders will do, or one of an unknown name: the command that is printed links it."""
    folder = LAYOUTS["eurosat"](tmp_path / "data 1")
    (folder / "2750").rename(folder / "pictures (RGB)")
    said = error_of(tmp_path / "data 1", "eurosat")
    assert f"no image folder for EuroSAT: looked for '{folder}/2750'; found near by" in said and "--root" not in said
    subprocess.run(["sh", "-ec", said.partition("this puts it right: ")[2]], check=True)
    assert len(build(tmp_path / "data 1", "eurosat").train_x) == 24

    for place in ("Caltech101", "CALTECH-101"):
        LAYOUTS["caltech101"](tmp_path / "data 2").rename(tmp_path / "data 2" / place)
    said = error_of(tmp_path / "data 2", "caltech101")
    assert all(shlex.quote(f"{tmp_path}/data 2/{place}/101_ObjectCategories") in said for place in os.listdir("data 2"))
    subprocess.run(["sh", "-ec", said.partition("this puts it right: ")[2].partition(" or ")[0]], check=True)
    assert len(build(tmp_path / "data 2", "caltech101").train_x) == 20


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_root_that_is_near_by_is_named(tmp_path: Path) -> None:
    LAYOUTS["dtd"](tmp_path / "data")
    LAYOUTS["food101"](tmp_path / "data")
    assert f"this puts it right: --root {tmp_path}/data" in error_of(tmp_path, "dtd")
    assert f"this puts it right: --root {tmp_path}/data" in error_of(tmp_path / "data/food-101", "dtd")
    assert f"this puts it right: --root {tmp_path}/data" in error_of(tmp_path / "Data", "dtd")
    said = error_of(tmp_path / "data", "eurosat")
    assert "no dataset folder for EuroSAT" in said and f"'{tmp_path}/data' holds dtd, food-101; name the folder" in said
    assert len(build(tmp_path / "data/dtd", "dtd").train_x) == 15  # the root is the dataset's own folder


def test_checking_and_fetching_take_the_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    small("dtd", root, tmp_path / "served", monkeypatch)
    move("dtd", root, "DTD/dtd", None)
    split = root / "DTD/dtd/split_zhou_DescribableTextures.json"
    assert prepare.main(["dtd", "--check", "--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert " ready " in out and f"the images are in '{root}/DTD/dtd/images'" in out
    split.unlink()
    shutil.rmtree(root / "DTD/dtd/images/banded")
    assert prepare.main(["dtd", "--check", "--root", str(root)]) == 1
    assert f"no {split.name}: the split is one of our own" in capsys.readouterr().out
