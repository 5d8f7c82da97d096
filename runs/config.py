"""A run's config: merged of files and KEY VALUE pairs, and checked whole before anything happens.

All faults are found at once and raised as one UserError, an argument each: files that are missing, keys that are
unknown, types, ranges (``dassl/config.py``), and what the trainer itself has to say (its ``find_faults``).
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

import trainers
from dassl.config import find_faults, flatten, get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from datasets.base import SUBSAMPLES

from .directory import brief, method_options


def setup_cfg(args: argparse.Namespace) -> tuple[Any, Any]:
    """The merged config, and the same without the user's flags and overrides.

    Raises:
        UserError: a file is missing or no YAML, a key unknown, a value impossible; all of these, an argument each.
    """
    cfg, faults, unread = _defaults(), [], False
    for path in filter(None, (args.dataset_config_file, args.config_file)):
        try:
            faults += _merge(cfg, read_yaml(Path(path)), f"'{path}'")
        except UserError as error:
            faults.append(str(error))
            unread = True
    if args.trainer:
        cfg.TRAINER.NAME = args.trainer
    try:
        recipe = shlex.split(args.recipe)
    except ValueError as error:
        recipe = []
        faults.append(f"--recipe '{args.recipe}' cannot be read: {error}")
    faults += _merge_pairs(cfg, recipe, "--recipe")
    if args.model_dir and (trained := Path(args.model_dir) / "config.yaml").is_file():
        # The head is a property of the trained run and goes with it, as does the backbone.
        own = (f"TRAINER.{method_options(cfg)[0]}.", "MODEL.BACKBONE.NAME")
        try:
            faults += _merge(cfg, read_yaml(trained), f"'{trained}'", own)
        except UserError as error:
            faults.append(str(error))
    base = cfg.clone()
    flags = (
        ("DATASET.ROOT", args.root or os.environ.get("DATA", "data")),
        ("RESUME", args.resume),
        ("SEED", args.seed),
        ("DATASET.SOURCE_DOMAINS", args.source_domains),
        ("DATASET.TARGET_DOMAINS", args.target_domains),
        ("INPUT.TRANSFORMS", args.transforms),
        ("MODEL.BACKBONE.NAME", args.backbone),
        ("MODEL.BACKBONE.CLIP_ROOT", args.clip_root),
        ("MODEL.HEAD.NAME", args.head),
    )
    given = [item for pair in flags if pair[1] not in (None, "") for item in pair]
    faults += _merge_pairs(cfg, given, "the command line")
    faults += _merge_pairs(cfg, args.opts, "the command line")
    _report([*faults, *find_faults(cfg), *([] if unread else _check(cfg))])
    return cfg, base


def read_cfg(directory: Path) -> Any:
    """The merged config of a run.

    Raises:
        UserError: its config.yaml is missing, damaged, or has faults.
    """
    cfg = _defaults()
    path = directory / "config.yaml"
    _report(_merge(cfg, read_yaml(path), f"'{path}'"))
    _report([*find_faults(cfg), *_check(cfg)])
    return cfg


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises UserError where a config file is missing or no YAML; nothing but plain values is made of it."""
    if not path.is_file():
        names = sorted(p.stem for p in path.parent.glob("*.yaml"))
        near = difflib.get_close_matches(path.stem, names, n=1, cutoff=0)
        hint = f"the nearest there is '{near[0]}'" if near else f"'{path.parent}' holds none"
        raise UserError(f"no config '{path.stem}': looked for '{path}'; {hint}")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date such as 2001-99-99
        raise UserError(f"'{path}' is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"'{path}' is no config: it should be a mapping of keys to values")
    return loaded


def _defaults() -> Any:
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    return cfg


def _report(faults: list[str]) -> None:
    if faults:
        raise UserError(*dict.fromkeys(faults))


def _merge(cfg: Any, values: dict[str, Any], source: str, only: tuple[str, ...] = ("",)) -> list[str]:
    """Merges the keys that begin as one of ``only``; what is wrong with them, a line each."""
    leaves = [leaf for leaf in flatten(values, like=cfg) if leaf[0].startswith(only)]
    return _merge_pairs(cfg, [item for leaf in leaves for item in leaf], source)


def _merge_pairs(cfg: Any, pairs: list[Any], source: str) -> list[str]:
    faults = []
    if len(pairs) % 2:
        faults.append(f"{source}: KEY VALUE pairs expected, '{pairs[-1]}' has no value")
    known = dict(flatten(cfg))
    for key, value in zip(pairs[::2], pairs[1::2], strict=False):
        if key not in known:
            nearest = difflib.get_close_matches(key[:80], known, n=1, cutoff=0)[0]
            faults.append(f"{source}: unknown config key {key[:80]!r}; the nearest is '{nearest}'")
        elif not _merge_value(cfg, key, value):
            expected = type(known[key]).__name__
            faults.append(f"{source}: {key} takes a value of type {expected}, not {brief(value)}")
    return faults


def _merge_value(cfg: Any, key: str, value: Any) -> bool:
    """Whether the value is of the key's type; if not, the key keeps what it has."""
    nested = (dict, list, tuple)
    if isinstance(value, dict) or (isinstance(value, nested) and any(isinstance(item, nested) for item in value)):
        return False  # yacs would copy or print it, and aliases make few lines of YAML endless
    *path, name = key.split(".")
    node = reduce(lambda node, part: node[part], path, cfg)
    before = node[name]
    if isinstance(before, float) and re.fullmatch(r"[+-]?\d{1,300}", str(value) if type(value) in (int, str) else ""):
        value = float(value)
    try:
        cfg.merge_from_list([key, value])  # reads texts as Python's literals, and runs nothing
    except (ValueError, AssertionError, TypeError, RecursionError, MemoryError):
        if not isinstance(before, str) or not isinstance(value, str):
            return False
        node[name] = value  # a name such as 2024
    if node[name] is None:  # yacs takes it for any type
        node[name] = before
        return False
    return True


def _check(cfg: Any) -> list[str]:
    """What is wrong with names and paths, and with the trainer's own options."""
    faults = []
    if cfg.DATASET.SUBSAMPLE_CLASSES not in SUBSAMPLES:
        faults.append(f"DATASET.SUBSAMPLE_CLASSES '{cfg.DATASET.SUBSAMPLE_CLASSES}' is none of {', '.join(SUBSAMPLES)}")
    if cfg.RESUME and not any(Path(cfg.RESUME).glob("*/*.pth.tar-*")):
        faults.append(f"nothing to resume from in '{cfg.RESUME}': looked for '*/model.pth.tar-*' there")

    def look_up(get: Callable[[str], Any], name: str, flag: str) -> Any:
        if not name:
            return faults.append(f"{flag} is missing; see python train.py --help")
        try:
            return get(name)
        except UserError as error:
            faults.append(str(error))

    trainer = look_up(TRAINER_REGISTRY.get, cfg.TRAINER.NAME, "--trainer")
    look_up(DATASET_REGISTRY.get, cfg.DATASET.NAME, "--dataset-config-file")
    return faults + (trainer.find_faults(cfg) if hasattr(trainer, "find_faults") else [])
