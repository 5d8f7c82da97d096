"""Methods on frozen features through whole runs: what they read, choose, resume, refuse, and where they appear."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

import dassl.data.data_manager
import train
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.samplers import EpochIndex
from dassl.engine import build_trainer
from dassl.utils import UserError
from runs.command_line import build_parser
from runs.config import setup_cfg
from runs.loaded import load
from runs.prediction import main as predict_main
from runs.prediction import predict
from tests import children
from tests.oracle import tip_logits
from tests.runs.test_train import CONFIGS, SMALL

pytestmark = pytest.mark.medium

FITTED = ("LinearProbe", "NearestClassMean", "TipAdapter", "TipAdapterF", "PLOTAdapter")


def command(run_args: list[str], trainer: str, *opts: str) -> list[str]:
    folder = {"NearestClassMean": "LinearProbe", "LinearProbe": "LinearProbe", "PLOT": "PLOT"}.get(
        trainer, "TipAdapter"
    )
    return [
        *run_args,
        *("--trainer", trainer, "--dataset-config-file", str(CONFIGS / "datasets/caltech101.yaml")),
        *("--config-file", str(CONFIGS / f"trainers/{folder}/rn50.yaml")),
        *(*SMALL, "DATASET.NUM_SHOTS", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.MAX_EPOCH", "2", *opts),
    ]


def small(trainer: str) -> list[str]:
    """A short search."""
    node = "PLOT_ADAPTER" if trainer == "PLOTAdapter" else "TIP_ADAPTER"
    keys = {"VIEWS": 2, "ALPHA_STEPS": 3, "BETA_STEPS": 4}
    return (
        []
        if trainer in ("LinearProbe", "NearestClassMean")
        else [w for k, v in keys.items() for w in (f"TRAINER.{node}.{k}", str(v))]
    )


@pytest.fixture(scope="module")
def finished_plot(data_root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("plot")
    flags = ["--root", str(data_root), "--seed", "1", "--backbone", str(weights)]
    assert train.main(["--output-dir", str(output), *command(flags, "PLOT", "TRAINER.PLOT.N", "2")]) == 0
    return output


@pytest.fixture
def plot_run(finished_plot: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return shutil.copytree(finished_plot, tmp_path / "plot")


def run_of(trainer: str, run_args: list[str], output: Path, *opts: str, plot: Path | None = None) -> dict[str, Any]:
    named = ["TRAINER.PLOT_ADAPTER.PLOT_RUN", str(plot)] if plot else []
    argv = ["--output-dir", str(output), *command(run_args, trainer, *small(trainer), *named, *opts)]
    assert train.main(argv) == 0
    return json.loads((output / "result.json").read_text())


def loaded(run_args: list[str], trainer: str, *opts: str) -> Any:
    """The trainer of such a run, with its data."""
    cfg, _ = setup_cfg(build_parser().parse_args(command(run_args, trainer, *small(trainer), *opts)))
    return build_trainer(cfg)


@pytest.mark.parametrize("trainer", FITTED)
def test_no_test_image_is_read_before_the_test_and_a_second_run_reads_none(
    trainer: str, run_args: list[str], tmp_path: Path, plot_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: list[str] = []
    original = dassl.data.data_manager.read_image

    def noted(path: str, *more: Any) -> Any:
        read.append(Path(path).name.partition("_")[0])
        return original(path, *more)

    monkeypatch.setattr(dassl.data.data_manager, "read_image", noted)
    plot = plot_run if trainer == "PLOTAdapter" else None
    argv = ["--output-dir", str(tmp_path / "untested"), *command(run_args, trainer, *small(trainer))]
    argv += ["TRAINER.PLOT_ADAPTER.PLOT_RUN", str(plot)] if plot else []
    assert train.main([*argv, "TEST.NO_TEST", "True"]) == 0
    assert set(read) == ({"train"} if trainer == "NearestClassMean" else {"train", "val"})  # it has nothing to choose
    first = run_of(trainer, run_args, tmp_path / "first", plot=plot)
    assert "test" in read and first["test_selected"] is False and first["counts"]["val"] == 10
    read.clear()
    assert run_of(trainer, run_args, tmp_path / "second", plot=plot)["accuracy"] == first["accuracy"]
    assert set(read) <= {"train"}  # an adapter's training shows each epoch another view
    assert bool(read) == (trainer in ("TipAdapterF", "PLOTAdapter"))
    kept = [(tmp_path / run / "predictions.json").read_text() for run in ("first", "second")]
    assert kept[0] == kept[1]
    states = [torch.load(next((tmp_path / run / "head").glob("model*"))) for run in ("first", "second")]
    tensors = [{k: v for k, v in s["state_dict"].items() if k != "_extra_state"} for s in states]
    assert all(torch.equal(x, tensors[1][name]) for name, x in tensors[0].items())


@pytest.mark.parametrize(("published", "refused"), [("False", True), ("True", False)])
def test_a_head_gets_test_images_in_training_only_where_it_says_so(
    published: str, refused: bool, run_args: list[str]
) -> None:
    """The loaders that a head builds are sealed as the engine's own."""
    trainer = loaded(run_args, "TipAdapterF", "TRAINER.TIP_ADAPTER.AS_PUBLISHED", published)
    trainer.seal_test(True)
    with pytest.raises(UserError, match="asks for the test images") if refused else contextlib.nullcontext():
        trainer.loader(trainer.dm.dataset.test)
    trainer.loader(trainer.validation_images())
    trainer.seal_test(False)
    trainer.loader(trainer.dm.dataset.test)


def test_a_linear_probe_is_scikit_learns(run_args: list[str], tmp_path: Path) -> None:
    """Features of CLIP's own tower, the published search, and the predictions of the C that it finds."""
    result = run_of("LinearProbe", run_args, tmp_path / "run")
    trainer = loaded(run_args, "LinearProbe")
    encode = trainer.model.visual

    @torch.no_grad()
    def arrays(images: list[Any]) -> tuple[Any, Any]:
        transform = trainer.test_loader.dataset.transform
        pictures = [transform(dassl.data.data_manager.read_image(item.impath)) for item in images]
        return encode(torch.stack(pictures)).double().numpy(), np.array([item.label for item in images])

    dataset = trainer.dm.dataset
    (x, y), val = arrays(dataset.train_x), arrays(dataset.val)

    def score(c: float) -> float:
        return LogisticRegression(C=c, max_iter=1000).fit(x, y).score(*val)

    powers = [1e6, 1e4, 1e2, 1, 1e-2, 1e-4, 1e-6]
    scores = [score(c) for c in powers]
    left = powers[int(np.argmax(scores))] / 10
    right = left * 100
    for _ in range(8):
        middle = float(np.sqrt(left * right))
        chosen = right if score(left) < score(right) else left
        left, right = (middle, right) if chosen == right else (left, middle)
    head = torch.load(tmp_path / "run/head/model.pth.tar-1")["state_dict"]
    assert float(head["C"]) == pytest.approx(chosen, rel=1e-9)
    reference = LogisticRegression(C=float(head["C"]), max_iter=1000).fit(x, y)
    test = arrays(dataset.test)
    trainer.load_model(str(tmp_path / "run"))
    logits = trainer.logits(torch.from_numpy(test[0])).detach().numpy()
    np.testing.assert_allclose(logits, reference.decision_function(test[0]), rtol=1e-2, atol=1e-2)
    assert result["accuracy"] == pytest.approx(100 * reference.score(*test), abs=1e-3)
    assert (result["parameters"], result["epochs"]) == (5 * 64 + 5, 2)


@pytest.mark.parametrize("trainer", ["ZeroshotPLOT", "PLOTAdapter"])
def test_plans_that_are_not_converged_are_said(
    trainer: str, run_args: list[str], tmp_path: Path, plot_run: Path
) -> None:
    node, plot = {"ZeroshotPLOT": ("ZSPLOT", None), "PLOTAdapter": ("PLOT_ADAPTER", plot_run)}[trainer]
    result = run_of(trainer, run_args, tmp_path / "run", f"TRAINER.{node}.MAX_ITER", "1", plot=plot)
    assert result["diagnostics"]["unconverged"] == 100
    line = f"Not converged: 100% of the plans took TRAINER.{node}.MAX_ITER 1 iterations"
    assert line in (tmp_path / "run/log.txt").read_text()


def test_the_nearest_class_mean(run_args: list[str], tmp_path: Path) -> None:
    """Of the class means of unit features the one with the largest cosine."""
    result = run_of("NearestClassMean", run_args, tmp_path / "run")
    trainer = loaded(run_args, "NearestClassMean")
    (x, y), test = (
        trainer.features_of(trainer.loader(part)) for part in (trainer.dm.dataset.train_x, trainer.dm.dataset.test)
    )
    x, t = (F.normalize(features["pooled"].double(), dim=-1) for features in (x, test[0]))
    means = torch.stack([F.normalize(x[y == k].mean(dim=0), dim=0) for k in range(5)])
    right = ((t @ means.t()).argmax(dim=1) == test[1]).double().mean()
    assert result["accuracy"] == pytest.approx(100 * float(right), abs=1e-3)
    assert result["parameters"] == means.numel()
    trainer.load_model(str(tmp_path / "run"))
    logits = trainer.logits(test[0]["pooled"])
    torch.testing.assert_close(
        logits.double(), trainer.model.logit_scale.exp().double() * t @ means.t(), rtol=1e-4, atol=1e-3
    )


def test_c_may_be_given_and_two_classes_are_two(run_args: list[str], tmp_path: Path) -> None:
    base = ["DATASET.SUBSAMPLE_CLASSES", "new", "TRAINER.LINEAR_PROBE.C", "0.316"]
    run_of("LinearProbe", run_args, tmp_path / "run", *base)
    head = torch.load(tmp_path / "run/head/model.pth.tar-1")["state_dict"]
    assert head["weight"].shape == (2, 64) and float(head["C"]) == 0.316


def test_the_cache_is_the_mean_over_the_views(run_args: list[str], tmp_path: Path) -> None:
    run_of("TipAdapter", run_args, tmp_path / "run", "TRAINER.TIP_ADAPTER.VIEWS", "3")
    trainer = loaded(run_args, "TipAdapter")
    data = trainer.train_loader_x.dataset
    with torch.no_grad():
        views = [
            trainer.model.visual(torch.stack([data[EpochIndex(i, view)]["img"] for i in range(len(data))]))
            for view in range(3)
        ]
    keys = sum(views) / 3
    keys = keys / keys.norm(dim=1, keepdim=True)
    trainer.load_model(str(tmp_path / "run"))
    torch.testing.assert_close(trainer.head.keys, keys, atol=1e-5, rtol=1e-4)
    assert trainer.head.labels.tolist() == [item.label for item in data.data_source]
    image = torch.stack([trainer.test_loader.dataset[i]["img"] for i in range(4)])
    logits = trainer.model_inference(image)
    alpha, beta = float(trainer.head.alpha), float(trainer.head.beta)
    scale, pooled = trainer.model.logit_scale.exp(), trainer.model.visual(image)
    reference = tip_logits(scale, pooled, trainer.text, keys, trainer.head.labels, alpha, beta)
    torch.testing.assert_close(logits, reference.detach(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("trainer", "published"), [("TipAdapterF", "True"), ("PLOTAdapter", "False")])
def test_an_interrupted_training_ends_at_the_same_bits(
    trainer: str,
    published: str,
    run_args: list[str],
    tmp_path: Path,
    plot_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed within the first checkpoint, in the second epoch, and after it."""
    node = "PLOT_ADAPTER" if trainer == "PLOTAdapter" else "TIP_ADAPTER"
    named = ["TRAINER.PLOT_ADAPTER.PLOT_RUN", str(plot_run)] if trainer == "PLOTAdapter" else []
    opts = [*small(trainer), f"TRAINER.{node}.AS_PUBLISHED", published, *named]
    argv = ["--output-dir", str(tmp_path / "whole"), *command(run_args, trainer, *opts)]
    assert train.main(argv) == 0
    argv[1] = str(tmp_path / "killed")
    for event in (8, 13, 18):
        assert children.run(argv, tmp_path / "log", children.killed_at(event)) == -9
    capsys.readouterr()
    assert train.main(argv) == 0
    assert "Previous epoch: " in capsys.readouterr().out
    first, second = tmp_path / "whole", tmp_path / "killed"
    assert (first / "predictions.json").read_text() == (second / "predictions.json").read_text()
    states = [torch.load(run / "head/model-best.pth.tar")["state_dict"] for run in (first, second)]
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items() if name != "_extra_state")


@pytest.fixture
def like_imagenet(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes Caltech-101's validation images away: then training images are validated on."""

    def change() -> None:
        kind = DATASET_REGISTRY.get("Caltech101")
        read = kind.read
        monkeypatch.setattr(kind, "validate_on_train", True)
        monkeypatch.setattr(kind, "read", lambda self, *where: (read(self, *where)[0]._replace(val=[]), ""))

    return change


@pytest.mark.parametrize(
    ("trainer", "imagenet"),
    [
        *((trainer, imagenet) for trainer in ("TipAdapter", "TipAdapterF") for imagenet in (False, True)),
        ("PLOTAdapter", False),
    ],
)
def test_as_published_chooses_by_the_published_images_and_says_so(
    trainer: str,
    imagenet: bool,
    run_args: list[str],
    data_root: Path,
    tmp_path: Path,
    plot_run: Path,
    like_imagenet: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Alpha and beta by the whole validation set, on ImageNet by the test set; the epoch always by the test set."""
    if imagenet:
        like_imagenet()
    plot = plot_run if trainer == "PLOTAdapter" else None
    node = "PLOT_ADAPTER" if plot else "TIP_ADAPTER"
    clean = run_of(trainer, run_args, tmp_path / "clean", "OPTIM.MAX_EPOCH", "4", plot=plot)
    assert clean["test_selected"] is False and not re.search("^AS_PUBLISHED: ", capsys.readouterr().out, re.M)
    opts = [f"TRAINER.{node}.AS_PUBLISHED", "True", "OPTIM.MAX_EPOCH", "4"]
    leaky = run_of(trainer, run_args, tmp_path / "leaky", *opts, plot=plot)
    text = capsys.readouterr().out
    selected = imagenet or trainer != "TipAdapter"
    assert leaky["test_selected"] is selected and re.search("^AS_PUBLISHED: ", text, re.M)
    searched = len(list((data_root / "caltech-101").rglob("test_*" if imagenet else "val_*")))
    assert re.findall(r"% of (\d+) images", text) == [str(searched)] and searched > clean["counts"]["val"]
    if trainer == "TipAdapter":
        assert not imagenet or leaky["accuracy"] >= clean["accuracy"]
    else:
        best = max(map(float, re.findall(r"is the best on the test set, (\S+)%", text)))
        assert leaky["accuracy"] >= best - 0.01
    assert predict_main(["--run", str(tmp_path / "leaky"), str(next(Path(run_args[1]).rglob("*.jpg")))]) == 0


@pytest.mark.parametrize("trainer", [*FITTED, "ZeroshotCLIP2", "ZeroshotPLOT"])
def test_predict_gives_the_runs_own_predictions(
    trainer: str,
    run_args: list[str],
    data_root: Path,
    tmp_path: Path,
    plot_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """PLOT-Adapter without its PLOT run, too; a head is for its own classes alone."""
    run_of(trainer, run_args, tmp_path / "run", plot=plot_run if trainer == "PLOTAdapter" else None)
    shutil.rmtree(plot_run)
    kept = json.loads((tmp_path / "run/predictions.json").read_text())
    names = json.loads((tmp_path / "run/result.json").read_text())["classnames"]
    found = list(predict(tmp_path / "run", [data_root / image for image in kept["image"]], batch_size=100))
    assert [p.top[0][0] for p in found] == [names[label] for label in kept["prediction"]]
    with pytest.raises(UserError, match=f"{trainer} keeps no transport plans"):
        load(tmp_path / "run").plans(data_root / kept["image"][0])
    capsys.readouterr()
    code = predict_main(["--run", str(tmp_path / "run"), "--classes", "cat,dog", str(data_root / kept["image"][0])])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == ((2, 1) if trainer in FITTED else (0, 0))
    assert not error or "fitted to other classes" in error


@pytest.mark.parametrize(
    ("trainer", "opts", "says"),
    [
        ("TipAdapter", ["TRAINER.TIP_ADAPTER.ALPHA_STEPS", "0"], "ALPHA_STEPS is 0; it must be from 1"),
        ("TipAdapterF", ["TRAINER.TIP_ADAPTER.BETA_STEPS", "0"], "BETA_STEPS is 0; it must be from 1"),
        ("PLOTAdapter", ["TRAINER.PLOT_ADAPTER.BETA_STEPS", "-1"], "BETA_STEPS is -1"),
        ("PLOTAdapter", ["TRAINER.PLOT_ADAPTER.ALPHA_MAX", "0.05"], "ALPHA_MAX is 0.05; it must be from 0.1"),
        ("TipAdapter", ["TRAINER.TIP_ADAPTER.TEMPLATES", "none"], "TEMPLATES is 'none'; it must be one of own"),
        ("LinearProbe", ["TRAINER.LINEAR_PROBE.C", "-1.0"], "C is -1.0; it must be from 0"),
        ("LinearProbe", ["TEST.FINAL_MODEL", "best_val"], "FINAL_MODEL is 'best_val'; LinearProbe tests"),
        ("TipAdapterF", ["OPTIM.LR_SCHEDULER", "single_step"], "LR_SCHEDULER is 'single_step'; TipAdapterF learns"),
        ("PLOTAdapter", [], "PLOT_RUN is missing; bash scripts/plot_adapter/main.sh"),
        ("PLOTAdapter", ["TRAINER.PLOT_ADAPTER.PLOT_RUN", "nowhere"], "there is no run in 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line(
    trainer: str,
    opts: list[str],
    says: str,
    run_args: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.main(command(run_args, trainer, *opts)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error, error
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("shots", "has DATASET.NUM_SHOTS 1, here it is 2"),
        ("list", "has DATASET.FEW_SHOT_LIST other.jsonl, here it is ;"),
        ("seed", "has SEED 2, here it is 1"),
        ("dataset", "has DATASET.NAME DescribableTextures, here it is Caltech101"),
        ("method", "has TRAINER.NAME CoOp, here it is PLOT"),
        ("weights", "has weights 0000, here it is "),
        ("unfinished", "is unfinished or damaged"),
        ("cost", "has TRAINER.PLOT.COST standardized, here it is raw"),
        ("match", "has TRAINER.PLOT.MATCH uniform, here it is ot"),
    ],
)
def test_a_plot_run_that_does_not_fit_is_one_line(
    change: str, says: str, run_args: list[str], tmp_path: Path, plot_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, result = plot_run / "config.yaml", plot_run / "result.json"
    kept = json.loads(result.read_text())
    pairs = {
        "shots": ("NUM_SHOTS: 2", "NUM_SHOTS: 1"),
        "list": ("FEW_SHOT_LIST: ''", "FEW_SHOT_LIST: other.jsonl"),
        "seed": ("\nSEED: 1", "\nSEED: 2"),
        "dataset": ("NAME: Caltech101", "NAME: DescribableTextures"),
        "method": ("NAME: PLOT", "NAME: CoOp"),
        "cost": ("COST: raw", "COST: standardized"),
        "match": ("MATCH: ot", "MATCH: uniform"),
    }
    if change == "unfinished":
        result.unlink()
    elif change == "weights":
        kept["backbone"]["sha256"] = "0000"
        result.write_text(json.dumps(kept))
    else:
        before, after = pairs[change]
        assert before in config.read_text()
        config.write_text(config.read_text().replace(before, after))
    opts = ["TRAINER.PLOT_ADAPTER.PLOT_RUN", str(plot_run)]
    assert train.main(command(run_args, "PLOTAdapter", *small("PLOTAdapter"), *opts)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error, error
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("trainer", ["LinearProbe", "TipAdapter"])
def test_validation_images_that_are_tested_have_no_part_in_a_choice(
    trainer: str,
    run_args: list[str],
    tmp_path: Path,
    like_imagenet: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on ImageNet: of a few-shot run as many other training images take their place; of a whole one none."""
    like_imagenet()
    run = loaded(run_args, trainer)
    chosen, taken = run.validation_images(), {item.impath for item in run.dm.dataset.train_x}
    assert len(chosen) == 10 and {Path(item.impath).name.partition("_")[0] for item in chosen} == {"train"}
    assert not taken & {item.impath for item in chosen} and chosen == loaded(run_args, trainer).validation_images()
    run_of(trainer, run_args, tmp_path / "few")
    capsys.readouterr()
    argv = ["--output-dir", str(tmp_path / "all"), *command(run_args, trainer, *small(trainer))]
    code = train.main([*argv, "DATASET.NUM_SHOTS", "-1"])
    out, error = capsys.readouterr()
    if trainer == "LinearProbe":
        assert code == 2 and "has none that are not tested; set TRAINER.LINEAR_PROBE.C" in error
    else:
        assert code == 0 and "No validation images that are not tested: alpha stays 1.0" in out
