"""The options and the output that the programs share."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from runs.directory import REPOSITORY


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser with --json, whose --help shows the program's docstring as it is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the results here as well")
    return parser


def seconds_of(command: Sequence[str], **environment: str) -> float:
    """Wall seconds of a command in a fresh OUT. If it fails, the program ends with its exit code."""
    with tempfile.TemporaryDirectory() as out:
        data = str(Path(os.environ.get("DATA") or "data").absolute())
        env = {**os.environ, **environment, "DATA": data, "OUT": out}
        start = time.perf_counter()
        code = subprocess.call(command, cwd=REPOSITORY, env=env, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    if code:
        sys.exit(code)
    return seconds


def show(heading: str, rows: Sequence[dict[str, Any]], floatfmt: str = ".4g") -> None:
    """Prints a Markdown table below its heading."""
    print(f"\n{heading}\n\n{tabulate(rows, 'keys', 'pipe', floatfmt=floatfmt)}", flush=True)


def save(options: argparse.Namespace, **results: Any) -> None:
    """Writes the options and the results to --json, if it is given."""
    if options.json:
        found = {"torch": torch.__version__, **vars(options), **results}
        Path(options.json).write_text(json.dumps(found, indent=1, default=str) + "\n")
