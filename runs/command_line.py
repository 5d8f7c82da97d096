r"""Trains and tests one run: ``python train.py`` with CoOp's flags, then KEY VALUE overrides of the config.

    python train.py --root data --seed 1 --trainer PLOT --dataset-config-file configs/datasets/symbols.yaml \
        --config-file configs/trainers/PLOT/symbols.yaml DATASET.NUM_SHOTS 16

Precedence, lowest first: engine defaults, dataset file, trainer file, --recipe, flags and KEY VALUE. Without
--output-dir the run's directory is derived under $OUT (output); a finished run is kept, an unfinished one resumed.
"""

from __future__ import annotations

import argparse

from dassl.engine import TRAINER_REGISTRY
from dassl.extras.cli import Parser, guarded, typed

from .directory import REPOSITORY
from .execution import run


def build_parser() -> argparse.ArgumentParser:
    parser = Parser("train.py", __doc__, imports=True, variables=("DATA", "OUT", "PLOT_CACHE"))
    add = parser.add_argument
    add("--root", default="", help="folder that holds the datasets (default: $DATA, else data)")
    add("--output-dir", default="", help="the run's directory (default: derived from the config, under $OUT)")
    add("--resume", default="", help="a run's directory to resume from (default: the run's own)")
    add("--seed", type=int, help="positive; fixes the few-shot set, the order and the augmentation")
    add("--source-domains", nargs="+", help="source domains, for datasets that have them")
    add("--target-domains", nargs="+", help="target domains, for datasets that have them")
    add("--transforms", nargs="+", help="data augmentation methods")
    add("--config-file", default="", help="the trainer's config: configs/trainers/...")
    add("--dataset-config-file", default="", help="the dataset's config: configs/datasets/...")
    add("--trainer", default="", help=f"one of {', '.join(TRAINER_REGISTRY.registered_names())}")
    add("--backbone", default="", help="an OpenAI name, or the path of a weights file")
    add("--head", default="", help="name of the head (unused by these trainers)")
    add("--clip-root", default="", help="where OpenAI's weights are kept (default: ~/.cache/clip)")
    add("--eval-only", action="store_true", help="test only")
    add("--model-dir", default="", help="a trained run's directory to test, for --eval-only")
    add("--load-epoch", type=int, help="the epoch whose checkpoint is tested (default: the best, else the last)")
    add("--no-train", action="store_true", help="build everything, train nothing")
    add("--quiet", action="store_true", help="print errors alone; log.txt in the run's directory has the rest")
    add("--print-config", action="store_true", help="print the merged config for upstream Dassl, and exit")
    add("--recipe", default="", help="KEY VALUE pairs of the scripts' recipe; the user's own win over them")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    return parser


def main(argv: list[str] | None = None) -> int:
    command = typed(argv, str(REPOSITORY / "train.py"))

    def program() -> None:
        args = build_parser().parse_args(argv)
        args.command = command
        run(args)

    return guarded(program, command)
