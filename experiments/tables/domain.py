"""Domain generalization: trained on one set, tested on its shifted versions without retraining.

PLOT stands twice: with the head it was trained with, and as the published code tests it, which adds the global logits
only on ImageNet itself, so that the shifted sets are tested with another head.
"""

from __future__ import annotations

from typing import Any

from experiments.recipes import ENTRY

from .few_shot import complete_mean, record
from .published import NOTE, Figure, published
from .render import Section, Table, number
from .request import Request
from .results import Cell, select
from .suite import METHODS, SHIFTED, SHOWN

HEAD = "TRAINER.PLOT.GLOBAL_LOGITS"
AS_TRAINED = "PLOT, with the head it was trained with"
AS_PUBLISHED = "PLOT, tested as the published code does"


def build(request: Request) -> Table:
    source, shots = request.datasets[0], request.shots[0]
    targets = SHIFTED[source]
    table = Table(
        f"domain_{source}_{shots}shots",
        f"Domain generalization: accuracy in percent, {shots} shots of {source}, tested on its shifted sets",
    )
    with_published = any(published("domain generalization", target, "PLOT", shots) for target in targets)
    rows = []
    for method in (*METHODS, AS_PUBLISHED):
        cells = {d: _cell(request, method, source, d, shots) for d in (source, *targets)}
        row = [AS_TRAINED if method == "PLOT" else SHOWN.get(method, method)]
        shown: list[tuple[Cell, Figure | None]] = []
        for dataset, cell in cells.items():
            figure = _figure(method, dataset, shots)
            row += request.against(cell, figure, with_published)
            shown.append((cell, figure))
            table.records.append(record("domain generalization", dataset, method, shots, cell, figure))
        average = complete_mean([cell.mean for cell, _ in shown[1:]])
        theirs = complete_mean([None if figure is None else figure.mean for _, figure in shown[1:]])
        rows.append([*row, number(average), *([number(theirs)] if with_published else [])])
    beside = ["published", "diff."] if with_published else []
    headers = [text for dataset in (source, *targets) for text in (dataset, *beside)]
    table.sections.append(Section("", ["method", *headers, "average of the shifted", *beside[:1]], rows))
    table.notes += [
        f"PLOT is trained with the global logits ({HEAD} True). Its first row is tested with them, as trained; its "
        "second as the published code tests: with them on the source, without on the shifted sets. The paper's "
        "figures, by that code, stand beside the second row.",
        *([NOTE] if with_published else []),
    ]
    return request.close(table)


def _figure(method: str, dataset: str, shots: int) -> Figure | None:
    if method == "PLOT":
        return None
    name = "PLOT" if method == AS_PUBLISHED else method
    return published("domain generalization", dataset, name, shots)


def _cell(request: Request, method: str, source: str, dataset: str, shots: int) -> Cell:
    trainer = "PLOT" if method == AS_PUBLISHED else method
    if trainer == "ZeroshotCLIP":
        return request.main_sh(select(request.found, trainer, dataset, shots), trainer, dataset, shots)
    candidates = [run for run in request.found if run.source.dataset == source]
    candidates = [run for run in candidates if (run.trained is None) == (dataset == source)]
    options: dict[str, Any] = {}
    if trainer == "PLOT":
        candidates = [run for run in candidates if run.source.option("GLOBAL_LOGITS")]
        options = {"GLOBAL_LOGITS": method == "PLOT" or dataset == source, "N": 4, "MATCH": "ot"}
    cell = select(candidates, trainer, dataset, shots, varied=(HEAD,), **options)
    script = "scripts/protocols/domain_generalization.sh"
    return request.cell(cell, trainer, script, [source, str(shots)], {"TRAINERS": ENTRY[trainer]})
