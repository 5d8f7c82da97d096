"""Prints one of the paper's tables from the ``result.json`` files, and writes it as Markdown, CSV and LaTeX.

    python -m experiments.tables few-shot                  # the eleven datasets, the published figures beside ours
    python -m experiments.tables domain --dataset symbols  # any of them in miniature, on the embedded dataset

Tables: few-shot, domain, ablation, adapters, base-to-new, time (by N), cost, diagnostics, leaks, published, and
variants of a method: --variant PLOT.EPS compares the values of that option that runs have, PLOT.COST,PLOT.EPS those of
two together; prompts (PLOT.N) and match (PLOT.MATCH) are short for two. "all" prints all of them. Tables are of runs as
the papers prescribe; other runs are counted, and are rows of their own with --overrides. Cells without a run are blank,
and the commands that would fill them are listed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial

if __name__ == "__main__":
    from dassl.startup import before_imports

    before_imports()

from dassl.extras.cli import guarded
from dassl.utils import UserError
from trainers.method import methods

from . import ablation, base_to_new, by_shots, cost, domain, leaks, published, time_by_prompts, variants
from .render import Table
from .request import Request, parser, request_of
from .suite import ADAPTERS, DATASETS, SHIFTED, SHOTS


def adapters(request: Request) -> Table:
    """The few-shot table of the adapters alone."""
    chosen = dataclasses.replace(request, methods=[name for name in ADAPTERS if name in methods()])
    table = by_shots.build(chosen)
    table.name = table.name.replace("few_shot", "adapters")
    table.title = table.title.replace("Few-shot", "Adapters")
    return table


TABLES: dict[str, Callable[[Request], Table]] = {
    "few-shot": by_shots.build,
    "domain": domain.build,
    "ablation": ablation.build,
    **{name: partial(variants.build, name=name) for name in variants.SHORT},
    "adapters": adapters,
    "base-to-new": base_to_new.build,
    "time": time_by_prompts.build,
    "cost": cost.build,
    "diagnostics": variants.diagnostics,
    "leaks": leaks.build,
    "published": lambda request: request.close(published.build()),
}
BY_SHOTS = ("few-shot", "ablation", "adapters")


def build(name: str, args: argparse.Namespace) -> tuple[Request, Table]:
    given = argparse.Namespace(**vars(args))
    usual = ablation.DATASETS if name == "ablation" else DATASETS
    if name == "domain":
        given.dataset = list(dict.fromkeys(args.dataset)) or ["imagenet"]
        if len(given.dataset) > 1 or given.dataset[0] not in SHIFTED:
            raise UserError(f"domain takes one --dataset, a source with shifted sets: one of {', '.join(SHIFTED)}")
    request = request_of(given, usual, SHOTS if name in BY_SHOTS else (16,))
    if name == "domain" and len(request.shots) > 1:
        raise UserError("domain takes one number of --shots")
    make = TABLES.get(name) or partial(variants.build, name=args.variant)
    return request, make(request)


def run_all(args: argparse.Namespace) -> None:
    """Each table with its own shots; those of --shots where it takes several."""
    commands: dict[str, None] = {}
    for name in TABLES:
        given = argparse.Namespace(**vars(args))
        given.shots = args.shots if name in BY_SHOTS else []
        if name == "domain" and not set(args.dataset) <= set(SHIFTED):
            continue
        request, table = build(name, given)
        commands |= dict.fromkeys(table.missing)
        if not args.commands:
            table.show(request.out)
    if args.commands:
        print("\n".join(commands))


def run(args: argparse.Namespace) -> None:
    if bool(args.variant) != (args.table == "variants"):
        raise UserError("--variant NODE.KEY[,NODE.KEY], options of a method, goes with the table variants")
    if args.overrides and args.table not in ("few-shot", "cost"):
        raise UserError("--overrides is for few-shot and cost")
    if args.table == "all":
        run_all(args)
        return
    request, table = build(args.table, args)
    if args.commands:
        print("\n".join(table.missing))
    else:
        table.show(request.out)


def main(argv: list[str] | None = None) -> int:
    parsed = parser("experiments.tables", __doc__)
    parsed.add_argument("--variant", default="", help="options, PLOT.EPS or PLOT.COST,PLOT.EPS, for the table variants")
    parsed.add_argument("--overrides", action="store_true", help="few-shot, cost: rows for runs with other options too")
    parsed.add_argument("table", choices=[*TABLES, "variants", "all"])
    parsed.add_argument("--commands", action="store_true", help="print only the commands that fill blank cells")
    return guarded(lambda: run(parsed.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
