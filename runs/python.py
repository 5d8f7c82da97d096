"""A run from Python: ``train`` and ``evaluate`` start the child process that a command starts, and give its result.

    from runs import evaluate, load, train
    result = train("PLOT", dataset="symbols", shots=16, seed=1)
    evaluate(result.directory, dataset="symbols_layout").accuracy
    load(result.directory).predict("my.jpg")

A finished run is kept, an unfinished one resumed. What a run prints goes to log.txt in its directory; its latest epoch,
with the time to go, is shown on standard error.
"""

from __future__ import annotations

import argparse
import io
import json
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from dassl.engine import TRAINER_REGISTRY
from dassl.extras.cli import set_variables
from dassl.utils import UserError

from . import process
from .command_line import build_parser
from .config import setup_cfg
from .directory import REPOSITORY, check_config
from .execution import is_finished, output_directory
from .recipes import ALL, method_of, recipe, run_arguments
from .result import finished_result, load_result

SHOWN_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class Result:
    """A finished run, or a finished test of one.

    Attributes:
        directory: of the run or of the test.
        accuracy: in percent.
        record: all that its ``result.json`` holds: ``macro_f1``, ``seconds``, ``options``, ``versions``, ...
    """

    directory: Path
    accuracy: float
    record: dict[str, Any] = field(repr=False)

    def predictions(self) -> dict[str, list[Any]]:
        """The tested images in order: ``image``, ``label`` and ``prediction``. OSError: the run has kept none."""
        return json.loads((self.directory / "predictions.json").read_text(encoding="utf-8"))


def train(
    method: str,
    dataset: str,
    shots: int | str,
    seed: int = 1,
    options: Mapping[str, object] | None = None,
    *,
    config: str = "",
    backbone: str = "",
    data: str | Path | None = None,
    out: str | Path | None = None,
) -> Result:
    """Trains a method by its paper's recipe, and tests it.

    Args:
        method: its registered name, such as "PLOT".
        dataset: the name of its config, such as "caltech101".
        shots: images a class, or "all".
        seed: fixes the few-shot set, the order and the augmentation.
        options: config keys with values; the method's own may go without ``TRAINER.<node>.``: ``{"N": 2}``.
        config, backbone: a config's name or a backbone for the recipe's, as CFG and BACKBONE of the scripts.
        data, out: the folders of datasets and of runs; by default those of ``$DATA`` and ``$OUT``.

    Raises:
        UserError: a mistake in the arguments, found before anything runs, or one that the run has met.
        RuntimeError: the child process ended without saying why.
    """
    kind = TRAINER_REGISTRY.get(method)  # UserError, with the nearest name
    number = _number_of(shots)
    if backbone and config:
        raise UserError(f"config is '{config}' and backbone '{backbone}'; give one, since a config has its backbone")
    name, pairs = recipe(method, dataset, number, config, backbone)
    with set_variables(DATA=data, OUT=out):
        seed = seed if kind.has_seeds else 1
        return _finish(run_arguments(method, dataset, number, seed, name, pairs, _pairs(method, options)))


def evaluate(
    run: str | Path | Result,
    dataset: str = "",
    options: Mapping[str, object] | None = None,
    *,
    data: str | Path | None = None,
) -> Result:
    """Tests a trained run on another dataset or other classes; the test is kept in ``eval/`` of the run's directory.

    Args:
        run: its directory, or what ``train`` returned.
        dataset: the name of its config; by default the run's own dataset.
        options: config keys with values, such as ``{"DATASET.SUBSAMPLE_CLASSES": "new"}``.
        data: the folder of datasets; by default that of ``$DATA``.

    Raises:
        UserError, RuntimeError: as ``train``; the run is unfinished, or learns nothing.
    """
    directory = run.directory if isinstance(run, Result) else Path(run)
    path = directory / "result.json"
    if not path.is_file():
        raise UserError(f"'{directory}' is no finished run: looked for '{path}'")
    trained = load_result(path)
    method, shots = trained["trainer"], trained["shots"]
    if not method_of(method).learns:
        raise UserError(f"{method} learns nothing; train() tests it on each dataset")
    folder = PurePath(recipe(method, trained["dataset"], shots)[0]).parent
    size = {key: value for key, value in trained["overrides"].items() if key.startswith("INPUT.")}
    arguments = run_arguments(
        *(method, dataset or trained["dataset"], shots, trained["seed"], str(folder / trained["config"])),
        opts=_pairs(method, {**size, **(options or {})}),
    )
    with set_variables(DATA=data):
        return _finish(["--eval-only", "--model-dir", str(directory), *arguments])


def resolve(arguments: list[str]) -> tuple[argparse.Namespace, Any, Path]:
    """A run's parsed arguments, config and directory. UserError: a mistake in them, or a damaged result."""
    parsed = build_parser().parse_args(arguments)
    cfg, base = setup_cfg(parsed)
    directory = output_directory(parsed, cfg, base)
    check_config(directory, cfg)
    finished_result(directory)
    return parsed, cfg, directory


def _number_of(shots: int | str) -> int:
    if shots == "all":
        return ALL
    if type(shots) is not int or shots < 1:
        raise UserError(f"shots is {shots!r}; it must be a positive integer, or 'all'")
    return shots


def _pairs(method: str, options: Mapping[str, object] | None) -> list[str]:
    """The options as KEY VALUE pairs."""
    kind = method_of(method)
    own = {option.key for option in kind.options}
    named = {f"TRAINER.{kind.node}.{key}" if key in own else key: value for key, value in (options or {}).items()}
    return [word for key, value in named.items() for word in (key, str(value))]


def _finish(arguments: list[str]) -> Result:
    parsed, cfg, directory = resolve(arguments)
    with redirect_stdout(io.StringIO()):
        kept = is_finished(directory, cfg, parsed)
    if not kept:
        _run(arguments, directory / "log.txt")
    record = load_result(directory / "result.json")
    return Result(directory, record["accuracy"], record)


def _run(arguments: list[str], log_of_run: Path) -> None:
    """In a child process, as a command does it. A KeyboardInterrupt goes to the child, which saves."""
    shown = _latest_epoch(log_of_run)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr.txt"
        child = process.start(arguments, log=log)
        try:
            while (code := child.poll(SHOWN_EVERY)) is None:
                latest = _latest_epoch(log_of_run)
                if latest and latest != shown:
                    print(latest, file=sys.stderr)
                    shown = latest
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            child.wait()
            raise
        said = log.read_text(encoding="utf-8", errors="replace")
    faults = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
    if code and faults:
        raise UserError(*faults)
    if code:
        raise RuntimeError(f"{REPOSITORY / 'train.py'} ended with exit code {code}\n{said}")
    sys.stderr.write(said)


def _latest_epoch(log: Path) -> str:
    """The last line that tells of an epoch; "" before the first."""
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.startswith("epoch [")), "")
    return ""
