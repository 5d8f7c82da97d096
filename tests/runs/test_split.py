"""The few-shot set in ``result.json``, and choices that would need test images, by the real command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import train
from tests.datasets.test_few_shot_list import write_list
from tests.datasets.trees import as_coop_draws
from tests.runs.test_train import SHORT, command, one_result

pytestmark = pytest.mark.medium


def test_the_split_is_hashed_into_the_result(run_args: list[str], data_root: Path, tmp_path: Path) -> None:
    """Methods of one seed have the same; another seed, or a list, has another."""
    hashes = {}
    write_list(tmp_path / "1.jsonl", [[f"{name}/train_000{i}.jpg", k, name] for k, name in LABELS for i in (4, 5)])
    listed = ["DATASET.FEW_SHOT_LIST", "{seed}.jsonl"]
    for name, trainer, config, more in (
        ("PLOT", "PLOT", "rn50", []),
        ("CoOp", "CoOp", "rn50_ep50", []),
        ("list", "CoOp", "rn50_ep50", listed),
        ("seed", "CoOp", "rn50_ep50", ["SEED", "2"]),
    ):
        argv = ["--output-dir", str(tmp_path / name), *command(run_args, trainer, config), *SHORT, *more]
        assert train.main([*argv, "OPTIM.MAX_EPOCH", "1"]) == 0
        result = one_result(tmp_path, name)[1]
        hashes[name] = result["split_sha256"]
        assert result["test_selected"] is False
    drawn, _ = as_coop_draws(json.loads((data_root / "caltech-101/split_zhou_Caltech101.json").read_text()), 2, 1)
    lines = sorted(f"caltech-101/101_ObjectCategories/{file}\0{label}\n" for file, label, _ in drawn)
    assert hashes["PLOT"] == hashes["CoOp"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert len({hashes["CoOp"], hashes["list"], hashes["seed"]}) == 3


LABELS = list(enumerate(("face", "sea_horse", "leopard", "motorbike", "accordion")))


def test_best_val_without_validation_images_is_one_line_and_nothing_is_written(
    run_args: list[str], data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "pictures"
    for part in ("train", "test"):
        (root / part).mkdir(parents=True)
        for name in ("face", "leopard"):
            (root / part / name).symlink_to(data_root / "caltech-101/101_ObjectCategories" / name)
    argv = [*command(run_args, "CoOp", "rn50_ep50"), *SHORT, "DATASET.NAME", "ImageFolder", "DATASET.ROOT", str(root)]
    assert train.main([*argv, "TEST.FINAL_MODEL", "best_val"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: TEST.FINAL_MODEL is best_val, but there are no validation images")
    assert error.count("\n") == 1 and not (tmp_path / "output").exists()
