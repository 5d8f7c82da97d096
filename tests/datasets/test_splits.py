"""Refused split files: one error names the file, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dassl.utils import UserError, cache_folder

from .trees import build, dtd, oxford_flowers, picture, publish_split, rows

SPLIT = "split_zhou_DescribableTextures.json"
GOOD = ["banded/banded_0000.jpg", 0, "banded"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return dtd(tmp_path / "data")


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (["a.jpg", 0.7, "a"], "the label 0.7 is no whole number"),
        (["a.jpg", 0, " "], "the class name of label 0 is empty"),
        (["/etc/passwd", 0, "banded"], "'/etc/passwd' leaves the image folder; paths must be relative"),
        (["banded/../../a.jpg", 0, "banded"], "'banded/../../a.jpg' leaves the image folder"),
        (["n" * 5000, 0, "banded"], "1 of 2 files are not in"),
        (["a.jpg", 0], r"ValueError: \['a.jpg', 0\] is not \[image, label, class name\]"),
        (["a.jpg", 0, "two\nlines"], r"label 0 has two names, 'two\\nlines' and 'banded'"),
        (GOOD, "'banded/banded_0000.jpg' is both a training and a test image"),
    ],
)
def test_a_row_that_is_refused(train: list[Any], says: str, folder: Path) -> None:
    (folder / SPLIT).write_text(json.dumps({"train": [train], "val": [], "test": [GOOD]}))
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=says) as error:
        build(folder.parent, "dtd")
    assert SPLIT in str(error.value) and "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before


def test_a_folder_or_a_link_to_nothing_in_its_place(folder: Path) -> None:
    path = folder / SPLIT
    path.mkdir()
    with pytest.raises(UserError, match=f"'{path}' should be a split file, but is no file"):
        build(folder.parent, "dtd")
    path.rmdir()
    path.symlink_to("nothing")
    with pytest.raises(UserError, match=f"'{path}' should be a split file, but is a link to nothing"):
        build(folder.parent, "dtd")
    assert path.is_symlink()


def test_a_split_that_could_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    folder = oxford_flowers(tmp_path)
    (folder / "cat_to_name.json").write_text(json.dumps({str(i): i for i in range(1, 4)}))
    for _ in range(2):
        with pytest.raises(UserError, match=r"annotations in .* are damaged .* a class name is no text"):
            build(tmp_path, "oxford_flowers")
    assert not list(cache_folder().rglob("split_zhou_*"))


def test_pictures_in_no_class_folder_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "pictures"
    for i in range(3):
        picture(root / "crab" / f"{i}.png")
    picture(root / "loose.JPG")
    picture(root / "._loose.JPG")
    for _ in ("made", "read"):
        capsys.readouterr()
        assert len(build(root, "image_folder").train_x) == 2
        out = capsys.readouterr().out
        assert out.count("Not used") == 1
        assert f"Not used of '{root}': 1 hidden files ('._loose.JPG' the first), " in out
        assert "1 pictures in no class folder ('loose.JPG' the first)\n" in out


@pytest.mark.parametrize("images", ["", "./", "{images}/", "/home/someone/DATA/dtd/images/", "D:/data/dtd/images/"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_paths_of_windows_and_absolute_ones(images: str, slash: str, folder: Path) -> None:
    """Those of another machine too, where the image folder has the same name."""
    first = build(folder.parent, "dtd")
    publish_split(folder)
    split = json.loads((folder / SPLIT).read_text())
    prefix = images.format(images=folder / "images")
    for listed in split.values():
        for row in listed:
            row[0] = (prefix + row[0]).replace("/", slash)
    (folder / SPLIT).write_text(json.dumps(split))
    again = build(folder.parent, "dtd")
    for part in ("train_x", "val", "test"):
        here, before = (rows(getattr(data, part), folder / "images") for data in (again, first))
        assert here == before
