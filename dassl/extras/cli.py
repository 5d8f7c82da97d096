"""What every program shares: its parser, its exit codes, and one line on stderr for each mistake of the user."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import sys
from collections.abc import Callable
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


NEED_LESS = "smaller DATALOADER batches, fewer prompts (TRAINER.PLOT.N) or a smaller backbone need less"


# What the scripts and train.py take from the environment.
VARIABLES = ("DATA", "OUT", "SEEDS", "CFG", "BACKBONE", "N", "TRAINERS", "TARGETS", "PYTHON")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see python {self.prog} --help")


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
