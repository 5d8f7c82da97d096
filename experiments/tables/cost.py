"""What a method costs: images a second in training and testing, memory, learned parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments.jobs import spelled
from experiments.recipes import label

from . import significance
from .render import Section, Table, number
from .request import Request
from .results import Cell

NOT_KEPT = "not in the runs' result.json"
NO_TRAINING = "nothing is trained"
FEATURES_READ = (
    "kept image features were read in all of these tests; with TEST.FEATURE_CACHE False, into another OUT, a test is "
    "timed whole"
)

COLUMNS = {
    "train_images_per_second": "train img/s",
    "test_images_per_second": "test img/s",
    "step_ms": "step (ms)",
    "memory_mb": "memory (MB)",
    "parameters": "learned",
}


def build(request: Request) -> Table:
    table = request.table("cost", "Cost")
    rows = []
    for dataset, shots in request.places:
        for method in request.methods:
            cells = {"": request.cell(method, dataset, shots)}
            own = request.overridden(method, dataset).items()
            cells |= {name: by_shots[shots] for name, by_shots in own if shots in by_shots}
            for name, cell in cells.items():
                texts, means = costs(table, cell)
                devices = sorted({str(run.result.get("device", "")) for run in cell.runs})
                row = [dataset, spelled(shots), label(method) + f", {name}" * bool(name) + request.mark(cell)]
                rows.append([*row, *texts.values(), ", ".join(devices)])
                place = {"dataset": dataset, "shots": shots, "method": method + f", {name}" * bool(name)}
                table.records.append({**place, **means, "device": " ".join(devices)})
    table.sections.append(Section("", ["dataset", "shots", "method", *COLUMNS.values(), "device"], rows, 3))
    table.notes.append(
        "Means over the seeds, of rates the harmonic ones, which go with the means of times. Training: images a second "
        "of a step (batch over the median step, loading apart), testing: of the whole test, loading and measuring "
        "included, where no kept image features were read. Memory: the most that the process has held, or, on a GPU, "
        "its tensors. Learned: parameters. Compare only what ran on one machine."
    )
    return request.close(table)


def costs(table: Table, cell: Cell, columns: Iterable[str] = COLUMNS) -> tuple[dict[str, str], dict[str, float | None]]:
    """By column: the text, a dash where a run has not kept it; and the mean, None there.

    Testing counts only the runs that have computed their image features.
    """
    texts: dict[str, str] = {}
    means: dict[str, float | None] = {}
    for key in columns:
        values = [_values(run.result)[key] for run in cell.runs]
        if testing := key == "test_images_per_second":
            values = [value for value in values if value is not None]
        mean = significance.harmonic_mean if key.endswith("per_second") else significance.mean
        means[key] = mean(values)
        why = FEATURES_READ if testing else NO_TRAINING if cell.runs and cell.runs[0].epochs == 0 else NOT_KEPT
        digits = 0 if key in ("memory_mb", "parameters") else 1
        texts[key] = table.dash(why) if means[key] is None and cell.runs else number(means[key], digits)
    return texts, means


def _values(result: dict[str, Any]) -> dict[str, float | None]:
    step, batch = result["seconds"].get("step_seconds"), result.get("batch_size")
    memory = result.get("peak_gpu_memory_bytes") or result.get("peak_memory_bytes")
    return {
        "train_images_per_second": min(batch, result["counts"].get("train", batch)) / step if step and batch else None,
        "test_images_per_second": result["seconds"].get("test_images_per_second"),
        "step_ms": None if step is None else 1000 * step,
        "memory_mb": None if memory is None else memory / 2**20,
        "parameters": result.get("parameters"),
    }
