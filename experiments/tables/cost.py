"""What a method costs: images a second in training and testing, memory, learned parameters."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from .render import Section, Table, number
from .request import Request
from .results import Run, select
from .suite import METHODS, SHOWN

NOT_KEPT = "not in the runs' result.json"
NO_TRAINING = "nothing is trained"


def build(request: Request) -> Table:
    name = f"cost_{request.datasets[0]}" if len(request.datasets) == 1 else "cost"
    table = Table(name, "Cost")
    rows = []
    for dataset in request.datasets:
        for shots in request.shots:
            for method in METHODS:
                options: dict[str, Any] = {"N": 4, "MATCH": "ot"} if method == "PLOT" else {}
                cell = select(request.found, method, dataset, shots, **options)
                request.main_sh(cell, method, dataset, shots)
                rows.append([dataset, str(shots), SHOWN.get(method, method), *cost_row(table, list(cell.runs))])
                numbers = {key: mean_of(list(cell.runs), key) for key in COLUMNS}
                devices = " ".join(sorted({str(run.result.get("device")) for run in cell.runs}))
                table.records.append(
                    {"dataset": dataset, "shots": shots, "method": method, **numbers, "device": devices}
                )
    table.sections.append(Section("", ["dataset", "shots", "method", *COLUMNS.values(), "device"], rows))
    table.notes.append(
        "Means over the seeds. Training: images a second of a step (batch over the median step, loading apart), "
        "testing: of the whole test, loading and measuring included, where no kept image features were read. Memory: "
        "the most that the process has held, or, on a GPU, its tensors. Compare only what ran on one machine."
    )
    return request.close(table)


FEATURES_READ = (
    "kept image features were read in all of these tests; with TEST.FEATURE_CACHE False, into another OUT, a test is "
    "timed whole"
)

COLUMNS = {
    "train_images_per_second": "training, images/s",
    "test_images_per_second": "testing, images/s",
    "step_ms": "step (ms)",
    "memory_mb": "peak memory (MB)",
    "parameters": "learned parameters",
}


def cost_row(table: Table, found: list[Run]) -> list[str]:
    row = []
    for key in COLUMNS:
        mean = mean_of(found, key)
        why = NO_TRAINING if found and found[0].epochs == 0 else NOT_KEPT
        why = FEATURES_READ if key == "test_images_per_second" else why
        digits = 1 if key in ("train_images_per_second", "test_images_per_second", "step_ms") else 0
        row.append(number(mean, digits) if mean is not None or not found else table.dash(why))
    return [*row, ", ".join(sorted({str(run.result.get("device", "")) for run in found}))]


def mean_of(found: list[Run], key: str) -> float | None:
    """The mean of one of COLUMNS; None if a run has not kept it, or of testing if all have read image features."""
    values = [_value(run.result, key) for run in found]
    whole = [value for value in values if value is not None]
    some = key == "test_images_per_second"
    return fmean(whole) if whole and (some or len(whole) == len(values)) else None


def _value(result: dict[str, Any], key: str) -> float | None:
    step = result["seconds"].get("step_seconds")
    if key == "test_images_per_second":
        return result["seconds"].get("test_images_per_second")
    if key == "step_ms":
        return None if step is None else 1000 * step
    if key == "train_images_per_second":
        batch = result.get("batch_size")
        return None if not step or not batch else min(batch, result["counts"].get("train", batch)) / step
    if key == "memory_mb":
        memory = result.get("peak_gpu_memory_bytes") or result.get("peak_memory_bytes")
        return None if memory is None else memory / 2**20
    return result.get("parameters")
