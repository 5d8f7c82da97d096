"""What a published protocol's leak is worth: methods run as their published code does, against their clean runs.

A method whose code chooses by the test set, or shares images between seeds, has the option AS_PUBLISHED. Each method
stands beside itself alone, on a backbone of its own.
"""

from __future__ import annotations

from experiments.jobs import spelled
from experiments.recipes import label
from runs.recipes import method_of
from trainers.method import methods

from .by_shots import record
from .render import Section, Table
from .request import Request
from .results import AS_PUBLISHED
from .variants import NOTE, compare_cells


def build(request: Request) -> Table:
    table = request.table("leaks", "As published against clean: accuracy in percent")
    leaky = [m for m in methods() if any(o.key == AS_PUBLISHED for o in method_of(m).options)]
    rows = []
    for dataset, shots in request.places:
        for method in leaky:
            clean = request.cell(method, dataset, shots)
            leaked = request.cell(method, dataset, shots, **{AS_PUBLISHED: True})
            row = [dataset, spelled(shots), label(method), request.ours(table, clean), request.ours(table, leaked)]
            tests, numbers = compare_cells(table, leaked, clean) if clean.runs and leaked.runs else ([""] * 3, {})
            rows.append([*row, *tests])
            for name, cell, more in (("clean", clean, {}), ("as published", leaked, numbers)):
                table.records.append(record("leaks", dataset, method, shots, cell, protocol=name, **more))
    headers = ["dataset", "shots", "method", "clean", "as published", "difference", "paired t-test p"]
    table.sections.append(Section("", [*headers, "McNemar p, by seed"], rows))
    table.notes.append(NOTE)
    if not leaky:
        table.notes.append(f"No registered method has the option {AS_PUBLISHED}.")
    return request.close(table, alone=True)
