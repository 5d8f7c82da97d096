"""A run's directory: where it is, whether it is finished, and its ``result.json``.

OUT/<dataset>/<trainer>/<config>_<shots>shots/<settings>/seed<S>/ follows from the merged config alone. A run is
finished when its ``result.json`` is there and whole; tables are made from these files, never from logs. Beside it lies
``predictions.json``.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import reprlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from yacs.config import CfgNode

from dassl.distributed import world_size
from dassl.utils import UserError, write_atomically

REPOSITORY = Path(__file__).resolve().parent
LOCK = ".lock"  # in the directory of a run, while a process writes there

# Keys that say where a run happens, not what comes out of it.
ELSEWHERE = {
    *("OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "DATASET.ROOT", "DATALOADER.NUM_WORKERS"),
    *("TRAINER.SPLIT_CLASSES", "TRAINER.CUDA_GRAPHS", "MODEL.BACKBONE.CLIP_ROOT", "TRAIN.PRINT_FREQ"),
    # What is cached is what would be computed.
    *("TEST.FEATURE_CACHE", "TEST.FEATURE_CACHE_DIR", "TEST.FEATURE_CACHE_GB"),
}
# Keys with a place of their own in the path.
IN_PATH = {"SEED", "DATASET.NAME", "DATASET.NUM_SHOTS", "TRAINER.NAME"}
SPELLED = (("N", "n"), ("N_CTX", "nctx"), ("CSC", "csc"), ("CLASS_TOKEN_POSITION", "ctp"))


def flatten(cfg: Any, prefix: str = "", like: Any = None) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a config, no deeper than ``like`` is: a YAML of few lines can be endless."""
    for key, value in cfg.items():
        below = value if like is None else like.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            yield from flatten(value, f"{prefix}{key}.", None if like is None else below)
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def brief(value: Any) -> str:
    """For an error's one line."""
    return f"{reprlib.repr(value):.80}"


def method_options(cfg: Any) -> tuple[str, Any]:
    """The name and node of the trainer's own options; empty for a trainer without any."""
    name = cfg.TRAINER.NAME.upper()
    return name, cfg.TRAINER.get(name, CfgNode())


def run_directory(cfg: Any, base: Any, config: str, out: str | Path) -> Path:
    """OUT/<dataset>/<trainer>/<config>_<shots>shots/<settings>/seed<S>.

    Args:
        cfg: the merged config.
        base: the same without the user's overrides; what differs from it is spelled in <settings>.
        config: the name of the trainer's config file, without its ending.
    """
    name, options = method_options(cfg)
    settings = [short + spell(options[key]) for key, short in SPELLED if key in options]
    spelled = {f"TRAINER.{name}.{key}" for key, _ in SPELLED}
    settings += [key + spell(value) for key, value in overrides(cfg, base).items() if key not in spelled]
    folder = shorten("_".join(settings) or "default")
    shots = max(0, cfg.DATASET.NUM_SHOTS)
    dataset = snake_case(cfg.DATASET.NAME)
    if cfg.DATASET.get("ROOT_IS_DATASET", False):  # another folder is another dataset
        root = Path(cfg.DATASET.ROOT).expanduser().resolve()
        dataset += f"-{spell(root.name)}-{_hash(str(root))}"
    return Path(out) / dataset / cfg.TRAINER.NAME / f"{config}_{shots}shots" / folder / f"seed{cfg.SEED}"


def overrides(cfg: Any, base: Any) -> dict[str, Any]:
    """What the user has set that may change a run's outcome: the keys in which the config differs from its base."""
    before = dict(flatten(base))
    return {key: v for key, v in flatten(cfg) if key not in ELSEWHERE | IN_PATH and before.get(key) != v}


def snake_case(name: str) -> str:
    """A registered dataset's name as its config file is called: OxfordPets -> oxford_pets."""
    for path in (REPOSITORY / "configs" / "datasets").glob("*.yaml"):
        if path.stem.replace("_", "") == name.lower():
            return path.stem
    return name.lower()


def spell(value: Any) -> str:
    """A value as part of a file's name."""
    text = str(value)
    safe = re.sub(r"[^A-Za-z0-9.+-]+", "-", text)[:60]
    return safe if safe == text else f"{safe}-{_hash(text)}"


def shorten(name: str) -> str:
    """A name that every file system takes."""
    return name if len(name) <= 200 else f"{name[:190]}_{_hash(name)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_result(directory: str | Path) -> dict[str, Any] | None:
    """The result of a finished run, None for one that is not."""
    try:
        result = json.loads((Path(directory) / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and "accuracy" in result else None


def finished_result(directory: Path) -> dict[str, Any] | None:
    """As ``read_result``, but a result that is there has to be whole: UserError for a damaged one."""
    path = directory / "result.json"
    return load_result(path) if path.exists() else None


def hash_of_checkpoints(directory: Path) -> str:
    """Of the content of all models' checkpoints in a run's directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*/model*.pth.tar*")):
        digest.update(f"{path.relative_to(directory)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


# What every result.json has, for those who make tables of them.
REQUIRED: dict[str, Any] = {
    **dict.fromkeys(("accuracy", "macro_f1"), (int, float)),
    **dict.fromkeys(("seed", "shots", "epochs"), int),
    **dict.fromkeys(("dataset", "trainer"), str),
    **dict.fromkeys(("backbone", "counts", "seconds"), dict),
}
# What may be absent or null.
OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(("options", "overrides", "diagnostics"), dict),
    **dict.fromkeys(("config", "subsample_classes"), str),
    **dict.fromkeys(("batch_size", "parameters", "peak_memory_bytes", "peak_gpu_memory_bytes"), int),
    "classnames": list,
}
# What is in them; in ``backbone`` and ``diagnostics`` also null.
VALUES: dict[str, Any] = {"backbone": str, "counts": int, "classnames": str}
VALUES |= {"seconds": (int, float), "diagnostics": (float, int)}


def _faults(result: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the fields of a result; only the first is sure to be found."""

    def other(value: Any, kind: Any) -> bool:
        if not isinstance(value, kind) or isinstance(value, bool):
            return True
        least = -1 if kind is VALUES["diagnostics"] else 0  # a cosine may be negative
        return isinstance(value, (int, float)) and not least <= value < 1e18

    for key, kind in {**REQUIRED, **OPTIONAL}.items():
        value = result.get(key)
        if other(value, kind) and (key in REQUIRED or value is not None):
            yield f"its '{key}' is {brief(value)}"
    for key, kind in VALUES.items():
        values = result.get(key) or {}
        for name, value in values.items() if isinstance(values, dict) else enumerate(values):
            if other(value, kind) and (value is not None or key not in ("backbone", "diagnostics")):
                yield f"its '{key}.{name}' is {brief(value)}"
    if not str(result.get("device", "")).isprintable():
        yield "its 'device' is no name"
    if result.get("parameters") and result["epochs"] == 0:
        yield "its 'epochs' is 0, but it has learned something"
    if not 0 <= result["accuracy"] <= 100:
        yield f"its 'accuracy' is {brief(result['accuracy'])}"


def load_result(path: Path) -> dict[str, Any]:
    """A result.json that has to be whole: UserError if it is damaged."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        wrong = next(_faults(result), None) if isinstance(result, dict) else "it is no mapping"
    except (OSError, ValueError, RecursionError) as error:
        wrong = " ".join(str(error).split())
    if wrong is not None:
        raise UserError(f"'{path}' is damaged ({wrong}); remove it and give the run's command again")
    return result


def predictions(trainer: Any) -> dict[str, Any]:
    """What ``predictions.json`` holds: the tested images, in order, with label and prediction."""
    root = Path(trainer.cfg.DATASET.ROOT or "data").expanduser().absolute()
    return {
        "image": [Path(os.path.relpath(path, root)).as_posix() for path in trainer.tested],  # under the data root
        "label": trainer.evaluator.y_true,
        "prediction": trainer.evaluator.y_pred,
    }


def check_config(directory: Path, cfg: Any) -> None:
    """Raises UserError if the directory holds a run with another config."""
    path = directory / "config.yaml"
    if not path.is_file():
        return
    try:
        theirs = dict(flatten(yaml.safe_load(path.read_text(encoding="utf-8")), like=cfg))
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged; move its folder away or name another --output-dir") from error
    ours = dict(flatten(yaml.safe_load(cfg.dump())))
    differing = [k for k in sorted({*ours, *theirs} - ELSEWHERE) if ours.get(k) != theirs.get(k)]
    if differing:
        shown = ", ".join(f"{k} {brief(theirs.get(k))} there, {ours.get(k)!r} asked for" for k in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"'{directory}' holds a run with another config ({shown}{more}); name another --output-dir or OUT"
        )


def write_config(directory: Path, cfg: Any) -> None:
    write_atomically(directory / "config.yaml", cfg.dump())


def remove_temporaries(directory: Path) -> None:
    """What a killed process was writing in the run's directory; its writer calls this, when there is no other."""
    for path in (*directory.glob("*.tmp-*"), *directory.glob("*/*.tmp-*")):
        path.unlink(missing_ok=True)


def describe(trainer: Any, seconds: float, config: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """What ``result.json`` holds, of a trainer that has been tested.

    Args:
        config: the name of the trainer's config file.
        overrides: what the user has set beyond the config files and the recipe.
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
        "trainer": cfg.TRAINER.NAME,
        "N": options.get("N", 1),
        "config": config,
        "options": dict(flatten(options)),
        "overrides": overrides,
        "batch_size": cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
        "parameters": parameters,
        "backbone": {"name": cfg.MODEL.BACKBONE.NAME, "sha256": getattr(trainer, "weights_sha256", None)},
        "epochs": cfg.OPTIM.MAX_EPOCH if parameters else 0,
        "seconds": {"total": round(seconds, 3), **trainer.timing},
        "peak_memory_bytes": peak_memory(),
        "peak_gpu_memory_bytes": peak_gpu_memory(trainer.device),
        "device": str(trainer.device),
        "versions": versions(),
        "processes": world_size(),
        "git_commit": _COMMIT,
        "diagnostics": getattr(trainer, "diagnostics", None),
        "classnames": list(dataset.classnames),
    }


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes, by the operating system."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_gpu_memory(device: torch.device) -> int | None:
    """The most that tensors have held of a GPU so far, in bytes; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "openai-clip", "numpy", "pillow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def git_commit() -> str | None:
    """The checkout's commit, with "+" behind it if files differ from it; None outside a checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


_COMMIT = git_commit()  # of what is imported now; the files may change while a run, or a parent of forks, goes on
