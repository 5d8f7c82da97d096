"""Accuracy by class, and the classes that are confused most, from the runs' ``predictions.json``."""

from __future__ import annotations

from collections import Counter

from experiments.jobs import in_words
from experiments.recipes import label

from .render import Section, Table, number
from .request import Request
from .suite import SUBJECT

WORST = 15  # confusions that are listed


def build(request: Request) -> Table:
    """Of the first place of the request; the methods have a column each."""
    dataset, shots = request.places[0]
    table = request.table("by_class", f"By class, {dataset}, {in_words(shots)}: percent, mean over the seeds")
    pairs: dict[str, Counter[tuple[int, int]]] = {}  # (label, prediction) of all runs, by method
    images: dict[str, Counter[int]] = {}
    names: list[str] = []
    heads = {}
    for method in request.methods:
        cell = request.cell(method, dataset, shots)
        kept = [pair for run in cell.runs for pair in (run.predictions() or {}).values()]
        if kept:
            pairs[method], images[method] = Counter(kept), Counter(true for true, _ in kept)
            names = cell.runs[0].result.get("classnames") or names
            heads[method] = label(method) + table.mark(cell.flag)
        elif cell.runs:
            table.notes.append(f"{label(method)} has no column: its runs have kept no predictions.json.")

    def share(method: str, true: int, predicted: int) -> str:
        return number(100 * pairs[method][true, predicted] / images[method][true], 1) if images[method][true] else ""

    def named(k: int) -> str:
        return names[k] if k < len(names) else f"class {k}"

    if pairs:
        classes = sorted({true for counts in images.values() for true in counts})
        rows = [[named(k), *(share(method, k, k) for method in pairs)] for k in classes]
        table.sections.append(Section("Accuracy of each class", ["class", *heads.values()], rows))
        worst = SUBJECT if SUBJECT in pairs else next(iter(pairs))
        wrong = {pair: n / images[worst][pair[0]] for pair, n in pairs[worst].items() if pair[0] != pair[1]}
        most = sorted(wrong, key=lambda pair: -wrong[pair])[:WORST]
        caption = f"The worst confusions of {label(worst)}: percent of the true class's images"
        rows = [[named(true), named(other), *(share(m, true, other) for m in pairs)] for true, other in most]
        table.sections.append(Section(caption, ["true class", "predicted", *heads.values()], rows, 2))
    return request.close(table)
