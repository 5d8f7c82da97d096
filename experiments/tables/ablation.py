"""Table 2 of the paper: a method without some of its parts (``Method.ablation``), beside the baseline."""

from __future__ import annotations

from typing import Any

from experiments.jobs import spelled
from experiments.recipes import label
from runs.recipes import method_of

from .by_shots import record
from .render import DASH, Section, Table
from .request import Request
from .suite import BASELINE
from .variants import NOTE, compare_cells

DATASETS = ("caltech101", "dtd", "food101")
READING = (
    "G: each prompt against the pooled feature, the prompts' logits averaged. M: each prompt against the mean over the "
    "feature map, without transport. V: the loss rewards the variance of a class's text features, with the weight "
    "VARIANCE. E: each prompt starts from a text of its own, and has as many context vectors as the text has tokens. "
    "The paper prints neither V's form and weight nor E's texts; these are our reading."
)


def build(request: Request) -> Table:
    methods = [method for method in request.methods if method_of(method).ablation]
    table = request.table("ablation", f"{', '.join(map(label, methods))} without its parts: accuracy in percent")
    for method in methods:
        rows = {BASELINE: (BASELINE, {}), **{name: (method, o) for name, o in method_of(method).ablation.items()}}
        for dataset in request.datasets:
            cells = {
                (name, shots): request.cell(trainer, dataset, shots, **options)
                for name, (trainer, options) in rows.items()
                for shots in request.shots
            }
            base = next(name for name, (trainer, options) in rows.items() if trainer == method and not options)
            lines = []
            for name in rows:
                line = [name]
                for shots in request.shots:
                    cell, whole = cells[name, shots], cells[base, shots]
                    tests, numbers = [DASH if name == base else ""] * 2, dict[str, Any]()
                    if name != base and cell.runs and whole.runs:
                        texts, numbers = compare_cells(table, cell, whole)
                        tests = texts[:2]
                    line += [request.ours(table, cell), *tests]
                    more = {"setting": name, **numbers}
                    table.records.append(record("ablation", dataset, method, shots, cell, **more))
                lines.append(line)
            heads = [h for shots in request.shots for h in (f"{spelled(shots)}-shot", f"diff. to {base}", "paired t p")]
            table.sections.append(Section(dataset, ["setting", *heads], lines, 1, 3))
    table.notes += [READING, NOTE]
    return request.close(table)
