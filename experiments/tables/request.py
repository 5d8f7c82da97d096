"""What is asked of a table, and the commands that would fill its blank cells."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dassl.extras.cli import Parser
from dassl.utils import UserError
from experiments.jobs import positive_integers
from experiments.recipes import BACKBONES, ENTRY, own_options
from runs.directory import REPOSITORY
from trainers.clip.weights import OPENAI_URLS

from .published import Figure
from .render import Table, mean_std, number
from .results import Cell, Run, check_unique, check_unmixed, of_backbone, read_runs, shared_settings
from .suite import DATASETS, METHODS


def command(script: str, *arguments: str, **environment: str) -> str:
    """A shell command; of the environment, what is not empty."""
    given = [f"{key}={shlex.quote(value)}" for key, value in environment.items() if value]
    return " ".join([*given, "bash", script, *map(shlex.quote, arguments)])


@dataclass
class Request:
    """``found`` are the finished runs under ``out``, on one backbone if ``backbone`` (a config's prefix) is given."""

    out: Path
    found: Sequence[Run]
    datasets: Sequence[str]
    shots: Sequence[int]
    seeds: Sequence[int] = (1, 2, 3)
    backbone: str = ""
    mixed: bool = False
    methods: Sequence[str] = METHODS
    cells: list[tuple[Cell, str, str, list[str], dict[str, str]]] = field(default_factory=list)

    def cell(
        self, cell: Cell, trainer: str, script: str, arguments: list[str], environment: dict[str, str] | None = None
    ) -> Cell:
        """A cell of the table, with the command that fills it (its seeds, OUT and backbone are added)."""
        check_unique(cell, self.mixed)
        self.cells.append((cell, trainer, script, arguments, environment or {}))
        return cell

    def main_sh(
        self, cell: Cell, trainer: str, dataset: str, shots: int, opts: Sequence[str] = (), n: int | None = None
    ) -> Cell:
        """A cell that one method's own script fills."""
        arguments = [dataset, *([] if trainer == "ZeroshotCLIP" else [str(shots)]), *opts]
        environment = {"N": str(n)} if n is not None else {}
        return self.cell(cell, trainer, f"scripts/{ENTRY[trainer]}/main.sh", arguments, environment)

    def wanted(self, trainer: str) -> Sequence[int]:
        """The seeds asked for; zero-shot CLIP has none: one run."""
        return [1] if trainer == "ZeroshotCLIP" else self.seeds

    def is_partial(self, cell: Cell) -> bool:
        return bool(cell.runs) and len(cell.by_seed) < len(self.wanted(cell.runs[0].trainer))

    def ours(self, cell: Cell) -> str:
        """With the number of runs behind it where they are fewer than the seeds asked for."""
        return mean_std(cell.mean, cell.std) + (f" ({len(cell.by_seed)})" if self.is_partial(cell) else "")

    def against(self, cell: Cell, figure: Figure | None, shown: bool) -> list[str]:
        """[ours, published, difference], as text; ours alone where no published figures are ``shown``."""
        if not shown:
            return [self.ours(cell)]
        text = "" if figure is None else mean_std(figure.mean, figure.std)
        return [self.ours(cell), text, number(difference(cell, figure), signed=True)]

    def close(self, table: Table) -> Table:
        """Checks the runs behind the table and lists the commands of its blank cells.

        Raises:
            UserError: the runs are mixed.
        """
        used = list({run.path: run for cell, *_ in self.cells for run in cell.runs}.values())
        table.notes += [f"Mixed, as asked for: {text}." for text in check_unmixed(used, self.mixed)]
        if any(self.is_partial(cell) for cell, *_ in self.cells):
            table.notes.append("(n) behind a figure: it is of n runs, fewer than the seeds asked for.")
        settings = shared_settings(used)
        commands: dict[str, None] = {}
        for cell, trainer, script, arguments, environment in self.cells:
            absent = [seed for seed in self.wanted(trainer) if seed not in cell.by_seed]
            if absent:
                seeds = "" if absent == [1, 2, 3] or trainer == "ZeroshotCLIP" else " ".join(map(str, absent))
                out = "" if str(self.out) == "output" else str(self.out)
                place = {"OUT": out, "SEEDS": seeds, "BACKBONE": self._backbone(trainer, arguments[0])}
                commands[command(script, *arguments, *own_options(trainer, settings), **place, **environment)] = None
        table.missing = list(commands)
        return table

    def _backbone(self, trainer: str, dataset: str) -> str:
        """The papers' CoCoOp is on another backbone than their PLOT; a table is on one."""
        if dataset.startswith("symbols") or (trainer != "CoCoOp" and self.backbone in ("", "rn50")):
            return ""
        return self.backbone or "rn50"


def may_write(out: Path) -> bool:
    """Whether OUT is there or would be made in a folder that is; a mistyped path makes no folders."""
    return out.is_dir() or out.parent.is_dir()


def difference(cell: Cell, figure: Figure | None) -> float | None:
    """Ours minus published, unless it is known that the backbones differ."""
    if cell.mean is None or figure is None:
        return None
    names = {run.backbone_name for run in cell.runs}
    return None if names & set(OPENAI_URLS) - {figure.backbone} else cell.mean - figure.mean


def parser(prog: str, description: str | None) -> Parser:
    """The options that tables and figures share."""
    parsed = Parser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parsed.add_argument
    add("--dataset", nargs="+", default=[], help="the datasets (default: the eleven of the paper)")
    add("--shots", nargs="+", default=[], help="the numbers of shots")
    add("--out", default="", help="the folder that holds the runs (default: $OUT, else output)")
    add("--backbone", default="", help="only runs on this one: rn50, RN50, or the start of the weights' SHA-256")
    add("--mixed", action="store_true", help="allow different backbones, epochs or repeated runs in one table")
    return parsed


def request_of(args: argparse.Namespace, datasets: tuple[str, ...], shots: tuple[int, ...]) -> Request:
    """Raises UserError: no such folder, dataset or backbone, or a damaged result.json."""
    out = Path(args.out or os.environ.get("OUT") or "output")
    if args.out and not out.is_dir():
        raise UserError(f"no folder of runs at '{out}'; name it with --out")
    for name in args.dataset:
        if name not in DATASETS and not (REPOSITORY / "configs/datasets" / f"{name}.yaml").is_file():
            raise UserError(f"no dataset '{name}': looked for 'configs/datasets/{name}.yaml'")
    found = read_runs(out)
    if args.backbone:
        found = of_backbone(found, args.backbone)
        if not found and args.backbone not in {*BACKBONES, *BACKBONES.values()}:
            known = ", ".join(BACKBONES)
            raise UserError(f"--backbone '{args.backbone}': no run under '{out}' is on it, and it is none of {known}")
    prefix = {name: short for short, name in BACKBONES.items()}.get(args.backbone, args.backbone)
    return Request(
        out=out,
        found=found,
        datasets=tuple(dict.fromkeys(args.dataset)) or datasets,
        shots=positive_integers(" ".join(args.shots), "--shots") if args.shots else shots,
        seeds=positive_integers(os.environ.get("SEEDS") or "1 2 3", "SEEDS"),
        backbone=prefix if prefix in BACKBONES else "",
        mixed=args.mixed,
    )
