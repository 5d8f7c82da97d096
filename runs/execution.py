"""One run from its config to its result: trained and tested, or tested only; finished ones are kept."""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from dassl.config import clean_cfg, drop_our_keys
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.extras.distributed import is_main, launched, of_main, process_group
from dassl.extras.locks import locked
from dassl.utils import ImageError, UserError, collect_env_info, set_random_seed, setup_logger, write_atomically

from .config import setup_cfg
from .directory import (
    LOCK,
    check_config,
    method_options,
    overrides,
    remove_temporaries,
    run_directory,
    say_not_compared,
    shorten,
    snake_case,
    spell,
    trained_with,
    write_config,
)
from .result import check_classes, describe, finished_result, git_commit, hash_of_checkpoints, predictions


def output_directory(args: argparse.Namespace, cfg: Any, base: Any) -> Path:
    """--output-dir; else, for a test of a trained run, eval/ inside it; else derived from the config."""
    if args.output_dir:
        return Path(args.output_dir)
    if args.eval_only and args.model_dir:
        subsample = cfg.DATASET.SUBSAMPLE_CLASSES
        name = snake_case(cfg.DATASET.NAME) + ("" if subsample == "all" else f"_{subsample}")
        head = f"TRAINER.{method_options(cfg)[0]}."  # tested with another head than it was trained with
        changed = overrides(cfg, base).items()
        name += "".join(f"_{k.removeprefix(head)}{spell(v)}" for k, v in changed if k.startswith(head))
        name += "" if args.load_epoch is None else f"_epoch{args.load_epoch}"
        return Path(args.model_dir) / "eval" / shorten(name)
    config = Path(args.config_file).stem or "default"
    return run_directory(cfg, base, config, args.environment.OUT)


def run(args: argparse.Namespace) -> None:
    if not args.eval_only and (args.model_dir or args.load_epoch is not None):
        raise UserError("--model-dir and --load-epoch are for --eval-only; MODEL.INIT_WEIGHTS starts from a checkpoint")
    cfg, base = setup_cfg(args)
    if args.print_config:
        clean_cfg(cfg, method_options(cfg)[0])
        drop_our_keys(cfg)
        print(cfg.dump(), end="")
        return
    if args.eval_only and not args.model_dir and TRAINER_REGISTRY.get(cfg.TRAINER.NAME).learns:
        raise UserError("--eval-only tests a trained run: name it with --model-dir")
    if cfg.SEED < 0 and launched():
        raise UserError("--seed is missing: the processes of one run have to draw the same few-shot set")
    directory = output_directory(args, cfg, base)
    cfg.OUTPUT_DIR = str(directory)
    backbone = cfg.MODEL.BACKBONE
    for source in map(Path, filter(None, (args.model_dir, cfg.RESUME, directory))):
        backbone.SHA256 = backbone.SHA256 or trained_with(source)
        if backbone.NAME and not backbone.SHA256 and source != directory and (source / "config.yaml").is_file():
            say_not_compared(source, backbone.NAME)
    cfg.freeze()
    with process_group(cfg.USE_CUDA):
        run_checked(args, cfg, base, directory)


def run_checked(args: argparse.Namespace, cfg: Any, base: Any, directory: Path) -> None:
    if of_main(lambda: is_finished(directory, cfg, args)):
        return
    start = time.perf_counter()
    git_commit()  # before the files may change
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    with redirect_stdout(Heard()) as heard:
        trainer = build_trainer(cfg)
    trains = not (args.eval_only or args.no_train)
    if trains and getattr(trainer.dm.dataset, "test_only", False) and trainer.get_model_names():
        raise UserError(f"{cfg.DATASET.NAME} is for testing only: give --eval-only and a --model-dir")
    if args.no_train:
        return
    if trains:
        trainer.check_training()
    for source in filter(None, (args.model_dir, cfg.RESUME, cfg.MODEL.INIT_WEIGHTS)):
        check_classes(Path(source), cfg, trainer.dm.dataset.classnames)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
    refusal = f"another process is writing to '{directory}'; wait for its end, or name another --output-dir"
    with locked(directory / LOCK, refusal) if is_main() else nullcontext():
        if of_main(lambda: is_finished(directory, cfg, args)):  # by another command, meanwhile
            return
        try:
            execute(trainer, directory, args, base, start, heard.getvalue())
        except ImageError as error:
            check = f"python -m datasets.prepare {snake_case(cfg.DATASET.NAME)} --check --decode"
            root = shlex.quote(cfg.DATASET.ROOT)
            raise UserError(f"{error}; every such image is found by: {check} --root {root}") from None
        except FileNotFoundError as error:
            if directory.is_dir():
                raise
            raise UserError(f"the run's directory '{directory}' has vanished; nothing more was written") from error


def is_finished(directory: Path, cfg: Any, args: argparse.Namespace) -> bool:
    """Whether there is nothing to do. Raises UserError: another config's run is there, or a damaged result.

    A test is finished if it was one of the checkpoints that are in --model-dir now.
    """
    check_config(directory, cfg)
    result = None if args.no_train else finished_result(directory)
    if result is None or result.get("tested") != tested(args):
        return False
    print(f"Finished before, kept: {directory / 'result.json'} (accuracy {result['accuracy']:.2f}%)")
    return True


def tested(args: argparse.Namespace) -> str | None:
    """What tells the checkpoints of --model-dir from others; None for a run that trains."""
    return hash_of_checkpoints(Path(args.model_dir)) if args.eval_only and args.model_dir else None


class Heard(io.StringIO):
    """Standard output, also kept."""

    def __init__(self) -> None:
        super().__init__()
        self.console = sys.stdout

    def write(self, text: str) -> int:
        self.console.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.console.flush()


def facts(cfg: Any, args: argparse.Namespace) -> str:
    """What the log has and the terminal has not: time, command, commit, the config and the versions."""
    own = cfg.clone()
    own.defrost()
    clean_cfg(own, method_options(cfg)[0])
    command = getattr(args, "command", "")
    return f"Started: {now()}\nCommand: {command}\nCommit: {git_commit()}\n\n{own}\n\n{collect_env_info()}\n"


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


def execute(trainer: Any, directory: Path, args: argparse.Namespace, base: Any, start: float, built: str) -> None:
    """Trains and tests, or tests only, and writes the result; all that a run leaves is written here.

    Args:
        built: what was printed while the trainer was built, for the log.
    """
    cfg, work = trainer.cfg, trainer.test if args.eval_only else trainer.train
    if not is_main():
        work()
        return
    remove_temporaries(directory)
    write_config(directory, cfg, getattr(trainer, "weights_sha256", None))
    logger = setup_logger(str(directory))
    assert logger is not None
    with logger:
        logger.file.write(f"{facts(cfg, args)}\n{built}\n")
        print(f"Run directory: {directory}", flush=True)
        work()
        logger.file.write(f"Ended: {now()}\n")
        if not trainer.results:  # TEST.NO_TEST
            return
        (directory / "config.yaml").stat()  # the directory may have vanished, and would be made anew
        write_atomically(directory / "predictions.json", json.dumps(predictions(trainer)) + "\n")
        config = Path(args.config_file).stem or "default"
        result = describe(trainer, time.perf_counter() - start, config, overrides(cfg, base))
        if args.eval_only:
            result["tested"] = tested(args)
        write_atomically(directory / "result.json", json.dumps(result, indent=1) + "\n")
        print(f"Result: {directory / 'result.json'} (accuracy {result['accuracy']:.2f}%)")
