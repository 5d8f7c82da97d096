"""The few-shot table: datasets x shots x methods, with the average, and PLOT tested against each baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import significance
from .published import NOTE, Figure, published
from .render import Section, Table, mean_std, number
from .request import Request, difference
from .results import Cell, select
from .suite import SHOWN

NO_SEEDS = "zero-shot CLIP has no seeds: no test over seeds"

Cells = dict[tuple[str, str, int], Cell]
Pairs = tuple[list[float], list[float]]


def cells_of(request: Request) -> Cells:
    """By dataset, method and shots."""
    return {
        (dataset, method, shots): request.main_sh(
            select(request.found, method, dataset, shots, N=4, MATCH="ot")
            if method == "PLOT"
            else select(request.found, method, dataset, shots),
            method,
            dataset,
            shots,
        )
        for dataset in request.datasets
        for method in request.methods
        for shots in request.shots
    }


def build(request: Request, cells: Cells | None = None) -> Table:
    """Of all runs that follow the recipe, or of the cells that are given."""
    cells = cells_of(request) if cells is None else cells
    table = Table(_name("few_shot", request), f"Few-shot: accuracy in percent{_of(request)}")
    shown = any(published("few-shot", dataset, "PLOT", 16) for dataset in request.datasets)
    beside = ["published", "diff."] if shown else []
    heads = [text for shots in request.shots for text in (f"{shots}-shot", *beside)]
    rows = []
    for dataset in request.datasets:
        for method in request.methods:
            row = [dataset, SHOWN.get(method, method)]
            for shots in request.shots:
                cell, figure = cells[dataset, method, shots], published("few-shot", dataset, method, shots)
                row += request.against(cell, figure, shown)
                table.records.append(record("few-shot", dataset, method, shots, cell, figure))
            rows.append(row)
    if len(request.datasets) > 1:
        rows += _averages(request, cells, table, shown)
    table.sections.append(Section("", ["dataset", "method", *heads], rows))
    if "PLOT" in request.methods and len(request.methods) > 1:
        table.sections.append(_tests(request, cells, table))
    table.notes += [
        "Mean and standard deviation (n - 1) over the seeds; zero-shot CLIP is one run, the same at every number of "
        "shots. Averages are over all datasets, blank until all are there.",
        *([NOTE] if shown else []),
    ]
    return request.close(table)


def record(
    table: str, dataset: str, method: str, shots: int, cell: Cell, figure: Figure | None, **more: Any
) -> dict[str, Any]:
    """One line of the CSV."""
    return {
        "table": table,
        "dataset": dataset,
        "method": method,
        "shots": shots,
        **more,
        "mean": cell.mean,
        "std": cell.std,
        "runs": len(cell.runs),
        "published_mean": figure and figure.mean,
        "published_std": figure and figure.std,
        "difference": difference(cell, figure),
    }


def complete_mean(values: Sequence[float | None]) -> float | None:
    """The mean, None if one is missing."""
    whole = [value for value in values if value is not None]
    return significance.mean(whole) if len(whole) == len(values) else None


def _averages(request: Request, cells: Cells, table: Table, shown: bool) -> list[list[str]]:
    rows = []
    for method in request.methods:
        row = ["average", SHOWN.get(method, method)]
        for shots in request.shots:
            mean = complete_mean([cells[dataset, method, shots].mean for dataset in request.datasets])
            figures = [published("few-shot", dataset, method, shots) for dataset in request.datasets]
            theirs = complete_mean([None if figure is None else figure.mean for figure in figures])
            diffs = [
                difference(cells[dataset, method, shots], figure)
                for dataset, figure in zip(request.datasets, figures, strict=True)
            ]
            diff = complete_mean(diffs)
            row += [number(mean), *([number(theirs), number(diff, signed=True)] if shown else [])]
            numbers = {"mean": mean, "published_mean": theirs, "difference": diff}
            table.records.append(
                {"table": "few-shot", "dataset": "average", "method": method, "shots": shots, **numbers}
            )
        rows.append(row)
    return rows


def _tests(request: Request, cells: Cells, table: Table) -> Section:
    """Paired over the datasets; where there is but one, over its seeds."""
    single = len(request.datasets) == 1
    unit = "seeds" if single else "datasets"
    headers = ["PLOT against", "shots", "figures", unit, "mean diff.", "paired t-test p", "Wilcoxon p"]
    rows = []
    for baseline in (method for method in request.methods if method != "PLOT"):
        for shots in request.shots:
            sides = [("ours", _pairs(request, cells, baseline, shots))]
            if not single and (theirs := _published_pairs(request, baseline, shots))[0]:
                sides.append(("published", theirs))
            for whose, (a, b) in sides:
                why = NO_SEEDS if single and baseline == "ZeroshotCLIP" else ""
                rows.append([SHOWN.get(baseline, baseline), str(shots), whose, *_test_row(table, unit, a, b, why)])
                table.records.append(
                    {
                        "table": f"PLOT against {baseline} ({whose})",
                        "dataset": request.datasets[0] if single else "all",
                        "method": "PLOT",
                        "shots": shots,
                        "runs": len(a),
                        "difference": significance.mean([x - y for x, y in zip(a, b, strict=True)]),
                        "t_test_p": significance.paired_t(a, b),
                        "wilcoxon_p": significance.wilcoxon(a, b),
                    }
                )
    return Section(f"PLOT against each baseline, paired over the {unit}, two-sided", headers, rows)


def _test_row(table: Table, unit: str, a: list[float], b: list[float], why: str = "") -> list[str]:
    """[pairs, mean difference and its deviation, p, p]; ``why`` there is nothing to test."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    few = f"fewer than two {unit} with both methods: no test" if len(a) < 2 else "the differences do not vary: no test"
    few = why or few
    mean, std = significance.mean(differences), significance.deviation(differences)
    return [
        str(len(a)),
        mean_std(mean, std, signed=True),
        table.p_value(significance.paired_t(a, b), few),
        table.p_value(significance.wilcoxon(a, b), few),
    ]


def _pairs(request: Request, cells: Cells, baseline: str, shots: int) -> Pairs:
    plots = [(cells[dataset, "PLOT", shots], cells[dataset, baseline, shots]) for dataset in request.datasets]
    if len(request.datasets) == 1:
        return ([], []) if baseline == "ZeroshotCLIP" else plots[0][0].paired(plots[0][1])
    means = [(a.mean, b.mean) for a, b in plots]
    both = [(a, b) for a, b in means if a is not None and b is not None]
    return [a for a, _ in both], [b for _, b in both]


def _published_pairs(request: Request, baseline: str, shots: int) -> Pairs:
    found = [[published("few-shot", d, method, shots) for method in ("PLOT", baseline)] for d in request.datasets]
    both = [(a.mean, b.mean) for a, b in found if a is not None and b is not None]
    return [a for a, _ in both], [b for _, b in both]


def _name(stem: str, request: Request) -> str:
    return stem if len(request.datasets) > 1 else f"{stem}_{request.datasets[0]}"


def _of(request: Request) -> str:
    return f", {request.datasets[0]}" if len(request.datasets) == 1 else ""
