"""DATALOADER.ON_DEVICE: training batches are finished on the model's device, and copied there during a step.

It leaves to the workers what needs the image alone: they decode, draw and crop, and send bytes. The device
resizes, flips and normalizes. Crops and flips are those of the plain transform; resizing rounds otherwise.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision import transforms as T
from torchvision.transforms.v2 import functional as F

from dassl.utils import UserError

Batch = dict[str, Any]


class OnDevice:
    """A transform of `build_transform` in two parts: `crop` is for the workers, a call finishes a batch on the device.

    Raises:
        UserError: it is another transform.
    """

    def __init__(self, transform: Any, device: torch.device) -> None:
        steps = {type(step): step for step in getattr(transform, "transforms", ())}
        self.device = device
        self.box = steps.pop(T.RandomResizedCrop, None)
        self.resize = self.box or steps.pop(T.Resize, None)
        self.flip, self.normalize = steps.pop(T.RandomHorizontalFlip, None), steps.pop(T.Normalize, None)
        if self.resize is None or list(steps) != [T.ToTensor]:
            raise UserError("DATALOADER.ON_DEVICE is True; it needs the transforms of INPUT.TRANSFORMS")
        if self.normalize is not None:
            each = (self.normalize.mean, self.normalize.std)
            self.mean, self.std = (torch.tensor(x, device=device)[:, None, None] for x in each)

    def crop(self, image: Image.Image) -> Batch:
        """Draws as the transform does. Returns img [h, w, 3], bytes of any size, and whether to flip it."""
        if self.box is not None:
            top, left, h, w = self.box.get_params(image, self.box.scale, self.box.ratio)
            image = image.crop((left, top, left + w, top + h))
        flip = self.flip is not None and bool(torch.rand(1) < self.flip.p)
        return {"img": torch.from_numpy(np.array(image)), "flip": flip}

    def __call__(self, batch: Batch) -> Batch:
        """A batch of `collate`, with img [batch, 3, h, w] on the device."""
        sizes, resize = batch.pop("sizes"), self.resize
        pixels = batch.pop("pixels").to(self.device, non_blocking=True).split([3 * h * w for h, w in sizes])
        images = (x.view(h, w, 3).permute(2, 0, 1) for x, (h, w) in zip(pixels, sizes, strict=True))
        img = torch.stack([F.resize(x, list(resize.size), resize.interpolation, antialias=True) for x in images])
        flip = batch.pop("flip").to(self.device, non_blocking=True)
        img = F.to_dtype(torch.where(flip[:, None, None, None], img.flip(-1), img), torch.float32, scale=True)
        if self.normalize is not None:
            img = (img - self.mean) / self.std
        return {**batch, "img": img}


def collate(samples: list[Batch]) -> Batch:
    """One tensor `pixels` of all images' bytes, and their `sizes` (h, w), in place of `img`."""
    images = [sample["img"] for sample in samples]
    batch = default_collate([{key: x for key, x in sample.items() if key != "img"} for sample in samples])
    pixels = torch.cat([image.flatten() for image in images])
    return {**batch, "pixels": pixels, "sizes": [tuple(image.shape[:2]) for image in images]}


def on_device(batches: Iterable[Batch], device: torch.device, finish: OnDevice | None = None) -> Iterator[Batch]:
    """Batches with `img` and `label` on the device; a GPU copies and finishes each during the step before."""

    def moving(batch: Batch) -> list[str]:
        return [key for key in ("img", "label") if isinstance(batch.get(key), torch.Tensor)]

    def moved(batch: Batch) -> Batch:
        batch = batch if finish is None else finish(batch)
        return {**batch, **{key: batch[key].to(device, non_blocking=True) for key in moving(batch)}}

    if device.type != "cuda":
        yield from map(moved, batches)
        return
    stream, waiting = torch.cuda.Stream(device), None

    def ready(batch: Batch, copied: torch.cuda.Event) -> Batch:
        step = torch.cuda.current_stream(device)
        step.wait_event(copied)  # not for the stream, which has the next batch to copy
        for key in moving(batch):
            batch[key].record_stream(step)  # its memory is not another batch's before the step is over
        return batch

    for batch in batches:
        with torch.cuda.stream(stream):
            following = moved(batch), stream.record_event()
        if waiting is not None:
            yield ready(*waiting)
        waiting = following
    if waiting is not None:
        yield ready(*waiting)
