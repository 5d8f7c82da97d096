"""Prints one of the paper's tables from the ``result.json`` files, and writes it as Markdown, CSV and LaTeX.

    python -m experiments.tables few-shot                  # the eleven datasets, the published figures beside ours
    python -m experiments.tables domain --dataset symbols  # any of them in miniature, on the embedded dataset

Tables: few-shot, domain, prompts (N), match, cost, diagnostics. Cells without a run are blank, and the commands that
would fill them are listed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    from dassl.startup import before_imports

    before_imports()

from dassl.extras.cli import guarded
from dassl.utils import UserError

from . import cost, domain, few_shot, variants
from .render import Table
from .request import Request, may_write, parser, request_of
from .suite import DATASETS, SHIFTED, SHOTS

TABLES: dict[str, Callable[[Request], Table]] = {
    "few-shot": few_shot.build,
    "domain": domain.build,
    "prompts": variants.prompts,
    "match": variants.match,
    "cost": cost.build,
    "diagnostics": variants.diagnostics,
}


def run(args: argparse.Namespace) -> None:
    if args.table == "domain":
        sources = list(dict.fromkeys(args.dataset)) or ["imagenet"]
        if len(sources) > 1 or sources[0] not in SHIFTED:
            raise UserError(f"domain takes one --dataset, a source with shifted sets: one of {', '.join(SHIFTED)}")
        args.dataset = sources
    request = request_of(args, DATASETS, SHOTS if args.table == "few-shot" else (16,))
    if args.table == "domain" and len(request.shots) > 1:
        raise UserError("domain takes one number of --shots")
    show(TABLES[args.table](request), request.out)


def show(table: Table, out: Path) -> None:
    print(table.markdown())
    if may_write(out):
        print("Written: " + ", ".join(str(path) for path in table.write(out)))
    else:
        print(f"Not written: there is no folder '{out.parent}' to make '{out.name}' in")


def main(argv: list[str] | None = None) -> int:
    parsed = parser("experiments.tables", __doc__)
    parsed.add_argument("table", choices=list(TABLES))
    return guarded(lambda: run(parsed.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
