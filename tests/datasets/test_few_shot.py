"""Few-shot sets: CoOp's draws, the files they are kept in, CoOp's pickles, and processes that draw at once."""

import errno
import json
import multiprocessing
import os
import pickle
import random
import runpy
from pathlib import Path
from typing import Any

import pytest

import dassl.utils
from dassl.data.datasets import base_dataset
from dassl.utils import UserError
from datasets import files
from tests.dassl.test_checkpoints import Bomb

from .trees import as_coop_draws, build, dtd, imagenet, rows

pytestmark = pytest.mark.medium

REAL = Path(os.environ.get("PLOT_DATA", Path(__file__).parents[3] / "shared" / "data"))
KEPT = "split_fewshot/shot_2-seed_1.json"
PICKLED = "split_fewshot/shot_2-seed_1.pkl"


def few(folder: Path, seed: int = 1, shots: int = 2, **dataset: object) -> list[list[list[Any]]]:
    data = build(folder.parent, "dtd", seed=seed, NUM_SHOTS=shots, **dataset)
    return [rows(data.train_x, folder / "images"), rows(data.val, folder / "images")]


def split_of(folder: Path) -> dict[str, list[list[Any]]]:
    return json.loads((folder / "split_zhou_DescribableTextures.json").read_text())


@pytest.mark.skipif(not (REAL / "caltech-101").is_dir(), reason="the real Caltech-101 is not there; set PLOT_DATA")
def test_the_real_caltech101(tmp_path: Path) -> None:
    folder = tmp_path / "caltech-101"
    folder.mkdir()
    real = REAL / "caltech-101"
    (folder / "101_ObjectCategories").symlink_to((real / "101_ObjectCategories").resolve())
    (folder / "split_zhou_Caltech101.json").write_bytes((real / "split_zhou_Caltech101.json").read_bytes())
    split = json.loads((folder / "split_zhou_Caltech101.json").read_text())
    whole = build(tmp_path, "caltech101")
    assert [len(whole.train_x), len(whole.val), len(whole.test), whole.num_classes] == [4128, 1649, 2465, 100]
    for shots in (1, 2, 4, 8, 16):
        for seed in (1, 2, 3):
            expected = as_coop_draws(split, shots, seed)
            for _ in ("drawn", "kept"):
                data = build(tmp_path, "caltech101", seed=seed, NUM_SHOTS=shots)
                images = folder / "101_ObjectCategories"
                assert [rows(data.train_x, images), rows(data.val, images)] == expected


@pytest.mark.parametrize(("shots", "seed"), [(1, 1), (2, 2), (4, 123), (16, 1)])
def test_the_draws_are_coops(folder: Path, shots: int, seed: int) -> None:
    random.seed(99)  # the global generator has no influence
    assert few(folder, seed, shots) == as_coop_draws(split_of(folder), shots, seed)


def test_what_is_kept(folder: Path) -> None:
    train, val = few(folder)
    kept = json.loads((folder / KEPT).read_text())
    assert kept.keys() == {"split_sha256", "train", "val"}
    assert [kept["train"], kept["val"]] == [train, val]
    # The file decides: another valid choice in it is read.
    kept["train"] = split_of(folder)["train"][1::2]
    (folder / KEPT).write_text(json.dumps(kept))
    assert few(folder) == [kept["train"], val]


@pytest.mark.parametrize("damage", ["split changed", "cut short", "another's", "no val", "class gone"])
def test_a_set_that_does_not_match_is_drawn_anew(folder: Path, damage: str) -> None:
    few(folder)
    kept = json.loads((folder / KEPT).read_text())
    if damage == "split changed":
        split = split_of(folder)
        split["train"].reverse()
        (folder / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))
    elif damage == "cut short":
        (folder / KEPT).write_text((folder / KEPT).read_text()[:-30])
    elif damage == "another's":
        (folder / KEPT).write_text(json.dumps({**kept, "train": [["banded/other.jpg", 0, "banded"]]}))
    elif damage == "class gone":
        (folder / KEPT).write_text(json.dumps({**kept, "train": kept["train"][:4]}))
    else:
        (folder / KEPT).write_text(json.dumps({"train": kept["train"], "split_sha256": kept["split_sha256"]}))
    expected = as_coop_draws(split_of(folder), 2, 1)
    assert few(folder) == expected
    assert json.loads((folder / KEPT).read_text())["train"] == expected[0]


def test_imagenets_set_follows_its_folders(tmp_path: Path) -> None:
    folder = imagenet(tmp_path)
    first = build(tmp_path, "imagenet", NUM_SHOTS=4).train_x
    for image in (folder / "images/train").rglob("*_[0-3].JPEG"):
        image.unlink()
    second = build(tmp_path, "imagenet", NUM_SHOTS=4).train_x
    assert first != second and len(second) == 24 and all(Path(d.impath).is_file() for d in second)


def test_few_shot_loads_make_few_datums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet(tmp_path)
    build(tmp_path, "imagenet", NUM_SHOTS=1)
    made = []
    listed = base_dataset.Datum.listed
    monkeypatch.setattr(base_dataset.Datum, "listed", lambda *args: made.append(1) or listed(*args))
    build(tmp_path, "imagenet", NUM_SHOTS=1)
    assert len(made) == 6 + 6 + 18 + 18  # of 60 training images 6, and 6 held out


@pytest.fixture
def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates data on a read-only disk; permissions do not stop root."""
    original = files._write

    def write(path: Path, text: str, replace: bool) -> Path:
        if path.is_relative_to(folder.parent):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, text, replace)

    monkeypatch.setattr(files, "_write", write)


@pytest.mark.usefixtures("read_only")
def test_a_read_only_data_folder(folder: Path, cache_home: Path) -> None:
    before = sorted(folder.rglob("*"))
    expected = as_coop_draws(split_of(folder), 2, 1)
    assert few(folder) == expected == few(folder)
    (kept,) = cache_home.rglob("shot_2-seed_1.json")
    assert [json.loads(kept.read_text())[part] for part in ("train", "val")] == expected
    (folder / "split_zhou_DescribableTextures.json").unlink()
    made = few(folder)
    (split,) = cache_home.rglob("split_zhou_DescribableTextures.json")
    assert made == as_coop_draws(json.loads(split.read_text()), 2, 1) == few(folder)
    assert set(folder.rglob("*")) < set(before)


@pytest.mark.usefixtures("read_only")
def test_two_copies_of_a_dataset_share_no_cache(folder: Path, tmp_path: Path, cache_home: Path) -> None:
    few(folder)
    (tmp_path / "data/second").mkdir()
    few(dtd(tmp_path / "data/second"))
    assert len(list(cache_home.rglob("shot_2-seed_1.json"))) == 2


def test_when_nothing_can_be_kept_the_set_is_drawn_all_the_same(
    folder: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    assert few(folder) == as_coop_draws(split_of(folder), 2, 1)
    assert not list((folder / "split_fewshot").iterdir()) and not [p for p in cache_home.rglob("*") if p.is_file()]
    (folder / "split_zhou_DescribableTextures.json").unlink()  # a split is drawn once and for all seeds
    with pytest.raises(UserError, match=r"saved neither in '.*dtd' nor '.*cache.*': No space left on device"):
        few(folder)
    assert not list(folder.glob("*split_zhou*"))


def test_beside_upstream_dassl_files_are_written_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UserError", "write_atomically", "__getattr__"):  # the last gives `locked`
        monkeypatch.delattr(dassl.utils, name)
    module = runpy.run_path(files.__file__)
    assert module["keep"](tmp_path, "a/b.json", "é", replace=False).read_text("utf-8") == "é"
    with module["locked"](tmp_path / ".lock", "taken") as held:
        assert not held and module["UserError"] is ValueError


def test_fewer_images_than_shots_are_all_used_and_said_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, val = few(folder, shots=16)
    assert sorted(train) == sorted(split_of(folder)["train"]) and sorted(val) == sorted(split_of(folder)["val"])
    out = capsys.readouterr().out
    assert out.count("3 of 3 classes have fewer than 16 training images; all of theirs are used") == 1
    assert out.count("3 of 3 classes have fewer than 4 validation images") == 1
    few(folder, shots=2)
    assert "fewer than" not in capsys.readouterr().out


def _load_at_once(folder: Path, seed: int, start: Any, results: Any) -> None:
    start.wait()
    results.put((seed, few(folder, seed=seed), rows(build(folder.parent, "dtd").test, folder / "images")))


def test_processes_that_draw_at_once(tmp_path: Path) -> None:
    folder = dtd(tmp_path)
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(4), context.Queue()
    seeds = (1, 1, 2, 3)  # two of them draw the same set; each would make another split
    processes = [context.Process(target=_load_at_once, args=(folder, seed, start, results)) for seed in seeds]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in seeds]
    for process in processes:
        process.join()
    split = split_of(folder)
    for seed, drawn, test in found:
        assert drawn == as_coop_draws(split, 2, seed) and test == split["test"]
    left = sorted(
        p.name for p in folder.rglob("*") if p.is_file() and "images" not in p.parts and "labels" not in p.parts
    )
    assert left == [*(f"shot_2-seed_{seed}.json" for seed in (1, 2, 3)), "split_zhou_DescribableTextures.json"]


# CoOp's pickles


class CoOpsDatum:
    """The attributes that upstream Dassl's Datum saves."""

    def __init__(self, impath: str, label: int, classname: str) -> None:
        self._impath, self._label, self._domain, self._classname = impath, label, 0, classname


CoOpsDatum.__module__, CoOpsDatum.__qualname__ = "dassl.data.datasets.base_dataset", "Datum"


def leave_pickle(folder: Path, monkeypatch: pytest.MonkeyPatch, train: list[Any], val: list[Any] | None = None) -> None:
    (folder / PICKLED).parent.mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(base_dataset, "Datum", CoOpsDatum)
        content = {"train": [CoOpsDatum(*row) for row in train]}
        if val is not None:
            content["val"] = [CoOpsDatum(*row) for row in val]
        (folder / PICKLED).write_bytes(pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL))


def elsewhere(items: list[list[Any]], images: str = "/home/someone/DATA/dtd/images/") -> list[list[Any]]:
    return [[images + file, label, name] for file, label, name in items]


@pytest.mark.parametrize("images", ["/home/someone/DATA/dtd/images/", "D:\\data\\dtd\\images\\", "images/"])
def test_a_pickle_that_coop_left_is_honoured(folder: Path, images: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(folder)
    train, val = split["train"][::-4], split["val"][:1]
    leave_pickle(folder, monkeypatch, elsewhere(train, images), elsewhere(val, images))
    assert few(folder) == [train, val]
    assert not (folder / KEPT).exists()
    assert few(folder, SUBSAMPLE_CLASSES="base") == [[r for r in train if r[1] < 2], [r for r in val if r[1] < 2]]


def test_a_valid_json_set_wins_over_a_pickle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = few(folder)
    split = split_of(folder)
    leave_pickle(folder, monkeypatch, elsewhere(split["train"][::3]), elsewhere(split["val"][:1]))
    assert few(folder) == drawn
    (folder / KEPT).write_text("{")
    assert few(folder) == [split["train"][::3], split["val"][:1]]


def test_imagenets_pickle_has_no_validation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = imagenet(tmp_path)
    whole = rows(build(tmp_path, "imagenet").train_x, folder / "images")
    leave_pickle(folder, monkeypatch, elsewhere(whole[3::10], "/x/imagenet/images/"))
    data = build(tmp_path, "imagenet", NUM_SHOTS=2)
    assert rows(data.train_x, folder / "images") == whole[3::10] and len(data.val) == 18


def test_a_pickles_images_that_are_not_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(folder)
    rows_ = [*elsewhere(split["train"][:3]), *(["/old/dtd/images/banded/gone.jpg", 0, "banded"],) * 2]
    leave_pickle(folder, monkeypatch, rows_, [])
    with pytest.raises(UserError, match=r"2 of its 5 images .*: '/old/dtd/images/banded/gone.jpg'.*; remove it"):
        few(folder)
    file, label, _ = split["train"][0]
    leave_pickle(folder, monkeypatch, elsewhere([[file, label, "another name"]]), [])
    with pytest.raises(UserError, match=r"1 of its 1 images"):
        few(folder)
    leave_pickle(folder, monkeypatch, elsewhere(split["train"][:6]), [])
    with pytest.raises(UserError, match=r"no training images of 1 of the split's classes"):
        few(folder)


@pytest.mark.parametrize("content", ["evil", b"", b"\x80\x05N.", b"\x80\x05\x95\xff"])
def test_a_pickle_of_anything_else_is_refused(folder: Path, tmp_path: Path, content: str | bytes) -> None:
    raw = pickle.dumps({"train": [Bomb(os.mkdir, str(tmp_path / "touched"))]}) if isinstance(content, str) else content
    (folder / PICKLED).parent.mkdir(exist_ok=True)
    (folder / PICKLED).write_bytes(raw)
    with pytest.raises(UserError, match=r"shot_2-seed_1.pkl' is no few-shot set of CoOp's: .*; remove it") as error:
        few(folder)
    assert "\n" not in str(error.value) and not (tmp_path / "touched").exists()
