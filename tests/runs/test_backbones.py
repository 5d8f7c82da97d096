"""Other libraries' weights by the command line: a run on Hugging Face's, and files that are no CLIP."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from runs.result import read_result
from tests.dassl.test_checkpoints import Bomb
from tests.trainers.clip.libraries import safetensors, save_transformers, transformers
from tests.trainers.clip.test_hub import PICTURES, tiny_transformers

from .test_train import SHORT, command

State = dict[str, torch.Tensor]
OPTIONS = [option for option in SHORT if option not in ("INPUT.SIZE", "(64, 64)")]


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_transformers(tiny_transformers(), tmp_path_factory.mktemp("hf"), "sharded")
    (folder / "preprocessor_config.json").write_text(PICTURES)
    return folder


@pytest.mark.medium
def test_a_run_follows_its_backbone(
    hugging_face: Path, run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """INPUT is the backbone's, except what is asked for; result.json spells it; the same command keeps the run."""
    argv = [*command(run_args, "PLOT", "vit_b32", "--backbone", str(hugging_face)), *OPTIONS, "TRAINER.PLOT.N", "2"]
    assert train.main(argv) == 0
    (path,) = (tmp_path / "output").rglob("result.json")
    result = read_result(path.parent)
    assert result is not None and "INPUT" not in str(path)
    own = {"size": [64, 64], "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}
    assert result["preprocessing"] == own
    assert "Normalize(mean=[0.5, 0.5, 0.5]" in (path.parent / "log.txt").read_text()
    capsys.readouterr()
    assert train.main(argv) == 0 and "Finished before" in capsys.readouterr().out
    tested = [*command(run_args, "PLOT", "vit_b32", "--eval-only", "--model-dir", str(path.parent))]
    assert train.main([*tested, "--backbone", str(hugging_face), *OPTIONS, "INPUT.INTERPOLATION", "nearest"]) == 0
    (path,) = (path.parent / "eval").rglob("result.json")
    assert json.loads(path.read_text())["preprocessing"] == {**own, "interpolation": "nearest"}


def _bytes(content: bytes, name: str = "weights.pt") -> Callable[[Path, State, Path], Path]:
    def make(folder: Path, state: State, hf: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _saved(change: Callable[[State], object], safe: bool = False) -> Callable[[Path, State, Path], Path]:
    def make(folder: Path, state: State, hf: Path) -> Path:
        path = folder / ("weights.safetensors" if safe else "weights.pt")
        (safetensors.save_file if safe else torch.save)(change(dict(state)), path)
        return path

    return make


def _cut(name: str) -> Callable[[Path, State, Path], Path]:
    def make(folder: Path, state: State, hf: Path) -> Path:
        path = _saved(lambda state: state, name.endswith("safetensors"))(folder, state, hf)
        path.write_bytes(path.read_bytes()[:-1000])
        return path

    return make


def _folder(change: Callable[[Path, dict], object]) -> Callable[[Path, State, Path], Path]:
    """A copy of Hugging Face's shards, and what is changed there."""

    def make(folder: Path, state: State, hf: Path) -> Path:
        for path in hf.iterdir():
            (folder / path.name).symlink_to(path)
        index = json.loads((hf / "model.safetensors.index.json").read_text())
        (folder / "model.safetensors.index.json").unlink()
        change(folder, index)
        if not (folder / "model.safetensors.index.json").exists():
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return make


def _shard(content: bytes | None) -> Callable[[Path, dict], object]:
    def change(folder: Path, index: dict) -> None:
        path = folder / max(index["weight_map"].values())
        whole = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content or whole[: len(whole) // 2])

    return change


def _config(text: str) -> Callable[[Path, dict], object]:
    def change(folder: Path, index: dict) -> None:
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(text)

    return change


def _bomb(legacy: bool, shard: bool = False) -> Callable[[Path, State, Path], Path]:
    def make(folder: Path, state: State, hf: Path) -> Path:
        bomb = {**state, "x": Bomb(os.mkdir, str(folder / "ran"))}
        path = folder / "pytorch_model.bin"
        if shard:
            torch.save(bomb, folder / "one.bin")
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "one.bin"}}))
            return folder
        if legacy:
            path.write_bytes(pickle.dumps(bomb["x"]))
        else:
            torch.save(bomb, path)
        return path

    return make


def _torchscript(folder: Path, state: State, hf: Path) -> Path:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "weights.pt"))
    return folder / "weights.pt"


def _several(folder: Path, state: State, hf: Path) -> Path:
    for name in ("a.pt", "b.pt"):
        (folder / name).write_bytes(b"")
    return folder


def _put(key: str, value: object) -> Callable[[State], State]:
    return lambda state: {**state, key: value}  # type: ignore[dict-item]


def _gpt(state: State) -> State:
    return {f"transformer.h.{i}.attn.c_attn.weight": torch.zeros(4, 4) for i in range(9)} | {
        "wte.weight": torch.ones(9, 4)
    }


def _only(part: str) -> Callable[[Path, State, Path], Path]:
    def make(folder: Path, state: State, hf: Path) -> Path:
        torch.save({k: x for k, x in tiny_transformers().state_dict().items() if k.startswith(part)}, folder / "a.bin")
        return folder / "a.bin"

    return make


BROKEN = {
    "cut": (_cut("weights.pt"), "cannot be read as weights, it may be truncated"),
    "cut safetensors": (_cut("weights.safetensors"), "cannot be read as weights, it may be truncated"),
    "empty": (_bytes(b""), "cannot be read as weights"),
    "a web page": (_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>"), "cannot be read as weights"),
    "a Git LFS pointer": (
        _bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "a pointer of Git LFS",
    ),
    "a header of 90 MB": (_bytes((90_000_000).to_bytes(8, "little") + b"{}"), "cannot be read as weights"),
    "a shard missing": (_folder(_shard(None)), "which is not beside it"),
    "a shard cut": (_folder(_shard(b"")), "cannot be read as weights, it may be truncated"),
    "a shard of something else": (_folder(_shard(b"PK\3\4 nothing")), "cannot be read as weights"),
    "an index of tensors that are not there": (
        _folder(lambda folder, index: index["weight_map"].update(gone=max(index["weight_map"].values()))),
        "lists 1 tensors that its files do not hold: 'gone'",
    ),
    "an index that leads elsewhere": (
        _folder(lambda folder, index: index["weight_map"].update(gone="../../secret.bin")),
        "must name files beside it",
    ),
    "an index without a map": (_folder(lambda folder, index: index.pop("weight_map")), "is no index of weights"),
    "an index that is no JSON": (
        _folder(lambda folder, index: (folder / "model.safetensors.index.json").write_text('{"weight_map": ')),
        "index.json' cannot be read",
    ),
    "a config that is no JSON": (_folder(_config("{")), "config.json' cannot be read"),
    "a config of SigLIP": (_folder(_config('{"model_type": "siglip"}')), "its text tower is not causal"),
    "a config of a language model": (_folder(_config('{"model_type": "llama"}')), "of a model of type 'llama'"),
    "an index that names itself": (
        _folder(lambda folder, index: index["weight_map"].update(x="model.safetensors.index.json")),
        "must name files beside it",
    ),
    "a checkpoint with other objects": (
        _saved(lambda state: {"state_dict": state, "best": Path("x")}),  # type: ignore[arg-type, return-value]
        "holds more than tensors and numbers: reading 'pathlib.*' could run code; save its state dict alone",
    ),
    "a config of other widths": (
        _folder(_config('{"model_type": "clip", "vision_config": {"hidden_size": 96}, "text_config": {}}')),
        "are 64 and 64 wide, but .*config.json' says 96 and 512",
    ),
    "a language model": (_saved(_gpt), "10 tensors are 'transformer.h.0.attn.c_attn.weight'"),
    "a diffusion model's text tower": (_only("text_model."), "Hugging Face's names.*missing: 'text_projection'"),
    "an image tower alone": (_only("vision_model."), "Hugging Face's names.*missing: 'token_embedding.weight'"),
    "a pickle bomb": (_bomb(legacy=False), "reading 'posix.mkdir' could run code"),
    "a bare pickle bomb": (_bomb(legacy=True), "cannot be read as weights"),
    "a pickle bomb in a shard": (_bomb(legacy=False, shard=True), "reading 'posix.mkdir' could run code"),
    "TorchScript": (_torchscript, "ALLOW_TORCHSCRIPT True"),
    "NaN": (_saved(_put("visual.proj", torch.full((64, 64), torch.nan))), "'visual.proj' holds numbers that are not"),
    "misshapen": (
        _saved(_put("ln_final.bias", torch.zeros(3))),
        r"'ln_final.bias' is \[3\] of torch.float32, not \[64\]",
    ),
    "integers": (_saved(_put("ln_final.bias", torch.ones(64, dtype=torch.int8))), "'ln_final.bias' is .*int8"),
    "a tower of another kind": (_saved(_put("visual.trunk.x", torch.zeros(3))), "unknown: 'visual.trunk.x'"),
    "two models": (
        _saved(lambda state: state | {f"module.{name}": x for name, x in state.items()}),
        "several models, under '', 'module.'",
    ),
    "another tokenizer": (_saved(_put("token_embedding.weight", torch.zeros(32000, 64))), "77 tokens of 32000"),
    "a folder without weights": (lambda folder, state, hf: folder, "holds no weights"),
    "a folder of several": (_several, r"holds several weights \('a.pt', 'b.pt'\)"),
}


@pytest.mark.medium
def test_files_that_are_no_clip_give_one_line_and_run_nothing(
    vit: Path, hugging_face: Path, run_args: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import re

    assert transformers and len(BROKEN) >= 20
    state = torch.load(vit, weights_only=True)
    for i, (what, (make, said)) in enumerate(BROKEN.items()):
        folder = tmp_path / str(i)
        folder.mkdir()
        path = make(folder, state, hugging_face)
        argv = [*command(run_args, "PLOT", "vit_b32", "--backbone", str(path)), *SHORT]
        assert train.main(argv) == 2, what
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and re.search(said, error), (what, error)
        assert str(path) in error or str(folder) in error, what
        assert not (folder / "ran").exists()
    assert not list((tmp_path / "output").rglob("*"))
