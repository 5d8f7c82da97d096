"""Predicts one's own pictures with a finished run: the most probable classes, as text, CSV or JSON lines.

    python predict.py --run RUN IMAGE|FOLDER... [--classes cat,dog] [--format csv] [--features FILE.npz]

With ``--classes`` the learned context is put in front of other class names. RUN may be a folder with a checkpoint that
CoOp, CoCoOp or PLOT wrote; --trainer and --config-file then say what is in it. A picture that cannot be read is named
and left out; the others are predicted, and the exit code is 1. ``predict()`` is the same as a function of Python.
"""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dassl.extras.cli import Parser, complain, guarded
from dassl.utils import UserError, write_atomically
from datasets.files import endings, files_below, is_hidden, is_picture, unused_line

from .loaded import LoadedRun, add_arguments, load, load_asked


@dataclass(frozen=True)
class Prediction:
    """``top``: the most probable classes with their probabilities, falling; empty where ``error`` says why."""

    image: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""


class Features:
    """Image features of the pictures that were predicted, to be saved as arrays."""

    def __init__(self) -> None:
        self.images: list[str] = []
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, run: LoadedRun, paths: Sequence[str], images: Tensor) -> None:
        self.images += paths
        for name, part in run.features(images).items():
            self.parts.setdefault(name, []).append(part)

    def save(self, run: LoadedRun, path: str) -> None:
        """Writes a .npz: image, class, pooled [n, d], local [n, M, d], text [N, n_cls, d]; the last two where any."""
        arrays: dict[str, Any] = {name: torch.cat(parts).numpy() for name, parts in self.parts.items()}
        with contextlib.suppress(UserError):
            arrays["text"] = run.text_features().numpy()
        arrays |= {"image": np.array(self.images), "class": np.array(run.classnames)}
        write_atomically(path, partial(np.savez, **arrays))


def pictures(paths: Iterable[str | Path]) -> list[str]:
    """Files as they are, folders as all pictures in and below them, sorted; a line on stderr says what is not used.

    Raises:
        UserError: a folder holds no picture, or a name is empty.
    """
    paths = list(paths)
    if "" in paths:  # of an unset variable; Path would take it for the working directory
        raise UserError("an IMAGE's name is empty; the working directory is '.'")
    found: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside, unused = [], defaultdict[str, list[str]](list)
            for name in files_below(path):
                if is_hidden(name):
                    unused["hidden files"].append(str(name))
                elif not is_picture(name.name) or not (path / name).is_file():
                    unused["other files"].append(str(name))
                else:
                    inside.append(str(path / name))
            if not inside:
                raise UserError(f"no pictures in '{path}': looked for {', '.join(sorted(endings()))}")
            if unused:
                print(unused_line(path, unused), file=sys.stderr)
            found += inside
        else:
            found.append(str(path))
    return found


def predict(
    run: str | Path | LoadedRun,
    images: str | Path | Iterable[str | Path],
    classes: Sequence[str] | None = None,
    top: int = 5,
    batch_size: int = 32,
    features: Features | None = None,
) -> Iterator[Prediction]:
    """One prediction an image, in order, computed in batches.

    Args:
        run: a finished run's directory, or one that ``load`` has loaded.
        images: files and folders, or one of these.
        classes: other class names, for the learned context.
        features: receives the images' features.
    Raises:
        UserError: as ``load`` and ``pictures``; an image that cannot be read gives a prediction with an error.
        ValueError: ``top`` or ``batch_size`` is below 1. TypeError: ``classes`` is one text, not a list of names.
    """
    if top < 1 or batch_size < 1:
        raise ValueError(f"top is {top} and batch_size {batch_size}; each must be 1 or more")
    if isinstance(run, LoadedRun) and classes is not None:
        raise ValueError("classes are for a run's directory; a loaded run has its own, and load(RUN, classes) others")
    loaded = run if isinstance(run, LoadedRun) else load(run, classes)
    paths = pictures([images] if isinstance(images, (str, Path)) else images)
    for start in range(0, len(paths), batch_size):
        yield from _batch(loaded, paths[start : start + batch_size], top, features)


def _batch(run: LoadedRun, paths: Sequence[str], top: int, features: Features | None) -> list[Prediction]:
    read: dict[int, Tensor] = {}
    errors: dict[int, str] = {}
    for i, path in enumerate(paths):
        try:
            read[i] = run.read(path)
        except UserError as error:
            errors[i] = str(error)
    found = {i: Prediction(paths[i], error=error) for i, error in errors.items()}
    if read:
        images = torch.stack(list(read.values()))
        if features is not None:
            features.add(run, [paths[i] for i in read], images)
        logits = run.logits(images)
        best = logits.sort(dim=1, descending=True, stable=True).indices[:, :top]  # of equals the first, as in a test
        probabilities = logits.softmax(dim=1).gather(1, best)
        for i, values, labels in zip(read, probabilities.tolist(), best.tolist(), strict=True):
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


def check_output() -> None:
    """UserError: standard output is closed."""
    if sys.stdout is None:
        raise UserError("standard output is closed; there is nothing to print to")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 a picture could not be read, 2 the user's mistake."""
    parser = Parser("predict.py", __doc__, imports=True)
    add = parser.add_argument
    add("--run", required=True, help="a finished run's directory, or a folder with a published checkpoint")
    add("--format", choices=("text", "csv", "jsonl"), default="text", help="what is printed")
    add("--top", type=int, default=5, help="classes an image")
    add("--batch-size", type=int, default=32, help="images at once")
    add("--features", default="", metavar="FILE.npz", help="also save the image and text features there")
    add_arguments(parser)
    add("images", nargs="+", metavar="IMAGE|FOLDER")

    def program() -> int:
        args = parser.parse_args(argv)
        check_output()
        for name, value in (("--top", args.top), ("--batch-size", args.batch_size)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be 1 or more")
        if args.features and not Path(args.features).absolute().parent.is_dir():
            raise UserError(f"--features '{args.features}': its folder does not exist")
        loaded, images = load_asked(args), pictures(args.images)
        features = Features() if args.features else None
        found = predict(loaded, images, top=args.top, batch_size=args.batch_size, features=features)
        failures = write(found, args.format)
        if features is not None:
            features.save(loaded, args.features)
        return 1 if failures else 0

    return guarded(program)
