"""Writes one page of all that finished runs show: ``report.html``, which needs no network.

    python -m experiments.report                           # the runs in output/, as output/report.html
    python -m experiments.report OUT --dataset symbols

A chapter a dataset and backbone: the methods side by side, few-shot curves, accuracy by class, PLOT's plans over test
pictures, the nearest words, what the plan changes, cost, and the paper's other tables that have runs. The commands
behind each table stand under it: those that made its runs, and those that would fill its blank cells.
"""

from __future__ import annotations

import argparse
import base64
import io
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from dassl.startup import before_imports

    before_imports()

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from dassl.extras.cli import Environment, guarded
from dassl.utils import UserError, write_atomically
from experiments import compare, figures
from experiments.jobs import in_words, spelled
from experiments.pictures import tested, visualize, words
from experiments.recipes import COMMON, compared_methods, label
from experiments.tables import by_class, by_shots, cost, variants
from experiments.tables.__main__ import TABLES
from experiments.tables.render import Section, Table
from experiments.tables.request import NAMED, Request, parser, request_of
from experiments.tables.results import of_recipe, read_runs
from experiments.tables.suite import BASELINE, SHIFTED, SHOTS, SUBJECT
from runs.loaded import load
from runs.recipes import ALL, method_of
from trainers.method import methods

SIDE = 144  # pixels of a picture on the page
LIMIT = 5e6  # bytes of a page that opens quickly on a phone
# Tables that a chapter has if they have runs; the first is of sources with shifted sets.
MORE = ("domain", "ablation", "prompts", "adapters", "base-to-new", "leaks")


@dataclass
class Part:
    """A headline and what stands under it; ``commands`` print or draw the same."""

    title: str
    commands: list[str] = field(default_factory=list)
    figure: Figure | None = None
    pictures: list[tested.Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Chapter:
    title: str
    parts: list[Part]


class Author:
    """Writes the chapter of a request for one dataset on one backbone."""

    def __init__(self, request: Request, pictures: int, data: str) -> None:
        self.request, self.pictures, self.data = request, pictures, data
        self.dataset = request.datasets[0]
        self.most = request.shots[-1]

    def asked(self, *shots: int) -> Request:
        """The request for one table."""
        return replace(self.request, shots=shots or self.request.shots, cells=[], marked=False)

    def command(self, program: str, *shots: int) -> str:
        words = ["--dataset", self.dataset, *(["--shots", *map(spelled, shots)] if shots else [])]
        return f"python -m experiments.{program} " + shlex.join([*words, "--out", str(self.request.out)])

    def parts(self) -> Iterator[Part]:
        yield self.side_by_side()
        numbers = [n for n in self.request.shots if n != ALL]
        curves = figures.draw(self.asked(*numbers)) if numbers else None
        commands = [self.command("figures", *numbers)] if numbers else []
        commands.append(self.command("tables few-shot", *self.request.shots))
        yield Part("Few-shot curves", commands, curves, tables=[by_shots.build(self.asked())])
        yield Part("By class", tables=[by_class.build(self.asked(self.most))])
        if SUBJECT in self.request.methods:
            yield from self.subject()
        if any("match" in method_of(name).variants for name in self.request.methods):
            tables = [variants.build(self.asked(self.most), "match"), variants.diagnostics(self.asked(self.most))]
            commands = [self.command(f"tables {name}", self.most) for name in ("match", "diagnostics")]
            yield Part("What the plan changes", commands, tables=tables)
        commands = [self.command("tables cost", self.most)]
        yield Part("Cost", commands, tables=[cost.build(self.asked(self.most))])
        more = Part("More tables of the papers")
        for name in MORE if self.dataset in SHIFTED else MORE[1:]:
            request = self.asked(self.most)
            table = TABLES[name](request)
            if any(filled.cell.runs for filled in request.cells):
                more.tables.append(table)
                more.commands.append(self.command(f"tables {name}", self.most))
        if more.tables:
            yield more

    def side_by_side(self) -> Part:
        part = Part("Methods side by side")
        for shots in reversed(self.request.shots):
            request = self.asked(shots)
            cells = {name: request.cell(name, self.dataset, shots) for name in request.methods}
            found = {name: cell for name, cell in cells.items() if cell.runs}
            seeds = sorted({run.seed for name, cell in found.items() if method_of(name).has_seeds for run in cell.runs})
            table = compare.build(found, seeds, "compare", in_words(shots))
            if absent := [label(name) for name in cells if name not in found]:
                part.notes.append(f"{in_words(shots)}: no finished run of {', '.join(absent)}.")
            part.tables.append(request.close(table))
            place = {"OUT": "" if str(request.out) == "output" else str(request.out)}
            place["BACKBONE"] = request.backbone_for(BASELINE, self.dataset, COMMON)
            where = "".join(f"{name}={shlex.quote(value)} " for name, value in place.items() if value)
            part.commands.append(f"{where}bash scripts/compare.sh {self.dataset} {spelled(shots)}")
        return part

    def subject(self) -> Iterator[Part]:
        """Plans and words of the first run of the method that the tables are about."""
        request, name = self.asked(self.most), label(SUBJECT)
        cell = request.cell(SUBJECT, self.dataset, self.most)
        blank = request.close(Table("", ""))
        plans, nearest = Part(f"{name}'s plans on test pictures"), Part(f"{name}'s nearest words")
        try:
            if not cell.runs:
                raise UserError(f"no finished run of {name} with {in_words(self.most)}")
            run = cell.runs[0]
            folder = str(run.path.parent)
            plans.commands = [f"python -m experiments.pictures.visualize {shlex.quote(folder)} IMAGE"]
            nearest.commands = [f"python -m experiments.pictures.words {shlex.quote(folder)}"]
            loaded = load(folder)
            nearest.tables = [words.table(loaded)]
            plans.pictures = tested.pictures(loaded, run, self.pictures, self.data)
        except UserError as error:
            for part in (plans, nearest):
                part.notes += [] if part.pictures or part.tables else [f"Nothing to show: {error}."]
                part.tables += [] if part.tables or cell.runs else [Table("", "", missing=blank.missing)]
        yield from (plans, nearest)


def chapters(args: argparse.Namespace) -> list[Chapter]:
    """UserError: there is no finished run, or the runs are mixed."""
    out = Path(args.out)
    known = [run for run in read_runs(out) if run.trainer in methods() and run.trained is None]
    found = [run for run in known if run.result.get("subsample_classes", "all") == "all"]
    if not found and not args.dataset:
        raise UserError(f"no finished run under '{out}'; bash scripts/compare.sh symbols 16 makes some")
    present = dict.fromkeys(run.dataset for run in found)
    shifted = {target for source, targets in SHIFTED.items() if source in present for target in targets}
    data = args.environment.DATA if args.environment.DATA != Environment.DATA else ""
    written = []
    for dataset in args.dataset or [name for name in present if name not in shifted]:
        own = [run for run in found if run.dataset == dataset and of_recipe(run)]
        names = Counter(run.backbone_name if run.backbone_name in NAMED else run.backbone for run in own)
        fixed = args.backbone or args.mixed or not names
        for i, backbone in enumerate([args.backbone] if fixed else dict(names.most_common())):
            given = {**vars(args), "dataset": [dataset], "backbone": backbone}
            request = request_of(argparse.Namespace(**given), (), SHOTS)
            here = [run for run in request.found if run in own]
            shown = {run.trainer for run in here} | {*([] if i else compared_methods())}  # the first chapter: all
            request.methods = [name for name in request.methods if name in shown]
            tried = {run.shots for run in here if method_of(run.trainer).has_seeds}
            request.shots = sorted(request.shots if args.shots else tried or {16}, key=lambda n: (n == ALL, n))
            weights = {Path(run.backbone_name).stem if backbone not in NAMED else backbone for run in here}
            title = ", ".join([dataset, *sorted(weights)])
            written.append(Chapter(title, list(Author(request, args.pictures, data).parts())))
    return written


def svg(figure: Figure) -> Markup:
    """A figure in the colours of the page."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    return Markup(text[text.index("<svg") :].replace("#000000", "currentColor").replace("#ffffff", "var(--page)"))


def uri(pixels: np.ndarray) -> str:
    """pixels [h, w, 3] from 0 to 1 -> a data: address of at most SIDE x SIDE."""
    picture, file = Image.fromarray((255 * pixels).round().astype(np.uint8)), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(file, "webp", quality=85)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def columns(section: Section) -> list[tuple[int, bool]]:
    """The columns to show, and whether one holds numbers; one that says the chapter's dataset or shots has no use."""
    shown = []
    for i, head in enumerate(section.headers):
        texts = {row[i] for row in section.rows}
        if head not in ("dataset", "shots") or len(texts) > 1:
            shown.append((i, all(not text or text[0] in "0123456789+-–<" for text in texts)))
    return shown


def page(written: list[Chapter], **facts: Any) -> str:
    views = [v for c in written for part in c.parts for picture in part.pictures for v in picture.views]
    norm = visualize.scale(views)
    bar = Figure(figsize=(3.2, 0.7), layout="constrained")
    visualize.add_bar(bar, norm, cax=bar.subplots(), orientation="horizontal")
    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    tools = {"svg": svg, "uri": uri, "columns": columns, "overlay": partial(visualize.overlay, norm=norm)}
    return environment.from_string(source).render(chapters=written, bar=bar, **tools, **facts)


def run(args: argparse.Namespace) -> None:
    args.out = args.folder or args.out or args.environment.OUT
    if args.pictures < 0:
        raise UserError(f"--pictures is {args.pictures}; it must be 0 or more")
    if not Path(args.out).is_dir():
        raise UserError(f"no folder of runs at '{args.out}'; name it: python -m experiments.report OUT")
    to = Path(args.to or Path(args.out) / "report.html")
    if to.is_dir():
        raise UserError(f"'{to}' is a folder; name a file with --to")
    text = page(chapters(args), out=args.out, command=shlex.join(["python", "-m", "experiments.report", *args.words]))
    write_atomically(to, text)
    size = len(text.encode())
    advice = "; fewer --pictures or one --dataset make it smaller" if size > LIMIT else ""
    print(f"{to}: {size / 1e6:.2f} MB{advice}")


def main(argv: list[str] | None = None) -> int:
    parsed = parser("experiments.report", __doc__)
    parsed.add_argument("folder", nargs="?", default="", metavar="OUT", help="the folder that holds the runs")
    parsed.add_argument("--pictures", type=int, default=6, help="test pictures of a chapter, half of them wrong ones")
    parsed.add_argument("--to", default="", help="the page (default: OUT/report.html)")
    parsed.set_defaults(words=sys.argv[1:] if argv is None else argv)
    return guarded(lambda: run(parsed.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
