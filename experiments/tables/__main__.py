"""Prints one of the paper's tables from the ``result.json`` files, and writes it as Markdown, CSV and LaTeX.

    python -m experiments.tables few-shot                  # the eleven datasets, the published figures beside ours
    python -m experiments.tables domain --dataset symbols  # any of them in miniature, on the embedded dataset

Tables: few-shot, domain, cost, diagnostics, and variants of a method: --variant PLOT.EPS compares the values of that
option that runs have; prompts (PLOT.N) and match (PLOT.MATCH) are short for two. Tables are of runs as the papers
prescribe; other runs are counted, and are rows of their own with --overrides. Cells without a run are blank, and the
commands that would fill them are listed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

if __name__ == "__main__":
    from dassl.startup import before_imports

    before_imports()

from dassl.extras.cli import guarded
from dassl.utils import UserError

from . import by_shots, cost, domain, variants
from .render import Table
from .request import Request, parser, request_of
from .suite import DATASETS, SHIFTED, SHOTS

TABLES: dict[str, Callable[[Request], Table]] = {
    "few-shot": by_shots.build,
    "domain": domain.build,
    **{name: partial(variants.build, name=name) for name in variants.SHORT},
    "cost": cost.build,
    "diagnostics": variants.diagnostics,
}


def run(args: argparse.Namespace) -> None:
    if bool(args.variant) != (args.table == "variants"):
        raise UserError("--variant NODE.KEY, an option of a method, goes with the table variants")
    if args.overrides and args.table not in ("few-shot", "cost"):
        raise UserError("--overrides is for few-shot and cost")
    if args.table == "domain":
        args.dataset = list(dict.fromkeys(args.dataset)) or ["imagenet"]
        if len(args.dataset) > 1 or args.dataset[0] not in SHIFTED:
            raise UserError(f"domain takes one --dataset, a source with shifted sets: one of {', '.join(SHIFTED)}")
    request = request_of(args, DATASETS, SHOTS if args.table == "few-shot" else (16,))
    if args.table == "domain" and len(request.shots) > 1:
        raise UserError("domain takes one number of --shots")
    build = TABLES.get(args.table) or partial(variants.build, name=args.variant)
    build(request).show(request.out)


def main(argv: list[str] | None = None) -> int:
    parsed = parser("experiments.tables", __doc__)
    parsed.add_argument("--variant", default="", help="an option of a method, such as PLOT.EPS, for the table variants")
    parsed.add_argument("--overrides", action="store_true", help="few-shot, cost: rows for runs with other options too")
    parsed.add_argument("table", choices=[*TABLES, "variants"])
    return guarded(lambda: run(parsed.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
