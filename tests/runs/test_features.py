"""Cached image features through whole runs: the same logits, bit by bit, and no picture read twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dassl.data.data_manager
import dassl.data.transforms
import dassl.evaluation
import dassl.extras.features.loader
import train
import trainers.clip.encoders
from tests.runs.test_train import SHORT, SMALL, command
from trainers.clip.encoders import ImageEncoder

pytestmark = pytest.mark.medium

TRAINERS = [("PLOT", "rn50"), ("CoOp", "rn50_ep50"), ("CoCoOp", "rn50_c4_ep10_batch1_ctxv1"), ("ZeroshotCLIP", "rn50")]
Seen = dict[str, list[Any]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Seen:
    """``logits`` tested, ``encoded`` batch sizes (black probes apart) and ``read`` pictures of the program."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found: Seen = {"logits": [], "encoded": [], "read": []}

    def spy(owner: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def call(*args: Any) -> Any:
            note(*args)
            return original(*args)

        monkeypatch.setattr(owner, name, call)

    spy(dassl.evaluation.Classification, "process", lambda self, logits, label: found["logits"].append(logits))
    spy(ImageEncoder, "forward", lambda self, image: found["encoded"].extend([len(image)] * bool(image.any())))
    spy(dassl.data.data_manager, "read_image", lambda path, _: found["read"].append(path))
    return found


def run(seen: Seen, argv: list[str], output: Path) -> tuple[Seen, list[int]]:
    """What a run did, and its predictions."""
    for values in seen.values():
        values.clear()
    assert train.main(["--output-dir", str(output), *argv]) == 0
    done = json.loads((output / "predictions.json").read_text())
    return {key: list(values) for key, values in seen.items()}, done["prediction"]


@pytest.mark.parametrize(("trainer", "config"), TRAINERS)
def test_cached_or_not_the_logits_have_the_same_bits(
    trainer: str, config: str, run_args: list[str], tmp_path: Path, seen: Seen
) -> None:
    argv = [*command(run_args, trainer, config), *SHORT, "OPTIM.MAX_EPOCH", "1", "DATALOADER.TEST.BATCH_SIZE", "8"]
    off = run(seen, [*argv, "TEST.FEATURE_CACHE", "False"], tmp_path / "off")
    first = run(seen, argv, tmp_path / "first")
    second = run(seen, argv, tmp_path / "second")
    assert off[1] == first[1] == second[1] and len(off[1]) == 35
    for other in (first[0]["logits"], second[0]["logits"]):
        assert all(torch.equal(a, b) for a, b in zip(off[0]["logits"], other, strict=True))
    train_images = 0 if trainer == "ZeroshotCLIP" else 8  # of ten, two batches of four
    assert [len(found["read"]) for found, _ in (off, first, second)] == [train_images + 35] * 2 + [train_images]
    assert sum(second[0]["encoded"]) < sum(first[0]["encoded"])


def test_all_methods_share_what_one_has_encoded(run_args: list[str], tmp_path: Path, seen: Seen) -> None:
    zero_shot = [*command(run_args, "ZeroshotCLIP"), *SMALL]
    alone, _ = run(seen, [*zero_shot, "TEST.FEATURE_CACHE", "False"], tmp_path / "alone")
    test = ["DATALOADER.TEST.BATCH_SIZE", "100"]
    run(seen, [*command(run_args, "PLOT"), *SHORT, *test], tmp_path / "plot")
    shared, _ = run(seen, [*zero_shot, *test], tmp_path / "shared")
    assert not shared["read"] and not shared["encoded"]
    assert all(torch.equal(a, b) for a, b in zip(alone["logits"], shared["logits"], strict=True))


@pytest.mark.parametrize("change", ["none", "file", "picture", "transform", "batch size", "weights", "threads", "cpu"])
def test_what_may_change_the_features_has_them_computed_anew(
    change: str, run_args: list[str], data_root: Path, weights: Path, tmp_path: Path, seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """But not a file of code that changes after it was imported: what runs is the code of before."""
    shutil.copytree(data_root, tmp_path / "copy")
    shutil.copy(weights, tmp_path / "tiny.pt")
    more = ["--root", str(tmp_path / "copy"), "--backbone", str(tmp_path / "tiny.pt")]
    argv = [*command(run_args, "ZeroshotCLIP", "rn50", *more), *SMALL]
    run(seen, argv, tmp_path / "first")
    if change == "picture":
        picture = tmp_path / "copy/caltech-101/101_ObjectCategories/face/test_0003.jpg"
        os.utime(picture, (0, 0))
    elif change == "file":
        (tmp_path / "changed.py").touch()
        for module in (trainers.clip.encoders, dassl.data.transforms):
            monkeypatch.setattr(module, "__file__", str(tmp_path / "changed.py"))
    elif change == "transform":
        argv += ["INPUT.INTERPOLATION", "bilinear"]
    elif change == "batch size":
        argv += ["DATALOADER.TEST.BATCH_SIZE", "7"]
    elif change == "weights":
        state = torch.load(tmp_path / "tiny.pt", weights_only=True)
        state["visual.conv1.weight"] *= 1.5
        torch.save(state, tmp_path / "tiny.pt")
    elif change == "cpu":
        monkeypatch.setattr(dassl.extras.features.loader, "_cpu", lambda: "another")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + (change == "threads"))
        again, _ = run(seen, argv, tmp_path / "again")
    finally:
        torch.set_num_threads(threads)
    assert len(again["read"]) == (0 if change in ("none", "file") else 35)


def test_a_run_goes_on_where_nothing_can_be_kept(
    run_args: list[str], tmp_path: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    argv = [*command(run_args, "ZeroshotCLIP"), *SMALL]
    _, expected = run(seen, [*argv, "TEST.FEATURE_CACHE", "False"], tmp_path / "off")
    for key, value, says in (("DIR", str(tmp_path / "file"), "File exists"), ("GB", "0", "they need 0.00 GB")):
        _, found = run(seen, [*argv, f"TEST.FEATURE_CACHE_{key}", value], tmp_path / key)
        assert found == expected
        assert f"Image features are not kept: {says}" in capsys.readouterr().out


VIEWS = [*SHORT, "OPTIM.LR", "0.1"]


def context(output: Path, epoch: int) -> Tensor:
    path = output / f"prompt_learner/model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]["ctx"]


@pytest.mark.parametrize(("trainer", "config"), TRAINERS[:3])
def test_as_many_views_as_epochs_is_training_without_views(
    trainer: str, config: str, run_args: list[str], tmp_path: Path, seen: Seen
) -> None:
    """A view of epoch e is the augmentation of epoch e; only the batches in which images are encoded differ."""
    argv = [*command(run_args, trainer, config), *VIEWS]
    run(seen, argv, tmp_path / "plain")
    first, _ = run(seen, [*argv, "DATALOADER.CACHED_VIEWS", "2"], tmp_path / "views")
    again, _ = run(seen, [*argv, "DATALOADER.CACHED_VIEWS", "2"], tmp_path / "again")
    plain, views, repeated = (context(tmp_path / name, 2) for name in ("plain", "views", "again"))
    assert (plain - views).abs().max() < 1e-5 < plain.std()
    assert torch.equal(views, repeated)
    assert len(first["read"]) == 10 and not again["read"] and not again["encoded"]


def test_views_are_drawn_again_and_a_resumed_run_ends_at_the_same_bits(
    run_args: list[str], tmp_path: Path, seen: Seen
) -> None:
    epochs = ["OPTIM.MAX_EPOCH", "6", "TRAIN.CHECKPOINT_FREQ", "4", "DATALOADER.CACHED_VIEWS", "2"]
    argv = [*command(run_args, "CoOp", "rn50_ep50"), *VIEWS, *epochs]
    first, _ = run(seen, argv, tmp_path / "run")
    assert len(first["read"]) == 10 + 35  # two views of ten images, which are decoded once; the test set
    whole = context(tmp_path / "run", 6)
    (tmp_path / "run/prompt_learner/model.pth.tar-6").unlink()
    (tmp_path / "run/prompt_learner/checkpoint").write_text("model.pth.tar-4\n")
    (tmp_path / "run/result.json").unlink()
    shutil.rmtree(tmp_path / "cache")
    resumed, _ = run(seen, argv, tmp_path / "run")
    assert torch.equal(context(tmp_path / "run", 6), whole)
    assert len(resumed["read"]) == 10 + 35
    other, _ = run(seen, [*argv, "DATALOADER.CACHED_VIEWS", "0"], tmp_path / "plain")
    assert len(other["read"]) == 10
    assert not torch.equal(context(tmp_path / "plain", 6), whole)


def test_views_that_cannot_be_kept(run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*command(run_args, "CoOp", "rn50_ep50"), *SHORT, "DATALOADER.CACHED_VIEWS", "2"]
    assert train.main([*argv, "TEST.FEATURE_CACHE_GB", "0"]) == 2
    err = capsys.readouterr().err
    assert "could not be kept in" in err and err.count("\n") == 1
