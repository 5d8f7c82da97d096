"""A user's own pictures, and the examples of DATASETS.md, run as printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, read_image
from datasets import prepare
from datasets.files import places
from datasets.image_folder import SPLIT_FILE
from runs.command_line import build_parser
from runs.config import setup_cfg
from runs.execution import output_directory

from .serving import run_command
from .trees import build, config

pytestmark = pytest.mark.medium

REPOSITORY = Path(datasets.__file__).resolve().parents[1]


def fill(folder: Path, n: int = 10, ending: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("RGB", (8, 6), (i, 90, 200)).save(folder / f"{i}{ending}")
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "pictures"


def split_of(root: Path) -> Path:
    """The split that is made, in the cache folder."""
    return places(root, SPLIT_FILE)[1]


def files(items: list) -> set[str]:
    return {item.impath for item in items}


def test_one_folder_a_class(root: Path) -> None:
    for name in ("sea_horse", "Crème brûlée", "train"):  # pictures in it: train/ is a class, not a part
        fill(root / name)
    (root / "notes.txt").write_text("not a class")
    (root / "sea_horse" / "Thumbs.db").write_text("not a picture")
    (root / ".git").mkdir()
    dataset = build(root, "image_folder")
    assert dataset.classnames == ["Crème brûlée", "sea horse", "train"]
    parts = (dataset.train_x, dataset.val, dataset.test)
    assert [Counter(item.label for item in part) for part in parts] == [dict.fromkeys(range(3), n) for n in (5, 2, 3)]
    assert len(set().union(*map(files, parts))) == 30
    split = json.loads(split_of(root).read_text())
    assert sorted(split) == ["test", "train", "val"] and sorted(row[0] for row in split["val"])[0].count("/") == 1
    again = build(root, "image_folder", seed=2, NUM_SHOTS=4)
    assert files(again.test) == files(dataset.test)  # the seed has no influence
    assert len(again.train_x) == 12 and files(again.train_x) <= files(dataset.train_x)
    assert build(root, "image_folder", seed=3).classnames == dataset.classnames


def test_the_split_follows_the_seed_that_makes_it(root: Path) -> None:
    fill(root / "a", 30)
    fill(root / "b", 30)
    tests = []
    for seed in (1, 2, 1):
        tests.append(files(build(root, "image_folder", seed=seed).test))
        split_of(root).unlink()
    assert tests[0] == tests[2] != tests[1]


@pytest.mark.parametrize(("n", "sizes"), [(2, (1, 0, 1)), (3, (2, 0, 1)), (4, (2, 1, 1)), (5, (2, 1, 2))])
def test_small_classes_have_something_to_train_and_to_test_on(n: int, sizes: tuple[int, ...], root: Path) -> None:
    fill(root / "a", n)
    dataset = build(root, "image_folder")
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == sizes


@pytest.mark.parametrize("ending", [".JPEG", ".Png", ".webp", ".tif"])
def test_kinds_of_pictures(ending: str, root: Path) -> None:
    fill(root / "a", 4, ending)
    data = DataManager(config(root, "image_folder")).train_loader_x.dataset
    assert data[0]["img"].shape[0] == 3 and data[0]["impath"].endswith(ending)


def test_pictures_of_more_than_eight_bits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The high byte is kept, as Pillow does for 16-bit colours; what would decode to one colour is refused."""
    for name, level in (("dark", 3_000), ("light", 60_000)):
        (root / name).mkdir(parents=True)
        for i in range(10):
            levels = np.full((6, 8), level + i, dtype=np.uint16)
            levels[0, 0] = 0
            Image.fromarray(levels).save(root / name / f"{i}.{'png' if i % 2 else 'tif'}")
    assert prepare.main(["image_folder", "--root", str(root), "--check", "--decode"]) == 0
    assert "\n10 pictures are almost black as 8 bits" in capsys.readouterr().out
    for name, level in (("dark", 11), ("light", 234)):
        for ending in ("0.tif", "1.png"):
            assert read_image(str(root / name / ending)).getextrema() == ((0, level),) * 3


@pytest.mark.parametrize(
    ("levels", "mode", "says"),
    [
        (np.linspace(0, 1, 48, dtype=np.float32), "F", "mode F, levels 0.0 to 1.0: convert it to 8 bits"),
        (np.arange(48, dtype=np.int32) << 16, "I", "levels 0 to 3080192: convert it to 8 bits"),
        (np.arange(48, dtype=np.uint16), "I;16", "levels 0 to 47: as RGB it is of one colour"),
        (np.array([(0, 0, 0, 5 * i) for i in range(48)], dtype=np.uint8), "RGBA", "as RGB it is of one colour"),
    ],
)
def test_pictures_that_would_lose_their_content(
    levels: np.ndarray, mode: str, says: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(root / "a")
    fill(root / "b")
    image = Image.fromarray(levels.reshape(6, 8, *levels.shape[1:]))
    assert image.mode == mode
    image.save(root / "b/10.tif")
    assert prepare.main(["image_folder", "--root", str(root), "--check", "--decode"]) != 0
    said = capsys.readouterr()
    assert "b/10.tif" in said.out + said.err and says in said.out + said.err


@pytest.mark.parametrize("highest", [200, 60_000])
def test_colours_of_16_bits(highest: int, tmp_path: Path) -> None:
    """Pillow, which cannot write them, keeps the high bytes: of low levels nothing is left."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    levels = np.linspace(0, highest, 48 * 3).astype(">u2").reshape(6, 24)
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    if highest > 256:
        assert max(high for _, high in read_image(str(tmp_path / "a.png")).getextrema()) == highest >> 8
    else:
        with pytest.raises(UserError, match="mode RGB, 16 bits a channel: as RGB it is of one colour"):
            read_image(str(tmp_path / "a.png"))


def test_a_picture_of_one_colour_is_one(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 6), (0, 0, 0, 255)).save(tmp_path / "black.png")
    assert read_image(str(tmp_path / "black.png")).getextrema() == ((0, 0),) * 3


def test_parts_of_your_own(root: Path) -> None:
    for part, n in (("train", 4), ("val", 2), ("test", 3)):
        fill(root / part / "sea_horse", n)
        fill(root / part / "crab", n)
    dataset = build(root, "image_folder")
    assert dataset.classnames == ["crab", "sea horse"]
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (8, 4, 6)
    assert not list(root.glob("*.json"))
    assert len(build(root, "image_folder", NUM_SHOTS=1).train_x) == 2
    fill(root / "train" / "extra", 4)  # listed anew at each start: nothing is saved
    assert build(root, "image_folder").num_classes == 3
    new = build(root, "image_folder", SUBSAMPLE_CLASSES="new")
    assert new.classnames == ["sea horse"]


def test_every_file_is_used_or_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ending in (".jpg", ".jfif", ".ppm", ".avif", ".TIF"):
        fill(root / "a", 2, ending)
    fill(root / "_b", 4)
    assert prepare.main(["image_folder", "--root", str(root), "--check"]) == 0
    assert "Not used" not in capsys.readouterr().out
    fill(root / "_b" / "session1", 3)
    fill(root, 2)
    for name in ("a/notes.txt", "_b/Thumbs.db", "_b/desktop.ini", "_b/.DS_Store", "_b/._0.png"):
        (root / name).touch()
    dataset = build(root, "image_folder")
    used = files(dataset.train_x) | files(dataset.val) | files(dataset.test)
    assert used == {str(path) for name in ("a", "_b") for path in (root / name).glob("[0-9].*")} and len(used) == 14
    assert (
        f"Not used of '{root}': 2 pictures in no class folder ('0.png' the first), "
        "4 hidden files ('_b/.DS_Store' the first), "
        "3 pictures below a class folder ('_b/session1/0.png' the first), 1 other files ('a/notes.txt' the first)\n"
    ) in capsys.readouterr().out


def test_links_are_followed_and_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "elsewhere/Train/a", 4)
    (tmp_path / "elsewhere/Train/a/raw.cr2").touch()
    fill(tmp_path / "elsewhere/Train", 1)
    fill(root / "test/a", 2)
    (root / "train").symlink_to(tmp_path / "elsewhere/Train")
    (root / "test/a/broken.png").symlink_to(tmp_path / "nothing.png")
    (root / "test/a/round").symlink_to(root / "test")
    os.mkfifo(root / "test/a/pipe.png")
    assert len(build(root, "image_folder").train_x) == 4
    said = capsys.readouterr().out
    assert "3 other files ('test/a/broken.png' the first), 1 pictures in no class folder ('train/" in said


@pytest.mark.slow
def test_every_case_at_once_by_the_command(root: Path) -> None:
    """Parts in capitals and by another name, endings of every kind, 16 bits, nested, hidden and text files."""
    endings = (".jpg", ".jfif", ".avif", ".ppm", ".PNG")
    for part, n in (("Train", 3), ("valid", 1), ("Test", 2)):
        for ending in endings:
            fill(root / part / "sea_horse", n, ending)
        (root / part / "crab").mkdir()
        for i in range(n):
            levels = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1_000 + i
            Image.fromarray(levels).save(root / part / "crab" / f"{i}.{'tif' if i else 'png'}")
    fill(root / "Train/crab/session 1", 4)  # below a class folder
    fill(root / "Train", 2)  # in no class folder
    fill(root / "more/crab", 3)  # in no part
    for name in ("Train/crab/.DS_Store", "Train/crab/._0.png", "Test/Thumbs.db", ".git/HEAD"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    for name in ("README.md", "Train/crab/labels.txt"):
        (root / name).write_text("no picture")
    there = sorted(root.rglob("*"))
    done = run_command("image_folder", "--root", str(root), "--decode")
    assert done.returncode == 0 and not done.stderr
    assert "2 classes, 18 / 6 / 12 images, all decoded" in done.stdout
    (said,) = (line for line in done.stdout.splitlines() if line.startswith(f"Not used of '{root}': "))
    counts = dict((kind, int(n)) for n, kind in re.findall(r"[:,] (\d+) ([a-z ]+) \(", said))
    assert counts == {
        "hidden files": 4,
        "other files": 2,
        "pictures in no class folder": 2,
        "pictures below a class folder": 4,
        "pictures in no part": 3,
    }
    assert 18 + 6 + 12 + sum(counts.values()) == sum(path.is_file() for path in there)
    assert sorted(root.rglob("*")) == there


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Train", "Validation", "Test"), ("training", "VAL", "testing")]
)
def test_usual_names_of_the_parts(names: tuple[str, ...], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, n in zip(names, (4, 2, 3), strict=True):
        fill(root / part / "a", n)
    dataset = build(root, "image_folder")
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (4, 2, 3)
    fill(root / "unlabelled" / "a", 5)
    build(root, "image_folder")
    assert f"5 pictures in no part ({names[0]}, " in capsys.readouterr().out
    fill(root / "tests" / "a", 1)
    fill(root / "TEST" / "a", 1)
    if names[2] != "TEST":
        with pytest.raises(UserError, match=r"has two folders for one part, 'TEST' and '(test|Test|testing)'"):
            build(root, "image_folder")


@pytest.mark.parametrize("form", ["{images}/{file}", "./{file}", "{windows}"])
def test_paths_in_split_files(form: str, root: Path) -> None:
    fill(root / "a")
    fill(root / "b")
    before = build(root, "image_folder", NUM_SHOTS=2)
    split = json.loads(split_of(root).read_text())
    for part in split.values():
        for row in part:
            row[0] = form.format(images=root, file=row[0], windows=row[0].replace("/", "\\"))
    (root / SPLIT_FILE).write_text(json.dumps(split))  # comes before the one in the cache folder
    after = build(root, "image_folder", NUM_SHOTS=2)
    assert files(after.train_x) == files(before.train_x) and files(after.test) == files(before.test)


def test_a_split_of_ones_own_that_no_longer_fits(root: Path) -> None:
    fill(root / "a")
    fill(root / "b")
    build(root, "image_folder")
    (root / "a/3.png").unlink()
    with pytest.raises(UserError, match="is made anew once its file is removed"):
        build(root, "image_folder")
    split_of(root).unlink()
    assert sum(map(len, (lambda d: (d.train_x, d.val, d.test))(build(root, "image_folder")))) == 19


@pytest.mark.parametrize(("given", "sizes"), [("test", (4, 0, 2)), ("val", (4, 2, 2))])
def test_parts_that_are_left_out(given: str, sizes: tuple[int, ...], root: Path) -> None:
    fill(root / "train" / "a", 4)
    fill(root / given / "a", 2)
    manager = DataManager(config(root, "image_folder"))
    dataset = manager.dataset
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == sizes
    assert (manager.val_loader is None) == (sizes[1] == 0)


def test_names_of_your_own(root: Path) -> None:
    fill(root / "n01")
    fill(root / "n02")
    assert build(root, "image_folder", NUM_SHOTS=2).classnames == ["n01", "n02"]
    (root / "classnames.json").write_text('{"n02": "électric ray"}', encoding="utf-8")
    first = build(root, "image_folder", NUM_SHOTS=2)
    assert first.classnames == ["n01", "électric ray"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("{", r"classnames.json' is no JSON"),
        ('{"c": "crab"}', r"classnames.json' names 'c', which is no class folder; there are a, b_b"),
        ('{"a": "b b"}', r"the classes 'a' and 'b_b' in '.*' have one name, 'b b'"),
    ],
)
def test_mistakes_in_the_names(names: str, says: str, root: Path) -> None:
    fill(root / "a")
    fill(root / "b_b")
    (root / "classnames.json").write_text(names)
    with pytest.raises(UserError, match=says):
        build(root, "image_folder")


def test_mistakes_in_the_folders(root: Path) -> None:
    def fails(says: str) -> None:
        with pytest.raises(UserError, match=says) as error:
            build(root, "image_folder")
        assert "\n" not in str(error.value)

    fails("no data root for ImageFolder: looked for")
    root.mkdir()
    fails("holds no class folders")
    fill(root / "crab")
    empty = fill(root / "sea horse", 0)
    fails(f"class folder '{empty}' is empty")
    (empty / "a.txt").touch()
    fails(f"class folder '{empty}' has no pictures in it")
    fill(empty / "session1", 2)
    fails(f"class folder '{empty}' has no pictures of its own, but 2 below it; move them up, or call the folders of")
    shutil.rmtree(empty / "session1")
    fill(empty, 1)
    fails("class 'sea horse' has 1 images; a split takes 2 or more")
    assert not split_of(root).exists()


def test_mistakes_in_the_parts(root: Path) -> None:
    fill(root / "train" / "crab")
    with pytest.raises(UserError, match=r"has train/ but no test/ \(nor val/\) beside it"):
        build(root, "image_folder")
    fill(root / "test" / "crap")
    with pytest.raises(UserError, match="test/crap' is no class of train/: crab"):
        build(root, "image_folder")


def test_pictures_that_come_and_go(root: Path) -> None:
    fill(root / "crab")
    build(root, "image_folder")
    fill(root / "crab", 12)
    with pytest.raises(
        UserError, match=r"2 pictures have come to .*'crab/10.png' the first; remove '.*/cache/.*/split_zhou_Image"
    ):
        build(root, "image_folder")
    for i in (3, 10, 11):
        (root / "crab" / f"{i}.png").unlink()
    with pytest.raises(UserError, match=r"1 of 10 files are not in .*'crab/3.png'"):
        build(root, "image_folder")
    split_of(root).unlink()
    assert len(build(root, "image_folder").test) == 9 - 4 - 2


@pytest.fixture
def read_only(root: Path) -> Iterator[Path]:
    fill(root / "crab")
    fill(root / "sea horse")
    mounted = os.geteuid() == 0  # permissions do not stop root
    if mounted:
        for options in ("bind", "remount,ro,bind"):
            done = subprocess.run(["mount", "-o", options, str(root), str(root)], capture_output=True)
            if done.returncode:
                pytest.skip("no file system can be mounted here")
    else:
        root.chmod(0o555)
    yield root
    subprocess.run(["umount", "-l", str(root)], check=True) if mounted else root.chmod(0o755)


def test_a_folder_that_cannot_be_written(read_only: Path, tmp_path: Path) -> None:
    first = build(read_only, "image_folder", NUM_SHOTS=2)
    assert sorted(os.listdir(read_only)) == ["crab", "sea horse"]
    (kept,) = (tmp_path / "cache").rglob(SPLIT_FILE)
    assert len(json.loads(kept.read_text())["train"]) == 10
    second = build(read_only, "image_folder", NUM_SHOTS=2)
    assert [files(first.train_x), files(first.test)] == [files(second.train_x), files(second.test)]


def test_two_folders_never_share_a_run(tmp_path: Path) -> None:
    configs = ("--dataset-config-file", str(REPOSITORY / "configs/datasets/image_folder.yaml"))
    trainer = ("--trainer", "CoOp", "--config-file", str(REPOSITORY / "configs/trainers/CoOp/rn50_ep50.yaml"))
    places = []
    for folder in (tmp_path / "a" / "pictures", tmp_path / "b" / "pictures"):
        args = build_parser().parse_args(["--seed", "1", "--root", str(folder), *configs, *trainer])
        places.append(output_directory(args, *setup_cfg(args)))
    assert places[0] != places[1]
    assert all("image_folder-pictures-" in str(place) for place in places)


# --- DATASETS.md


def blocks(heading: str) -> list[tuple[str, str]]:
    """(language, text) of the code blocks below a heading of DATASETS.md."""
    text = (REPOSITORY / "DATASETS.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_worked_example(tmp_path: Path) -> None:
    code = {language: text for language, text in blocks("Your own pictures") if language}
    for name in ("scripts", "configs", "datasets", "assets"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-c", code["python"])
    check, train, zero_shot = code["bash"].strip().splitlines()
    promised = re.search(r"The first says `(.*?)`", (REPOSITORY / "DATASETS.md").read_text(encoding="utf-8"))
    (row,) = (line for line in run("bash", "-ec", check).splitlines() if line.startswith("image_folder"))
    assert promised and promised[1].split() == row.split()[1:]
    assert "PLOT on image_folder, 4 shots" in run("bash", "-ec", train)
    assert "Prompt: a drawing of a {}." in run("bash", "-ec", zero_shot)
    (result,) = (tmp_path / "output").glob("image_folder*/PLOT/symbols_4shots/*/seed1/result.json")
    assert json.loads(result.read_text())["counts"] == {"classes": 3, "train": 12, "val": 12, "test": 18}


def test_a_dataset_in_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((language, code),) = [block for block in blocks("A dataset of your own in code") if block[0]]
    assert language == "python" and len(code[code.index("@") :].splitlines()) < 15
    fill(tmp_path / "birds" / "images" / "hen", ending=".jpg")
    fill(tmp_path / "birds" / "images" / "owl", ending=".jpg")
    monkeypatch.setattr(DATASET_REGISTRY, "_objects", dict(DATASET_REGISTRY._objects))
    exec(code, {"__name__": "birds"})
    dataset = build(tmp_path, "dtd", NAME="Birds", NUM_SHOTS=2, SUBSAMPLE_CLASSES="new")
    assert prepare.main(["birds", "--root", str(tmp_path), "--check", "--decode"]) == 0
    assert dataset.classnames == ["owl"] and (len(dataset.train_x), len(dataset.test)) == (2, 3)
    assert places(tmp_path / "birds", "split_zhou_Birds.json")[1].is_file()
