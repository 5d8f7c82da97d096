"""Prints the zero-shot accuracy of the photo CLIP, and that of the targets that its text tower learned from.

    python -m experiments.pretrain.photo_check --inputs inputs --root data --dataset caltech101 --split val

The prompt is "a photo of a {}." for every dataset. The inputs are those of `experiments.pretrain.photo`.
"""

from pathlib import Path

from dassl.engine import build_trainer
from dassl.extras.cli import Parser, guarded
from dassl.utils import cache_folder
from runs.command_line import build_parser
from runs.config import setup_cfg
from runs.directory import REPOSITORY

from .photo import find_inputs, make_teacher


def main(argv: list[str] | None = None) -> None:
    parser = Parser("experiments.pretrain.photo_check", __doc__)
    parser.add_argument("--inputs", type=Path, required=True, help="the folder of the inputs")
    parser.add_argument("--cache", type=Path, help="the folder of MiniLM's embeddings (default: in the cache folder)")
    parser.add_argument("--root", default="data", help="the folder that holds the datasets")
    parser.add_argument("--dataset", default="caltech101", help="the name of its config")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="the pictures")
    args = parser.parse_args(argv)
    inputs = find_inputs(args.inputs)
    configs = REPOSITORY / "configs"
    files = [configs / "trainers/ZeroshotCLIP/photo.yaml", configs / f"datasets/{args.dataset}.yaml"]
    flags = ["--config-file", str(files[0]), "--dataset-config-file", str(files[1]), "--root", args.root]
    words = ["--trainer", "ZeroshotCLIP", *flags, "--seed", "1", "DATASET.TEMPLATE", "a photo of a {}."]
    cfg, _ = setup_cfg(build_parser().parse_args(words))
    trainer = build_trainer(cfg)
    student = trainer.test(args.split)
    teacher = make_teacher(inputs, args.cache or cache_folder() / "pretrain")
    trainer.text = teacher.of(trainer.classnames)
    print(f"student {student:.1f}, teacher {trainer.test(args.split):.1f}")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
