"""Runs one method on one dataset and shot count over the seeds, then prints the table.

    bash scripts/plot/main.sh DATASET SHOTS [KEY VALUE]...        # and coop, cocoop, zsclip
    bash scripts/run.sh [--import FILE] TRAINER DATASET SHOTS [KEY VALUE]...

SHOTS is a number, or "all" for all images. A method without seeds may be asked without SHOTS. KEY VALUE pairs override
the config. A finished run is kept, an unfinished one resumed. Each run is a child process, and what it prints goes to
log.txt in its directory; a single one prints here too, and several show a bar on a terminal.
"""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

if __name__ == "__main__":
    from runs.process import before_imports

    before_imports()

from tabulate import tabulate

from dassl.extras.cli import RUNNING, Environment, Parser, guarded, typed
from dassl.extras.interrupts import Interrupted, uninterrupted
from dassl.utils import UserError
from experiments.recipes import check_backbone, named_methods, own_options, script_of
from experiments.sweep.progress import Progress
from experiments.sweep.task import Outcome, Run, Task
from experiments.sweep.times import Times
from runs import process
from runs.python import resolve
from runs.recipes import ALL, method_of, recipe, run_arguments
from runs.result import load_result

# Keys that tell apart the runs of one command, with what says them.
OURS = {
    "SEED": "the seeds (SEEDS)",
    "DATASET.NUM_SHOTS": "the shots",
    "DATASET.NAME": "the dataset",
    "TRAINER.NAME": "the method",
}


def positive_integers(text: str, name: str) -> list[int]:
    """ "1 2 3" -> [1, 2, 3], each once; raises UserError for anything else."""
    words = re.split(r"[\s,]+", text.strip())
    if not all(re.fullmatch(r"[1-9][0-9]{0,8}", word) for word in words):
        raise UserError(f"{name} is '{text}'; it must be made of positive integers")
    return list(dict.fromkeys(int(word) for word in words))


def positive_integer(text: str, name: str) -> int:
    found = positive_integers(text, name)
    if len(found) > 1:
        raise UserError(f"{name} is '{text}'; it must be one positive integer")
    return found[0]


def shots_of(text: str, name: str = "SHOTS") -> list[int]:
    """Positive integers, or "all"."""
    words = re.split(r"[\s,]+", text.strip())
    if "all" not in words:
        return positive_integers(text, name)
    numbers = " ".join(word for word in words if word != "all")
    return [*(positive_integers(numbers, name) if numbers else []), ALL]


def one_of_shots(text: str) -> int:
    found = shots_of(text)
    if len(found) > 1:
        raise UserError(f"SHOTS is '{text}'; it must be one positive integer, or all")
    return found[0]


def spelled(shots: int) -> str:
    """As SHOTS has it."""
    return "all" if shots == ALL else str(shots)


def in_words(shots: int) -> str:
    return f"{spelled(shots)} shot{'s' * (shots != 1)}"


@dataclass(frozen=True)
class Job:
    """One method on one dataset and shot count, by one config and recipe, with the user's KEY VALUE pairs."""

    trainer: str
    dataset: str
    shots: int
    config: str
    recipe: str = ""
    opts: Sequence[str] = ()
    environment: Environment = field(default_factory=Environment)

    @property
    def seeds(self) -> list[int]:
        """One run of a method that has no seeds."""
        return positive_integers(self.environment.SEEDS, "SEEDS") if method_of(self.trainer).has_seeds else [1]

    @property
    def needed(self) -> dict[str, Job]:
        """By option, the job of the method whose run the option names; none where a KEY VALUE pair names the run."""
        found, method = {}, method_of(self.trainer)
        for option, trainer in method.needs.items():
            if f"TRAINER.{method.node}.{option}" in self.opts[::2]:
                continue
            config, pairs = recipe(trainer, self.dataset, self.shots, PurePath(self.config).name)
            opts = own_options(trainer, list(self.opts))
            found[option] = replace(self, trainer=trainer, config=config, recipe=pairs, opts=opts)
        return found

    def recipe_of(self, seed: int) -> str:
        """The recipe's pairs, with the runs that the method needs, by their paths in OUT."""
        found = [self.recipe] if self.recipe else []
        for option, job in self.needed.items():
            place = PurePath(*resolve(job.arguments(seed))[2].parts[-5:])
            found += [f"TRAINER.{method_of(self.trainer).node}.{option}", shlex.quote(place.as_posix())]
        return " ".join(found)

    def arguments(self, seed: int) -> list[str]:
        """The command line of ``train.py``."""
        method = method_of(self.trainer)
        n = positive_integer(self.environment.N, "N") if self.environment.N else 0
        takes_n = n and any(option.key == "N" for option in method.options)
        if taken := [key for key in self.opts[::2] if key in OURS]:
            raise UserError(f"{taken[0]} follows from {OURS[taken[0]]}: it cannot be a KEY VALUE pair as well")
        opts = [f"TRAINER.{method.node}.N", str(n), *self.opts] if takes_n else self.opts
        pairs = self.recipe_of(seed)
        return run_arguments(self.trainer, self.dataset, self.shots, seed, self.config, pairs, opts)

    def run(self, seed: int) -> Run:
        """UserError: a mistake in the arguments, or a damaged result."""
        arguments, method = self.arguments(seed), method_of(self.trainer)
        _, cfg, directory = resolve(arguments)
        place = (in_words(self.shots), f"seed {seed}") if method.has_seeds else ()
        return Run(
            name=", ".join((self.trainer, self.dataset, *place)),
            trainer=self.trainer,
            dataset=self.dataset,
            shots=self.shots,
            epochs=cfg.OPTIM.MAX_EPOCH if method.learns else 0,
            backbone=cfg.MODEL.BACKBONE.NAME,
            task=Task(tuple(arguments), directory, Path(), {}),
            needs=tuple(job.run(seed) for job in self.needed.values()),
        )

    @property
    def runs(self) -> list[Run]:
        """By seed."""
        return [self.run(seed) for seed in self.seeds]

    @property
    def heading(self) -> str:
        return f"{self.trainer} on {self.dataset}, config {self.config}: {self.run(self.seeds[0]).directory.parent}"


def table(directories: list[Path]) -> str:
    """Accuracy and macro-F1 in percent by seed, with mean and standard deviation (n - 1)."""
    results = [load_result(d / "result.json") for d in directories]
    rows: list[list[Any]] = [[r["seed"], r["accuracy"], r["macro_f1"]] for r in results]
    if len(rows) > 1:
        columns = list(zip(*rows, strict=True))[1:]
        rows.append(["mean", *map(statistics.fmean, columns)])
        rows.append(["std", *map(statistics.stdev, columns)])
    return tabulate(rows, headers=["seed", "accuracy (%)", "macro F1 (%)"], floatfmt=".2f")


def run_to_its_end(start: Callable[[], process.Child]) -> int:
    """The exit code of a child process. A signal that reaches only its parent is passed on, and the child saves."""
    child = None
    try:
        with uninterrupted():
            child = start()
        return child.wait()
    except Interrupted as signal:
        if child is None:
            raise
        child.send_signal(signal.signum)
        code = child.wait()  # negative, if a second signal, such as a terminal's own, has met its very end
        return code if code > 0 else 128 + signal.signum


class Series:
    """Runs one after another, a line each; the output of a single one stays on the terminal.

    Args:
        runs: all that will be asked for; equal names are one run.
        out: the folder whose finished runs tell the time to go.
    """

    def __init__(self, runs: Iterable[Run], out: str) -> None:
        self.left = {each.name: each for run in runs for each in (*(() if run.finished else run.needs), run)}
        self.progress = Progress(len(self.left), Times(Path(out)))

    def do(self, run: Run, finished: bool | None = None) -> None:
        """Does a run that is not finished, and before it those that it needs.

        Raises:
            SystemExit: it failed, and has said why.
        """
        finished = run.finished if finished is None else finished
        for needed in () if finished else run.needs:
            self.do(needed)
        if self.left.pop(run.name, None) is None:
            return
        if finished:
            result = load_result(run.directory / "result.json")
            event = f"finished before, {result['accuracy']:.2f}%"
        elif self.progress.total == 1:
            if code := run_to_its_end(lambda: process.start(run.task.arguments)):
                raise SystemExit(code)
            return
        else:
            outcome = self._in_silence(run)
            if outcome.lost and outcome.code > 0:  # interrupted, as it has said
                raise SystemExit(outcome.code)
            event = self.progress.ended(run, outcome)
        self.progress.line(run, event, self.left.values())
        if self.progress.failed:
            code = self.progress.failed[0][1].code
            raise SystemExit(128 - code if code < 0 else code or 1)

    @staticmethod
    def _in_silence(run: Run) -> Outcome:
        """Does it; only its standard error is shown: a bar on a terminal, an error's line."""
        begin = time.monotonic()
        code = run_to_its_end(lambda: process.start(run.task.arguments, silent=True))
        return Outcome(
            code, time.monotonic() - begin, "see standard error" if code >= 0 else f"killed by signal {-code}"
        )


def coops_order(trainer: str, dataset: str, words: Sequence[str], typed: str) -> str:
    """The line to type, if the words behind DATASET are CoOp's CFG CTP NCTX SHOTS CSC; else ""."""
    if not re.fullmatch(r"\S+ (end|middle|front) \d+ \d+ (True|False)", " ".join(words[:5])):
        return ""
    config, position, n_ctx, shots, csc = words[:5]
    method = method_of(trainer)
    options = {"N_CTX": n_ctx, "CLASS_TOKEN_POSITION": position, "CSC": csc}
    own = {option.key for option in method.options}
    pairs = [word for key, value in options.items() if key in own for word in (f"TRAINER.{method.node}.{key}", value)]
    script = shlex.split(typed)[: -len(words) - 1] or ["bash", *script_of(trainer)]
    shown = [dataset, shots] if method.has_seeds else [dataset]
    return f"CFG={shlex.quote(config)} {shlex.join([*script, *shown, *pairs, *words[5:]])}"


def run(args: argparse.Namespace) -> None:
    trainer, *more = named_methods(args.trainer, "TRAINER")
    if more:
        raise UserError(f"TRAINER is '{args.trainer}'; it must be one method")
    method, words, env = method_of(trainer), args.rest, args.environment
    if line := coops_order(trainer, args.dataset, words, env.PLOT_COMMAND):
        raise UserError(f"the order here is DATASET SHOTS [KEY VALUE]..., the rest by name; CoOp's line is: {line}")
    if not method.has_seeds and not (words and (words[0].isdigit() or words[0] == "all")):
        words = ["1", *words]
    if not words:
        typed = shlex.join(["bash", *script_of(trainer), args.dataset])
        raise UserError(f"SHOTS is missing: {typed} SHOTS [KEY VALUE]...")
    shots = one_of_shots(words[0])
    check_backbone(trainer, args.dataset, env)
    config, pairs = recipe(trainer, args.dataset, shots, env.CFG, env.BACKBONE)
    job = Job(trainer, args.dataset, shots, config, pairs, words[1:], env)
    runs = job.runs
    series = Series(runs, env.OUT)
    print(job.heading, flush=True)
    for one in runs:
        series.do(one)
    what = f", {in_words(job.shots)}" if method.has_seeds else ""
    directories = [one.directory for one in runs]
    print(f"\n{job.trainer} on {job.dataset}{what}, config {job.config}\n\n{table(directories)}")


def main(argv: list[str] | None = None) -> int:
    by_name = "run.sh" in Environment.read().PLOT_COMMAND  # the other scripts give the method themselves
    scripted = "[--import FILE] TRAINER DATASET SHOTS [KEY VALUE]..." if by_name else "DATASET SHOTS [KEY VALUE]..."
    parser = Parser("experiments.jobs", __doc__, imports=True, variables=RUNNING, scripted=scripted)
    parser.add_argument("trainer", metavar="TRAINER", help="a registered name or its file's: PLOT, plot")
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="SHOTS [KEY VALUE]...")
    return guarded(lambda: run(parser.parse_args(argv)), typed(argv, __file__))


if __name__ == "__main__":
    sys.exit(main())
