"""All fifteen datasets from small trees in their real layout, without and with a split file."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, cache_folder, read_image

from .trees import CONFIGS, LAYOUTS, NAMES, WNIDS, as_coop_draws, build, lines, picture, rows

# config: folder, image folder in it, class names, images in training, validation and test (scipy's .mat included)
EXPECTED: dict[str, tuple[str, str, list[str], tuple[int, int, int]]] = {
    "caltech101": ("caltech-101", "101_ObjectCategories", ["face", "leopard", "airplane", "sea_horse"], (20, 8, 12)),
    "dtd": ("dtd", "images", ["banded", "polka-dotted", "zigzagged"], (15, 6, 9)),
    "eurosat": ("eurosat", "2750", ["Annual Crop Land", "Forest", "River", "Sea or Lake"], (24, 8, 16)),
    "food101": ("food-101", "images", ["apple_pie", "crème_brûlée", "waffles"], (15, 6, 9)),
    "fgvc_aircraft": ("fgvc_aircraft", "images", ["707-320", "Boeing 717", "DC-3", "A340-300"], (20, 20, 16)),
    "oxford_flowers": (
        "oxford_flowers",
        "jpg",
        ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"],
        (18, 8, 10),
    ),
    "oxford_pets": ("oxford_pets", "images", ["abyssinian", "american_bulldog", "maine_coon"], (24, 6, 30)),
    "stanford_cars": (
        "stanford_cars",
        "",
        ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 smart fortwo Convertible"],
        (24, 6, 30),
    ),
    "sun397": (
        "sun397",
        "SUN397",
        ["abbey", "outdoor apartment_building", "carrousel", "barrel_storage wine_cellar"],
        (32, 8, 40),
    ),
    "ucf101": ("ucf101", "UCF-101-midframes", ["Apply_Eye_Makeup", "Handstand_Pushups", "Yo_Yo"], (24, 6, 21)),
    "imagenet": ("imagenet", "images", list(NAMES), (60, 0, 18)),
    "imagenetv2": ("imagenetv2", "imagenetv2-matched-frequency-format-val", list(NAMES), (18, 0, 18)),
    "imagenet_sketch": ("imagenet-sketch", "images", list(NAMES), (24, 0, 24)),
    "imagenet_a": ("imagenet-adversarial", "imagenet-a", ["goldfish", "hammerhead shark"], (8, 0, 8)),
    "imagenet_r": ("imagenet-rendition", "imagenet-r", ["tench", "tiger shark", "electric ray"], (12, 0, 12)),
}
WITHOUT_SPLIT_FILE = ("fgvc_aircraft", "imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
WITH_SPLIT_FILE = sorted(set(EXPECTED) - set(WITHOUT_SPLIT_FILE))


def parts(dataset: Any, images: Path) -> dict[str, list[list[Any]]]:
    return {
        "train": rows(dataset.train_x, images),
        "val": rows(dataset.val, images),
        "test": rows(dataset.test, images),
    }


def test_there_are_fifteen() -> None:
    assert sorted(EXPECTED) == sorted(LAYOUTS) and len(LAYOUTS) == 15
    symbols = {"symbols", "symbols_layout", "symbols_occlusion", "symbols_outline", "symbols_texture"}
    assert set(LAYOUTS) | symbols <= {path.stem for path in CONFIGS.glob("*.yaml")}


@pytest.mark.parametrize("name", EXPECTED)
def test_from_the_original_annotations(name: str, tmp_path: Path) -> None:
    folder, image_dir, classnames, sizes = EXPECTED[name]
    assert LAYOUTS[name](tmp_path) == tmp_path / folder
    images = tmp_path / folder / image_dir
    dataset = build(tmp_path, name)
    assert dataset.classnames == classnames
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == sizes
    made = parts(dataset, images)
    assert all((images / file).is_file() for part in made.values() for file, _, _ in part)
    assert read_image(dataset.test[0].impath).size == (8, 6)
    files = [{file for file, _, _ in part} for part in made.values()]
    if sizes[1] and name != "imagenet":
        assert not files[0] & files[1] and not files[0] & files[2] and not files[1] & files[2]
    assert made == parts(build(tmp_path, name, seed=2), images)  # made once; another seed reads the same


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_the_split_made_depends_on_the_seed_and_its_file_decides(name: str, tmp_path: Path) -> None:
    folder, image_dir, classnames, _ = EXPECTED[name]
    LAYOUTS[name](tmp_path)
    images = tmp_path / folder / image_dir
    saved = []
    for seed in (2, 1, 1):
        for old in cache_folder().rglob("split_zhou_*.json"):
            old.unlink()
        made = parts(build(tmp_path, name, seed=seed), images)
        (file,) = cache_folder().rglob("split_zhou_*.json")
        saved.append(json.loads(file.read_text()))
        assert saved[-1] == made
    assert saved[0] != saved[1] == saved[2]
    other = {"train": made["test"][::-1], "val": made["train"], "test": made["val"]}
    file.write_text(json.dumps(other, indent=4))
    dataset = build(tmp_path, name)
    assert parts(dataset, images) == other
    assert dataset.classnames == classnames


@pytest.mark.parametrize("name", EXPECTED)
def test_few_shot_sets_and_base_and_new(name: str, tmp_path: Path) -> None:
    folder, image_dir, classnames, sizes = EXPECTED[name]
    LAYOUTS[name](tmp_path)
    images = tmp_path / folder / image_dir
    whole = parts(build(tmp_path, name), images)
    few = parts(build(tmp_path, name, seed=3, NUM_SHOTS=2), images)
    if sizes[1] or name == "imagenet":
        train, val = as_coop_draws(whole, 2, 3)
        if name == "imagenet":  # CoOp validates on its test images, here on training images: test_few_shot.py
            val = few["val"]
        assert few == {"train": train, "val": val, "test": whole["test"]}
    else:
        assert few == whole  # for testing only: nothing is drawn
    half = (len(classnames) + 1) // 2
    for subsample, labels in (("base", range(half)), ("new", range(half, len(classnames)))):
        if labels:
            part = parts(build(tmp_path, name, seed=3, NUM_SHOTS=2, SUBSAMPLE_CLASSES=subsample), images)
            for key in part:  # drawn first, subsampled after
                assert part[key] == [[f, y - labels[0], c] for f, y, c in few[key] if y in labels]


def test_dtds_split_is_coops_by_the_book(tmp_path: Path) -> None:
    """Python's generator, seeded; a class's sorted files shuffled, cut at a half and at seven tenths."""
    LAYOUTS["dtd"](tmp_path)
    random.seed(7)
    split: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(("banded", "polka-dotted", "zigzagged")):
        files = [f"{name}/{name}_{i:04d}.jpg" for i in range(10)]
        random.shuffle(files)
        for part, chosen in (("train", files[:5]), ("val", files[5:7]), ("test", files[7:])):
            split[part] += [[file, label, name] for file in chosen]
    assert parts(build(tmp_path, "dtd", seed=7), tmp_path / "dtd/images") == split


def test_pets_split_is_coops_by_the_book(tmp_path: Path) -> None:
    """A fifth of each class's trainval images, shuffled by index, for validation; classes as they first appear."""
    LAYOUTS["oxford_pets"](tmp_path)
    random.seed(7)
    by_label: dict[str, list[str]] = {}
    trainval = (tmp_path / "oxford_pets/annotations/trainval.txt").read_text().split("\n")[:-1]
    for line in trainval:
        by_label.setdefault(line.split()[1], []).append(f"{line.split()[0]}.jpg")
    train, val = [], []
    for files in by_label.values():
        random.shuffle(files)
        val += files[:2]
        train += files[2:]
    dataset = build(tmp_path, "oxford_pets", seed=7)
    assert [Path(d.impath).name for d in dataset.train_x] == train
    assert [Path(d.impath).name for d in dataset.val] == val


def test_imagenets_listing_is_kept_until_a_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LAYOUTS["imagenet"](tmp_path)
    before = build(tmp_path, "imagenet")
    paths = [d.impath for d in before.train_x]
    assert paths == sorted(paths)  # whatever the order on disk
    listed: list[str] = []

    def count(path: Path) -> Any:
        listed.append(Path(path).name)
        return scandir(path)

    from datasets import files

    scandir = files.os.scandir
    monkeypatch.setattr(files.os, "scandir", count)
    assert build(tmp_path, "imagenet").train_x == before.train_x
    assert listed == ["train", "val"]  # their class folders, but nothing in those
    listed.clear()
    picture(folder / "images/train" / WNIDS[2] / "a new one.JPEG")
    assert len(build(tmp_path, "imagenet").train_x) == len(before.train_x) + 1
    assert listed == ["train", WNIDS[2], "val"]


def test_mistakes_in_imagenets_folders(tmp_path: Path) -> None:
    folder = LAYOUTS["imagenet"](tmp_path)
    picture(folder / "images/val/n09999999/x.JPEG")
    with pytest.raises(UserError, match=r"same class folders; 1 are in one of them only, 'n09999999'"):
        build(tmp_path, "imagenet")
    picture(folder / "images/train/n09999999/x.JPEG")
    with pytest.raises(UserError, match=r"1 class folders are not in classnames.txt: 'n09999999'"):
        build(tmp_path, "imagenet")
    v2 = LAYOUTS["imagenetv2"](tmp_path)
    lines(v2 / "classnames.txt", [f"n{i:08d} class {i}" for i in range(8)])
    with pytest.raises(
        UserError, match=r"should have the folders 0 to 7, .* 2 are missing or have no line, '6' the first"
    ):
        build(tmp_path, "imagenetv2")


@pytest.mark.parametrize(
    ("name", "damaged", "content", "says"),
    [
        ("oxford_pets", "annotations/test.txt", None, "no annotation file '.*annotations/test.txt'"),
        ("oxford_flowers", "imagelabels.mat", b"MATLAB 5.0 MAT-file, cut", "is no MATLAB file with 'labels' in it"),
    ],
)
def test_damaged_annotations_are_named(
    name: str, damaged: str, content: bytes | None, says: str, tmp_path: Path
) -> None:
    folder = LAYOUTS[name](tmp_path)
    (folder / damaged).unlink() if content is None else (folder / damaged).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        build(tmp_path, name)
    assert "\n" not in str(error.value)
    assert not list(folder.glob("split_*")) and not list(cache_folder().rglob("split_*"))


# Annotation files of another form: the line that is not understood is named.

ANOTHER_FORM = [
    ("imagenet", "classnames.txt", "n01440764 449 tench", "n01440764 tench"),  # as map_clsloc.txt has it
    ("imagenet_r", "classnames.txt", "n01440764 tench, Tinca tinca", "n01440764 tench"),  # LOC_synset_mapping.txt
    ("imagenetv2", "classnames.txt", "tench", "n01440764 tench"),
    ("imagenet", "classnames.txt", "n01440764 0: tench", "n01440764 tench"),
    ("imagenet", "classnames.txt", 'n01440764 "tench"', "n01440764 tench"),
    ("fgvc_aircraft", "images_variant_val.txt", "1025794,707-320", "1025794 707-320"),
    ("fgvc_aircraft", "images_variant_val.txt", "1025794 A380", "'A380' is not listed"),
    ("oxford_pets", "annotations/trainval.txt", "Abyssinian_1", "Abyssinian_100 1 1 1"),
    ("oxford_pets", "annotations/test.txt", "#Image CLASS-ID SPECIES BREED ID", "Abyssinian_100 1 1 1"),
    ("sun397", "ClassName.txt", "1 /a/abbey", "/a/abbey"),
    ("sun397", "Testing_01.txt", "/z/zoo/sun_a.jpg", "'z/zoo' is not listed"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", "ApplyEyeMakeup 1", "1 ApplyEyeMakeup"),
    ("ucf101", "ucfTrainTestlist/testlist01.txt", "YoYo/v_YoYo_g01_c01.jpg", "v_ApplyEyeMakeup_g08_c01.avi"),
]


@pytest.mark.parametrize(("name", "file", "line", "says"), ANOTHER_FORM)
def test_a_line_of_another_form_is_named(name: str, file: str, line: str, says: str, tmp_path: Path) -> None:
    path = LAYOUTS[name](tmp_path) / file
    before = path.read_text().splitlines()
    lines(path, [*before[:2], line, *before[2:]])
    with pytest.raises(UserError) as error:
        build(tmp_path, name)
    assert f"'{path}', line 3, {line!r}: " in str(error.value) and says in str(error.value)


@pytest.mark.parametrize("name", ["imagenet", "fgvc_aircraft", "oxford_pets", "oxford_flowers", "sun397", "ucf101"])
def test_windows_text_files_are_read_alike(name: str, tmp_path: Path) -> None:
    folder = LAYOUTS[name](tmp_path / "unix")
    before = parts(build(tmp_path / "unix", name), folder / EXPECTED[name][1])
    folder = LAYOUTS[name](tmp_path / "windows")
    texts = [path for path in folder.rglob("*") if path.suffix in (".txt", ".json")]
    for path in texts:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert texts and parts(build(tmp_path / "windows", name), folder / EXPECTED[name][1]) == before


@pytest.mark.parametrize("raw", ["crème brûlée".encode("latin-1"), "n tench".encode("utf-16")])
def test_a_text_of_another_encoding_is_named(raw: bytes, tmp_path: Path) -> None:
    path = LAYOUTS["sun397"](tmp_path) / "ClassName.txt"
    path.write_bytes(b"/a/abbey\n" + raw)
    with pytest.raises(UserError, match=r"ClassName.txt', line 2, .*: it is no UTF-8 .*should be like '/a/abbey'"):
        build(tmp_path, "sun397")


def test_annotations_whose_numbers_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuses(name: str, says: str) -> None:
        with pytest.raises(UserError, match=says) as error:
            build(tmp_path, name)
        assert "\n" not in str(error.value)

    folder = LAYOUTS["imagenet"](tmp_path)
    names = (folder / "classnames.txt").read_text()
    (folder / "classnames.txt").write_text(names + "n01440764 carp\n")
    refuses("imagenet", "classnames.txt' names the class folder 'n01440764' twice")
    (folder / "classnames.txt").write_text(names + "n01498041 stingray\n")
    build(tmp_path, "imagenet")
    assert "1 of the 7 classes of classnames.txt have no folder" in capsys.readouterr().out

    folder = LAYOUTS["imagenetv2"](tmp_path)
    lines(folder / "classnames.txt", (folder / "classnames.txt").read_text().splitlines()[:4])
    refuses("imagenetv2", "should have the folders 0 to 3, .* 2 are missing or have no line, '4' the first")

    folder = LAYOUTS["oxford_flowers"](tmp_path)
    (folder / "cat_to_name.json").write_text('{"1": "pink primrose", "3": "canterbury bells"}')
    refuses("oxford_flowers", "cat_to_name.json' has no name for class 2")
    LAYOUTS["oxford_flowers"](tmp_path)
    savemat(folder / "imagelabels.mat", {"labels": np.ones((1, 30), dtype=np.uint8)})
    refuses("oxford_flowers", "imagelabels.mat' has 30 labels; there are more pictures")

    folder = LAYOUTS["stanford_cars"](tmp_path)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([["A 2000"]], dtype=object)})
    refuses("stanford_cars", "cars_train_annos.mat': '00002.jpg' has the class 3; cars_meta.mat names 1 to 1")
    unlabelled = np.array([[("00001.jpg",)]], dtype=[("fname", object)])  # as the devkit's cars_test_annos.mat
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": unlabelled})
    LAYOUTS["stanford_cars"](tmp_path / "whole")
    (tmp_path / "whole/stanford_cars/devkit").rename(tmp_path / "devkit")
    (folder / "devkit/cars_meta.mat").write_bytes((tmp_path / "devkit/cars_meta.mat").read_bytes())
    refuses("stanford_cars", "withlabels.mat': 'annotations' has no field 'class'; it has fname")


def test_v2s_labels_do_not_depend_on_the_order_of_the_names(tmp_path: Path) -> None:
    folder = LAYOUTS["imagenetv2"](tmp_path)
    before = build(tmp_path, "imagenetv2").lab2cname
    lines(folder / "classnames.txt", (folder / "classnames.txt").read_text().splitlines()[::-1])
    assert build(tmp_path, "imagenetv2").lab2cname == before


def test_each_has_the_template_of_the_paper() -> None:
    expected = {
        "DescribableTextures": "{} texture.",
        "UCF101": "a photo of a person doing {}.",
        "ImageNetR": "a photo of a {}.",
    }
    assert {name: DATASET_REGISTRY.get(name).template for name in expected} == expected
