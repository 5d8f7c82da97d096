"""Domain generalization: trained on one set, tested on its shifted versions without retraining.

A method whose published code tests with other options than it trained with (``Method.transfer_as_published``) has two
rows: tested as trained, and as that code tests.
"""

from __future__ import annotations

from typing import Any

from experiments.jobs import in_words, spelled
from experiments.recipes import label, pairs_of, short_name
from runs.recipes import imported, method_of

from . import significance
from .by_shots import mean_of_figures, record
from .published import note_on, published
from .render import Section, Table, number
from .request import Request
from .results import Cell, select
from .suite import SHIFTED, has_same_classes

TABLE = "domain generalization"


def build(request: Request) -> Table:
    source, shots = request.datasets[0], request.shots[0]
    targets = SHIFTED[source]
    same = has_same_classes(source, targets)
    names = [name for name in request.methods if same or method_of(name).other_classes]
    title = f"Domain generalization: accuracy in percent, {in_words(shots)} of {source}, tested on its shifted sets"
    table = request.table("domain", title)
    on = request.papers_backbone
    with_published = any(published(TABLE, t, method, shots, on) for t in targets for method in names)
    rows = []
    for method in names:
        twice = bool(method_of(method).transfer_as_published)
        for as_published in (False, True) if twice else (False,):
            cells = {d: _cell(request, method, source, d, shots, as_published) for d in (source, *targets)}
            beside = not twice or as_published  # the paper's figures are by the published code
            figures = {d: published(TABLE, d, method, shots, on) if beside else None for d in cells}
            name = as_the_code_tests(method) if as_published else method
            row = [name if as_published else f"{label(method)}, tested as trained" if twice else label(method)]
            for dataset, cell in cells.items():
                row += request.against(table, cell, figures[dataset], with_published)
                table.records.append(record(TABLE, dataset, name, shots, cell, figures[dataset]))
            theirs = number(mean_of_figures(list(figures.values())[1:]))
            average = number(significance.mean([cells[target].mean for target in targets]))
            rows.append([*row, average, *([theirs] if with_published else [])])
    more = ["published", "diff."] if with_published else []
    headers = [text for dataset in (source, *targets) for text in (dataset, *more)]
    headers = ["method", *headers, "mean of the shifted", *more[:1]]
    table.sections.append(Section("", headers, rows, 1, 1 + len(more)))
    table.notes += [_note(method) for method in names if method_of(method).transfer_as_published]
    table.notes += [note_on(on)] if with_published else []
    return request.close(table)


def as_the_code_tests(trainer: str) -> str:
    return f"{label(trainer)}, tested as published"


def _note(trainer: str) -> str:
    method = method_of(trainer)
    trained, tested = (" ".join(pairs_of(trainer, o)) for o in (method.transfer, method.transfer_as_published))
    return (
        f"{label(trainer)} is trained with {trained}. Its first row is tested so; its second as the published code "
        f"tests: so on the source, with {tested} on the shifted sets. The paper's figures, by that code, stand beside "
        "the second row."
    )


def _cell(request: Request, trainer: str, source: str, dataset: str, shots: int, as_published: bool) -> Cell:
    method = method_of(trainer)
    if not method.has_seeds:
        return request.cell(trainer, dataset, shots)
    trained = [
        run
        for run in request.found
        if run.source.dataset == source
        and (run.trained is None) == (dataset == source)
        and all(run.source.option(key) == value for key, value in method.transfer.items())
    ]
    options: dict[str, Any] = {
        **method.transfer,
        **(method.transfer_as_published if as_published and dataset != source else {}),
    }
    words = ["scripts/protocols/domain_generalization.sh", *imported(trainer), source, spelled(shots)]
    cell = select(trained, trainer, dataset, shots, **options)
    return request.filled(cell, trainer, source, words, {"TRAINERS": short_name(trainer)})
