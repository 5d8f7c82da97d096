"""Draws the few-shot curves, one panel a dataset and one for the average, like the paper's figure.

    python -m experiments.figures                        # the eleven datasets: ours, and the published figures dotted
    python -m experiments.figures --dataset symbols      # in miniature

Reads ``result.json`` files alone and writes few_shot_curves.png and .pdf into OUT/tables/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

if __name__ == "__main__":
    from dassl.startup import before_imports

    before_imports()

from matplotlib.figure import Figure

from dassl.extras.cli import guarded
from dassl.utils import UserError
from experiments.recipes import label
from experiments.tables import significance
from experiments.tables.by_shots import Cells, cells_of, mean_of_figures
from experiments.tables.published import published
from experiments.tables.render import Table, write_files
from experiments.tables.request import Request, parser, request_of
from experiments.tables.suite import DATASETS, SHOTS
from runs.recipes import ALL, method_of

COLUMNS = 3


def draw_panel(axes: Any, title: str, request: Request, cells: Cells, names: Sequence[str]) -> None:
    """The curves of a dataset, or of the average over several."""
    for method, kind in ((name, method_of(name)) for name in request.methods if method_of(name).colour):
        points = []
        backbones = set()
        for shots in request.shots if kind.has_seeds else request.shots[:1]:
            row = [cells[name, method, shots] for name in names]
            backbones |= {run.backbone for cell in row for run in cell.runs}
            ours, spread = significance.mean([cell.mean for cell in row]), row[0].std if len(names) == 1 else None
            on = request.papers_backbone
            theirs = mean_of_figures([published("few-shot", name, method, shots, on) for name in names])
            points.append((shots if kind.has_seeds else 0, ours, spread, theirs))
        size = 5 if kind.has_seeds else 9
        line = partial(axes.errorbar, color=kind.colour, marker=kind.marker, markersize=size, capsize=2, linewidth=1.3)
        if kept := [point[:3] for point in points if point[1] is not None]:
            x, y, bars = zip(*kept, strict=True)
            joined = "none" if len(backbones) > 1 else "-"  # with --mixed
            line(x, y, yerr=None if None in bars else bars, label=label(method), linestyle=joined)
        if dotted := [(point[0], point[3]) for point in points if point[3] is not None]:
            x, y = zip(*dotted, strict=True)
            line(x, y, linestyle=":", alpha=0.6, markerfacecolor="white", label=f"{label(method)}, published")
    axes.set_title(title, fontsize=10)
    axes.set_xticks([0, *request.shots])
    axes.set_xlabel("training images a class", fontsize=8)
    axes.set_ylabel("accuracy (%)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def draw(request: Request) -> Figure:
    """UserError: the runs are mixed."""
    cells = cells_of(request)
    request.close(Table("", ""))
    panels = {dataset: [dataset] for dataset in request.datasets}
    if len(panels) > 1:
        panels = {f"average of {len(panels)} datasets": list(panels), **panels}
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    labels: dict[str, Any] = {}
    for axes, (title, names) in zip(grid, panels.items(), strict=False):
        draw_panel(axes, title, request, cells, names)
        handles, methods = axes.get_legend_handles_labels()
        labels |= dict(zip(methods, handles, strict=True))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if labels:
        across = min(2 * columns, 4, len(labels))
        figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=across, fontsize=8)
    return figure


def run(args: argparse.Namespace) -> None:
    request = request_of(args, DATASETS, SHOTS)
    if ALL in request.shots:
        raise UserError("--shots takes numbers here: a curve has no place for all images")
    figure = draw(request)
    print("".join(f"{note}\n" for note in request.close(Table("", "")).notes if note.startswith("Left out")), end="")
    pages = {ending: partial(figure.savefig, format=ending, dpi=150) for ending in ("png", "pdf")}
    write_files(request.out, request.table("few_shot_curves", "").name, pages)


def main(argv: list[str] | None = None) -> int:
    return guarded(lambda: run(parser("experiments.figures", __doc__).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
