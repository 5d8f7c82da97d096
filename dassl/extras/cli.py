"""What every program shares: parser, environment, exit codes, and one line on stderr for each mistake of the user."""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import torch

from dassl import startup
from dassl.extras.distributed import in_group, is_main, rank
from dassl.extras.interrupts import Interrupted, interruptible
from dassl.utils import UserError

# Errors that say what is wrong with a disk or its permissions, not with the program.
THE_USERS_DISK = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}


NEED_LESS = "smaller DATALOADER batches, fewer prompts a class (N) or a smaller backbone need less"


# The variables that programs read, for their help; a command needs them to go on as it began.
VARIABLES = {
    "DATA": "the folder that holds the datasets (default: data)",
    "OUT": "the folder of the runs (default: output)",
    "SEEDS": "one run each (default: 1 2 3)",
    "TRAINERS": "the methods, by name or by file: plot coop (default: those that tables compare)",
    "TARGETS": "the datasets to test on (default: the paper's others)",
    "CFG": "a config's name, for the recipe's",
    "BACKBONE": "rn50 or RN50, vit_b16 or ViT-B/16, ..., for the recipe's",
    "N": "prompts a class, of methods with that option",
    "PLOT_CACHE": "the folder of what is kept: image features, splits that are made, symbols (default: ~/.cache/plot)",
    "PYTHON": "the interpreter (default: that of .venv, else python)",
}
RUNNING = ("DATA", "OUT", "SEEDS", "CFG", "BACKBONE", "N")  # what a command that starts runs reads


@dataclass(frozen=True)
class Environment:
    """The environment variables that programs read, each under its name; an unset or empty one has its default."""

    DATA: str = "data"
    OUT: str = "output"
    SEEDS: str = "1 2 3"
    N: str = ""
    CFG: str = ""
    BACKBONE: str = ""
    TRAINERS: str = ""
    TARGETS: str = ""
    PLOT_COMMAND: str = ""

    @classmethod
    def read(cls) -> Environment:
        return cls(**{field.name: os.environ[field.name] for field in fields(cls) if os.environ.get(field.name)})


@contextmanager
def set_variables(**values: object) -> Iterator[None]:
    """A scope in which the process has these environment variables; None leaves a variable as it is."""
    given = {name: str(value) for name, value in values.items() if value is not None}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Parser(argparse.ArgumentParser):
    """Raises UserError for a mistake. The parsed arguments hold the ``environment`` as well.

    Args:
        program: a module, or a file's name.
        imports: takes --import.
        variables: those of VARIABLES that the help names.
        scripted: the arguments of the scripts that start the program, whose names the help then has.
    """

    def __init__(
        self,
        program: str,
        description: str | None = None,
        imports: bool = False,
        variables: Sequence[str] = (),
        scripted: str = "",
    ) -> None:
        prog = f"python {program}" if program.endswith(".py") else f"python -m {program}"
        script = shlex.split(Environment.read().PLOT_COMMAND)[:2] if scripted else []
        prog = shlex.join(script) or prog
        lines = ["from the environment:", *(f"  {name:<22}{VARIABLES[name]}" for name in variables)]
        super().__init__(
            prog=prog,
            usage=f"{prog} {scripted}" if script else None,
            description=description,
            epilog="\n".join(lines) if variables else None,
            formatter_class=_Help,
            allow_abbrev=False,
        )
        self.set_defaults(environment=Environment.read())
        if imports:
            about = "a Python file that registers a method or a dataset; may come several times"
            self.add_argument("--import", action=_Import, default=argparse.SUPPRESS, metavar="FILE", help=about)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """--help is heard behind KEY VALUE pairs too."""
        args = sys.argv[1:] if args is None else args
        return super().parse_args(["--help"] if {"-h", "--help"} & {*args} else args, namespace)

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see {self.prog} --help")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Names the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default in (None, "", False, [], argparse.SUPPRESS) or "(default" in (action.help or "")
        return action.help if said else f"{action.help or ''} (default: %(default)s)".strip()


class _Import(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        import_method(values)


IMPORTED: dict[str, Path] = {}  # the files that --import has named, by their modules' names


def import_method(file: str) -> None:
    """Imports a method's or a dataset's file from outside the tree, once.

    Raises:
        UserError: there is no such file, it fails, or it registers neither.
    """
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY

    def registered() -> list[str]:
        return [*TRAINER_REGISTRY.registered_names(), *DATASET_REGISTRY.registered_names()]

    path = Path(file).expanduser().resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in IMPORTED:
        return
    if not path.is_file():
        raise UserError(f"--import: there is no file '{file}'")
    before, loader = registered(), SourceFileLoader(name, str(path))
    sys.modules[name] = module_from_spec(spec_from_loader(name, loader))  # type: ignore[arg-type]
    try:
        loader.exec_module(sys.modules[name])
        if registered() == before:
            raise UserError("it registers no trainer and no dataset; @TRAINER_REGISTRY.register() does")
        IMPORTED[name] = path
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"--import '{file}'{f', line {lines[-1]}' if lines else ''}: {what}{error}") from error


def guarded(program: Callable[[], int | None], command: str = "") -> int:
    """The exit code of a program: its own or 0, 2 for the user's mistake, 130 or 143 if SIGINT or SIGTERM ended it.

    Args:
        command: what goes on with it, said when it is interrupted; that of a script around it comes first.
    """
    startup.after_imports()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that its encoding lacks must not end the program
    command = (Environment.read().PLOT_COMMAND.strip() or command) if command else ""
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
            return 141 if command else 0  # 128 + SIGPIPE
        except (OSError, MemoryError, RuntimeError) as error:
            if not (line := fault_of_machine(error)):
                raise
            complain(line)
            return 2
        except KeyboardInterrupt as error:
            goes_on = f"; what is saved of it goes on with:\n{resuming(command)}" if command else ""
            print(f"\ninterrupted by {error or 'Ctrl-C'}{goes_on}", file=sys.stderr)
            return 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT)


def fault_of_machine(error: Exception) -> str:
    """The line for an error of the disk, of memory or of the loader's workers; "" for any other."""
    if isinstance(error, OSError) and error.errno in THE_USERS_DISK:
        of = f": '{error.filename}'" if error.filename else ""
        return f"{error.strerror}{of}; nothing more was written"
    if out_of_memory(error):
        return f"out of memory; {NEED_LESS} ({str(error).partition(chr(10))[0]})"
    from dassl.data.workers import fault  # programs without loaders need not wait for its import

    return fault(error)


def out_of_memory(error: Exception) -> bool:
    """Whether it is the GPU's, the CPU allocator's or Python's memory that was too small."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def complain(message: str) -> None:
    one_line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)  # names may hold anything
    print(f"error: {one_line}", file=sys.stderr)


def typed(argv: Sequence[str] | None, program: str) -> str:
    """A program's own command line, for a shell.

    Args:
        argv: its arguments; None if they were typed.
        program: its file.
    """
    return shlex.join(sys.orig_argv if argv is None else [sys.executable, program, *argv])


def resuming(command: str) -> str:
    """The command with the variables that it reads, for a shell."""
    return " ".join([*(f"{k}={shlex.quote(os.environ[k])}" for k in VARIABLES if k in os.environ), command])
