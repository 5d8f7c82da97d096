"""Base to new: trained on the first half of the classes, tested on both halves, with their harmonic mean."""

from __future__ import annotations

import statistics

from experiments.jobs import spelled
from experiments.recipes import label, short_name
from runs.recipes import imported
from trainers.method import methods

from .render import Section, Table, number
from .request import Request
from .results import Cell, select
from .suite import BASE_TO_NEW


def build(request: Request) -> Table:
    table = request.table("base_to_new", "Base to new: accuracy in percent")
    request.classes = "base"
    asked = {*request.methods, *BASE_TO_NEW}
    names = [name for name, kind in methods().items() if name in asked and kind.other_classes]
    rows = []
    for dataset, shots in request.places:
        for method in names:
            base, new = (_cell(request, method, dataset, shots, part) for part in ("base", "new"))
            both = [base.mean, new.mean]
            harmonic = None if None in both else statistics.harmonic_mean([mean or 0.0 for mean in both])
            cells = [request.ours(table, cell) for cell in (base, new)]
            rows.append([dataset, spelled(shots), label(method), *cells, number(harmonic)])
            place = {"table": "base-to-new", "dataset": dataset, "method": method, "shots": shots}
            means = {"base": base.mean, "base_std": base.std, "new": new.mean, "new_std": new.std}
            table.records.append({**place, **means, "harmonic_mean": harmonic, "runs": len(base.runs)})
    headers = ["dataset", "shots", "method", "base (%)", "new (%)", "harmonic mean"]
    table.sections.append(Section("", headers, rows))
    table.notes.append("The harmonic mean is that of the two means, as in CoCoOp's paper.")
    return request.close(table)


def _cell(request: Request, trainer: str, dataset: str, shots: int, part: str) -> Cell:
    cell = select(request.found, trainer, dataset, shots, part)
    words = ["scripts/protocols/base_to_new.sh", *imported(trainer), dataset, spelled(shots)]
    return request.filled(cell, trainer, dataset, words, {"TRAINERS": short_name(trainer)})
