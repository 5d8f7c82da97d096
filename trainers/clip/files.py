"""Weights files as tensors by name: safetensors, PyTorch's, shards with an index. Nothing in them is executed.

State dicts are read with ``weights_only``, or with safetensors. A TorchScript archive can run code, so the caller must
allow it.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from .architecture import library
from .formats import State, some
from .hub import INDEX, read_json, shard_names
from .prompts import UserError

NESTED = ("state_dict", "model_state_dict", "model")  # what a checkpoint calls its state dict
LFS = b"version https://git-lfs"


def read(path: Path, allow_torchscript: bool) -> State:
    """The tensors of a file or of an index's files.

    Raises:
        UserError: a file cannot be read, could run code, or does not hold what the index says.
    """
    if not path.name.endswith(INDEX):
        return _one(path, allow_torchscript)
    state: State = {}
    for file in _shards(path):
        state |= _one(file, False)
    listed = read_json(path)["weight_map"]
    if absent := [name for name in listed if name not in state]:
        raise UserError(f"'{path}' lists {len(absent)} tensors that its files do not hold: {some(absent)}")
    return state


def _shards(index: Path) -> list[Path]:
    files = [index.parent / name for name in shard_names(index)]
    if absent := next((file for file in files if not file.is_file()), None):
        raise UserError(f"'{index}' names '{absent.name}', which is not beside it")
    return files


def _one(path: Path, allow_torchscript: bool) -> State:
    with path.open("rb") as file:
        head = file.read(len(LFS))
    if head == LFS:
        raise UserError(f"'{path}' is a pointer of Git LFS, not the weights: 'git lfs pull' fetches them")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:  # the length of the header that follows
        safetensors = library("safetensors.torch")
        try:
            return safetensors.load_file(path)
        except Exception as error:  # its own kinds, of damaged files
            raise UserError(f"'{path}' cannot be read as weights, it may be truncated: {one_line(error)}") from error
    try:
        torchscript = zipfile.is_zipfile(path) and any("/code/" in n for n in zipfile.ZipFile(path).namelist())
        if torchscript and allow_torchscript:
            with warnings.catch_warnings():  # PyTorch deprecates TorchScript, OpenAI's format
                warnings.simplefilter("ignore")
                return torch.jit.load(str(path), map_location="cpu").state_dict()
        loaded = {} if torchscript else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds on damaged files
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"'{path}' holds more than tensors and numbers: reading '{refused[1]}' could run code; save its state "
                "dict alone"
            ) from None
        raise UserError(f"'{path}' cannot be read as weights, it may be truncated: {one_line(error)}") from error
    if torchscript:
        raise UserError(
            f"'{path}' is a TorchScript archive, not one of OpenAI's by its SHA-256, and loading it can run code; "
            "if you trust it, set MODEL.BACKBONE.ALLOW_TORCHSCRIPT True"
        )
    for _ in NESTED:
        key = next((k for k in NESTED if isinstance(loaded, dict) and isinstance(loaded.get(k), dict)), "")
        loaded = loaded[key] if key else loaded
    items = loaded.items() if isinstance(loaded, dict) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}


def sha256(path: Path) -> str:
    """Of a file; of an index, of the hashes of its files, which stand in the order of their names."""
    if path.name.endswith(INDEX):
        return hashlib.sha256("".join(map(sha256, _shards(path))).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
