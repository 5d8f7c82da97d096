"""Split files and their faults, base and new classes, pictures of every kind."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import train
from dassl.data.datasets import DATASET_REGISTRY, Datum, base_dataset
from dassl.utils import UserError, read_image
from datasets.base import FewShotDataset

from .trees import build

SPLIT = "split_zhou_DescribableTextures.json"


def change(folder: Path, **parts: Any) -> None:
    """Replaces parts of the split file; None removes one."""
    split = {**json.loads((folder / SPLIT).read_text()), **parts}
    (folder / SPLIT).write_text(json.dumps({part: rows for part, rows in split.items() if rows is not None}))


def test_a_dataset_without_its_split_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class MyFlags(FewShotDataset):
        dataset_dir = "flags"
        split_file = "split.json"

    monkeypatch.setitem(DATASET_REGISTRY._objects, "MyFlags", MyFlags)
    (tmp_path / "flags/images").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no split file for MyFlags: looked for '.*flags/split.json'"):
        build(tmp_path, "dtd", NAME="MyFlags")


# The user's mistakes: one line on standard error, exit code 2, nothing written.


def run(folder: Path, run_args: list[str], capsys: pytest.CaptureFixture[str], *options: str) -> str:
    before = sorted(folder.rglob("*"))
    argv = [*run_args, "--root", str(folder.parent), "--trainer", "CoOp", "DATASET.NAME", "DescribableTextures"]
    assert train.main([*argv, *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before and not Path("output").exists()
    return err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"train": [', "JSONDecodeError"),
        ('{"train": [1], "val": [], "test": []}', "ValueError: 1 is not [image, label, class name]"),
        ("[" * 200_000, "RecursionError"),
    ],
)
def test_a_split_file_that_is_none(
    text: str, says: str, folder: Path, run_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / SPLIT).write_text(text)
    err = run(folder, run_args, capsys)
    assert f"{SPLIT}' is no split file: {says}" in err and "train, val and test" in err


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"val": None}, "is no split file: it has no 'val'"),
        ({"train": [], "val": [], "test": []}, "it lists no images"),
        ({"test": [["zigzagged/zigzagged_0000.jpg", 4, "odd"]]}, "4 classes, but none has the label 3"),
        (
            {"test": [["zigzagged/zigzagged_0000.jpg", 3, "veined"]]},
            "1 of 4 classes have no training images: 'veined'",
        ),
    ],
)
def test_labels_that_do_not_fit(
    parts: dict[str, Any], says: str, folder: Path, run_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, **parts)
    err = run(folder, run_args, capsys, "DATASET.NUM_SHOTS", "2")
    assert says in err and SPLIT in err


def test_files_that_are_not_there(folder: Path, run_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "images/zigzagged")
    (folder / "images/banded/banded_0003.jpg").unlink()
    listed = [row[0] for part in json.loads((folder / SPLIT).read_text()).values() for row in part]
    first = [file for file in listed if not (folder / "images" / file).exists()][:3]
    err = run(folder, run_args, capsys)
    assert f"11 of 30 files are not in '{folder}/images': " in err
    assert ", ".join(f"'{file}'" for file in first) + "; a split that was made here is made anew" in err


@pytest.mark.parametrize(
    ("missing", "what"),
    [("", "data root"), ("dtd", "dataset folder"), ("dtd/images", "image folder")],
)
def test_what_is_missing_is_named(
    missing: str, what: str, tmp_path: Path, run_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    if missing:
        (root / missing).parent.mkdir(parents=True)
    err = run(root / "dtd", run_args, capsys)
    assert f"no {what} for DescribableTextures: looked for '{root / missing}'" in err
    assert ("--root" in err) == (what != "image folder")


# Pictures


def test_each_image_is_not_looked_up_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []
    monkeypatch.setattr(base_dataset.osp, "isfile", lambda path: looked_up.append(path) or True)
    assert len(build(folder.parent, "dtd").train_x) == 15
    assert not looked_up
    assert Datum(impath="x") and looked_up == ["x"]  # a single Datum checks its file


def test_names_with_spaces_and_letters_of_every_kind(tmp_path: Path) -> None:
    images = tmp_path / "dtd" / "images"
    folders = ("crème brûlée", "線 と 点", "100% 'quoted'")
    for name in folders:
        (images / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (5, 4), (i, 0, 0)).save(images / name / f"a picture № {i} (é).png")
    for _ in ("made", "read"):
        dataset = build(tmp_path, "dtd", NUM_SHOTS=2)
        assert dataset.classnames == sorted(folders)
        assert len(dataset.train_x) == 6 and all(read_image(d.impath).size == (5, 4) for d in dataset.train_x)


def test_a_link_to_a_picture_counts_and_a_broken_link_is_missing(folder: Path) -> None:
    image = folder / "images/banded/banded_0003.jpg"
    image.rename(folder.parent / "elsewhere.jpg")
    image.symlink_to(folder.parent / "elsewhere.jpg")
    assert len(build(folder.parent, "dtd").train_x) == 15
    (folder.parent / "elsewhere.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 30 files are not in .*: 'banded/banded_0003.jpg'"):
        build(folder.parent, "dtd")


KINDS = {
    "grey.jpg": ("L", 90),
    "palette.gif": ("P", 3),
    "cmyk.jpg": ("CMYK", (10, 20, 30, 40)),
    "float.tiff": ("F", 70.0),
}


@pytest.mark.parametrize("name", KINDS)
def test_pictures_of_every_kind_load_as_rgb(name: str, tmp_path: Path) -> None:
    mode, colour = KINDS[name]
    path = tmp_path / name
    Image.new(mode, (7, 5), colour).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        expected = image.convert("RGB")  # CoOp's loader: no more than this
    loaded = read_image(str(path))
    assert loaded.mode == "RGB" and loaded.size == (7, 5)
    assert loaded.tobytes() == expected.tobytes()


def test_alpha_is_dropped_and_exif_does_not_turn_a_picture(tmp_path: Path) -> None:
    Image.new("RGBA", (7, 5), (200, 100, 50, 0)).save(tmp_path / "alpha.png")
    assert read_image(str(tmp_path / "alpha.png")).getpixel((0, 0)) == (200, 100, 50)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    Image.new("RGB", (7, 5)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(str(tmp_path / "turned.jpg")).size == (7, 5)


def test_root_may_be_relative_or_a_users_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    monkeypatch.setenv("HOME", os.getcwd())
    expected = [d.impath for d in build(folder.parent, "dtd").test]
    for root in ("data", "~/data"):
        assert [d.impath for d in build(Path(root), "dtd").test] == expected
