"""Draws the few-shot curves, one panel a dataset and one for the average, like the paper's figure.

    python -m experiments.figures                        # the eleven datasets: ours, and the published figures dotted
    python -m experiments.figures --dataset symbols      # in miniature

Reads ``result.json`` files alone and writes few_shot_curves.png and .pdf into OUT/tables/.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from dassl.startup import before_imports

    before_imports()

from matplotlib.figure import Figure

from dassl.extras.cli import guarded
from dassl.utils import write_atomically
from experiments.tables.few_shot import Cells, cells_of, complete_mean
from experiments.tables.published import published
from experiments.tables.render import Table
from experiments.tables.request import Request, may_write, parser, request_of
from experiments.tables.suite import DATASETS, METHODS, SHOTS, SHOWN

COLOURS = {"ZeroshotCLIP": "tab:gray", "CoOp": "tab:blue", "CoCoOp": "tab:green", "PLOT": "tab:red"}
MARKERS = {"ZeroshotCLIP": "*", "CoOp": "s", "CoCoOp": "^", "PLOT": "o"}
COLUMNS = 3

# (mean, standard deviation) of ours and of the published figure; None where there is none.
Point = tuple[float | None, float | None]


def curves_of(request: Request, cells: Cells, dataset: str | None) -> dict[str, tuple[list[Point], list[Point]]]:
    """By method: ours and published at each number of shots; of all datasets' average for None."""
    found = {}
    for method in METHODS:
        ours: list[Point] = []
        theirs: list[Point] = []
        for shots in request.shots:
            names = [dataset] if dataset else list(request.datasets)
            row = [cells[name, method, shots] for name in names]
            figures = [published("few-shot", name, method, shots) for name in names]
            ours.append((complete_mean([cell.mean for cell in row]), row[0].std if dataset else None))
            mean = complete_mean([None if figure is None else figure.mean for figure in figures])
            theirs.append((mean, figures[0].std if dataset and figures[0] else None))
        found[method] = ours, theirs
    return found


def draw_panel(axes: Any, title: str, shots: list[int], curves: dict[str, tuple[list[Point], list[Point]]]) -> None:
    for method, (ours, theirs) in curves.items():
        for points, published_ones in ((ours, False), (theirs, True)):
            style: dict[str, Any] = {
                "color": COLOURS[method],
                "marker": MARKERS[method],
                "markerfacecolor": "white" if published_ones else COLOURS[method],
                "linestyle": ":" if published_ones else "-",
                "alpha": 0.6 if published_ones else 1.0,
                "markersize": 9 if method == "ZeroshotCLIP" else 5,
                "label": SHOWN.get(method, method) + (", published" if published_ones else ""),
            }
            if method == "ZeroshotCLIP":  # it stands at 0 shots
                kept = [(0, mean, std) for mean, std in points[:1] if mean is not None]
            else:
                kept = [(n, mean, std) for n, (mean, std) in zip(shots, points, strict=True) if mean is not None]
            if not kept:
                continue
            x, y, spread = zip(*kept, strict=True)
            bars = None if published_ones or None in spread else spread
            axes.errorbar(x, y, yerr=bars, capsize=2, linewidth=1.3, **style)
    axes.set_title(title, fontsize=10)
    axes.set_xticks([0, *shots])
    axes.set_xlabel("training images a class", fontsize=8)
    axes.set_ylabel("accuracy (%)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def draw(request: Request) -> Figure:
    """Raises UserError if the runs are mixed."""
    cells = cells_of(request)
    request.close(Table("", ""))
    panels: list[str | None] = [*([None] if len(request.datasets) > 1 else []), *request.datasets]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    labels: dict[str, Any] = {}
    for axes, dataset in zip(grid, panels, strict=False):
        curves = curves_of(request, cells, dataset)
        draw_panel(axes, dataset or f"average of {len(request.datasets)} datasets", list(request.shots), curves)
        handles, names = axes.get_legend_handles_labels()
        labels |= dict(zip(names, handles, strict=True))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if labels:
        figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=min(4, len(labels)), fontsize=8)
    return figure


def run(args: argparse.Namespace) -> None:
    request = request_of(args, DATASETS, SHOTS)
    figure = draw(request)
    name = "few_shot_curves" + (f"_{request.datasets[0]}" if len(request.datasets) == 1 else "")
    if not may_write(request.out):
        print(f"Not written: there is no folder '{request.out.parent}' to make '{request.out.name}' in")
        return
    folder = Path(request.out) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("png", "pdf"):
        write_atomically(folder / f"{name}.{ending}", partial(figure.savefig, format=ending, dpi=150))
    print(f"Written: {folder / name}.png, {folder / name}.pdf")


def main(argv: list[str] | None = None) -> int:
    return guarded(lambda: run(parser("experiments.figures", __doc__).parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
