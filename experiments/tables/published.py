"""The papers' figures, from published/*.csv: shown beside ours as 'published', never as results of ours."""

from __future__ import annotations

import csv
import functools
import statistics
from dataclasses import dataclass

from experiments.recipes import label
from runs.directory import REPOSITORY
from runs.recipes import method_of

from .render import Section, Table, number
from .suite import DATASETS, SHOTS

FOLDER = REPOSITORY / "published"
AVERAGE = "average of 11"  # a row of a source that prints no more
BACKBONE = "RN50"  # of the PLOT paper
NOTE = (
    "published: figures of the PLOT paper (arXiv 2210.01253; zero-shot: of the CoOp paper, arXiv 2109.01134), RN50, "
    "transcribed without the PDF at hand; the means over the eleven datasets agree with the printed averages within "
    "0.03 points. They are no results of this project. diff.: ours minus published, in points."
)
MORE = (
    "published: figures of the sources that published/more.csv names, on {backbone}. They are no results of this "
    "project. diff.: ours minus published, in points."
)


@dataclass(frozen=True)
class Figure:
    """``note``: what keeps it from being compared as it stands, such as a choice by the test set; or ""."""

    mean: float
    std: float | None
    backbone: str
    note: str = ""
    source: str = ""


Place = tuple[str, str, str, str, int]


@functools.cache
def figures() -> dict[Place, Figure]:
    """By backbone, table, dataset, method and shots (0 for a method without seeds); of two sources the first."""
    found: dict[Place, Figure] = {}
    for name in ("results.csv", "more.csv"):
        with (FOLDER / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                table, note = row["table"], row.get("note") or ""
                if table == "base-to-new":
                    table, note = f"{table}, {note}", ""
                place = (row["backbone"], table, row["dataset"], row["method"], int(row["shots"]))
                std = float(row["std"]) if row["std"] else None
                found.setdefault(place, Figure(float(row["mean"]), std, row["backbone"], note, row["source"]))
    return found


def published(table: str, dataset: str, method: str, shots: int, backbone: str = BACKBONE) -> Figure | None:
    """A registered method's figure, under its name or its label."""
    shots = shots if method_of(method).has_seeds else 0
    names = (method, label(method))
    return next((f for name in names if (f := figures().get((backbone, table, dataset, name, shots)))), None)


def note_on(backbone: str) -> str:
    """Where the figures on a backbone are from."""
    return NOTE if backbone == BACKBONE else MORE.format(backbone=backbone)


def build() -> Table:
    """The average of the eleven datasets by backbone, method and shots, of every method with one."""
    table = Table("published", "Published: average accuracy over the eleven datasets, in percent")
    for backbone in dict.fromkeys(place[0] for place in figures()):
        names = dict.fromkeys(place[3] for place in figures() if place[:2] == (backbone, "few-shot"))
        rows = []
        for name in names:
            averages = {shots: _average(backbone, name, shots) for shots in (0, *SHOTS)}
            if not any(averages.values()):
                continue
            cells = []
            for shots, figure in averages.items():
                cells.append("" if figure is None else number(figure.mean) + table.mark(figure.note))
                if figure is not None:
                    place = {"table": "published", "backbone": backbone, "method": name, "shots": shots}
                    table.records.append({**place, "published_mean": figure.mean, "note": figure.note})
            rows.append([name, *cells])
        headers = ["method", "zero-shot", *(f"{shots}-shot" for shots in SHOTS)]
        table.sections.append(Section(backbone, headers, rows))
    table.notes.append(
        "They are no results of this project; published/README.md says where they are from. A marked "
        "figure cannot be compared with clean ones; its note says why."
    )
    return table


def _average(backbone: str, method: str, shots: int) -> Figure | None:
    """A source's own average, else that of its rows where it has all eleven."""
    at = {d: figures().get((backbone, "few-shot", d, method, shots)) for d in (*DATASETS, AVERAGE)}
    if (whole := at.pop(AVERAGE)) is not None:
        return whole
    rows = [figure for figure in at.values() if figure]
    if len(rows) < len(DATASETS):
        return None
    return Figure(statistics.fmean(f.mean for f in rows), None, backbone, rows[0].note, rows[0].source)
