"""Few-shot sets: drawn as CoOp draws them, and kept, so that every method and machine trains on the same images.

A set is kept as ``split_fewshot/shot_{n}-seed_{s}.json``: {"split_sha256", "train", "val"}, images relative to the
image folder. It is valid as long as the split is the one that it was drawn from. A ``.pkl`` of that name is CoOp's.
"""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .files import UserError, keep, places
from .splits import Item, Split, by_label, items_of

MAX_VAL_SHOTS = 4  # CoOp validates on min(shots, 4) images a class


def few_shot_set(split: Split, digest: str, folder: Path, shots: int, seed: int) -> tuple[list[Item], list[Item]]:
    """The training and validation images of a few-shot run: a kept set, else CoOp's, else a new one, which is kept.

    Args:
        digest: SHA-256 of the split.
        folder: the dataset's.
        seed: a negative one draws at random, as in CoOp.

    Raises:
        UserError: CoOp's pickle is damaged, or lists images that the split does not have.
    """
    name = f"split_fewshot/shot_{shots}-seed_{seed}"
    n_val = min(shots, MAX_VAL_SHOTS)
    kept = next((found for place in places(folder, f"{name}.json") if (found := _read(place, split, digest))), None)
    if kept:
        train, val = kept
    elif (pickled := folder / f"{name}.pkl").is_file():
        train, val = read_pickle(pickled, split)
        print(f"Few-shot set: '{pickled}', as CoOp left it")
    else:
        # The draws equal those of a CoOp run that finds the split file. A CoOp run that has just made the split draws
        # on from the generator that made it, and gets other images.
        rng = random.Random(seed if seed >= 0 else None)
        train, val = draw(split.train, shots, rng), draw(split.val, n_val, rng)
        with suppress(OSError):  # it can be drawn again
            keep(folder, f"{name}.json", json.dumps({"split_sha256": digest, "train": train, "val": val}, indent=1))
    _say_if_short("training", train, shots)
    _say_if_short("validation", val, n_val)
    return train, val


def draw(items: Sequence[Item], shots: int, rng: random.Random) -> list[Item]:
    """``shots`` images of each class, or all if there are fewer.

    Classes come in the order in which they first appear, each drawn by ``rng.sample``. With ``Random(seed)``, and the
    training set drawn before the validation set, the result is CoOp's.
    """
    chosen: list[Item] = []
    for candidates in by_label(items):
        chosen += rng.sample(candidates, shots) if len(candidates) >= shots else candidates
    return chosen


def hold_out(items: Sequence[Item], train: Sequence[Item], shots: int, seed: int) -> list[Item]:
    """Validation images for a dataset that has none of its own: of the training images outside the few-shot set."""
    taken = set(train)
    rng = random.Random(f"held out, seed {seed}" if seed >= 0 else None)
    return draw([item for item in items if item not in taken], min(shots, MAX_VAL_SHOTS), rng)


def _say_if_short(part: str, items: list[Item], shots: int) -> None:
    counts = Counter(item.label for item in items)
    if short := [label for label, n in counts.items() if n < shots]:
        print(
            f"Few-shot set: {len(short)} of {len(counts)} classes have fewer than {shots} {part} images; "
            "all of theirs are used"
        )


def _read(path: Path, split: Split, digest: str) -> tuple[list[Item], list[Item]] | None:
    """A kept set, or None if there is none that was drawn from this split."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["split_sha256"] != digest:
            return None
        train, val = items_of(content["train"]), items_of(content["val"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    strangers = set(train).difference(split.train) | set(val).difference(split.val)
    return None if strangers or _classes(train) != _classes(split.train) else (train, val)


def _classes(items: list[Item]) -> set[int]:
    return {item.label for item in items}


class _Datum:
    """Stands for Dassl's ``Datum`` in a pickle: holds the saved attributes, without any code of its own."""


class _DatumUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name == "Datum" and module.split(".")[0] == "dassl":
            return _Datum
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def read_pickle(path: Path, split: Split) -> tuple[list[Item], list[Item]]:
    """Reads a few-shot set of CoOp's, {"train": [Datum], "val": [Datum]}. No other objects are admitted.

    Its paths may come from another machine. An image is identified by the end of its path.

    Raises:
        UserError: the file is no such pickle, or lists images that the split does not have.
    """
    remedy = "remove it, and the set is drawn anew"
    try:
        with open(path, "rb") as file:
            content = _DatumUnpickler(file).load()
        parts = [
            [(str(d._impath).replace("\\", "/"), int(d._label), d._classname) for d in content.get(part, ())]
            for part in ("train", "val")
        ]
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"'{path}' is no few-shot set of CoOp's: {reason}; {remedy}") from error
    unknown: list[str] = []
    found: list[list[Item]] = []
    for rows, items in zip(parts, (split.train, split.val), strict=True):
        known = {item.file: item for item in items}
        matches = [(row, _by_tail(row[0], known)) for row in rows]
        unknown += [row[0] for row, item in matches if item is None or item[1:] != row[1:]]
        found.append([item for _, item in matches if item is not None])
    if unknown:
        shown = ", ".join(repr(file) for file in unknown[:3])
        raise UserError(
            f"'{path}': {len(unknown)} of its {sum(map(len, parts))} images are not the split's here, "
            f"by the end of their paths, label and class name: {shown}; {remedy}"
        )
    if absent := _classes(split.train) - _classes(found[0]):
        raise UserError(f"'{path}': it has no training images of {len(absent)} of the split's classes; {remedy}")
    return found[0], found[1]


def _by_tail(path: str, known: dict[str, Item]) -> Item | None:
    """The known image whose relative path is the longest end of ``path``."""
    while path:
        if path in known:
            return known[path]
        path = path.partition("/")[2]
    return None
