"""Draws prompts and local image features in one plane, by t-SNE, as in the appendix of PLOT's paper.

    python -m experiments.pictures.tsne RUN IMAGE|FOLDER... [--class NAME] [--to FILE]

A dot is a local feature (a pooled one, where the head reads no others), a star a prompt's text feature; a colour is a
class, of a picture the predicted one. The mean of each kind is subtracted first: CLIP's image features and text
features lie apart, which would be all that is seen.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a file that is run by its path
    from dassl.startup import before_imports

    before_imports()

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from dassl.extras.cli import Parser, guarded
from dassl.utils import UserError, write_atomically
from runs.loaded import LoadedRun, add_arguments, load_asked
from runs.prediction import check_output, pictures, printable

SHOWN = 10  # classes, each with a colour


def points(run: LoadedRun, paths: list[str], name: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """(features [n, d], class [n], whether it is a prompt's [n]) of the pictures and of their classes' prompts.

    Args:
        name: of the one class that is drawn; "" for those that most pictures are predicted to be.
    Raises:
        UserError: there is no such class, no picture is of it, or a class has no text features of its own.
    """
    if name and name not in run.classnames:
        raise UserError(f"--class '{name}' is none of the run's classes: {', '.join(run.classnames)}")
    images = torch.stack([run.read(path) for path in paths])
    label = run.logits(images).argmax(dim=1)
    found = label.bincount(minlength=len(run.classnames))
    shown = [run.classnames.index(name)] if name else found.argsort(descending=True, stable=True)[:SHOWN].tolist()
    shown = [k for k in shown if found[k]]
    if not shown:
        raise UserError(f"none of the {len(paths)} pictures is predicted to be of the class '{name}'")
    features, text = run.features(images), run.text_features()
    kept = torch.isin(label, torch.tensor(shown))
    local = features.get("local", features["pooled"][:, None])[kept]  # [images, M, d]
    label = label[kept].repeat_interleave(local.shape[1])
    prompts = torch.tensor(shown).repeat(text.shape[0])
    kinds = [F.normalize(x, dim=-1) for x in (local.flatten(0, 1), text[:, shown].flatten(0, 1))]
    is_prompt = torch.arange(len(label) + len(prompts)) >= len(label)
    return torch.cat([x - x.mean(dim=0) for x in kinds]), torch.cat([label, prompts]), is_prompt


def draw(run: LoadedRun, features: Tensor, label: Tensor, is_prompt: Tensor, seed: int = 0) -> Figure:
    """The figure of ``points``."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    place = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features.numpy())
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplots()
    for i, k in enumerate(label.unique().tolist()):
        for prompts, marker, size in ((False, ".", 12), (True, "*", 160)):
            chosen = (label == k) & (is_prompt == prompts)
            style: dict[str, Any] = {
                "color": matplotlib.colormaps["tab10"](i),
                "edgecolors": "black" if prompts else "none",
            }
            text = printable(run.classnames[k].replace("_", " ")).replace("$", r"\$") if prompts else None
            x, y = place[chosen.numpy()].T
            axes.scatter(x, y, s=size, marker=marker, label=text, linewidths=0.6, **style)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_title("t-SNE: image features (dots) and prompts (stars)", fontsize=9)
    return figure


def run(args: argparse.Namespace) -> None:
    check_output()
    to = Path(args.to or Path(args.run) / "pictures" / "tsne.png")
    if to.is_dir():
        raise UserError(f"'{to}' is a folder; name a file with --to")
    loaded = load_asked(args)
    figure = draw(loaded, *points(loaded, pictures(args.images), args.name))
    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(to, partial(figure.savefig, format="png", dpi=150))
    print(to)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("experiments.pictures.tsne", __doc__, imports=True)
    parser.add_argument("run", metavar="RUN", help="a trained run")
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER")
    add_arguments(parser)
    parser.add_argument("--class", dest="name", default="", help="one class only (default: the ten most predicted)")
    parser.add_argument("--to", default="", help="the PNG file (default: RUN/pictures/tsne.png)")
    return guarded(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
