"""Large datasets load in seconds: on trees of empty files, of SUN397's size and a tenth of ImageNet's.

Seconds of this process, so that what else the machine does is not counted; waiting for a disk is not either.
"""

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .trees import build, lines


def seconds(root: Path, name: str, **dataset: object) -> float:
    start = time.process_time()
    build(root, name, **dataset)
    return time.process_time() - start


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    shutil.rmtree(tmp_path / "data")  # a hundred thousand files are not left for a look afterwards


def test_sun397s_39700_files_load_in_under_2_seconds(root: Path) -> None:
    rows = []
    for label in range(397):
        folder = root / f"sun397/SUN397/a/class_{label}"
        folder.mkdir(parents=True)
        for i in range(100):
            open(folder / f"sun_{i:020d}.jpg", "w").close()
            rows.append([f"a/class_{label}/sun_{i:020d}.jpg", label, f"class {label}"])
    random.Random(1).shuffle(rows)
    split = {"train": rows[:15880], "val": rows[15880:19850], "test": rows[19850:]}
    (root / "sun397/split_zhou_SUN397.json").write_text(json.dumps(split, indent=4))
    seconds(root, "sun397", NUM_SHOTS=16)
    for shots in (16, 0):
        assert seconds(root, "sun397", NUM_SHOTS=shots) < 2


def test_a_tenth_of_imagenet_loads_in_a_tenth_of_5_seconds(root: Path) -> None:
    """A tenth of the classes, each of the usual size, so that nothing is left that does not grow with the files."""
    folder = root / "imagenet"
    wnids = [f"n{label:08d}" for label in range(100)]
    for part, n in (("train", 1281), ("val", 50)):
        for wnid in wnids:
            (folder / "images" / part / wnid).mkdir(parents=True)
            for i in range(n):
                open(f"{folder}/images/{part}/{wnid}/{wnid}_{i}.JPEG", "w").close()
    lines(folder / "classnames.txt", [f"{wnid} name of {wnid}" for wnid in wnids])
    seconds(root, "imagenet", NUM_SHOTS=16)
    for shots in (16, 0):
        assert min(seconds(root, "imagenet", NUM_SHOTS=shots) for _ in range(3)) < 0.5
