"""Time by the number of prompts: methods with such variants at each N, beside the baseline."""

from __future__ import annotations

from typing import Any

from experiments.jobs import spelled
from experiments.recipes import label
from runs.recipes import method_of

from .cost import costs
from .render import Section, Table
from .request import Request
from .suite import BASELINE

COLUMNS = {
    "step_ms": "training, step (ms)",
    "train_images_per_second": "training, images/s",
    "test_images_per_second": "testing, images/s",
    "memory_mb": "peak memory (MB)",
}


def build(request: Request) -> Table:
    table = request.table("time", "Time by the number of prompts")
    settings: list[tuple[str, str, dict[str, Any]]] = [(BASELINE, "", {})]
    for method in request.methods:
        if "prompts" in method_of(method).variants:
            option, values, _ = method_of(method).variants["prompts"]
            settings += [(method, f", {option} = {value}", {option: value}) for value in values]
    rows = []
    for dataset, shots in request.places:
        for method, text, options in settings:
            cell = request.cell(method, dataset, shots, **options)
            texts, means = costs(table, cell, COLUMNS)
            rows.append([dataset, spelled(shots), label(method) + text, *texts.values()])
            place = {"dataset": dataset, "shots": shots, "method": method, **options}
            table.records.append({**place, **means})
    table.sections.append(Section("", ["dataset", "shots", "method", *COLUMNS.values()], rows, 3))
    table.notes.append("Means over the seeds, as in the table cost. Compare only what ran on one machine.")
    return request.close(table)
