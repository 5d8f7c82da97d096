"""What the learned prompts say: for each context vector of each prompt the nearest words of CLIP's vocabulary.

    python -m experiments.pictures.words RUN [--top 3] [--class NAME]

Distances are Euclidean, between a context vector and the vocabulary's token embeddings, as in CoOp's paper (table 4).
The models of this repository have a part of the vocabulary.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a file that is run by its path
    from dassl.startup import before_imports

    before_imports()

import torch
from clip.simple_tokenizer import SimpleTokenizer
from tabulate import tabulate
from torch import Tensor

from dassl.extras.cli import Parser, guarded
from dassl.utils import UserError
from experiments.tables.render import Section, Table
from runs.loaded import LoadedRun, add_arguments, load_asked
from runs.prediction import check_output, printable
from trainers.clip.weights import load_clip

_tokenizer = SimpleTokenizer()
PIPE = r"\|"  # in a cell of a Markdown table


def contexts(run: LoadedRun, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(title, context [n_ctx, d]) of each prompt and, with class-specific contexts, of each class.

    Raises:
        UserError: the run has learned no contexts, there is no such class, or the contexts belong to no class.
    """
    learned = getattr(getattr(run.trainer.model, "prompt_learner", None), "ctx", None)
    if learned is None:
        raise UserError(f"a run of {run.method} has no learned context")
    ctx = learned.detach().float().cpu()
    specific = bool(run.trainer.method_cfg.get("CSC"))
    if ctx.dim() == 2 + specific:  # a method of one prompt
        ctx = ctx[None]
    if name and not specific:
        raise UserError("--class chooses among class-specific contexts; this run has common ones (CSC False)")
    if name and name not in run.classnames:
        raise UserError(f"--class '{name}' is none of the run's classes: {', '.join(run.classnames)}")
    for n, prompt in enumerate(ctx):
        if not specific:
            yield f"prompt {n + 1}", prompt
            continue
        for k, own in enumerate(prompt):
            if name in ("", run.classnames[k]):
                yield f"prompt {n + 1}, class {run.classnames[k]}", own


def vocabulary(run: LoadedRun) -> Tensor:
    """The token embeddings [vocabulary, d]. Tokens that an embedded model does not have are infinitely far."""
    with contextlib.redirect_stdout(io.StringIO()):
        clip_model = load_clip(run.trainer.cfg)
    embedding, stored = clip_model.token_embedding.weight.detach().float(), clip_model.stored_tokens
    if stored is None:
        return embedding
    return torch.full_like(embedding, torch.inf).index_copy(0, stored, embedding[stored])


def nearest(context: Tensor, embedding: Tensor, top: int) -> list[list[tuple[str, float]]]:
    """context [n_ctx, d], embedding [vocabulary, d] -> for each vector the nearest words with their distances."""
    distance = torch.cdist(context, embedding, compute_mode="donot_use_mm_for_euclid_dist")
    found = distance.topk(top, dim=1, largest=False)
    return [
        [(word(token), d) for token, d in zip(tokens, row, strict=True)]
        for tokens, row in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def word(token: int) -> str:
    """A token as text, bytes that are none as \\xff; one that does not end a word with a hyphen behind it."""
    spelled = _tokenizer.decoder[token]
    stem = spelled.removesuffix("</w>")
    text = bytes(_tokenizer.byte_decoder[sign] for sign in stem).decode("utf-8", errors="backslashreplace")
    return printable(text) + ("" if spelled.endswith("</w>") else "-")


def table(run: LoadedRun, top: int = 3) -> Table:
    """A column a prompt: the nearest words, with the distance of the nearest."""
    embedding = vocabulary(run)
    columns = {title: nearest(context, embedding, top) for title, context in contexts(run)}
    rows = [
        [str(i + 1), *(f"{', '.join(text for text, _ in near)} ({near[0][1]:.2f})" for near in vectors)]
        for i, vectors in enumerate(zip(*columns.values(), strict=True))
    ]
    note = f"The {top} nearest words of each context vector, and the distance of the nearest."
    return Table("words", "", [Section("", ["vector", *columns], rows)], notes=[note])


def run(args: argparse.Namespace) -> None:
    check_output()
    if args.top < 1:
        raise UserError(f"--top is {args.top}; it must be 1 or more")
    loaded = load_asked(args)
    embedding = vocabulary(loaded)
    for title, context in contexts(loaded, args.name):
        rows = [
            [str(i + 1), *(f"{text.replace('|', PIPE)} ({distance:.3f})" for text, distance in words)]
            for i, words in enumerate(nearest(context, embedding, min(args.top, len(embedding))))
        ]
        headers = ["vector", *(f"{i + 1}. (distance)" for i in range(len(rows[0]) - 1))]
        print(f"{title}\n\n{tabulate(rows, headers=headers, tablefmt='github', disable_numparse=True)}\n")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("experiments.pictures.words", __doc__, imports=True)
    parser.add_argument("run", metavar="RUN", help="a finished run of a method that learns contexts")
    add_arguments(parser)
    parser.add_argument("--top", type=int, default=3, help="words a vector")
    parser.add_argument("--class", dest="name", default="", help="one class only, of class-specific contexts")
    return guarded(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
