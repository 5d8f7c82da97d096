"""What the papers prescribe, from the methods' own ``recipe``; and how commands name methods."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from dassl.config import flatten, get_cfg_default
from dassl.extras.cli import IMPORTED, Environment
from dassl.utils import UserError
from runs.config import DATASETS, EPOCHS, read_yaml
from runs.directory import REPOSITORY, defaults
from trainers.clip.weights import OURS
from trainers.method import Method, methods

# OpenAI's names, as the configs' names begin, and ours, which configs have in full.
BACKBONES = {"rn50": "RN50", "rn101": "RN101", "vit_b16": "ViT-B/16", "vit_b32": "ViT-B/32", **{k: k for k in OURS}}
ALL = 0  # as a number of shots: all images
COMMON = "rn50"  # where methods are compared and nothing says on which


def prefix_of(backbone: str) -> str:
    """What the configs of a backbone begin with: vit_b16 for vit_b16 and for OpenAI's ViT-B/16."""
    return backbone.lower().replace("-", "_").replace("/", "")


def method_of(trainer: str) -> type[Method]:
    return methods()[trainer]


def label(trainer: str) -> str:
    """The method's name in tables."""
    return method_of(trainer).label or trainer


def imported(trainer: str) -> list[str]:
    """The --import option of a method outside the tree; empty for one of ours."""
    file = IMPORTED.get(method_of(trainer).__module__)
    return ["--import", str(file)] if file else []


def _stem(trainer: str) -> str:
    module = method_of(trainer).__module__
    return IMPORTED[module].stem if module in IMPORTED else module.rpartition(".")[2]


def short_name(trainer: str) -> str:
    """The name of the method's file, where that means this method."""
    return _stem(trainer) if named_methods(_stem(trainer)) == [trainer] else trainer


def script_of(trainer: str) -> list[str]:
    """The words of the script that runs a method, before DATASET."""
    script = f"scripts/{short_name(trainer)}/main.sh"
    own = (REPOSITORY / script).is_file() and not imported(trainer)
    return [script] if own else ["scripts/run.sh", *imported(trainer), trainer]


def compared_methods() -> list[str]:
    """The methods that commands take if none is named: the ``compared`` with a colour, and the imported ones."""
    return [name for name, kind in methods().items() if (kind.compared and kind.colour) or imported(name)]


def named_methods(text: str, source: str = "TRAINERS") -> list[str]:
    """ "PLOT,coop" or "PLOT CoOp" -> the registered names; a method has the name of its file too. "" means the default.

    Raises:
        UserError: one of them is no method, or none is named.
    """
    if not text:
        return compared_methods()
    known = {_stem(name).lower(): name for name in methods()} | {name.lower(): name for name in methods()}
    chosen = []
    for word in text.replace(",", " ").split():
        if word.lower() not in known:
            nearest = known[difflib.get_close_matches(word.lower(), known, n=1, cutoff=0)[0]]
            raise UserError(
                f"{source}: '{word}' is none of {', '.join(methods())}; the nearest is '{nearest}', and --import FILE "
                "brings a method of your own"
            )
        chosen.append(known[word.lower()])
    if not chosen:
        raise UserError(f"{source} is '{text}'; it must name some of {', '.join(methods())}")
    return list(dict.fromkeys(chosen))


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


def check_backbone(trainer: str, dataset: str, environment: Environment) -> None:
    """Raises UserError if BACKBONE would be ignored."""
    own = own_config(trainer, dataset)
    if environment.BACKBONE and own and not environment.CFG:
        raise UserError(
            f"BACKBONE is '{environment.BACKBONE}', but {trainer}'s config for {dataset} has its own; "
            f"leave BACKBONE out, or name a config: CFG={environment.BACKBONE.lower()}"
        )


def config_file(trainer: str, config: str) -> Path:
    """A method without configs of its own has those of the method that it derives from."""
    folder = REPOSITORY / "configs/trainers"
    names = (trainer, *(kind.__name__ for kind in method_of(trainer).__mro__))
    own = next((name for name in names if (folder / name).is_dir()), trainer)
    return Path(os.path.normpath(folder / own / f"{config}.yaml"))


@functools.cache
def prescribed_epochs(trainer: str, dataset: str, shots: int, config: str = "") -> int:
    """The epochs that the recipe and its config prescribe; or ``config``, if it is that of a backbone of ours."""
    if not method_of(trainer).learns:
        return 0
    config, pairs = recipe(trainer, dataset, shots, config if config in OURS else "")
    words = shlex.split(pairs)
    values = dict(flatten(get_cfg_default())) | read_yaml(config_file(trainer, config))
    return int((values | dict(zip(words[::2], words[1::2], strict=True)))["OPTIM.MAX_EPOCH"])


def pairs_of(trainer: str, options: Mapping[str, Any]) -> list[str]:
    """The method's own options as KEY VALUE pairs."""
    node = method_of(trainer).node
    return [word for key, value in options.items() for word in (f"TRAINER.{node}.{key}", str(value))]


def own_options(trainer: str, opts: list[str]) -> list[str]:
    """KEY VALUE pairs without other methods' options and, for a method that learns nothing, those of training.

    The options of a method that this one ``needs`` stay: they tell which of its runs.

    Raises:
        UserError: one that is left out is no method's either.
    """
    own = method_of(trainer)
    needed = {method_of(name).node for name in own.needs.values()}
    nodes = {kind.node for kind in methods().values()} - {own.node, "", *needed}
    others = tuple(f"TRAINER.{node}." for node in nodes)
    if not own.has_seeds:
        others += ("DATASET.FEW_SHOT_LIST",)
    if not own.learns:
        others += ("OPTIM.", "TRAIN.", "DATALOADER.TRAIN_X.")
    known = dict(flatten(defaults()))
    if wrong := [key for key in opts[::2] if key.startswith(others) and key not in known]:
        nearest = difflib.get_close_matches(wrong[0][:80], known, n=1, cutoff=0)[0]
        raise UserError(f"unknown config key {wrong[0][:80]!r}; the nearest is '{nearest}'")
    pairs = zip(opts[::2], opts[1::2], strict=True)
    return [word for pair in pairs if not pair[0].startswith(others) for word in pair]
