"""The papers' figures, from published/results.csv: shown beside ours as 'published', never as results of ours."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass

from experiments.recipes import method_of
from runs.directory import REPOSITORY

PATH = REPOSITORY / "published" / "results.csv"
NOTE = (
    "published: figures of the PLOT paper (arXiv 2210.01253; zero-shot: of the CoOp paper, arXiv 2109.01134), RN50, "
    "transcribed without the PDF at hand; the means over the eleven datasets agree with the printed averages within "
    "0.03 points. They are no results of this project. diff.: ours minus published, in points."
)


@dataclass(frozen=True)
class Figure:
    mean: float
    std: float | None
    backbone: str


@functools.cache
def figures() -> dict[tuple[str, str, str, int], Figure]:
    """By table ('few-shot', 'domain generalization'), dataset, method and shots (0 for a method without seeds)."""
    with PATH.open(encoding="utf-8", newline="") as file:
        return {
            (row["table"], row["dataset"], row["method"], int(row["shots"])): Figure(
                float(row["mean"]), float(row["std"]) if row["std"] else None, row["backbone"]
            )
            for row in csv.DictReader(file)
        }


def published(table: str, dataset: str, method: str, shots: int) -> Figure | None:
    return figures().get((table, dataset, method, shots if method_of(method).has_seeds else 0))
