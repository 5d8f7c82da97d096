"""The few-shot table: datasets x shots x methods, with the average, and one method tested against each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.jobs import spelled
from experiments.recipes import label
from runs.recipes import method_of

from . import significance
from .published import Figure, note_on, published
from .render import Section, Table, mean_std, number
from .request import Request, difference
from .results import Cell, differences
from .suite import SUBJECT

Cells = dict[tuple[str, str, int], Cell]


def cells_of(request: Request) -> Cells:
    """By dataset, method and shots."""
    places = itertools.product(request.datasets, request.methods, request.shots)
    return {(dataset, method, shots): request.cell(method, dataset, shots) for dataset, method, shots in places}


def build(request: Request, cells: Cells | None = None) -> Table:
    """Of all runs that follow the recipe, or of the cells that are given."""
    cells = cells_of(request) if cells is None else cells
    of = f", {request.datasets[0]}" if len(request.datasets) == 1 else ""
    table = request.table("few_shot", f"Few-shot: accuracy in percent{of}")
    on = request.papers_backbone
    shown = any(published("few-shot", d, m, 16, on) for d in request.datasets for m in request.methods)
    beside = ["published", "diff."] if shown else []
    heads = [text for shots in request.shots for text in (f"{spelled(shots)}-shot", *beside)]
    rows = []
    for dataset in request.datasets:
        for method in request.methods:
            row = [dataset, label(method)]
            for shots in request.shots:
                cell, figure = cells[dataset, method, shots], published("few-shot", dataset, method, shots, on)
                row += request.against(table, cell, figure, shown)
                table.records.append(record("few-shot", dataset, method, shots, cell, figure))
            rows.append(row)
            for name, own in request.overridden(method, dataset).items():
                found = [own.get(shots if method_of(method).has_seeds else 0, Cell()) for shots in request.shots]
                shown_here = (request.against(table, cell, None, shown) for cell in found)
                rows.append([dataset, f"{label(method)}, {name}", *(text for texts in shown_here for text in texts)])
                for shots, cell in zip(request.shots, found, strict=True):
                    table.records.append(record("few-shot", dataset, f"{method}, {name}", shots, cell))
    if len(request.datasets) > 1:
        rows += _averages(request, cells, table, shown)
    table.sections.append(Section("", ["dataset", "method", *heads], rows, 2, 1 + len(beside)))
    if SUBJECT in request.methods and len(request.methods) > 1:
        table.sections.append(_tests(request, cells, table))
    table.notes += [
        f"Mean and standard deviation (n - 1) over the seeds{one_run(request.methods, ' at any number of shots')}. "
        "Averages are over all datasets, blank until all are there.",
        *([note_on(on)] if shown else []),
    ]
    return request.close(table)


def one_run(trainers: Iterable[str], when: str = "") -> str:
    """What follows "over the seeds" in a note, if there are methods without."""
    names = [label(name) for name in trainers if not method_of(name).has_seeds]
    return f"; {' and '.join(names)}: one run{when}" if names else ""


def no_seeds(trainer: str) -> str:
    return f"{label(trainer)} has no seeds"


def record(
    table: str, dataset: str, method: str, shots: int, cell: Cell, figure: Figure | None = None, **more: Any
) -> dict[str, Any]:
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


def mean_of_figures(figures: Sequence[Figure | None]) -> float | None:
    return significance.mean([figure.mean if figure else None for figure in figures])


def _averages(request: Request, cells: Cells, table: Table, shown: bool) -> list[list[str]]:
    rows = []
    for method in request.methods:
        row = ["average", label(method)]
        for shots in request.shots:
            own = [cells[dataset, method, shots] for dataset in request.datasets]
            on = request.papers_backbone
            figures = [published("few-shot", dataset, method, shots, on) for dataset in request.datasets]
            note = next((figure.note for figure in figures if figure and figure.note), "")
            flag = next((cell.flag for cell in own if cell.flag), "")
            numbers = {
                "mean": significance.mean([cell.mean for cell in own]),
                "published_mean": mean_of_figures(figures),
                "difference": significance.mean([difference(*pair) for pair in zip(own, figures, strict=True)]),
            }
            mean, theirs, diff = numbers.values()
            text = "" if theirs is None else number(theirs) + table.mark(note)
            row.append("" if mean is None else number(mean) + table.mark(flag))
            row += [text, number(diff, signed=True)] if shown else []
            place = {"table": "few-shot", "dataset": "average", "method": method, "shots": shots}
            table.records.append({**place, **numbers})
        rows.append(row)
    return rows


def _tests(request: Request, cells: Cells, table: Table) -> Section:
    """Paired over the datasets; if there is but one, over its seeds."""
    single = len(request.datasets) == 1
    unit = "seeds" if single else "datasets"
    headers = [f"{SUBJECT} against", "shots", "figures", unit, "mean diff.", "paired t p", "Wilcoxon p"]
    rows = []
    for baseline in (method for method in request.methods if method != SUBJECT):
        for shots in request.shots:
            for whose in ("ours",) if single else ("ours", "published"):
                found = differences(*(_means(request, cells, whose, method, shots) for method in (SUBJECT, baseline)))
                if whose == "published" and not found:
                    continue
                why = f"fewer than two {unit} with both methods" if len(found) < 2 else "the differences do not vary"
                why = f"{why}: no test"
                if single and not method_of(baseline).has_seeds:
                    why = f"{no_seeds(baseline)}: no test over seeds"
                mean, std = significance.mean(found), significance.deviation(found)
                tests = {"t_test_p": significance.paired_t(found), "wilcoxon_p": significance.wilcoxon(found)}
                shown = [table.p_value(p, why) for p in tests.values()]
                start = [label(baseline), spelled(shots), whose, str(len(found))]
                rows.append([*start, mean_std(mean, std, signed=True), *shown])
                place = {"dataset": request.datasets[0] if single else "all", "method": SUBJECT, "shots": shots}
                name = f"{SUBJECT} against {baseline} ({whose})"
                table.records.append({"table": name, **place, "runs": len(found), "difference": mean, **tests})
    return Section(f"{SUBJECT} against each baseline, paired over the {unit}, two-sided", headers, rows, 3)


def _means(request: Request, cells: Cells, whose: str, method: str, shots: int) -> dict[Any, float]:
    """A method's accuracies by dataset; of our runs on a single one, by seed."""
    if len(request.datasets) == 1:
        return cells[request.datasets[0], method, shots].by_seed if method_of(method).has_seeds else {}
    means: dict[Any, float] = {}
    for dataset in request.datasets:
        theirs = published("few-shot", dataset, method, shots, request.papers_backbone)
        found = cells[dataset, method, shots] if whose == "ours" else theirs
        if found is not None and found.mean is not None:
            means[dataset] = found.mean
    return means
