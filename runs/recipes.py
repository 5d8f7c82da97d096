"""What the papers prescribe: a run's config file and KEY VALUE pairs, from its method's own ``recipe``."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

import yaml

from dassl.config import flatten
from dassl.extras.cli import IMPORTED
from trainers.clip.weights import OURS
from trainers.method import Method, methods

from .config import DATASETS, EPOCHS
from .directory import REPOSITORY

# OpenAI's names, as the configs' names begin, and ours, which configs have in full.
BACKBONES = {"rn50": "RN50", "rn101": "RN101", "vit_b16": "ViT-B/16", "vit_b32": "ViT-B/32", **{k: k for k in OURS}}
ALL = 0  # as a number of shots: all images


def prefix_of(backbone: str) -> str:
    """What the configs of a backbone begin with: vit_b16 for vit_b16 and for OpenAI's ViT-B/16."""
    return backbone.lower().replace("-", "_").replace("/", "")


def method_of(trainer: str) -> type[Method]:
    return methods()[trainer]


def imported(trainer: str) -> list[str]:
    """The --import option of a method outside the tree; empty for one of ours."""
    file = IMPORTED.get(method_of(trainer).__module__)
    return ["--import", str(file)] if file else []


def recipe(trainer: str, dataset: str, shots: int, cfg: str = "", backbone: str = "") -> tuple[str, str]:
    """(config's path as in ``Recipe``, KEY VALUE pairs in one string).

    Args:
        shots: ALL counts as many.
        cfg, backbone: what CFG and BACKBONE set; empty for the recipe's own. A dataset's own config has its backbone.
    """
    kind = method_of(trainer)
    if prefix_of(backbone) in OURS:
        cfg = cfg or prefix_of(backbone)
    config, options = kind.recipe(dataset, sys.maxsize if shots == ALL else shots)
    config = config.replace("{backbone}", prefix_of(backbone) or kind.backbone)
    if config.endswith(".yaml"):
        config = str(Path(inspect.getfile(kind)).parent / config.removesuffix(".yaml"))
    folder = PurePath(config).parent
    if cfg or (own := own_config(trainer, dataset)):
        config = str(folder / (cfg or own))
    names = {PurePath(config).name, PurePath(config).name.partition("_")[0]}
    found = _options(config_file(trainer, config), dataset, shots)
    if found is not None or any((REPOSITORY / "configs/datasets" / f"{name}.yaml").is_file() for name in names):
        options = found or {}  # the config says all of it itself
    return config, shlex.join(str(word) for pair in options.items() for word in pair)


def _options(config: Path, dataset: str, shots: int) -> dict[str, object] | None:
    """What a config's _DATASETS_ and _EPOCHS_ say for a dataset and a number of shots; None if it has neither."""
    loaded = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}) if config.is_file() else {}
    if not loaded.keys() & {DATASETS, EPOCHS}:
        return None
    own = {EPOCHS: loaded.get(EPOCHS, {}), **loaded.get(DATASETS, {}).get(dataset, {})}
    by_shots = own.pop(EPOCHS)
    epochs = next((by_shots[most] for most in sorted(by_shots) if 0 < shots <= most), None)
    return dict(flatten(own)) | ({} if epochs is None else {"OPTIM.MAX_EPOCH": epochs})


def own_config(trainer: str, dataset: str) -> str:
    """The config of a method that is named after the dataset: symbols, for symbols_layout too; "" if there is none."""
    folder = PurePath(method_of(trainer).recipe(dataset, 1).config).parent
    names = (dataset, dataset.partition("_")[0])
    return next((name for name in names if config_file(trainer, str(folder / name)).is_file()), "")


def config_file(trainer: str, config: str) -> Path:
    """A method without configs of its own has those of the method that it derives from."""
    folder = REPOSITORY / "configs/trainers"
    names = (trainer, *(kind.__name__ for kind in method_of(trainer).__mro__))
    own = next((name for name in names if (folder / name).is_dir()), trainer)
    return Path(os.path.normpath(folder / own / f"{config}.yaml"))


def run_arguments(
    trainer: str, dataset: str, shots: int, seed: int, config: str, pairs: str = "", opts: Sequence[str] = ()
) -> list[str]:
    """The command line of ``train.py``.

    Args:
        shots: ALL for all images; ignored by a method that has no seeds.
        config, pairs: as ``recipe`` gives them.
        opts: the user's KEY VALUE pairs.
    """
    return [
        *imported(trainer),
        *("--seed", str(seed)),
        *("--trainer", trainer),
        *("--dataset-config-file", str(REPOSITORY / "configs/datasets" / f"{dataset}.yaml")),
        *("--config-file", str(config_file(trainer, config))),
        *(("--recipe", pairs) if pairs else ()),
        *("DATASET.NUM_SHOTS", str(shots if method_of(trainer).has_seeds else 0)),
        *opts,
    ]
