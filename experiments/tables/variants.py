"""PLOT against variants of itself: the number of prompts N, and the way of matching (``MATCH``)."""

from __future__ import annotations

from typing import Any

from . import significance
from .few_shot import record
from .render import DASH, Section, Table, mean_std, number, probability
from .request import Request
from .results import Cell, discordant, select
from .suite import MATCHES, PROMPTS

ONE_SEED = "fewer than two seeds that both have: no test"
NO_VARIANCE = "the differences between the seeds do not vary: no test"
NO_PAIRS = "no paired predictions: one of the runs has kept none, or of other images"


def prompts(request: Request) -> Table:
    """N in 1, 2, 4, 8, each tested against N = 1."""
    table = Table(_name("prompts", request), "PLOT, number of prompts N: accuracy in percent")
    rows = []
    for dataset, shots in _places(request):
        cells = {
            n: request.main_sh(
                select(request.found, "PLOT", dataset, shots, varied=("TRAINER.PLOT.N",), N=n, MATCH="ot"),
                *("PLOT", dataset, shots),
                n=None if n == 4 else n,
            )
            for n in PROMPTS
        }
        rows += [_row(table, request, dataset, shots, str(n), cells[n], None if n == 1 else cells[1]) for n in PROMPTS]
    table.sections.append(Section("", _headers("N", "N = 1"), rows))
    table.notes.append(_NOTE)
    return request.close(table)


def match(request: Request) -> Table:
    """ot, uniform, mean and max, each tested against ot; the plan's entropy and effect beside."""
    table = Table(_name("match", request), "PLOT, variants of matching: accuracy in percent")
    rows, plans = [], []
    for dataset, shots in _places(request):
        cells = {}
        for kind in MATCHES:
            opts = [] if kind == "ot" else ["TRAINER.PLOT.MATCH", kind]
            cell = select(request.found, "PLOT", dataset, shots, varied=("TRAINER.PLOT.MATCH",), N=4, MATCH=kind)
            cells[kind] = request.main_sh(cell, "PLOT", dataset, shots, opts)
        rows += [_row(table, request, dataset, shots, k, cells[k], None if k == "ot" else cells["ot"]) for k in MATCHES]
        plans.append([dataset, str(shots), *diagnostics_row(table, cells["ot"], PLAN)])
    table.sections.append(Section("", _headers("MATCH", "ot"), rows))
    table.sections.append(Section("The plans of ot, on the test set", ["dataset", "shots", *PLAN.values()], plans))
    table.notes += [_NOTE, _PLAN_NOTE]
    return request.close(table)


PLAN = {
    "plan_entropy": "entropy / uniform's",
    "plan_distance": "distance from uniform",
    "shift_spread": "spread of the logits' shift",
    "predictions_changed": "predictions changed (%)",
}
ALL = {
    **PLAN,
    "iterations_mean": "iterations",
    "iterations_max": "most (mean over seeds)",
    "text_cosine": "cosine of the N text features",
    "context_effective_rank": "effective rank of the N contexts",
}


def diagnostics(request: Request) -> Table:
    """What each PLOT run says of its plans and prompts, for every N and MATCH that there is."""
    table = Table(_name("diagnostics", request), "PLOT: its plans and its prompts, on the test set")
    varied = ("TRAINER.PLOT.N", "TRAINER.PLOT.MATCH")
    rows = []
    for dataset, shots in _places(request):
        for n in PROMPTS:
            for kind in MATCHES:
                cell = select(request.found, "PLOT", dataset, shots, varied=varied, N=n, MATCH=kind)
                if cell.runs or (n, kind) == (4, "ot"):
                    opts = [] if kind == "ot" else ["TRAINER.PLOT.MATCH", kind]
                    request.main_sh(cell, "PLOT", dataset, shots, opts, None if n == 4 else n)
                    rows.append(
                        [dataset, str(shots), str(n), kind, request.ours(cell), *diagnostics_row(table, cell, ALL)]
                    )
                    means = {key: mean for key, (mean, _) in _diagnostics(cell).items()}
                    table.records.append(
                        record("diagnostics", dataset, "PLOT", shots, cell, None, N=n, MATCH=kind, **means)
                    )
    table.sections.append(Section("", ["dataset", "shots", "N", "MATCH", "accuracy (%)", *ALL.values()], rows))
    table.notes += [_PLAN_NOTE, _PROMPT_NOTE]
    return request.close(table)


def diagnostics_row(table: Table, cell: Cell, names: dict[str, str]) -> list[str]:
    """Means over the seeds; a dash where there is nothing to measure, blank where there is no run."""
    found = _diagnostics(cell)
    row = []
    for name in names:
        mean, why = found[name]
        digits = {"plan_entropy": 4, "plan_distance": 4, "shift_spread": 3, "text_cosine": 3}.get(name, 2)
        row.append(number(mean, digits) if mean is not None or not cell.runs else table.dash(why))
    return row


def _diagnostics(cell: Cell) -> dict[str, tuple[float | None, str]]:
    found: dict[str, tuple[float | None, str]] = {}
    for name in ALL:
        kept = [run.result.get("diagnostics") for run in cell.runs]
        values = [d[name] for d in kept if d and d.get(name) is not None]
        why = "nothing to measure: no plan, or a single prompt" if all(kept) else "the run has kept no diagnostics"
        whole = len(values) == len(cell.runs)
        found[name] = (significance.mean(values) if whole else None), why
    return found


def _row(
    table: Table, request: Request, dataset: str, shots: int, variant: str, cell: Cell, base: Cell | None
) -> list[str]:
    """One variant, and its tests against the base variant (None for the base itself)."""
    interval = significance.half_width(list(cell.by_seed.values()))
    row = [dataset, str(shots), variant, request.ours(cell), "" if interval is None else f"± {interval:.2f}"]
    more: dict[str, Any] = {"variant": variant, "interval": interval}
    if base is None:
        row += [DASH, DASH, DASH]
    elif not cell.runs or not base.runs:
        row += ["", "", ""]
    else:
        text, numbers = compare_cells(table, cell, base)
        row += text
        more |= numbers
    table.records.append(record(table.name, dataset, "PLOT", shots, cell, None, **more))
    return row


def compare_cells(table: Table, cell: Cell, base: Cell, why: str = "") -> tuple[list[str], dict[str, Any]]:
    """[difference, paired t-test's p over the seeds, McNemar's p by seed] as text, and the numbers.

    Args:
        why: there is nothing to pair over the seeds.
    """
    a, b = ([], []) if why else cell.paired(base)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    p = significance.paired_t(a, b)
    tests = mcnemar_by_seed(cell, base)
    text = [
        mean_std(significance.mean(differences), significance.deviation(differences), signed=True),
        table.p_value(p, why or (ONE_SEED if len(a) < 2 else NO_VARIANCE)),
        " ".join(table.dash(NO_PAIRS) if t is None else probability(t[2]) for t in tests)
        if any(tests)
        else table.dash(NO_PAIRS),
    ]
    numbers = {
        "difference_to_base": significance.mean(differences),
        "t_test_p": p,
        "mcnemar_p": " ".join("" if t is None else f"{t[2]:.6g}" for t in tests),
        "only_this_right": " ".join("" if t is None else str(t[0]) for t in tests),
        "only_base_right": " ".join("" if t is None else str(t[1]) for t in tests),
    }
    return text, numbers


def mcnemar_by_seed(cell: Cell, base: Cell) -> list[tuple[int, int, float] | None]:
    """(only the first right, only the second, p) by common seed; of zero-shot CLIP, its one run against each seed.

    The seeds share their test images, so that they cannot be pooled into one test.
    """
    first, second = ({run.seed: run for run in c.runs} for c in (cell, base))
    if base.runs and base.runs[0].trainer == "ZeroshotCLIP":
        second = dict.fromkeys(first, base.runs[0])
    elif cell.runs and cell.runs[0].trainer == "ZeroshotCLIP":
        first = dict.fromkeys(second, cell.runs[0])
    found: list[tuple[int, int, float] | None] = []
    for seed in sorted(set(first) & set(second)):
        counts = discordant(first[seed], second[seed])
        p = None if counts is None else significance.mcnemar(*counts)
        found.append(None if counts is None else (*counts, 1.0 if p is None else p))
    return found


def _places(request: Request) -> list[tuple[str, int]]:
    return [(dataset, shots) for dataset in request.datasets for shots in request.shots]


def _headers(variant: str, base: str) -> list[str]:
    test = [f"diff. to {base}", "paired t-test p", "McNemar p, by seed"]
    return ["dataset", "shots", variant, "accuracy (%)", "95% interval", *test]


def _name(stem: str, request: Request) -> str:
    return f"{stem}_{request.datasets[0]}" if len(request.datasets) == 1 else stem


_NOTE = (
    "Mean and standard deviation (n - 1) over the seeds; the 95% interval is Student's, for the mean. Tests are "
    "two-sided: paired t over the seeds; McNemar over the test images, one p a seed (exact below 25 discordant images, "
    "else chi-squared with continuity correction)."
)
_PLAN_NOTE = (
    "Plans, over all test images and classes: entropy relative to the uniform plan's (1 is uniform); total-variation "
    "distance from it (0 to 1). What they do: the standard deviation over the classes of the logits' shift against the "
    "uniform plan, and the percentage of test predictions that differ from the uniform plan's, the prompts being the "
    "same."
)
_PROMPT_NOTE = (
    "Prompts: mean pairwise cosine of a class's N text features (1: collapsed into one); effective rank of the N "
    "contexts (1: all parallel, N: orthogonal). Means over the seeds."
)
