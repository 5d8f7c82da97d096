"""The checks of ``datasets.prepare --check``: whether a dataset is present, complete, and can be decoded."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import read_image
from datasets.base import FewShotDataset
from datasets.files import UserError
from datasets.locate import FOUND, Absent
from datasets.splits import PARTS

from .layout import Source
from .sources import SOURCES

ALMOST_BLACK = 16  # of 256 levels
SAMPLE = 8  # pictures of each part that are decoded without --decode


class Status(NamedTuple):
    state: str  # ready, incomplete or absent
    what: str
    notes: tuple[str, ...] = ()  # what loading says, and a line for each picture that cannot be decoded


def registered(name: str) -> str:
    """The registered class of a config's name, "" if there is none: image_folder -> ImageFolder."""
    if name in SOURCES:
        return SOURCES[name].dataset
    plain = name.replace("_", "").lower()
    return next((known for known in DATASET_REGISTRY.registered_names() if known.lower() == plain), "")


def check(name: str, root: Path, decode: bool = False) -> Status:
    """Loads the dataset as a run does, counts its images, and decodes all of them (``decode``) or a sample."""
    source, said = SOURCES.get(name), io.StringIO()
    how = f"python -m datasets.prepare {name}" + (" prints the steps" if source and source.by_hand else "")
    try:
        with contextlib.redirect_stdout(said):
            dataset = DATASET_REGISTRY.get(registered(name))
            folder, _ = dataset.locate(root)
            missing = source.missing(root) if source else []
            if dataset.split_file in missing and dataset.make_split is not FewShotDataset.make_split:
                missing.remove(dataset.split_file)
                said.write(f"no {dataset.split_file}: the split is one of our own, not CoOp's; {how} fetches CoOp's\n")
            if missing:
                return Status("incomplete", f"no {', '.join(missing)} in '{folder}': {how}")
            parts = load(registered(name), root)
    except UserError as error:
        if source and source.missing(root) == source.needs and FOUND not in str(error):
            return Status("absent", how)
        return Status("absent" if isinstance(error, Absent) else "incomplete", str(error))
    notes = tuple(dict.fromkeys(said.getvalue().splitlines()))
    n_cls = len({label for _, label in parts["train"]})
    if source and (wrong := miscounts(source, n_cls, parts)):
        return Status("incomplete", "; ".join(wrong), notes)
    bad, black = undecodable(pictures(parts, decode), name)
    if black:
        notes += (f"{black} pictures are almost black as 8 bits, as 12-bit levels in a 16-bit file are: scale those",)
    if bad:
        looked = "" if decode else " of a sample; --decode looks at all"
        return Status("incomplete", f"{len(bad)} pictures cannot be decoded{looked}", (*notes, *bad))
    counts = " / ".join(f"{len(parts[part]):,}" for part in PARTS)
    return Status("ready", f"{n_cls} classes, {counts} images" + (", all decoded" if decode else ""), notes)


def load(dataset: str, root: Path) -> dict[str, list[tuple[str, int]]]:
    """(path, label) of every image, by part.

    Raises:
        UserError: a run would fail with this error.
    """
    cfg: Any = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.SEED = str(root), dataset, 1
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    built = DATASET_REGISTRY.get(dataset)(cfg)
    found = (built.train_x, built.val, built.test)
    return {part: [(item.impath, item.label) for item in items or ()] for part, items in zip(PARTS, found, strict=True)}


def miscounts(source: Source, n_cls: int, parts: dict[str, list[tuple[str, int]]]) -> list[str]:
    wrong = [f"{n_cls} classes where there should be {source.classes}"] if n_cls != source.classes else []
    for part, known in zip(PARTS, source.counts, strict=True):
        if known is not None and len(parts[part]) != known:
            wrong.append(f"{len(parts[part]):,} {part} images where there should be {known:,}")
    return wrong


def pictures(parts: dict[str, list[tuple[str, int]]], every: bool) -> list[str]:
    """Distinct paths: all of them, or a few of each part, evenly spread."""
    chosen: dict[str, None] = {}
    for items in parts.values():
        step = 1 if every else max(1, len(items) // SAMPLE)
        chosen.update(dict.fromkeys(path for path, _ in items[::step]))
    return list(chosen)


def undecodable(paths: Iterable[str], name: str) -> tuple[list[str], int]:
    """A line for each picture that cannot be read, in the order of their paths; and the number of almost black ones."""
    paths = sorted(paths)
    with warnings.catch_warnings(), ThreadPool() as pool:
        warnings.simplefilter("ignore")  # about odd but readable pictures
        bar = tqdm(pool.imap(_error_of, paths, chunksize=16), total=len(paths), desc=name, disable=None, leave=False)
        errors = list(bar)
    return [error for error in errors if isinstance(error, str)], errors.count(True)


def _error_of(path: str) -> str | bool:
    """Why it cannot be read, or else whether it is almost black."""
    try:
        return max(high for _, high in read_image(path).getextrema()) < ALMOST_BLACK  # type: ignore[misc]
    except UserError as error:
        return str(error)
