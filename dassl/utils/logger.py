"""What a run prints, also in its log file; a resumed run appends."""

import io
import os.path as osp
import sys
from typing import Any

from .tools import mkdir_if_missing


class Silence(io.TextIOBase):
    """A standard output that shows nothing; progress bars are not shown either."""

    quiet = True

    def write(self, msg: str) -> int:
        return len(msg)


class Logger:
    """A stream that writes to `sys.stdout` as it was, and to the file `fpath`, line by line."""

    def __init__(self, fpath: str) -> None:
        mkdir_if_missing(osp.dirname(fpath))
        self.console = sys.stdout
        how: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}  # a path may hold any bytes
        self.file = open(fpath, "a", buffering=1, **how)  # noqa: SIM115 -- as long as the run

    def write(self, msg: str) -> int:
        if not self.file.closed:
            self.file.write(msg)
        return self.console.write(msg)

    def flush(self) -> None:
        self.console.flush()
        if not self.file.closed:
            self.file.flush()

    def close(self) -> None:
        """Close the file and give `sys.stdout` back."""
        if sys.stdout is self:
            sys.stdout = self.console
        self.file.close()

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:  # isatty, encoding, fileno, ...
        return getattr(self.__dict__["console"], name)


def print_to_file(text: str) -> None:
    """To the log file alone or, without one, to standard output."""
    print(text, file=sys.stdout.file if isinstance(sys.stdout, Logger) else None)


def print_to_console(text: str) -> None:
    """To the console alone. Without a log file it is not printed: there `print_to_file` is seen."""
    if isinstance(sys.stdout, Logger):
        print(text, file=sys.stdout.console, flush=True)


def setup_logger(output: str | None = None) -> Logger | None:
    """Tee `sys.stdout` to `output`, a .txt or .log file or a folder for log.txt; `close()` undoes it.

    A second call takes the place of the first.
    """
    if output is None:
        return None
    if isinstance(sys.stdout, Logger):
        sys.stdout.close()
    logger = Logger(output if output.endswith((".txt", ".log")) else osp.join(output, "log.txt"))
    sys.stdout = logger
    return logger
