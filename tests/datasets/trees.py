"""Small trees in each dataset's layout, with annotation files: LAYOUTS[config name](root) writes one.

It returns the dataset's folder, without a split file. A class has PER_CLASS images by default. ``build`` loads one;
``as_coop_draws`` gives the expected few-shot sets.
"""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

import datasets  # noqa: F401 - registers them
import trainers
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from datasets.files import places

CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"
PER_CLASS = 10
WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331")
NAMES = ("tench", "goldfish", "great white shark", "tiger shark", "hammerhead shark", "electric ray")


def picture(file: Path, colour: int = 0) -> None:
    """A JPEG or PNG file of 8 x 6 pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    Image.new("RGB", (8, 6), (colour % 256, 90, 200)).save(data, "PNG" if file.suffix == ".png" else "JPEG")
    file.write_bytes(data.getvalue())


def class_folders(images: Path, classes: Sequence[str], name: str = "{c}_{i:03d}.jpg", n: int = PER_CLASS) -> None:
    for label, c in enumerate(classes):
        for i in range(n):
            picture(images / c / name.format(c=c, i=i), label * 20 + i)


def lines(file: Path, rows: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def caltech101(root: Path) -> Path:
    folder = root / "caltech-101"
    classes = ("BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "airplanes", "sea_horse")
    class_folders(folder / "101_ObjectCategories", classes, "image_{i:04d}.jpg")
    (folder / "101_ObjectCategories" / "BACKGROUND_Google" / "tmp").touch()
    return folder


def dtd(root: Path) -> Path:
    folder = root / "dtd"
    class_folders(folder / "images", ("banded", "polka-dotted", "zigzagged"), "{c}_{i:04d}.jpg")
    (folder / "images" / "banded" / ".directory").touch()
    lines(folder / "labels" / "train1.txt", ["banded/banded_0000.jpg"])
    return folder


def eurosat(root: Path) -> Path:
    folder = root / "eurosat"
    class_folders(folder / "2750", ("SeaLake", "AnnualCrop", "Forest", "River"), "{c}_{i}.jpg", n=12)
    return folder


def food101(root: Path) -> Path:
    folder = root / "food-101"
    class_folders(folder / "images", ("apple_pie", "crème_brûlée", "waffles"), "{i}0042.jpg")
    lines(folder / "meta" / "classes.txt", ["apple_pie"])
    return folder


def fgvc_aircraft(root: Path) -> Path:
    folder = root / "fgvc_aircraft"
    variants = ("707-320", "Boeing 717", "DC-3", "A340-300")  # unsorted, as in the official file
    lines(folder / "variants.txt", variants)
    numbers = iter(range(1000000, 2000000))
    for part, n in (("train", 5), ("val", 5), ("test", 4)):
        rows = [f"{next(numbers)} {variants[(i * 3 + 1) % 4]}" for i in range(4 * n)]
        lines(folder / f"images_variant_{part}.txt", rows)
        for row in rows:
            picture(folder / "images" / f"{row.split()[0]}.jpg")
    return folder


def oxford_flowers(root: Path) -> Path:
    folder = root / "oxford_flowers"
    labels = [1 + (i * 7 + i // 5) % 3 for i in range(36)]  # mixed, and 1 is not the first to appear
    labels[0] = 3
    for i in range(len(labels)):
        picture(folder / "jpg" / f"image_{i + 1:05d}.jpg", i)
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    names = {"1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "canterbury bells"}
    (folder / "cat_to_name.json").write_text(json.dumps(names))
    return folder


def oxford_pets(root: Path) -> Path:
    folder = root / "oxford_pets"
    breeds = ("Abyssinian", "american_bulldog", "Maine_Coon")
    for part, start in (("trainval", 1), ("test", 101)):
        rows = [f"{breed}_{i} {1 + k} 1 1" for k, breed in enumerate(breeds) for i in range(start, start + PER_CLASS)]
        lines(folder / "annotations" / f"{part}.txt", rows[3:] + rows[:3])
        for row in rows:
            picture(folder / "images" / f"{row.split()[0]}.jpg")
    return folder


def stanford_cars(root: Path) -> Path:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True, exist_ok=True)
    names = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012")
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    corners = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    fields = [*((corner, object) for corner in corners), ("class", object), ("fname", object)]
    for part, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(1, 1, 8, 6, 1 + (i * 2 + i // 3) % 3, f"{i + 1:05d}.jpg") for i in range(3 * PER_CLASS)]
        savemat(folder / file, {"annotations": np.array([rows], dtype=fields)})
        for row in rows:
            picture(folder / f"cars_{part}" / row[-1])
    return folder


def sun397(root: Path) -> Path:
    folder = root / "sun397"
    classes = ("/a/abbey", "/a/apartment_building/outdoor", "/c/carrousel", "/w/wine_cellar/barrel_storage")
    lines(folder / "ClassName.txt", classes)
    for part, start in (("Training", 0), ("Testing", 100)):
        rows = [f"{c}/sun_a{i:03d}b.jpg" for c in classes[::-1] for i in range(start, start + PER_CLASS)]
        lines(folder / f"{part}_01.txt", rows)
        for row in rows:
            picture(folder / "SUN397" / row[1:])
    return folder


def ucf101(root: Path) -> Path:
    folder = root / "ucf101"
    actions = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "HandstandPushups": "Handstand_Pushups", "YoYo": "Yo_Yo"}
    lists = folder / "ucfTrainTestlist"
    lines(lists / "classInd.txt", [f"{i} {action}" for i, action in enumerate(actions, start=1)])
    for part, groups in (("train", range(8, 18)), ("test", range(1, 8))):
        videos = [(k, a, f"v_{a}_g{g:02d}_c01") for k, a in enumerate(actions, start=1) for g in groups]
        lines(lists / f"{part}list01.txt", [f"{a}/{v}.avi{f' {k}' * (part == 'train')}" for k, a, v in videos])
        for k, a, v in videos:
            picture(folder / "UCF-101-midframes" / actions[a] / f"{v}.jpg", k)
    return folder


def classnames(folder: Path) -> None:
    lines(folder / "classnames.txt", [f"{wnid} {name}" for wnid, name in zip(WNIDS, NAMES, strict=True)])


def imagenet(root: Path) -> Path:
    folder = root / "imagenet"
    class_folders(folder / "images" / "train", WNIDS, "{c}_{i}.JPEG")
    class_folders(folder / "images" / "val", WNIDS, "ILSVRC2012_val_{c}{i}.JPEG", n=3)
    classnames(folder)
    return folder


def variant(folder: str, images: str, classes: Sequence[str], name: str, n: int, root: Path) -> Path:
    """One of ImageNet's other test sets. A file beside the class folders is no class."""
    class_folders(root / folder / images, classes, name, n)
    (root / folder / images / "README.txt").touch()
    classnames(root / folder)
    return root / folder


V2 = ("imagenetv2", "imagenetv2-matched-frequency-format-val", [str(label) for label in range(len(WNIDS))])
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    layout.__name__: layout
    for layout in (
        *(caltech101, dtd, eurosat, food101, fgvc_aircraft, oxford_flowers, oxford_pets, stanford_cars, sun397),
        *(ucf101, imagenet),
    )
}
LAYOUTS |= {
    "imagenetv2": partial(variant, *V2, "{c}{i}ab.jpeg", 3),
    "imagenet_sketch": partial(variant, "imagenet-sketch", "images", WNIDS, "sketch_{i}.JPEG", 4),
    "imagenet_a": partial(
        variant, "imagenet-adversarial", "imagenet-a", (WNIDS[4], WNIDS[1]), "0.00{i}_fox_0.9.jpg", 4
    ),
    "imagenet_r": partial(variant, "imagenet-rendition", "imagenet-r", WNIDS[::3] + WNIDS[5:], "art_{i}.jpg", 4),
}


def config(root: Path, name: str, seed: int = 1, **dataset: object) -> Any:
    """The config of configs/datasets/NAME.yaml; ``dataset`` sets keys of cfg.DATASET."""
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.DATASET.ROOT, cfg.SEED, cfg.VERBOSE = str(root), seed, False
    cfg.DATASET.update(dataset)
    return cfg


def build(root: Path, name: str, seed: int = 1, **dataset: object) -> Any:
    """The dataset of ``config``, as a run builds it."""
    return build_dataset(config(root, name, seed, **dataset))


def publish_split(folder: Path) -> None:
    """Moves the split that was made of a dataset from the cache folder to the data, as if it were the published one."""
    for made in places(folder, "")[1].glob("split_*.json"):
        made.rename(folder / made.name)


def rows(data: Sequence[Any] | None, images: Path) -> list[list[Any]]:
    """[image, label, class name] of each, as a split file has them."""
    return [[os.path.relpath(d.impath, images), d.label, d.classname] for d in data or ()]


def as_coop_draws(split: dict[str, list[list[Any]]], shots: int, seed: int) -> list[list[list[Any]]]:
    """CoOp's procedure, spelled out: Python's own generator, seeded; training first, then validation."""
    random.seed(seed)
    drawn = []
    for part, n in (("train", shots), ("val", min(shots, 4))):
        by_label: dict[int, list[list[Any]]] = {}
        for row in split[part]:
            by_label.setdefault(row[1], []).append(row)
        drawn.append(
            [r for group in by_label.values() for r in (random.sample(group, n) if len(group) >= n else group)]
        )
    return drawn
