"""Few-shot sets from a published list: a ``.jsonl`` file, one image a line with its label.

2SFS (Farina et al., CVPR 2025, arXiv 2503.11609) publishes its shots so, as {"_impath": ..., "_label": ...,
"_classname": ...}, in ``split_fewshot/shot_16-seed_1_train.jsonl`` and ``..._val.jsonl`` of each dataset's folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .few_shot import MAX_VAL_SHOTS, by_tail
from .files import UserError
from .splits import Item, Split

KEY = "DATASET.FEW_SHOT_LIST"


def listed_set(name: str, split: Split, folder: Path, shots: int, seed: int) -> tuple[list[Item], list[Item] | None]:
    """The training images of a list and, of one called ``*_train.jsonl``, the validation images of ``*_val.jsonl``.

    A dataset whose split has no validation images takes none from a list: CoOp's ImageNet has its test images there.

    Args:
        name: the file's; "{shots}" and "{seed}" in it are filled in. Looked for from the working folder, then from the
            dataset's.
        folder: the dataset's.

    Raises:
        UserError: there is no such file, or it does not fit the split or the shots.
    """
    filled = name.replace("{shots}", str(shots)).replace("{seed}", str(seed))
    places = dict.fromkeys((Path(filled).expanduser().absolute(), folder / filled))
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = " and ".join(f"'{place}'" for place in places)
        near = sorted(file.name for place in places for file in place.parent.glob("*.jsonl"))[:3]
        beside = f"there are {', '.join(near)}" if near else "there is no .jsonl file beside it"
        raise UserError(f"{KEY}: no file, looked for {looked}; {beside}")
    train = _read(path, split.train, "training")
    _check_counts(path, train, split.train, shots)
    beside_it = path.with_name(path.name.replace("_train.jsonl", "_val.jsonl"))
    val = None
    if split.val and beside_it != path and beside_it.is_file():
        val = _read(beside_it, split.val, "validation")
        _check_counts(beside_it, val, split.val, min(shots, MAX_VAL_SHOTS))
    print(f"Few-shot set: '{path}'" + (f", validation '{beside_it}'" if val is not None else ""))
    return train, val


def _read(path: Path, items: Sequence[Item], part: str) -> list[Item]:
    known, found = {item.file: item for item in items}, []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is no text file: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"'{path}', line {number}"
        try:
            row = {key.removeprefix("_"): value for key, value in json.loads(line).items()}
            file, label = str(row["impath"]).replace("\\", "/"), row["label"]
        except (ValueError, AttributeError, KeyError, RecursionError) as error:
            form = '{"_impath": "...", "_label": 0}'
            raise UserError(
                f"{where}: it should be an image and its label, such as {form}, not {line!r:.80}"
            ) from error
        item = by_tail(file, known)
        if item is None:
            raise UserError(f"{where}: {file!r} is none of the {len(known)} {part} images of the split")
        theirs = (label, row.get("classname", item.classname))
        if type(label) is not int or theirs != (item.label, item.classname):
            raise UserError(f"{where}: {file!r} has the label {theirs}; the split's is {(item.label, item.classname)}")
        found.append(item)
    return found


def _check_counts(path: Path, found: Sequence[Item], items: Sequence[Item], shots: int) -> None:
    """Raises UserError unless each class has ``shots`` images; one with fewer has all of them, and may repeat some."""
    has, of = Counter(item.classname for item in found), Counter(item.classname for item in items)
    different = Counter(item.classname for item in set(found))
    for name, n in of.items():
        if has[name] > shots or different[name] < min(shots, n):
            lines = f"{has[name]} lines" + (f" of {different[name]} images" if different[name] < has[name] else "")
            raise UserError(f"'{path}': class {name!r} has {lines}; with {shots} shots it takes {min(shots, n)}")
