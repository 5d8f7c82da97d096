"""A run's ``result.json`` and ``predictions.json``.

A run is finished when its ``result.json`` is there and whole; tables are made from these files, never from logs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dassl.config import flatten
from dassl.extras.distributed import world_size
from dassl.utils import UserError, load_checkpoint

from .directory import REPOSITORY, brief, method_options, snake_case


def read_result(directory: str | Path) -> dict[str, Any] | None:
    """The result of a finished run, else None."""
    try:
        result = json.loads((Path(directory) / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and "accuracy" in result else None


def finished_result(directory: Path) -> dict[str, Any] | None:
    """The result of a finished run, else None. Raises UserError if the file is damaged."""
    path = directory / "result.json"
    return load_result(path) if path.exists() else None


def check_classes(source: Path, cfg: Any, classnames: Sequence[str]) -> None:
    """Compares the classes of class-specific contexts with those of a run that learned them, by name and order.

    Args:
        source: the run's directory, or one of its checkpoints.
    Raises:
        UserError: they differ.
    """
    if not method_options(cfg)[1].get("CSC"):
        return
    theirs = _learned_classes(source.absolute())
    if not theirs:
        print(f"Class-specific contexts from '{source}': it does not name its classes, which are compared by number")
    if not theirs or list(theirs) == list(classnames):
        return
    first = next(((a, b) for a, b in zip(theirs, classnames, strict=False) if a != b), (len(theirs), len(classnames)))
    raise UserError(
        f"'{source}' has class-specific contexts (CSC True) for its own classes alone: {brief(first[0])} there, "
        f"{brief(first[1])} here"
    )


def _learned_classes(source: Path) -> Sequence[str]:
    """By the result, or without one by a checkpoint; empty if neither names them."""
    directory, files = (source.parents[1], [source]) if source.is_file() else (source, [])
    names = (read_result(directory) or {}).get("classnames")
    for path in files or sorted(directory.glob("prompt_learner/*.pth.tar*"))[:1]:
        names = names or load_checkpoint(str(path)).get("classnames")
    return names or ()


def hash_of_checkpoints(directory: Path) -> str:
    """SHA-256 of all checkpoints in a run's directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*/model*.pth.tar*")):
        digest.update(f"{path.relative_to(directory)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


# {field: (type, type of the values in it)}. The fields of REQUIRED are there and not null.
_NUMBER = (int, float)
REQUIRED: dict[str, tuple[Any, Any]] = {
    **dict.fromkeys(("accuracy", "macro_f1"), (_NUMBER, None)),
    **dict.fromkeys(("seed", "shots", "epochs"), (int, None)),
    **dict.fromkeys(("dataset", "trainer"), (str, None)),
    "backbone": (dict, (str, type(None))),
    "counts": (dict, int),
    "seconds": (dict, _NUMBER),
}
OPTIONAL: dict[str, tuple[Any, Any]] = {
    **dict.fromkeys(("options", "overrides"), (dict, None)),
    **dict.fromkeys(("config", "subsample_classes", "split_sha256"), (str, None)),
    **dict.fromkeys(("batch_size", "parameters", "peak_memory_bytes", "peak_gpu_memory_bytes"), (int, None)),
    "diagnostics": (dict, (*_NUMBER, type(None))),
    "classnames": (list, str),
}


def _faults(result: dict[str, Any]) -> Iterator[str]:
    """The faults of a result's fields. After the first one the search may fail."""

    def wrong(value: Any, kind: Any, least: float = 0) -> bool:
        if not isinstance(value, kind) or isinstance(value, bool):
            return True
        return isinstance(value, _NUMBER) and not least <= value < 1e18

    for key, (kind, of_values) in {**REQUIRED, **OPTIONAL}.items():
        value = result.get(key)
        if wrong(value, kind, -1 if key == "seed" else 0) and (key in REQUIRED or value is not None):
            yield f"its '{key}' is {brief(value)}"
        if of_values and value:
            least = -1 if key == "diagnostics" else 0  # a cosine may be negative
            for name, inner in value.items() if kind is dict else enumerate(value):
                if wrong(inner, of_values, least):
                    yield f"its '{key}.{name}' is {brief(inner)}"
    if not str(result.get("device", "")).isprintable():
        yield "its 'device' is no name"
    if result.get("parameters") and result["epochs"] == 0:
        yield "its 'epochs' is 0, but it has learned something"
    if not result["accuracy"] <= 100:
        yield f"its 'accuracy' is {brief(result['accuracy'])}"


def load_result(path: Path) -> dict[str, Any]:
    """Reads a result.json. Raises UserError if it is damaged."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        wrong = next(_faults(result), None) if isinstance(result, dict) else "it is no mapping"
    except (OSError, ValueError, RecursionError) as error:
        wrong = " ".join(str(error).split())
    if wrong is not None:
        raise UserError(f"'{path}' is damaged ({wrong}); remove it and give the run's command again")
    return result


def predictions(trainer: Any) -> dict[str, Any]:
    """The content of ``predictions.json``: the tested images in order, with label and prediction."""
    return {
        "image": list(map(_under_root(trainer), trainer.tested)),
        "label": trainer.evaluator.y_true,
        "prediction": trainer.evaluator.y_pred,
    }


def _under_root(trainer: Any) -> Callable[[str], str]:
    """Of an image's path, that under the data root as DATASETS.md lays it out, wherever the image is."""
    root = Path(trainer.cfg.DATASET.ROOT or "data").expanduser().absolute()

    def plain(path: str) -> str:
        return Path(os.path.relpath(path, root)).as_posix()

    return getattr(trainer.dm.dataset, "standard_path", plain)


def hash_of_split(trainer: Any) -> str | None:
    """SHA-256 of the training images' paths under the data root and their labels, whatever their order.

    None for a method without seeds, which has not learned from them.
    """
    if not getattr(trainer, "has_seeds", True):
        return None
    place = _under_root(trainer)
    lines = sorted(f"{place(item.impath)}\0{item.label}\n" for item in trainer.dm.dataset.train_x)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def describe(trainer: Any, seconds: float, config: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The content of ``result.json``.

    Args:
        trainer: after its test.
        config: the name of the trainer's config file.
        overrides: the user's options beyond the config files and the recipe.
    """
    cfg = trainer.cfg
    _, options = method_options(cfg)
    split = cfg.TEST.SPLIT if cfg.TEST.SPLIT in trainer.results else "test"
    results, dataset = trainer.results[split], trainer.dm.dataset
    parameters = sum(p.numel() for name in trainer.get_model_names() for p in trainer._models[name].parameters())
    return {
        **{key: round(results[key], 4) for key in ("accuracy", "macro_f1", "error_rate")},
        "split": split,
        "counts": {
            "classes": dataset.num_classes,
            "train": len(dataset.train_x),
            "val": len(dataset.val or []),
            "test": len(dataset.test),
        },
        "seed": cfg.SEED,
        "shots": max(0, cfg.DATASET.NUM_SHOTS),
        "dataset": snake_case(cfg.DATASET.NAME),
        "subsample_classes": cfg.DATASET.SUBSAMPLE_CLASSES,
        "split_sha256": hash_of_split(trainer),
        "trainer": cfg.TRAINER.NAME,
        "N": options.get("N", 1),
        "config": config,
        "options": dict(flatten(options)),
        "overrides": overrides,
        "batch_size": cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
        "parameters": parameters,
        "backbone": {"name": cfg.MODEL.BACKBONE.NAME, "sha256": getattr(trainer, "weights_sha256", None)},
        "preprocessing": {  # of the test
            "size": list(cfg.INPUT.SIZE),
            "interpolation": cfg.INPUT.INTERPOLATION,
            "mean": list(cfg.INPUT.PIXEL_MEAN) if "normalize" in cfg.INPUT.TRANSFORMS else None,
            "std": list(cfg.INPUT.PIXEL_STD) if "normalize" in cfg.INPUT.TRANSFORMS else None,
        },
        "epochs": cfg.OPTIM.MAX_EPOCH if parameters else 0,
        "seconds": {"total": round(seconds, 3), **trainer.timing},
        "peak_memory_bytes": peak_memory(),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if trainer.device.type == "cuda" else None,
        "device": str(trainer.device),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy", "pillow")}
        | {"python": platform.python_version()},
        "processes": world_size(),
        "git_commit": git_commit(),
        "diagnostics": getattr(trainer, "diagnostics", None),
        "test_selected": getattr(trainer, "test_selected", False),  # the test images had a part in a choice
        "classnames": list(dataset.classnames),
    }


def peak_memory() -> int | None:
    """The largest resident size of this process so far, in bytes; None on Windows, which has no ``getrusage``."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def git_commit() -> str | None:
    """The checkout's commit at the first call, with a "+" appended if files differ from it; None outside a checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
