"""How commands name methods, and which options are whose; ``runs/recipes.py`` has what the papers prescribe."""

from __future__ import annotations

import difflib
import functools
import shlex
from collections.abc import Mapping
from typing import Any

from dassl.config import flatten, get_cfg_default
from dassl.extras.cli import IMPORTED, Environment
from dassl.utils import UserError
from runs.config import read_yaml
from runs.directory import REPOSITORY, defaults
from runs.recipes import config_file, imported, method_of, recipe
from trainers.clip.weights import OURS
from trainers.method import methods

COMMON = "rn50"  # where methods are compared and nothing says on which


def label(trainer: str) -> str:
    """The method's name in tables."""
    return method_of(trainer).label or trainer


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


def check_backbone(trainer: str, dataset: str, environment: Environment) -> None:
    """Raises UserError if BACKBONE would be ignored."""
    fixed = recipe(trainer, dataset, 1, backbone="a") == recipe(trainer, dataset, 1, backbone="b")
    if environment.BACKBONE and fixed and not environment.CFG:
        raise UserError(
            f"BACKBONE is '{environment.BACKBONE}', but {trainer}'s config for {dataset} has its own; "
            f"leave BACKBONE out, or name a config: CFG={environment.BACKBONE.lower()}"
        )


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
