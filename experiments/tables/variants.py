"""Methods against variants of themselves: any of their options, and by short names those in ``Method.variants``."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from dassl.utils import UserError
from experiments.jobs import spelled
from experiments.recipes import label
from runs.recipes import method_of
from trainers.method import Option, methods

from . import significance
from .by_shots import record
from .render import DASH, Section, Table, interval, mean_std, number, probability
from .request import Request
from .results import ALLOWED, Cell, FinishedRun, differences, discordant, select

ONE_SEED = "fewer than two seeds that both have: no test"
NO_VARIANCE = "the differences between the seeds do not vary: no test"
NO_PAIRS = "no paired predictions: one of the runs has kept none, or of other images"
SHORT = sorted({name for kind in methods().values() for name in kind.variants})  # of --variant


class Variants(NamedTuple):
    """A method's options, the combinations of their values to compare, and the one that others are tested against."""

    options: list[Option]
    values: list[tuple[Any, ...]]
    base: tuple[Any, ...]


def variants_of(request: Request, name: str) -> dict[str, Variants]:
    """By method: those that declare variants of the name or, for NODE.KEY[,NODE.KEY]..., have those options.

    Values are those declared for a single option and those of finished runs, tested against the declared base or the
    defaults.

    Raises:
        UserError: there is no such option.
    """
    known = [f"{kind.node}.{option.key}" for kind in methods().values() for option in kind.options]
    words = [] if name in SHORT else name.split(",")
    for word in words:
        if word not in known:
            nearest = difflib.get_close_matches(word, known, n=1, cutoff=0)[0]
            raise UserError(f"--variant '{word}' is no option of a method; the nearest is '{nearest}'")
    if len({word.partition(".")[0] for word in words}) > 1 or len({*words}) < len(words):
        raise UserError(f"--variant '{name}': it takes options of one method, each once")
    found = {}
    for method, kind in methods().items():
        short = kind.variants.get(name)
        keys = [short[0]] if short else [word.removeprefix(f"{kind.node}.") for word in words]
        options = [option for key in keys for option in kind.options if option.key == key]
        if not keys or len(options) < len(keys) or (name in SHORT and method not in request.methods):
            continue
        default = tuple(option.default for option in options)
        values, base = list[tuple[Any, ...]](), default
        for key, declared, against in kind.variants.values():
            if [key] == keys:
                values, base = [(value,) for value in declared], (against,)
        allowed = ALLOWED | {f"TRAINER.{kind.node}.{key}" for key in keys}
        runs = [run for run in request.found if run.trainer == method and run.overrides.keys() <= allowed]
        tried = [
            tuple(run.option(o.key, o.default) for o in options) for run in runs if run.dataset in request.datasets
        ]
        types = [type(value) for value in default]
        more = {default, *(each for each in tried if all(map(isinstance, each, types)))} - {*values}
        found[method] = Variants(options, [*values, *sorted(more)], base)
    return found


def build(request: Request, name: str) -> Table:
    """Each variant tested against the base one, of every method that has them; ``name`` as for ``variants_of``."""
    found = variants_of(request, name)
    about = dict.fromkeys(f"{option.key} ({option.help})" for variants in found.values() for option in variants.options)
    title = f"{', '.join(map(label, found))}, {', '.join(about)}: accuracy in percent"
    table = request.table(name.replace(",", "_"), title)
    for method, (options, values, base) in found.items():
        keys = [option.key for option in options]
        rows, plans = [], []
        for dataset, shots in request.places:
            cells = {
                value: request.cell(method, dataset, shots, **dict(zip(keys, value, strict=True))) for value in values
            }
            for value, cell in cells.items():
                half = significance.half_width(list(cell.by_seed.values()))
                row = [dataset, spelled(shots), *map(str, value), request.ours(table, cell)]
                row.append("" if half is None or cell.mean is None else interval(cell.mean, half))
                tests, numbers = [DASH if value == base else ""] * 3, dict[str, Any]()
                if value != base and cell.runs and cells[base].runs:
                    tests, numbers = compare_cells(table, cell, cells[base])
                rows.append([*row, *tests])
                more = {"variant": " ".join(map(str, value)), "interval": half, **numbers}
                table.records.append(record(table.name, dataset, method, shots, cell, **more))
            for value, cell in cells.items():
                if any((run.result.get("diagnostics") or {}).get("plan_entropy") is not None for run in cell.runs):
                    plans.append([dataset, spelled(shots), *map(str, value), *diagnostics_of(table, cell, PLAN)[0]])
        shown = ", ".join(v if isinstance(v, str) and v else f"{key} = {v}" for key, v in zip(keys, base, strict=True))
        headers = ["dataset", "shots", *keys, "accuracy (%)", "95% interval", f"diff. to {shown}", "paired t p"]
        caption = label(method) if len(found) > 1 else ""
        first = 2 + len(keys)
        table.sections.append(Section(caption, [*headers, "McNemar p, by seed"], rows, first))
        if plans:
            caption = f"The plans{' of ' * bool(caption)}{caption}, on the test set"
            table.sections.append(Section(caption, ["dataset", "shots", *keys, *PLAN.values()], plans, first))
    with_plans = any(section.caption.startswith("The plans") for section in table.sections)
    table.notes += [NOTE, *([_PLAN_NOTE] if with_plans else [])]
    return request.close(table)


PLAN = {
    "plan_entropy": "entropy",
    "plan_distance": "distance",
    "shift_spread": "shift",
    "predictions_changed": "changed (%)",
}
ALL = {
    **PLAN,
    "iterations_mean": "iterations",
    "iterations_max": "at most",
    "text_cosine": "cosine",
    "context_effective_rank": "rank",
}


def diagnostics(request: Request) -> Table:
    """What the runs of methods with variants say of their plans and prompts, for every variant that there is."""
    methods = [method for method in request.methods if method_of(method).variants]
    title = f"{', '.join(map(label, methods))}: its plans and its prompts, on the test set"
    table = request.table("diagnostics", title)
    for method in methods:
        kinds = {option: values for option, values, _ in method_of(method).variants.values()}
        usual = {option.key: option.default for option in method_of(method).options if option.key in kinds}
        rows = []
        for (dataset, shots), values in itertools.product(request.places, itertools.product(*kinds.values())):
            options: dict[str, Any] = dict(zip(kinds, values, strict=True))
            if options == usual or select(request.found, method, dataset, shots, **options).runs:
                cell = request.cell(method, dataset, shots, **options)
                place = [dataset, spelled(shots), *map(str, values), request.ours(table, cell)]
                texts, means = diagnostics_of(table, cell, ALL)
                rows.append([*place, *texts])
                more: dict[str, Any] = {**options, **means}
                table.records.append(record("diagnostics", dataset, method, shots, cell, **more))
        caption = label(method) if len(methods) > 1 else ""
        headers = ["dataset", "shots", *kinds, "accuracy (%)", *ALL.values()]
        table.sections.append(Section(caption, headers, rows, 3 + len(kinds)))
    table.notes += [_PLAN_NOTE, _PROMPT_NOTE]
    return request.close(table)


def diagnostics_of(table: Table, cell: Cell, names: Iterable[str]) -> tuple[list[str], dict[str, float | None]]:
    """By name, the means over the seeds, as text and as numbers.

    The text is a dash where there is nothing to measure, blank where there is no run.
    """
    kept = [run.result.get("diagnostics") or {} for run in cell.runs]
    why = "nothing to measure: no plan, or a single prompt" if all(kept) else "the run has kept no diagnostics"
    means = {name: significance.mean([values.get(name) for values in kept]) for name in names}
    digits = {"plan_entropy": 4, "plan_distance": 4, "shift_spread": 3, "text_cosine": 3}
    return [
        number(mean, digits.get(name, 2)) if mean is not None or not kept else table.dash(why)
        for name, mean in means.items()
    ], means


def compare_cells(table: Table, cell: Cell, base: Cell, why: str = "") -> tuple[list[str], dict[str, Any]]:
    """[difference, paired t-test's p over the seeds, McNemar's p by seed] as text, and the numbers.

    Args:
        why: there is nothing to pair over the seeds.
    """
    found = [] if why else differences(cell.by_seed, base.by_seed)
    mean, p = significance.mean(found), significance.paired_t(found)
    tests = mcnemar_by_seed(cell, base)
    text = [
        mean_std(mean, significance.deviation(found), signed=True),
        table.p_value(p, why or (ONE_SEED if len(found) < 2 else NO_VARIANCE)),
        " ".join(table.dash(NO_PAIRS) if t is None else probability(t[2]) for t in tests)
        if any(tests)
        else table.dash(NO_PAIRS),
    ]
    numbers = {
        "difference_to_base": mean,
        "t_test_p": p,
        "mcnemar_p": " ".join("" if t is None else f"{t[2]:.6g}" for t in tests),
        "only_this_right": " ".join("" if t is None else str(t[0]) for t in tests),
        "only_base_right": " ".join("" if t is None else str(t[1]) for t in tests),
    }
    return text, numbers


def mcnemar_by_seed(cell: Cell, base: Cell) -> list[tuple[int, int, float] | None]:
    """(only the first right, only the second, p) by common seed; None where predictions are missing.

    The seeds share their test images, so they cannot be pooled into one test.
    """
    first, second = _seeds(cell, base), _seeds(base, cell)
    found: list[tuple[int, int, float] | None] = []
    for seed in sorted(set(first) & set(second)):
        counts = discordant(first[seed], second[seed])
        found.append(None if counts is None else (*counts, significance.mcnemar(*counts)))
    return found


def _seeds(cell: Cell, other: Cell) -> dict[int, FinishedRun]:
    """The runs by seed; the one run of a method without seeds stands beside each seed of the other."""
    if cell.runs and not method_of(cell.runs[0].trainer).has_seeds:
        return dict.fromkeys((run.seed for run in other.runs), cell.runs[0])
    return {run.seed: run for run in cell.runs}


NOTE = (
    "Mean and standard deviation (n - 1) over the seeds; the 95% interval is Student's, for the mean. Tests are "
    "two-sided: paired t over the seeds; McNemar over the test images, one p a seed (exact below 25 discordant images, "
    "else chi-squared with continuity correction)."
)
_PLAN_NOTE = (
    "Plans, over all test images and classes: entropy relative to the uniform plan's (1 is uniform); total-variation "
    "distance from it (0 to 1). What they do: shift is the standard deviation over the classes of the logits' shift "
    "against the uniform plan, changed the percentage of test predictions that differ from the uniform plan's, the "
    "prompts being the same."
)
_PROMPT_NOTE = (
    "Iterations of Sinkhorn's: the mean and the most. Prompts: mean pairwise cosine of a class's N text features (1: "
    "collapsed into one); effective rank of the N contexts (1: all parallel, N: orthogonal). Means over the seeds."
)
