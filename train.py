"""Trains and tests one run: ``python train.py`` with CoOp's flags, then KEY VALUE overrides of the config.

    python train.py --root data --seed 1 --trainer PLOT --dataset-config-file configs/datasets/symbols.yaml \
        --config-file configs/trainers/PLOT/symbols.yaml DATASET.NUM_SHOTS 16

Precedence, lowest first: engine defaults, dataset file, trainer file, --recipe, flags and KEY VALUE. Without
--output-dir the run's directory is derived under $OUT (output); a finished run is kept, an unfinished one resumed.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from startup import before_imports

    before_imports()

import torch

import datasets
import runs
import startup
import trainers
from dassl.distributed import in_group, is_main, launched, of_main, process_group, rank
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import (
    ImageError,
    Interrupted,
    UserError,
    collect_env_info,
    interruptible,
    locked,
    set_random_seed,
    setup_logger,
    write_atomically,
)
from settings import read_cfg, setup_cfg

# Errors that say what is wrong with a disk or its permissions, not with the program.
THE_USERS_DISK = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}
NEED_LESS = "smaller DATALOADER batches, fewer prompts (TRAINER.PLOT.N) or a smaller backbone need less"
# What the scripts and train.py take from the environment.
VARIABLES = ("DATA", "OUT", "SEEDS", "CFG", "BACKBONE", "N", "TRAINERS", "TARGETS", "PYTHON")

__all__ = ["datasets", "main", "read_cfg", "setup_cfg", "trainers"]


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
        name += "" if args.load_epoch is None else f"_epoch{args.load_epoch}"
        return Path(args.model_dir) / "eval" / runs.shorten(name)
    config = Path(args.config_file).stem or "default"
    return runs.run_directory(cfg, base, config, os.environ.get("OUT") or "output")


def run(args: argparse.Namespace) -> None:
    if not args.eval_only and (args.model_dir or args.load_epoch is not None):
        raise UserError("--model-dir and --load-epoch are for --eval-only; MODEL.INIT_WEIGHTS starts from a checkpoint")
    cfg, base = setup_cfg(args)
    if args.eval_only and not args.model_dir and TRAINER_REGISTRY.get(cfg.TRAINER.NAME).learns:
        raise UserError("--eval-only tests a trained run: name it with --model-dir")
    if cfg.SEED < 0 and launched():
        raise UserError("--seed is missing: the processes of one run have to draw the same few-shot set")
    directory = output_directory(args, cfg, base)
    cfg.OUTPUT_DIR = str(directory)
    cfg.freeze()
    with process_group(cfg.USE_CUDA):
        run_checked(args, cfg, base, directory)


def run_checked(args: argparse.Namespace, cfg: Any, base: Any, directory: Path) -> None:
    if of_main(lambda: is_finished(directory, cfg, args)):
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
    with writer(directory):
        if of_main(lambda: is_finished(directory, cfg, args)):  # by another command, meanwhile
            return
        try:
            execute(trainer, directory, args, base, start)
        except ImageError as error:
            check = f"python -m datasets.prepare {runs.snake_case(cfg.DATASET.NAME)} --check --decode"
            root = shlex.quote(cfg.DATASET.ROOT)
            raise UserError(f"{error}; every such image is found by: {check} --root {root}") from None
        except FileNotFoundError as error:
            if directory.is_dir():
                raise
            raise UserError(f"the run's directory '{directory}' has vanished; nothing more was written") from error


@contextmanager
def writer(directory: Path) -> Iterator[None]:
    """The scope of the run's one writer. UserError: there is another."""
    if not is_main():
        yield
        return
    refusal = f"another process is writing to '{directory}'; wait for its end, or name another --output-dir"
    with locked(directory / runs.LOCK, refusal):
        yield


def is_finished(directory: Path, cfg: Any, args: argparse.Namespace) -> bool:
    """Whether there is nothing to do. Raises UserError: another config's run is there, or a damaged result.

    A test is finished if it was one of the checkpoints that are in --model-dir now.
    """
    runs.check_config(directory, cfg)
    result = None if args.no_train else runs.finished_result(directory)
    if result is None or result.get("tested") != tested(args):
        return False
    print(f"Finished before, kept: {directory / 'result.json'} (accuracy {result['accuracy']:.2f}%)")
    return True


def tested(args: argparse.Namespace) -> str | None:
    """What tells the checkpoints of --model-dir from others; None for a run that trains."""
    return runs.hash_of_checkpoints(Path(args.model_dir)) if args.eval_only and args.model_dir else None


def execute(trainer: Any, directory: Path, args: argparse.Namespace, base: Any, start: float) -> None:
    """Trains and tests, or tests only, and writes the result; all that a run leaves is written here."""
    cfg, work = trainer.cfg, trainer.test if args.eval_only else trainer.train
    if not is_main():
        work()
        return
    runs.remove_temporaries(directory)
    runs.write_config(directory, cfg)
    with setup_logger(str(directory)) or nullcontext():
        print(f"Run directory: {directory}\n\n{cfg}\n\n{collect_env_info()}\n")
        work()
        if not trainer.results:  # TEST.NO_TEST
            return
        (directory / "config.yaml").stat()  # the directory may have vanished, and would be made anew
        write_atomically(directory / "predictions.json", json.dumps(runs.predictions(trainer)) + "\n")
        config = Path(args.config_file).stem or "default"
        result = runs.describe(trainer, time.perf_counter() - start, config, runs.overrides(cfg, base))
        if args.eval_only:
            result["tested"] = tested(args)
        write_atomically(directory / "result.json", json.dumps(result, indent=1) + "\n")
        print(f"Result: {directory / 'result.json'} (accuracy {result['accuracy']:.2f}%)")


def guarded(program: Callable[[], int | None], command: str = "") -> int:
    """The exit code of a program: its own or 0, 2 for the user's mistake, 130 or 143 if SIGINT or SIGTERM ended it.

    Args:
        command: what goes on with it, said when it is interrupted; that of a script around it comes first.
    """
    startup.after_imports()
    with interruptible():
        try:
            return program() or 0
        except UserError as error:
            if is_main() or in_group():  # before, all processes of a run make the same mistakes
                of = "" if is_main() else f"(process {rank()}) "
                for fault in error.args:
                    complain(f"{of}{fault}")
            return 2
        except BrokenPipeError:  # the reader, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if command:  # of a program that is there to do something, not to say something
                complain(f"its output was closed before its end; it goes on with: {resuming(command)}")
            return 128 + signal.SIGPIPE if command else 0
        except OSError as error:
            if error.errno not in THE_USERS_DISK:
                raise
            of = f": '{error.filename}'" if error.filename else ""
            complain(f"{error.strerror}{of}; nothing more was written")
            return 2
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            complain(f"out of memory; {NEED_LESS} ({str(error).partition(chr(10))[0]})")
            return 2
        except KeyboardInterrupt as error:
            command = os.environ.get("PLOT_COMMAND", "").strip() or command
            goes_on = f"; what is saved of it goes on with:\n{resuming(command)}" if command else ""
            print(f"\ninterrupted by {error or 'Ctrl-C'}{goes_on}", file=sys.stderr)
            return 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT)


def out_of_memory(error: Exception) -> bool:
    """Whether it is the GPU's, the CPU allocator's or Python's memory that was too small."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def complain(message: str) -> None:
    one_line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)  # names may hold anything
    print(f"error: {one_line}", file=sys.stderr)


def resuming(command: str) -> str:
    """The command with the variables that it reads, for a shell."""
    return " ".join([*(f"{k}={shlex.quote(os.environ[k])}" for k in VARIABLES if k in os.environ), command])


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    command = shlex.join([sys.executable, str(runs.REPOSITORY / "train.py"), *argv])
    return guarded(lambda: run(build_parser().parse_args(argv)), command)


if __name__ == "__main__":
    sys.exit(main())
