"""Pictures of a run's test, predicted right and wrong, with the plans over them."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

import numpy as np

from dassl.data.datasets import build_dataset
from dassl.utils import UserError
from experiments.tables.results import FinishedRun
from runs.loaded import LoadedRun

from .visualize import View, unnormalized, view


class Picture(NamedTuple):
    """A picture [h, w, 3], and the views of the predicted class and, if that is wrong, of the true class."""

    pixels: np.ndarray
    views: list[View]


def pictures(loaded: LoadedRun, run: FinishedRun, number: int, data: str = "") -> list[Picture]:
    """Right ones, then as many wrong ones, evenly spread over the test set.

    Args:
        number: of pictures, at most.
        data: the folder that holds the datasets, if it is no longer the run's.

    Raises:
        UserError: the test images are not there, or the method has no plans of places.
    """
    cfg = loaded.trainer.cfg
    cfg.DATASET.ROOT = data or cfg.DATASET.ROOT
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = build_dataset(cfg)
    place = getattr(dataset, "standard_path", str)
    paths = {place(item.impath): item.impath for item in dataset.test}
    kept = {image: pair for image, pair in (run.predictions() or {}).items() if image in paths}
    if not kept:
        raise UserError(f"'{run.path.parent}' has kept no predictions of the test images in '{cfg.DATASET.ROOT}'")
    found = []
    for is_right in (True, False):
        images = [image for image, (true, guess) in kept.items() if (true == guess) == is_right]
        half = max(1, number // 2)
        for image in images[:: max(1, len(images) // half)][: number // 2]:
            read, true = loaded.read(paths[image]), kept[image][0]
            views = [view(loaded, read, label, true) for label in ([None] if is_right else [None, true])]
            found.append(Picture(unnormalized(loaded, read), views))
    return found
