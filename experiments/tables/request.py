"""What is asked of a table, and the commands that would fill its blank cells."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dassl.extras.cli import Parser
from dassl.utils import UserError
from experiments.jobs import positive_integers, shots_of, spelled
from experiments.recipes import COMMON, compared_methods, label, own_options, pairs_of, script_of
from runs.directory import REPOSITORY, shorten, spell
from runs.recipes import BACKBONES, method_of, prefix_of, recipe
from trainers.clip.weights import OPENAI_URLS, OURS
from trainers.method import methods

from .published import BACKBONE, Figure
from .render import Table, mean_std, number
from .results import (
    Cell,
    FinishedRun,
    check_unique,
    check_unmixed,
    of_backbone,
    of_recipe,
    read_runs,
    select,
    shared_settings,
)

NAMED = {*OPENAI_URLS, *OURS}  # backbones that are known by a name


class Filled(NamedTuple):
    """A cell, and the words and the environment of the command that fills it."""

    cell: Cell
    trainer: str
    dataset: str
    words: list[str]
    environment: dict[str, str]


@dataclass
class Request:
    """What is asked for.

    Attributes:
        found: the finished runs under ``out``, on one backbone if ``backbone`` (a config's prefix) is given.
        words: what else was asked for, for the names of files.
        overrides: runs with options of their own have rows of their own.
        notes: on what was left out before.
        without_row: the same of methods whose runs are on another backbone, by method.
        marked: whether a figure has the number of its runs.
        classes: DATASET.SUBSAMPLE_CLASSES of the runs that learn.
    """

    out: Path
    found: Sequence[FinishedRun]
    datasets: Sequence[str]
    shots: Sequence[int]
    seeds: Sequence[int] = (1, 2, 3)
    backbone: str = ""
    mixed: bool = False
    words: Sequence[str] = ()
    overrides: bool = False
    notes: Sequence[str] = ()
    without_row: Mapping[str, str] = field(default_factory=dict)
    methods: Sequence[str] = field(default_factory=compared_methods)
    cells: list[Filled] = field(default_factory=list)
    marked: bool = False
    classes: str = "all"

    @property
    def places(self) -> list[tuple[str, int]]:
        return [(dataset, shots) for dataset in self.datasets for shots in self.shots]

    def table(self, stem: str, title: str) -> Table:
        """An empty table, whose name has what was asked for."""
        return Table(shorten("_".join([stem, *self.words])), title)

    def cell(self, trainer: str, dataset: str, shots: int, **options: Any) -> Cell:
        """The cell of the recipe's runs, but for the method's ``options``; the method's own script fills it."""
        method = method_of(trainer)
        cell = select(self.found, trainer, dataset, shots, **options)
        defaults = {option.key: option.default for option in method.options}
        changed = {key: str(value) for key, value in options.items() if value != defaults[key]}
        environment = {"N": changed.pop("N", "")}
        words = [*script_of(trainer), dataset, *([spelled(shots)] if method.has_seeds else [])]
        words += pairs_of(trainer, changed)
        return self.filled(cell, trainer, dataset, words, environment)

    def filled(self, cell: Cell, trainer: str, dataset: str, words: list[str], environment: dict[str, str]) -> Cell:
        """A cell of the table, with the command that fills it (its seeds, OUT and backbone are added)."""
        check_unique(cell, self.mixed)
        self.cells.append(Filled(cell, trainer, dataset, words, environment))
        return cell

    def others(self) -> list[FinishedRun]:
        """The finished runs of the table's methods, datasets and shots that are in none of its cells."""
        used = {run.path for filled in self.cells for run in filled.cell.runs}
        shots = {filled.trainer: self.shots if method_of(filled.trainer).has_seeds else (0,) for filled in self.cells}
        return [
            run
            for run in self.found
            if run.shots in shots.get(run.trainer, ()) and run.dataset in self.datasets
            if run.trained is None and run.path not in used
            if run.result.get("subsample_classes", "all") == self.classes
        ]

    def overridden(self, trainer: str, dataset: str) -> dict[str, dict[int, Cell]]:
        """The other runs by what is peculiar in them and by shots, if they were asked for; after all cells."""
        found: dict[str, dict[int, Cell]] = {}
        for run in self.others() if self.overrides else ():
            if (run.trainer, run.dataset) == (trainer, dataset):
                cells = found.setdefault(run.peculiarity, {})
                cells[run.shots] = Cell((*cells.get(run.shots, Cell()).runs, run))
        return found

    def wanted(self, trainer: str) -> Sequence[int]:
        """The seeds asked for; a method without seeds has one run."""
        return self.seeds if method_of(trainer).has_seeds else [1]

    def is_partial(self, cell: Cell) -> bool:
        return bool(cell.runs) and len(cell.by_seed) < len(self.wanted(cell.runs[0].trainer))

    @property
    def papers_backbone(self) -> str:
        """The backbone of the published figures beside ours."""
        return BACKBONES.get(self.backbone, BACKBONE)

    def mark(self, cell: Cell) -> str:
        """The number of runs behind a figure, where they are fewer than the seeds asked for."""
        self.marked |= self.is_partial(cell)
        return f" ({len(cell.by_seed)})" if self.is_partial(cell) else ""

    def ours(self, table: Table, cell: Cell) -> str:
        """With the number of runs behind it where they are fewer than the seeds asked for; marked if it is flagged."""
        return mean_std(cell.mean, cell.std) + self.mark(cell) + table.mark(cell.flag)

    def against(self, table: Table, cell: Cell, figure: Figure | None, shown: bool) -> list[str]:
        """[ours, published, difference], as text; ours alone where no published figures are ``shown``."""
        if not shown:
            return [self.ours(table, cell)]
        text = "" if figure is None else mean_std(figure.mean, figure.std) + table.mark(figure.note)
        return [self.ours(table, cell), text, number(difference(cell, figure), signed=True)]

    def close(self, table: Table, alone: bool = False) -> Table:
        """Checks the runs behind the table, and lists the commands of its cells.

        Args:
            alone: each method is compared with itself alone, on a backbone of its own.

        Raises:
            UserError: the runs are mixed.
        """
        used: dict[str, dict[Path, FinishedRun]] = {}  # by what is compared
        for cell, trainer, *_ in self.cells:
            used.setdefault(trainer if alone else "", {}).update({run.path: run for run in cell.runs})
        others = self.others()
        for runs in used.values():
            backbones = [*runs.values(), *(others if self.overrides else [])]
            mixed = check_unmixed(backbones, self.mixed, epochs=False)
            table.notes += [f"Mixed, as asked for: {text}." for text in mixed]
        if self.marked:
            table.notes.append("(n): of n runs, fewer than the seeds asked for.")
        if others and not self.overrides:
            table.notes.append(
                f"{_left_out(others)} with other options than this table's, such as '{others[0].path.parent}'; "
                "few-shot and cost have rows for them with --overrides."
            )
        with_runs = {filled.trainer for filled in self.cells if filled.cell.runs}
        table.notes += [note for method, note in self.without_row.items() if method not in with_runs]
        table.notes += self.notes
        settings = {compared: shared_settings([*runs.values()]) for compared, runs in used.items()}
        for filled in self.cells:
            cell, trainer, *_ = filled
            more = own_options(trainer, settings[trainer if alone else ""])
            absent = [seed for seed in self.wanted(trainer) if seed not in cell.by_seed]
            for commands, seeds in ((table.missing, absent), (table.made, [*cell.by_seed])):
                command = self._command(filled, seeds, more, "" if alone else COMMON)
                if seeds and command not in commands:
                    commands.append(command)
        return table

    def _command(self, filled: Filled, seeds: list[int], more: list[str], usual: str) -> str:
        """What makes a cell's runs of these seeds.

        Args:
            more: KEY VALUE pairs beside the cell's own.
            usual: the backbone of the table; "" for the method's own.
        """
        _, trainer, dataset, words, environment = filled
        place = {
            "OUT": "" if str(self.out) == "output" else str(self.out),
            "SEEDS": "" if seeds == [1, 2, 3] or not method_of(trainer).has_seeds else " ".join(map(str, seeds)),
            "BACKBONE": self.backbone_for(trainer, dataset, usual),
        }
        given = [f"{k}={shlex.quote(v)}" for k, v in {**place, **environment}.items() if v]
        return " ".join([*given, "bash", *map(shlex.quote, [*words, *more])])

    def backbone_for(self, trainer: str, dataset: str, usual: str) -> str:
        """What BACKBONE has to be, so that the table is on one backbone; "", if ``usual`` is, for the method's own."""
        asked = self.backbone or usual
        fixed = recipe(trainer, dataset, 1, backbone="a") == recipe(trainer, dataset, 1, backbone="b")
        return "" if fixed or asked == COMMON == method_of(trainer).backbone else asked


def difference(cell: Cell, figure: Figure | None) -> float | None:
    """Ours minus published, unless it is known that the backbones differ."""
    if cell.mean is None or figure is None:
        return None
    names = {run.backbone_name for run in cell.runs}
    return None if names & NAMED - {figure.backbone} else cell.mean - figure.mean


def parser(program: str, description: str | None) -> Parser:
    """The options that tables and figures share."""
    parsed = Parser(program, description, imports=True, variables=("OUT", "SEEDS"))
    add = parsed.add_argument
    add("--dataset", nargs="+", default=[], help="the datasets (default: the eleven of the paper)")
    add("--shots", nargs="+", default=[], help="the numbers of shots; all for all images")
    add("--out", default="", help="the folder that holds the runs (default: $OUT, else output)")
    add("--backbone", default="", help="only runs on this one: rn50, RN50, or the start of the weights' SHA-256")
    add("--mixed", action="store_true", help="allow different backbones or repeated runs in one table")
    return parsed


def request_of(args: argparse.Namespace, datasets: tuple[str, ...], shots: tuple[int, ...]) -> Request:
    """Raises UserError: no such folder, dataset or backbone, or a damaged result.json."""
    out = Path(args.out or args.environment.OUT)
    if args.out and not out.is_dir():
        raise UserError(f"no folder of runs at '{out}'; name it with --out")
    for name in args.dataset:
        if not (REPOSITORY / "configs/datasets" / f"{name}.yaml").is_file():
            raise UserError(f"no dataset '{name}': looked for 'configs/datasets/{name}.yaml'")
    found = read_runs(out)
    if args.backbone:
        found = of_backbone(found, args.backbone)
        if not found and prefix_of(args.backbone) not in BACKBONES:
            known = ", ".join(BACKBONES)
            raise UserError(f"--backbone '{args.backbone}': no run under '{out}' is on it, and it is none of {known}")
    unseeded = [run for run in found if run.seed < 0 and run.trainer in methods() and method_of(run.trainer).has_seeds]
    found = [run for run in found if run not in unseeded]
    datasets = tuple(dict.fromkeys(args.dataset)) or datasets
    ours = [run for run in found if run.dataset in datasets and run.trainer in methods()]
    usual = {run.backbone for run in ours if run.trainer in compared_methods() and of_recipe(run)}
    beside = [run for run in ours if args.mixed or not usual or run.backbone in usual]
    with_rows = {*compared_methods(), *(run.trainer for run in beside)}
    elsewhere = {run.trainer: run for run in ours if run.trainer not in with_rows}
    request = Request(
        out=out,
        found=found,
        datasets=datasets,
        shots=shots_of(" ".join(args.shots), "--shots") if args.shots else shots,
        seeds=positive_integers(args.environment.SEEDS, "SEEDS"),
        backbone=prefix_of(args.backbone) if prefix_of(args.backbone) in BACKBONES else "",
        mixed=args.mixed,
        overrides=getattr(args, "overrides", False),
        methods=[name for name in methods() if name in with_rows],
    )
    request.words = _words(args, request)
    request.without_row = {
        method: f"No row for {label(method)}: its runs are on another backbone, such as '{run.path.parent}'; "
        f"--backbone {run.backbone_name if run.backbone_name in NAMED else run.backbone[:8]} shows them."
        for method, run in elsewhere.items()
    }
    if unseeded:
        request.notes = [f"{_left_out(unseeded)} without a seed, such as '{unseeded[0].path.parent}'."]
    return request


def _left_out(runs: Sequence[FinishedRun]) -> str:
    return f"Left out: {len(runs)} finished run{'s' * (len(runs) > 1)}"


def _words(args: argparse.Namespace, request: Request) -> list[str]:
    """What was asked for beside the table, for the names of its files."""
    words = {
        "-".join(request.datasets): args.dataset,
        "-".join(map(spelled, request.shots)) + "shots": args.shots,
        "SEEDS" + "-".join(map(str, request.seeds)): list(request.seeds) != [1, 2, 3],
        spell(args.backbone): args.backbone,
        "mixed": request.mixed,
        "overrides": request.overrides,
    }
    return [word for word, given in words.items() if given]
