"""Trains and tests one run: ``python train.py`` with CoOp's flags, then KEY VALUE overrides of the config.

    python train.py --root data --seed 1 --trainer PLOT --dataset-config-file configs/datasets/symbols.yaml \
        --config-file configs/trainers/PLOT/symbols.yaml DATASET.NUM_SHOTS 16

Precedence, lowest first: engine defaults, dataset file, trainer file, --recipe, flags and KEY VALUE. Without
--output-dir the run's directory is derived under $OUT (output); a finished run is kept, an unfinished one resumed.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import datasets
import runs
import trainers
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import UserError, collect_env_info, set_random_seed, setup_logger

# Errors that say what is wrong with a disk or its permissions, not with the program.
THE_USERS_DISK = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}

__all__ = ["datasets", "main", "setup_cfg"]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see python {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="train.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--root", default="", help="folder that holds the datasets (default: $DATA, else data)")
    add("--output-dir", default="", help="the run's directory (default: derived from the config, under $OUT)")
    add("--resume", default="", help="a run's directory to resume from (default: the run's own)")
    add("--seed", type=int, help="positive; fixes the few-shot set, the order and the augmentation")
    add("--source-domains", nargs="+", help="source domains, for datasets that have them")
    add("--target-domains", nargs="+", help="target domains, for datasets that have them")
    add("--transforms", nargs="+", help="data augmentation methods")
    add("--config-file", default="", help="the trainer's config: configs/trainers/...")
    add("--dataset-config-file", default="", help="the dataset's config: configs/datasets/...")
    add("--trainer", default="", help=f"one of {', '.join(TRAINER_REGISTRY.registered_names())}")
    add("--backbone", default="", help="an OpenAI name, or the path of a weights file")
    add("--head", default="", help="name of the head (unused by these trainers)")
    add("--clip-root", default="", help="where OpenAI's weights are kept (default: ~/.cache/clip)")
    add("--eval-only", action="store_true", help="test only")
    add("--model-dir", default="", help="a trained run's directory to test, for --eval-only")
    add(
        "--load-epoch",
        type=int,
        help="the epoch whose checkpoint is tested (default: the best, else the last)",
    )
    add("--no-train", action="store_true", help="build everything, train nothing")
    add("--recipe", default="", help="KEY VALUE pairs of the scripts' recipe; the user's own win over them")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    return parser


def setup_cfg(args: argparse.Namespace) -> tuple[Any, Any]:
    """The merged config, and the same without the user's flags and overrides.

    Raises:
        UserError: a file is missing or no YAML, a key unknown, a value impossible.
    """
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    for path in (args.dataset_config_file, args.config_file):
        if path:
            _merge(cfg, _read_yaml(Path(path)), f"'{path}'")
    if args.trainer:
        cfg.TRAINER.NAME = args.trainer
    recipe = shlex.split(args.recipe)
    _merge_pairs(cfg, recipe, "--recipe")
    if args.model_dir and (trained := Path(args.model_dir) / "config.yaml").is_file():
        _adopt_head(cfg, _read_yaml(trained))
    base = cfg.clone()
    for key, value in (
        ("DATASET.ROOT", args.root or os.environ.get("DATA", "data")),
        ("RESUME", args.resume),
        ("SEED", args.seed),
        ("DATASET.SOURCE_DOMAINS", args.source_domains),
        ("DATASET.TARGET_DOMAINS", args.target_domains),
        ("INPUT.TRANSFORMS", args.transforms),
        ("MODEL.BACKBONE.NAME", args.backbone),
        ("MODEL.BACKBONE.CLIP_ROOT", args.clip_root),
        ("MODEL.HEAD.NAME", args.head),
    ):
        if value not in (None, ""):
            cfg.merge_from_list([key, tuple(value) if isinstance(value, list) else value])
    _merge_pairs(cfg, args.opts, "the command line")
    _check(cfg)
    return cfg, base


def read_cfg(directory: Path) -> Any:
    """The merged config of a run.

    Raises:
        UserError: its config.yaml is missing, damaged, or has keys that are unknown.
    """
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    path = directory / "config.yaml"
    _merge(cfg, _read_yaml(path), f"'{path}'")
    return cfg


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        names = sorted(p.stem for p in path.parent.glob("*.yaml"))
        near = difflib.get_close_matches(path.stem, names, n=1, cutoff=0)
        hint = f"the nearest there is '{near[0]}'" if near else f"'{path.parent}' holds none"
        raise UserError(f"no config '{path.stem}': looked for '{path}'; {hint}")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"'{path}' is no config: it should be a mapping of keys to values")
    return loaded


def _merge(cfg: Any, values: dict[str, Any], source: str) -> None:
    pairs = [item for key, value in runs.flatten(values) for item in (key, value)]
    _merge_pairs(cfg, pairs, source)


def _merge_pairs(cfg: Any, pairs: list[Any], source: str) -> None:
    if len(pairs) % 2:
        raise UserError(f"{source}: KEY VALUE pairs expected, '{pairs[-1]}' has no value")
    known = dict(runs.flatten(cfg))
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise UserError(f"{source}: unknown config key '{key}'; the nearest is '{nearest}'")
        try:
            as_float = isinstance(known[key], float) and re.fullmatch(r"[+-]?\d+", str(value))
            cfg.merge_from_list([key, float(value) if as_float else value])
        except (ValueError, AssertionError) as error:
            expected = type(known[key]).__name__
            raise UserError(f"{source}: {key} takes a value of type {expected}, not {value!r}") from error


def _adopt_head(cfg: Any, trained: dict[str, Any]) -> None:
    """The head is a property of the trained run and goes with it, as does the backbone."""
    name, _ = runs.method_options(cfg)
    for section in (f"TRAINER.{name}.", "MODEL.BACKBONE.NAME"):
        kept = [kv for kv in runs.flatten(trained) if kv[0].startswith(section)]
        _merge_pairs(cfg, [item for kv in kept for item in kv], "the trained run")


def _check(cfg: Any) -> None:
    """Impossible values, before anything is loaded or written."""
    for registry, name, flag in (
        (TRAINER_REGISTRY, cfg.TRAINER.NAME, "--trainer"),
        (DATASET_REGISTRY, cfg.DATASET.NAME, "--dataset-config-file"),
    ):
        if not name:
            raise UserError(f"{flag} is missing; see python train.py --help")
        registry.get(name)
    for key, least in (
        ("DATALOADER.TRAIN_X.BATCH_SIZE", 1),
        ("DATALOADER.TEST.BATCH_SIZE", 1),
        ("DATALOADER.NUM_WORKERS", 0),
        ("OPTIM.MAX_EPOCH", 1),
        ("TRAIN.PRINT_FREQ", 1),
    ):
        if (value := dict(runs.flatten(cfg))[key]) < least:
            raise UserError(f"{key} is {value}; it must be {least} or more")
    if cfg.SEED == 0 or cfg.SEED < -1:
        raise UserError(f"the seed is {cfg.SEED}; it must be a positive integer")
    if cfg.DATASET.NUM_SHOTS < -1:
        raise UserError(f"DATASET.NUM_SHOTS is {cfg.DATASET.NUM_SHOTS}; it must be a positive integer")
    if not cfg.OPTIM.LR > 0:
        raise UserError(f"OPTIM.LR is {cfg.OPTIM.LR}; it must be positive")
    if cfg.DATASET.SUBSAMPLE_CLASSES not in ("all", "base", "new"):
        raise UserError(f"DATASET.SUBSAMPLE_CLASSES '{cfg.DATASET.SUBSAMPLE_CLASSES}' is none of all, base, new")


def output_directory(args: argparse.Namespace, cfg: Any, base: Any) -> Path:
    """--output-dir; else, for a test of a trained run, eval/ inside it; else derived from the config."""
    if args.output_dir:
        return Path(args.output_dir)
    if args.eval_only and args.model_dir:
        subsample = cfg.DATASET.SUBSAMPLE_CLASSES
        name = runs.snake_case(cfg.DATASET.NAME) + ("" if subsample == "all" else f"_{subsample}")
        head = f"TRAINER.{runs.method_options(cfg)[0]}."  # tested with another head than it was trained with
        changed = runs.overrides(cfg, base).items()
        name += "".join(f"_{k.removeprefix(head)}{runs.spell(v)}" for k, v in changed if k.startswith(head))
        return Path(args.model_dir) / "eval" / runs.shorten(name)
    config = Path(args.config_file).stem or "default"
    return runs.run_directory(cfg, base, config, os.environ.get("OUT") or "output")


def run(args: argparse.Namespace) -> None:
    cfg, base = setup_cfg(args)
    directory = output_directory(args, cfg, base)
    cfg.OUTPUT_DIR = str(directory)
    cfg.freeze()
    runs.check_config(directory, cfg)
    if (result := runs.read_result(directory)) and not (args.no_train or args.load_epoch):
        print(f"Finished before, kept: {directory / 'result.json'} (accuracy {result['accuracy']:.2f}%)")
        return
    start = time.perf_counter()
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    trains = not (args.eval_only or args.no_train)
    if trains and getattr(trainer.dm.dataset, "test_only", False) and trainer.get_model_names():
        raise UserError(f"{cfg.DATASET.NAME} is for testing only: give --eval-only and a --model-dir")
    if args.no_train:
        return
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
    runs.write_config(directory, cfg)
    setup_logger(str(directory))
    print(f"Run directory: {directory}\n\n{cfg}\n\n{collect_env_info()}\n")
    trainer.test() if args.eval_only else trainer.train()
    if not trainer.results:  # TEST.NO_TEST
        return
    runs.write_whole(directory / "predictions.json", json.dumps(runs.predictions(trainer)) + "\n")
    config = Path(args.config_file).stem or "default"
    result = runs.describe(trainer, time.perf_counter() - start, config, runs.overrides(cfg, base))
    runs.write_whole(directory / "result.json", json.dumps(result, indent=1) + "\n")
    print(f"Result: {directory / 'result.json'} (accuracy {result['accuracy']:.2f}%)")


def guarded(program: Callable[[], int | None], interrupted: str = "") -> int:
    """The exit code of a program: its own or 0, 2 for the user's mistake, 130 if it was interrupted."""
    try:
        return program() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in THE_USERS_DISK:
            raise
        print(f"error: {error.strerror}: '{error.filename}'; nothing more was written", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if interrupted:
            print(f"\n{interrupted}", file=sys.stderr)
        return 130


def main(argv: list[str] | None = None) -> int:
    return guarded(
        lambda: run(build_parser().parse_args(argv)),
        "interrupted; the same command resumes the run from its last epoch",
    )


if __name__ == "__main__":
    sys.exit(main())
