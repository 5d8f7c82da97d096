"""A run's config: merged from files and KEY VALUE pairs, and checked whole before anything happens.

All faults are found at once and raised as one UserError, an argument each: missing files, unknown keys, types, ranges
(``dassl/config.py``), and what the trainer's own ``find_faults`` reports.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import shlex
from collections.abc import Iterable
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from dassl.config import find_faults, flatten
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from datasets.base import SUBSAMPLES
from trainers.clip.weights import pictures

from .directory import brief, defaults, method_options, own_keys

BASE = "_BASE_"
# For the recipe: {shots at most: epochs}, beyond them OPTIM.MAX_EPOCH; and by dataset what differs, its epochs too.
EPOCHS, DATASETS = "_EPOCHS_", "_DATASETS_"


def setup_cfg(args: argparse.Namespace, needs_dataset: bool = True) -> tuple[Any, Any]:
    """The merged config, and the same without the user's flags and overrides.

    Args:
        needs_dataset: whether DATASET.NAME must be there.

    Raises:
        UserError: all faults, an argument each.
    """
    cfg, faults, unread = defaults(), [], []

    def merge_file(path: str | Path, begin: str | tuple[str, ...] = "") -> None:
        try:
            pairs = [(key, value) for key, value in read_yaml(Path(path)).items() if key.startswith(begin)]
            faults.extend(_merge(cfg, pairs, f"'{path}'"))
        except UserError as error:
            faults.append(str(error))
            unread.append(path)

    for path in filter(None, (args.dataset_config_file, args.config_file)):
        merge_file(path)
    if args.trainer:
        cfg.TRAINER.NAME = args.trainer
    try:
        faults += _merge_words(cfg, shlex.split(args.recipe), "--recipe")
    except ValueError as error:
        faults.append(f"--recipe '{args.recipe}' cannot be read: {error}")
    if args.model_dir and (trained := Path(args.model_dir) / "config.yaml").is_file():
        # The head is a property of the trained run and goes with it, as do the backbone and the seed.
        backbone = [f"MODEL.BACKBONE.{key}" for key in ("NAME", "ACTIVATION", "ARCH", "PLAIN_TEXT")]
        merge_file(trained, (f"TRAINER.{method_options(cfg)[0]}.", *backbone, "SEED"))
    base = cfg.clone()
    flags = {
        "DATASET.ROOT": args.root or args.environment.DATA,
        "RESUME": args.resume,
        "SEED": args.seed,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.BACKBONE.CLIP_ROOT": args.clip_root,
        "MODEL.HEAD.NAME": args.head,
    }
    flags = {key: value for key, value in flags.items() if value not in (None, "")}
    faults += _merge(cfg, flags.items(), "the command line")
    faults += _merge_words(cfg, args.opts, "the given options")
    faults += _follow_backbone(cfg, base, {*flags, *args.opts[::2]})
    _report([*faults, *find_faults(cfg), *([] if unread else _check(cfg, needs_dataset))])
    return cfg, base


def read_cfg(directory: Path, backbone: str = "") -> Any:
    """The merged config of a run; the options of other methods are ignored.

    Args:
        backbone: where the run's weights file is now; "" where it was.

    Raises:
        UserError: its config.yaml is missing, damaged, or has faults.
    """
    cfg, path = defaults(), directory / "config.yaml"
    values = read_yaml(path)
    faults = _merge(cfg, [("TRAINER.NAME", values.pop("TRAINER.NAME", ""))], f"'{path}'")
    faults += _merge(cfg, own_keys(values.items(), cfg).items(), f"'{path}'")
    cfg.MODEL.BACKBONE.NAME = backbone or cfg.MODEL.BACKBONE.NAME
    _report([*faults, *find_faults(cfg), *_check(cfg)])
    return cfg


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config file's values by dotted key, over those of its ``_BASE_``, a path relative to the file.

    Args:
        above: the files that name this one as their base, the nearest last.

    Raises:
        UserError: it or a base is missing, is no YAML, or has itself as a base.
    """
    of = f" ({BASE} of '{above[-1]}')" if above else ""
    if not path.is_file():
        names = sorted(p.stem for p in path.parent.glob("*.yaml"))
        near = difflib.get_close_matches(path.stem, names, n=1, cutoff=0)
        hint = f"the nearest there is '{near[0]}'" if near else f"'{path.parent}' holds none"
        raise UserError(f"no config '{path.stem}': looked for '{path}'{of}; {hint}")
    if any(path.samefile(other) for other in above):
        raise UserError(f"'{path}'{of} is a base of itself")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))  # makes plain values alone
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date such as 2001-99-99
        raise UserError(f"'{path}' is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"'{path}' is no config: it should be a mapping of keys to values")
    for key in (EPOCHS, DATASETS):
        loaded.pop(key, None)
    base = loaded.pop(BASE, "")
    if not isinstance(base, str):
        raise UserError(f"'{path}': {BASE} takes a path, not {brief(base)}")
    below = read_yaml(path.parent / base, (*above, path)) if base else {}
    return {**below, **dict(flatten(loaded, like=defaults()))}


def _follow_backbone(cfg: Any, base: Any, asked: set[str]) -> list[str]:
    """Sets INPUT to the pictures that the backbone was trained with, except what is asked for. Returns faults."""
    try:
        own = {key: value for key, value in pictures(cfg).items() if key not in asked}
    except UserError as error:
        return [str(error)]
    return [fault for node in (cfg, base) for fault in _merge(node, own.items(), cfg.MODEL.BACKBONE.NAME)]


def _report(faults: list[str]) -> None:
    if faults:
        raise UserError(*dict.fromkeys(faults))


def _merge_words(cfg: Any, words: list[str], source: str) -> list[str]:
    odd = [f"{source}: KEY VALUE pairs expected, '{words[-1]}' has no value"] if len(words) % 2 else []
    return odd + _merge(cfg, zip(words[::2], words[1::2], strict=False), source)


def _merge(cfg: Any, pairs: Iterable[tuple[str, Any]], source: str) -> list[str]:
    """Merges what it can; the faults, a line each."""
    faults = []
    known = dict(flatten(cfg))
    for key, value in pairs:
        if key not in known:
            if key.startswith("--"):
                faults.append(f"{source}: {key[:80]!r} is no config key; options come before KEY VALUE pairs")
                continue
            nearest = difflib.get_close_matches(key[:80], known, n=1, cutoff=0)[0]
            faults.append(f"{source}: unknown config key {key[:80]!r}; the nearest is '{nearest}'")
            continue
        *path, name = key.split(".")
        node = reduce(lambda node, part: node[part], path, cfg)
        try:
            node[name] = _typed(value, node[name])
        except ValueError:
            expected = type(known[key]).__name__
            faults.append(f"{source}: {key} takes a value of type {expected}, not {brief(value)}")
    return faults


def _typed(value: Any, like: Any) -> Any:
    """A value as one of the type of another; a text is read as Python's literal, as in yacs, which runs nothing.

    Raises:
        ValueError: it is of another type, or a list of lists or mappings, which aliases in YAML can make endless.
    """
    if isinstance(value, str):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            literal = ast.literal_eval(value)
            if isinstance(literal, str) or literal is None or not isinstance(like, str):  # else a name, such as 2024
                value = literal
    if isinstance(like, float) and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if isinstance(like, (list, tuple)) and isinstance(value, (list, tuple)):
        if any(isinstance(item, (dict, list, tuple)) for item in value):
            raise ValueError
        value = type(like)(value)
    if type(value) is not type(like):
        raise ValueError
    return value


def _check(cfg: Any, needs_dataset: bool = True) -> list[str]:
    """Faults in names and paths, and in the trainer's own options."""
    faults = []
    if cfg.DATASET.SUBSAMPLE_CLASSES not in SUBSAMPLES:
        faults.append(f"DATASET.SUBSAMPLE_CLASSES '{cfg.DATASET.SUBSAMPLE_CLASSES}' is none of {', '.join(SUBSAMPLES)}")
    if cfg.RESUME and not any(Path(cfg.RESUME).glob("*/*.pth.tar-*")):
        faults.append(f"nothing to resume from in '{cfg.RESUME}': looked for '*/model.pth.tar-*' there")

    def look_up(registry: Any, name: str, flag: str) -> Any:
        try:
            if name:
                return registry.get(name)
            faults.append(f"{flag} is missing; see python train.py --help")
        except UserError as error:
            own = "; --import FILE brings a method of your own" if registry is TRAINER_REGISTRY else ""
            faults.append(f"{error}{own}")
        return None

    trainer = look_up(TRAINER_REGISTRY, cfg.TRAINER.NAME, "--trainer")
    if needs_dataset or cfg.DATASET.NAME:
        look_up(DATASET_REGISTRY, cfg.DATASET.NAME, "--dataset-config-file")
    return faults + (trainer.find_faults(cfg) if hasattr(trainer, "find_faults") else [])
