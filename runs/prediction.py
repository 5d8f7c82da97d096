"""Predicts one's own pictures with a finished run: the most probable classes, as text, CSV or JSON lines.

    python predict.py --run RUN IMAGE|FOLDER... [--classes cat,dog] [--format csv]

``predict()`` is the same as a function of Python. With ``--classes`` the learned context is put in front of other class
names. A picture that cannot be read is named and left out; the others are predicted, and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.extras.cli import Parser, complain, guarded
from dassl.utils import UserError, read_image
from datasets.files import endings, is_picture
from runs.config import read_cfg

from .result import check_classes, load_result


@dataclass(frozen=True)
class Prediction:
    """``top``: the most probable classes with their probabilities, falling; empty where ``error`` says why."""

    image: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""


@dataclass(frozen=True)
class OpenRun:
    """A finished run, ready to be asked: its trainer, with the model in it, its result and its test transform."""

    trainer: Any
    result: dict[str, Any]
    classnames: list[str]
    transform: Any

    def read(self, path: str | Path) -> torch.Tensor:
        """A picture as the model takes it [3, h, w]. UserError: it cannot be read."""
        return self.transform(read_image(str(path)))

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """images [batch, 3, h, w] -> logits [batch, n_cls]."""
        batch = {"img": images, "label": torch.zeros(len(images), dtype=torch.long)}
        input, _ = self.trainer.parse_batch_test(batch)
        return self.trainer.model_inference(input).float()


def open_run(run: str | Path, classes: Sequence[str] | None = None) -> OpenRun:
    """Loads a finished run, without its dataset.

    Args:
        run: its directory.
        classes: other class names, for the learned context.
    Raises:
        UserError: it is no run, unfinished or damaged, or its weights have changed since.
    """
    directory = Path(run)
    path = directory / "result.json"
    if not path.is_file():
        what = "is unfinished" if (directory / "config.yaml").is_file() else "is no run"
        raise UserError(f"'{directory}' {what}: looked for '{path}'; a run's own command finishes it")
    result = load_result(path)
    cfg = read_cfg(directory)
    names = result.get("classnames") if classes is None else [name.strip() for name in classes]
    if classes is not None and not (names and all(names) and len(set(names)) == len(names)):
        raise UserError(f"--classes is '{','.join(classes)}'; it must be different names, separated by commas")
    if not names:
        raise UserError(f"'{path}' names no classes; give them with --classes")
    check_classes(directory, cfg, names)
    cfg.MODEL.INIT_WEIGHTS = ""  # what was trained from them comes from the checkpoint
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = _trainer_of(cfg, names)
        if trainer.get_model_names():
            trainer.load_model(str(directory))
        transform = build_transform(cfg, is_train=False)
    if (sha256 := result["backbone"].get("sha256")) and sha256 != trainer.weights_sha256:
        raise UserError(
            f"the weights '{cfg.MODEL.BACKBONE.NAME}' are not those '{directory}' was trained with (SHA-256 "
            f"{trainer.weights_sha256[:12]}, {sha256[:12]} then)"
        )
    trainer.set_model_mode("eval")
    return OpenRun(trainer, result, list(names), transform)


def _trainer_of(cfg: Any, classnames: Sequence[str]) -> Any:
    """The run's trainer with its model, on given classes and no data."""
    kind = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)

    class WithoutData(kind):  # type: ignore[misc, valid-type]
        def build_data_loader(self) -> None:
            template = getattr(DATASET_REGISTRY.get(cfg.DATASET.NAME), "template", "a photo of a {}.")
            self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=list(classnames), template=template))
            self.train_loader_x = self.val_loader = self.test_loader = None
            self.lab2cname = dict(enumerate(classnames))

    return WithoutData(cfg)


def pictures(paths: Iterable[str | Path]) -> list[str]:
    """Files as they are, folders as all pictures in and below them, sorted.

    Raises:
        UserError: a folder holds no picture, or a name is empty.
    """
    paths = list(paths)
    if "" in paths:  # of an unset variable; Path would take it for the working directory
        raise UserError("an IMAGE's name is empty; the working directory is '.'")
    found: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(str(p) for p in path.rglob("*") if is_picture(p.name) and p.is_file())
            if not inside:
                raise UserError(f"no pictures in '{path}': looked for {', '.join(sorted(endings()))}")
            found += inside
        else:
            found.append(str(path))
    return found


def predict(
    run: str | Path | OpenRun,
    images: str | Path | Iterable[str | Path],
    classes: Sequence[str] | None = None,
    top: int = 5,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """One prediction an image, in order, computed in batches.

    Args:
        run: a finished run's directory, or one opened by ``open_run``.
        images: files and folders, or one of these.
        classes: other class names, for the learned context.
    Raises:
        UserError: as ``open_run`` and ``pictures``; an image that cannot be read gives a prediction with an error.
        ValueError: ``top`` or ``batch_size`` is below 1. TypeError: ``classes`` is one text, not a list of names.
    """
    if top < 1 or batch_size < 1:
        raise ValueError(f"top is {top} and batch_size {batch_size}; each must be 1 or more")
    if isinstance(classes, str):
        raise TypeError(f"classes is '{classes}'; it must be a list of names")
    opened = run if isinstance(run, OpenRun) else open_run(run, classes)
    paths = pictures([images] if isinstance(images, (str, Path)) else images)
    for start in range(0, len(paths), batch_size):
        yield from _batch(opened, paths[start : start + batch_size], top)


def _batch(run: OpenRun, paths: Sequence[str], top: int) -> list[Prediction]:
    read: dict[int, torch.Tensor] = {}
    errors: dict[int, str] = {}
    for i, path in enumerate(paths):
        try:
            read[i] = run.read(path)
        except UserError as error:
            errors[i] = str(error)
    found = {i: Prediction(paths[i], error=error) for i, error in errors.items()}
    if read:
        probabilities = run.logits(torch.stack(list(read.values()))).softmax(dim=1)
        best = probabilities.topk(min(top, len(run.classnames)), dim=1)
        for i, values, labels in zip(read, best.values.tolist(), best.indices.tolist(), strict=True):
            named = tuple((run.classnames[k], p) for k, p in zip(labels, values, strict=True))
            found[i] = Prediction(paths[i], named)
    return [found[i] for i in range(len(paths))]


def write(predictions: Iterable[Prediction], form: str) -> int:
    """Prints predictions as they come, the errors on stderr; how many errors there were."""
    failures = 0
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if form == "csv":
        writer.writerow(["image", "rank", "class", "probability"])
    for prediction in predictions:
        if prediction.error:
            failures += 1
            complain(prediction.error)
        elif form == "csv":
            writer.writerows([prediction.image, i + 1, k, f"{p:.6f}"] for i, (k, p) in enumerate(prediction.top))
        elif form == "jsonl":
            top = [{"class": k, "probability": round(p, 6)} for k, p in prediction.top]
            print(json.dumps({"image": prediction.image, "top": top}))
        else:
            print(prediction.image + "".join(f"\n  {100 * p:6.2f}%  {k}" for k, p in prediction.top))
    return failures


def printable(text: str) -> str:
    """Text that fonts and pages take: what is no character, such as a stray byte of a file's name, as its escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def open_output() -> None:
    """Makes standard output take any file's name, with escapes for what its encoding lacks; UserError: it is closed."""
    if sys.stdout is None:
        raise UserError("standard output is closed; there is nothing to print to")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 a picture could not be read, 2 the user's mistake."""
    parser = Parser("predict.py", __doc__, imports=True)
    add = parser.add_argument
    add("--run", required=True, help="a finished run's directory")
    add("--classes", help="other class names, separated by commas, for the learned context")
    add("--format", choices=("text", "csv", "jsonl"), default="text", help="what is printed")
    add("--top", type=int, default=5, help="classes an image")
    add("--batch-size", type=int, default=32, help="images at once")
    add("images", nargs="+", metavar="IMAGE|FOLDER")

    def program() -> int:
        args = parser.parse_args(argv)
        open_output()
        for name, value in (("--top", args.top), ("--batch-size", args.batch_size)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be 1 or more")
        classes = None if args.classes is None else args.classes.split(",")
        opened, images = open_run(args.run, classes), pictures(args.images)
        found = predict(opened, images, top=args.top, batch_size=args.batch_size)
        return 1 if write(found, args.format) else 0

    return guarded(program)
