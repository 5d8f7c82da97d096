"""Few-shot sets from a published list: which images a run takes, and what is wrong with a list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import train
from dassl.utils import UserError

from .test_few_shot import few, split_of
from .trees import as_coop_draws, build, imagenet, rows

NAME = "shot_{shots}-seed_{seed}_train.jsonl"


def write_list(path: Path, items: list[list[Any]], root: str = "/home/someone/DATA/dtd/images/") -> Path:
    """As 2SFS writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"_impath": root + f, "_label": k, "_domain": 0, "_classname": name} for f, k, name in items]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def two_a_class(items: list[list[Any]]) -> list[list[Any]]:
    """Others than CoOp draws with any of the seeds here: the last two of each class."""
    return [item for label in range(3) for item in [i for i in items if i[1] == label][-2:]]


def test_the_lists_images_in_its_order(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = two_a_class(split_of(folder)["train"])[::-1]
    path = write_list(tmp_path / "lists/mine.jsonl", chosen)
    train, val = few(folder, FEW_SHOT_LIST=str(path))
    assert train == chosen and val == as_coop_draws(split_of(folder), 2, 1)[1]
    assert f"Few-shot set: '{path}'" in capsys.readouterr().out
    base, _ = few(folder, FEW_SHOT_LIST=str(path), SUBSAMPLE_CLASSES="base")
    assert base == [row for row in chosen if row[1] < 2]


@pytest.mark.parametrize("place", ["beside the data", "the working folder"])
def test_one_name_for_all_seeds_and_shots(
    place: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    at = folder / "split_fewshot" if place == "beside the data" else tmp_path / "split_fewshot"
    split = split_of(folder)
    for seed in (1, 2):
        drawn = two_a_class(split["train"])[:: 1 if seed == 1 else -1]
        write_list(at / f"shot_2-seed_{seed}_train.jsonl", drawn, "")
        write_list(at / f"shot_2-seed_{seed}_val.jsonl", split["val"][::-1], "D:\\data\\dtd\\images\\")
        found = few(folder, seed=seed, FEW_SHOT_LIST=f"split_fewshot/{NAME}")
        assert found == [drawn, split["val"][::-1]]


def test_a_class_with_fewer_images_than_shots_takes_what_it_has(folder: Path, tmp_path: Path) -> None:
    train = split_of(folder)["train"]
    for listed in (train, [*train, train[0]]):  # some protocols repeat images
        path = write_list(tmp_path / "all.jsonl", listed)
        assert few(folder, shots=16, FEW_SHOT_LIST=str(path))[0] == listed


def test_imagenets_list_and_validation_images(tmp_path: Path) -> None:
    folder = imagenet(tmp_path) / "images"
    whole = rows(build(tmp_path, "imagenet").train_x, folder)
    path = write_list(tmp_path / "1_train.jsonl", whole[3::10], "/data/imagenet/images/")
    write_list(tmp_path / "1_val.jsonl", [["val/n01440764/ILSVRC2012_val_n014407640.JPEG", 0, "tench"]])  # a test image
    data = build(tmp_path, "imagenet", NUM_SHOTS=1, FEW_SHOT_LIST=str(path))
    assert rows(data.train_x, folder) == whole[3::10]
    val = rows(data.val, folder)
    assert [row[1] for row in val] == list(range(6)) and all(row in whole and row not in whole[3::10] for row in val)


WRONG = {
    "no image of the split": (
        ["banded/gone.jpg", 0, "banded"],
        r"line 7: '/home/.*gone.jpg' is none of the \d+ training",
    ),
    "a test image": ("test", r"line 7: .* is none of the \d+ training images"),
    "another label": ("label", r"line 1: .* has the label \(1, 'banded'\); the split's is \(0, 'banded'\)"),
    "another name": ("name", r"line 1: .* has the label \(0, 'striped'\); the split's is \(0, 'banded'\)"),
    "too few lines": ("few", r"class 'banded' has 1 lines; with 2 shots it takes 2"),
    "too many lines": ("many", r"class 'banded' has 3 lines; with 2 shots it takes 2"),
    "a line twice": ("twice", r"class 'banded' has 2 lines of 1 images; with 2 shots it takes 2"),
    "no JSON": ("text", r"line 1: it should be an image and its label, such as .*, not 'banded/1.jpg 0'"),
    "no mapping": ("list", r"line 1: it should be an image and its label"),
    "no label": ("keys", r"line 1: it should be an image and its label"),
    "no text": ("bytes", r"is no text file"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_list_that_does_not_fit_the_split_is_refused(
    wrong: str, folder: Path, tmp_path: Path, cache_home: Path
) -> None:
    split, (change, says) = split_of(folder), WRONG[wrong]
    train = sorted(split["train"], key=lambda row: row[1])
    chosen = two_a_class(train)
    if isinstance(change, list):
        chosen.append(change)
    elif change == "test":
        chosen.append(split["test"][0])
    elif change in ("label", "name"):
        file, label, name = chosen[0]
        chosen[0] = [file, label + (change == "label"), "striped" if change == "name" else name]
    elif change in ("few", "many"):
        chosen = chosen[1:] if change == "few" else [train[0], *chosen]
    elif change == "twice":
        chosen[0] = chosen[1]
    path = write_list(tmp_path / "list.jsonl", chosen)
    texts = {"text": b"banded/1.jpg 0\n", "list": b"[1, 2]\n", "keys": b'{"_impath": "x"}\n', "bytes": b"\xff\xfe\n"}
    if change in ("text", "list", "keys", "bytes"):
        path.write_bytes(texts[str(change)])
    with pytest.raises(UserError, match=says) as error:
        few(folder, FEW_SHOT_LIST=str(path))
    assert "\n" not in str(error.value) and not list(cache_home.rglob("shot_2-*"))


def test_a_list_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    write_list(folder / "split_fewshot/shot_2-seed_2_train.jsonl", [])
    with pytest.raises(
        UserError, match=r"no file, looked for '.*' and '.*seed_1_train.jsonl'; there are shot_2-seed_2"
    ):
        few(folder, FEW_SHOT_LIST=f"split_fewshot/{NAME}")
    with pytest.raises(UserError, match=r"needs DATASET.NUM_SHOTS, which is -1"):
        build(folder.parent, "dtd", FEW_SHOT_LIST="x.jsonl")


@pytest.mark.medium
def test_on_the_command_line_a_wrong_list_is_one_line_and_nothing_is_written(
    run_args: list[str], data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_list(tmp_path / "list.jsonl", [["face/test_0000.jpg", 0, "face"]])
    argv = [
        *run_args,
        "--trainer",
        "CoOp",
        "INPUT.SIZE",
        "(64, 64)",
        "DATASET.NAME",
        "Caltech101",
        "DATASET.NUM_SHOTS",
        "1",
    ]
    assert train.main([*argv, "DATASET.FEW_SHOT_LIST", "list.jsonl"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "is none of the 30 training images" in error
    assert not (tmp_path / "output").exists() and data_root
