"""Prints one of the paper's tables from the ``result.json`` files, and writes it as Markdown, CSV and LaTeX.

    python -m scripts.tables few-shot                        # the eleven datasets, the published figures beside ours
    python -m scripts.tables domain --dataset symbols        # any of them in miniature, on the embedded dataset

Tables: few-shot, domain, prompts (N), match, cost, diagnostics. Cells without a run are blank, and the commands that
would fill them are listed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import train
from dassl.utils import UserError
from scripts.few_shot import positive_integers
from scripts.recipes import BACKBONES

from . import cost, domain, few_shot, variants
from .render import Table
from .request import Request
from .results import of_backbone, read_runs
from .suite import DATASETS, SHIFTED, SHOTS

TABLES: dict[str, Callable[[Request], Table]] = {
    "few-shot": few_shot.build,
    "domain": domain.build,
    "prompts": variants.prompts,
    "match": variants.match,
    "cost": cost.build,
    "diagnostics": variants.diagnostics,
}


def parser(prog: str, description: str | None) -> train.Parser:
    """The options that tables and figures share."""
    parsed = train.Parser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parsed.add_argument
    add("--dataset", nargs="+", default=[], help="the datasets (default: the eleven of the paper)")
    add("--shots", nargs="+", default=[], help="the numbers of shots")
    add("--out", default="", help="the folder that holds the runs (default: $OUT, else output)")
    add("--backbone", default="", help="only runs on this one: rn50, RN50, or the start of the weights' SHA-256")
    add("--mixed", action="store_true", help="allow different backbones, epochs or repeated runs in one table")
    return parsed


def request_of(args: argparse.Namespace, datasets: tuple[str, ...], shots: tuple[int, ...]) -> Request:
    """Raises UserError: no such folder or dataset, or a damaged result.json."""
    out = Path(args.out or os.environ.get("OUT") or "output")
    if args.out and not out.is_dir():
        raise UserError(f"no folder of runs at '{out}'; name it with --out")
    for name in args.dataset:
        if name not in DATASETS and not (train.runs.REPOSITORY / "configs/datasets" / f"{name}.yaml").is_file():
            raise UserError(f"no dataset '{name}': looked for 'configs/datasets/{name}.yaml'")
    found = read_runs(out)
    if args.backbone:
        found = of_backbone(found, args.backbone)
    prefix = {name: short for short, name in BACKBONES.items()}.get(args.backbone, args.backbone)
    return Request(
        out=out,
        found=found,
        datasets=args.dataset or datasets,
        shots=positive_integers(" ".join(args.shots), "--shots") if args.shots else shots,
        seeds=positive_integers(os.environ.get("SEEDS") or "1 2 3", "SEEDS"),
        backbone=prefix if prefix in BACKBONES else "",
        mixed=args.mixed,
    )


def run(args: argparse.Namespace) -> None:
    if args.table == "domain":
        sources = args.dataset or ["imagenet"]
        if len(sources) > 1 or sources[0] not in SHIFTED:
            raise UserError(f"domain takes one --dataset, a source with shifted sets: one of {', '.join(SHIFTED)}")
        args.dataset = sources
    request = request_of(args, DATASETS, SHOTS if args.table == "few-shot" else (16,))
    if args.table == "domain" and len(request.shots) > 1:
        raise UserError("domain takes one number of --shots")
    show(TABLES[args.table](request), request.out)


def show(table: Table, out: Path) -> None:
    print(table.markdown())
    print("Written: " + ", ".join(str(path) for path in table.write(out)))


def main(argv: list[str] | None = None) -> int:
    parsed = parser("scripts.tables", __doc__)
    parsed.add_argument("table", choices=list(TABLES))
    return train.guarded(lambda: run(parsed.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
