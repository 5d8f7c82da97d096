"""Draws what transport plans look at: for each picture one PNG, as in PLOT's figure.

    python -m experiments.pictures.visualize RUN IMAGE|FOLDER... [--class NAME] [--to FOLDER] [--html]

The picture as the model sees it; the N plans of the predicted class, or of ``--class``, laid over it; their weight in a
colour bar, one scale for all N; the five most probable classes. ``--html`` adds a page of all of them.
"""

from __future__ import annotations

import argparse
import html
import math
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a file that is run by its path
    from dassl.startup import before_imports

    before_imports()

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dassl.extras.cli import Parser, complain, guarded
from dassl.utils import UserError, write_atomically
from runs.loaded import LoadedRun, add_arguments, load_asked
from runs.prediction import check_output, pictures, printable

TOP = 5


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


def unnormalized(run: LoadedRun, image: Tensor) -> Tensor:
    """image [3, h, w] as the model takes it -> red, green and blue between 0 and 1 [h, w, 3]."""
    c = run.trainer.cfg.INPUT
    if "normalize" in c.TRANSFORMS:
        image = image * torch.tensor(c.PIXEL_STD)[:, None, None] + torch.tensor(c.PIXEL_MEAN)[:, None, None]
    return image.clamp(0, 1).permute(1, 2, 0)


def draw(run: LoadedRun, image: Tensor, name: str, label: int | None) -> tuple[Figure, list[tuple[str, float]]]:
    """The figure of one picture, and its most probable classes.

    Args:
        label: the class whose plans are drawn; None for the predicted one.
    """
    probabilities, plans = look(run, image)
    best = probabilities.topk(min(TOP, len(run.classnames)))
    top = [(run.classnames[k], p) for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    shown = int(best.indices[0]) if label is None else label
    weights = plans[shown].numpy()  # [N, g, g]
    N, picture = len(weights), unnormalized(run, image).numpy()
    figure = Figure(figsize=(2.3 * (N + 1) + 3.6, 3.1), layout="constrained")
    axes = figure.subplots(1, N + 2, width_ratios=[*[1.0] * (N + 1), 1.1])
    axes[0].imshow(picture)
    name = printable(name)
    axes[0].set_title(name if len(name) < 34 else f"…{name[-32:]}", fontsize=8, parse_math=False)
    least, most = float(weights.min()), float(weights.max())
    if most - least < 1e-12:  # a single prompt: its plan is uniform
        least, most = 0.0, 2 * most
    overlay: dict[str, Any] = {"cmap": "jet", "alpha": 0.5, "interpolation": "bilinear", "vmin": least, "vmax": most}
    for n in range(N):
        below = axes[n + 1].imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=1)
        drawn = axes[n + 1].imshow(weights[n], extent=below.get_extent(), **overlay)
        axes[n + 1].set_title(f"prompt {n + 1}", fontsize=8)
    for a in axes[: N + 1]:
        a.set_axis_off()
    bar = figure.colorbar(drawn, ax=list(axes[1 : N + 1]), shrink=0.8, pad=0.01)
    bar.set_label(f"plan's weight (uniform: {1 / weights.size:.4f})", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    if bar.solids is not None:  # the bar shows the colours as they are, without the picture under them
        bar.solids.set_alpha(1)
    axes[-1].barh(range(len(top)), [100 * p for _, p in top], color="tab:gray")
    axes[-1].set_yticks(range(len(top)), [spelled(k) for k, _ in top], fontsize=7, parse_math=False)
    axes[-1].invert_yaxis()
    axes[-1].set_xlim(0, 100)
    axes[-1].set_xlabel("probability (%)", fontsize=7)
    axes[-1].tick_params(axis="x", labelsize=6)
    what = "predicted" if label is None else "named"
    title = f"plans of the {what} class: {spelled(run.classnames[shown])}"
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure, top


def spelled(classname: str) -> str:
    return printable(classname.replace("_", " "))


def page(entries: Mapping[str, tuple[str, list[tuple[str, float]]]], title: str) -> str:
    """An HTML page of PNG files, each with its picture's path and the most probable classes."""
    title = html.escape(title)
    lines = [f'<!doctype html><meta charset="utf-8"><title>{title}</title>', f"<h1>{title}</h1>"]
    for file, (path, top) in entries.items():
        text = html.escape(", ".join(f"{spelled(name)} {100 * p:.1f}%" for name, p in top))
        path = html.escape(printable(path))
        lines.append(f'<figure><img src="{quote(os.fsencode(file))}" alt="{path}" style="max-width: 100%">')
        lines.append(f"<figcaption>{path}<br>{text}</figcaption></figure>")
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> int:
    check_output()
    folder = Path(args.to or Path(args.run) / "pictures")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is no folder; name one with --to")
    loaded = load_asked(args)
    labels = {k.replace("_", " ").lower(): i for i, k in enumerate(loaded.classnames)}
    label = labels.get(args.name.replace("_", " ").lower())
    if args.name and label is None:
        raise UserError(f"--class '{args.name}' is none of the run's classes: {', '.join(loaded.classnames)}")
    images = pictures(args.images)
    entries: dict[str, tuple[str, list[tuple[str, float]]]] = {}
    failures = 0
    for path in images:
        try:
            image = loaded.read(path)
        except UserError as error:
            failures += 1
            complain(str(error))
            continue
        figure, top = draw(loaded, image, Path(path).name, label)
        stem = f"{Path(path).parent.name}_{Path(path).stem}".lstrip("_")
        names = (f"{stem}{end}.png" for end in ("", *(f"_{i}" for i in range(2, len(images) + 1))))
        file = next(name for name in names if name not in entries)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / file, partial(figure.savefig, format="png", dpi=150))
        entries[file] = path, top
        print(f"{folder / file}: {top[0][0]} {100 * top[0][1]:.1f}%", flush=True)
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
