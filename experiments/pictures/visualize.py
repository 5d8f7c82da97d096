"""Draws what transport plans look at: for each picture one PNG, as in PLOT's figure.

    python -m experiments.pictures.visualize RUN IMAGE|FOLDER... [--class NAME] [--to FOLDER] [--html]

The picture as the model sees it; the N plans of the predicted class, or of ``--class``, over it; the most probable
classes beside the true one. A cell of the grid is drawn as it is: white at the uniform weight, red above, blue below,
on one scale for all pictures. The true class is known of the run's test images, and of pictures in a folder that is
named after a class. ``--html`` adds a page of all pictures.
"""

from __future__ import annotations

import argparse
import html
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a file that is run by its path
    from dassl.startup import before_imports

    before_imports()

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from dassl.extras.cli import Parser, complain, guarded
from dassl.utils import UserError, write_atomically
from experiments.tables.results import finished
from runs.loaded import LoadedRun, add_arguments, load_asked
from runs.prediction import check_output, pictures, printable

TOP = 5
LEAST = 0.01  # of the uniform weight: smaller differences do not fill the scale
# ColorBrewer's RdBu, which the colour-blind can read, with white in its middle; 257 colours have one.
COLOURS = LinearSegmentedColormap.from_list("plan", ["#0571b0", "#92c5de", "white", "#f4a582", "#ca0020"], N=257)


class View(NamedTuple):
    """What a run makes of a picture; the classes stand with their probabilities.

    Attributes:
        weights: the plans of the class ``shown`` as multiples of the uniform weight [N, g, g].
        truth: the true class, if it is known.
        named: whether the user has named the class ``shown``.
    """

    weights: np.ndarray
    shown: tuple[str, float]
    top: list[tuple[str, float]]
    truth: tuple[str, float] | None
    named: bool

    @property
    def title(self) -> str:
        predicted = f"predicted: {percent(self.top[0])}"
        if self.truth is None:
            return f"{predicted}; its true class is not known"
        return f"{predicted}, right" if self.truth == self.top[0] else f"{predicted}; true: {percent(self.truth)}"


def look(run: LoadedRun, image: Tensor) -> tuple[Tensor, Tensor]:
    """image [3, h, w] -> probabilities [n_cls] and plans [n_cls, N, g, g], g x g being the grid of local features.

    Raises:
        UserError: the head computes no plans, or none of places in the picture.
    """
    logits, plans = run.explained(image[None])
    if not run.trainer.model.image_encoder.local:
        raise UserError(f"the plans of {run.method} are not of places in the picture: there is nothing to draw")
    side = math.isqrt(plans.shape[2])
    return logits[0].softmax(dim=0), plans[0].mT.unflatten(2, (side, side))


def view(run: LoadedRun, image: Tensor, label: int | None = None, truth: int | None = None) -> View:
    """What there is to draw of image [3, h, w].

    Args:
        label: the class whose plans are drawn; None for the predicted one.
    """
    probabilities, plans = look(run, image)
    classes = list(zip(run.classnames, probabilities.tolist(), strict=True))
    top = [classes[k] for k in probabilities.topk(min(TOP, len(classes))).indices.tolist()]
    shown = int(probabilities.argmax()) if label is None else label
    weights = (plans[shown] * plans[shown].numel()).numpy()
    return View(weights, classes[shown], top, None if truth is None else classes[truth], label is not None)


def scale(views: Iterable[View]) -> CenteredNorm:
    """The scale that all views share."""
    far = max((float(abs(seen.weights - 1).max()) for seen in views), default=0.0)
    return CenteredNorm(vcenter=1, halfrange=max(far, LEAST))


def overlay(picture: np.ndarray, weights: np.ndarray, norm: CenteredNorm) -> np.ndarray:
    """picture [h, w, 3], weights [g, g] -> the picture in pale grey, coloured by cell [h, w, 3]."""
    rows, columns = (np.arange(side) * len(weights) // side for side in picture.shape[:2])
    grey = picture.mean(axis=2, keepdims=True)
    grey = 1 - (grey.max() - grey) / max(grey.max() - grey.min(), 1e-6)
    return COLOURS(norm(weights))[rows][:, columns, :3] * (0.65 + 0.35 * grey)


def unnormalized(run: LoadedRun, image: Tensor) -> np.ndarray:
    """image [3, h, w] as the model takes it -> red, green and blue between 0 and 1 [h, w, 3]."""
    c = run.trainer.cfg.INPUT
    if "normalize" in c.TRANSFORMS:
        image = image * torch.tensor(c.PIXEL_STD)[:, None, None] + torch.tensor(c.PIXEL_MEAN)[:, None, None]
    return image.clamp(0, 1).permute(1, 2, 0).numpy()


def draw(picture: np.ndarray, seen: View, name: str, norm: CenteredNorm) -> Figure:
    """The figure of one picture [h, w, 3]."""
    N = len(seen.weights)
    figure = Figure(figsize=(2.3 * (N + 1) + 3.6, 3.1), layout="constrained")
    axes = figure.subplots(1, N + 2, width_ratios=[*[1.0] * (N + 1), 1.1])
    axes[0].imshow(picture)
    name = printable(name)
    axes[0].set_title(name if len(name) < 34 else f"…{name[-32:]}", fontsize=8, parse_math=False)
    for n, weights in enumerate(seen.weights):
        axes[n + 1].imshow(overlay(picture, weights, norm))
        axes[n + 1].set_title(f"prompt {n + 1}", fontsize=8)
    for a in axes[: N + 1]:
        a.set_axis_off()
    add_bar(figure, norm, ax=list(axes[1 : N + 1]), shrink=0.8, pad=0.01)
    bars = [*seen.top, *([seen.truth] if seen.truth and seen.truth not in seen.top else [])]
    colours = ["tab:blue" if one == seen.truth else "tab:gray" for one in bars]
    names = [spelled(one[0]) + " (true)" * (one == seen.truth) for one in bars]
    axes[-1].barh(range(len(bars)), [100 * p for _, p in bars], color=colours)
    axes[-1].set_yticks(range(len(bars)), names, fontsize=7, parse_math=False)
    axes[-1].invert_yaxis()
    axes[-1].set_xlim(0, 100)
    axes[-1].set_xlabel("probability (%)", fontsize=7)
    axes[-1].tick_params(axis="x", labelsize=6)
    what = f"named class: {percent(seen.shown)}" if seen.named else "predicted class"
    figure.suptitle(f"{seen.title}; plans of the {what}", fontsize=9, parse_math=False)
    return figure


def add_bar(figure: Figure, norm: CenteredNorm, **place: Any) -> None:
    """The colour bar of a scale; no weight is below 0."""
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), **place)
    limits = "xlim" if place.get("orientation") == "horizontal" else "ylim"
    bar.ax.set(**{limits: (max(0, norm.vmin or 0), norm.vmax)})
    bar.set_label("weight / uniform weight", fontsize=7)
    bar.ax.tick_params(labelsize=6)


def percent(one: tuple[str, float]) -> str:
    return f"{spelled(one[0])} {100 * one[1]:.1f}%"


def spelled(classname: str) -> str:
    return printable(classname.replace("_", " "))


def page(entries: Mapping[str, tuple[str, View]], title: str) -> str:
    """An HTML page of PNG files, each with its picture's path and the most probable classes."""
    title = html.escape(title)
    lines = [f'<!doctype html><meta charset="utf-8"><title>{title}</title>', f"<h1>{title}</h1>"]
    for file, (path, seen) in entries.items():
        text = html.escape(f"{seen.title}. Most probable: {', '.join(map(percent, seen.top))}")
        path = html.escape(printable(path))
        lines.append(f'<figure><img src="{quote(os.fsencode(file))}" alt="{path}" style="max-width: 100%">')
        lines.append(f"<figcaption>{path}<br>{text}</figcaption></figure>")
    return "\n".join(lines) + "\n"


def index_of(classnames: Sequence[str], name: str) -> int | None:
    """The class of a name, in any case and with "_" for spaces; None if there is none."""
    plain = [known.replace("_", " ").lower() for known in classnames]
    name = name.replace("_", " ").lower()
    return plain.index(name) if name in plain else None


def true_classes(directory: Path) -> dict[str, str]:
    """{image: true class} of a run's test."""
    if not (directory / "result.json").is_file():  # a published checkpoint
        return {}
    run = finished(directory)
    names = run.result.get("classnames") or []
    return {image: names[label] for image, (label, _) in (run.predictions() or {}).items() if label < len(names)}


def true_class(path: str, known: Mapping[str, str]) -> str:
    """The class of a tested image, else the name of the picture's folder."""
    file = Path(path).absolute()
    ends = ("/".join(file.parts[i:]) for i in range(1, len(file.parts)))
    return next((known[end] for end in ends if end in known), file.parent.name)


def run(args: argparse.Namespace) -> int:
    check_output()
    folder = Path(args.to or Path(args.run) / "pictures")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is no folder; name one with --to")
    loaded = load_asked(args)
    label = index_of(loaded.classnames, args.name)
    if args.name and label is None:
        raise UserError(f"--class '{args.name}' is none of the run's classes: {', '.join(loaded.classnames)}")
    images = pictures(args.images)
    known = true_classes(Path(args.run))
    views: dict[str, View] = {}
    failures = 0
    for path in images:
        try:
            image = loaded.read(path)
        except UserError as error:
            failures += 1
            complain(str(error))
            continue
        views[path] = view(loaded, image, label, index_of(loaded.classnames, true_class(path, known)))
    norm = scale(views.values())
    entries: dict[str, tuple[str, View]] = {}
    for path, seen in views.items():
        figure = draw(unnormalized(loaded, loaded.read(path)), seen, Path(path).name, norm)
        stem = f"{Path(path).parent.name}_{Path(path).stem}".lstrip("_")
        names = (f"{stem}{end}.png" for end in ("", *(f"_{i}" for i in range(2, len(images) + 1))))
        file = next(name for name in names if name not in entries)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / file, partial(figure.savefig, format="png", dpi=150))
        entries[file] = path, seen
        print(f"{folder / file}: {seen.title}", flush=True)
    if args.html:
        write_atomically(folder / "index.html", page(entries, printable(f"Transport plans, {args.run}")))
        print(folder / "index.html")
    return 1 if failures else 0


def main(argv: list[str] | None = None) -> int:
    parser = Parser("experiments.pictures.visualize", __doc__, imports=True)
    parser.add_argument("run", metavar="RUN", help="a finished run of a method with transport plans")
    add_arguments(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER")
    parser.add_argument("--class", dest="name", default="", help="draw this class's plans (default: the predicted)")
    parser.add_argument("--to", default="", help="the folder for the pictures (default: RUN/pictures)")
    parser.add_argument("--html", action="store_true", help="also a page of all of them, index.html")
    return guarded(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
