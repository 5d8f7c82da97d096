"""Training images that are decoded once a run: RGB bytes, in memory that the loader's workers share.

Every epoch after the first only crops. The pixels are the same bits as those of `read_image`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .workers import SHARE, free_bytes


class Decoded:
    """Images by index, each from its first reading on. Processes that share it may read at once.

    Args:
        sizes: [images, 2], width and height of each; an image of another size is not kept.
        shared: whether other processes will share it.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], shared: bool) -> None:
        self.sizes = sizes
        self.ends = np.cumsum([3 * width * height for width, height in sizes])
        self.pixels = torch.empty(int(self.ends[-1]), dtype=torch.uint8)
        self.there = torch.zeros(len(sizes), dtype=torch.bool)
        if shared:
            self.pixels.share_memory_()
            self.there.share_memory_()

    def get(self, index: int, read: Callable[[], Image.Image]) -> Image.Image:
        """The image, which `read` decodes the first time."""
        size, end = self.sizes[index], int(self.ends[index])
        own = self.pixels[end - 3 * size[0] * size[1] : end].numpy()
        if self.there[index]:
            return Image.frombuffer("RGB", size, own, "raw", "RGB", 0, 1)  # a copy
        image = read()
        if image.size == size:
            own[:] = np.asarray(image).reshape(-1)
            self.there[index] = True  # after the pixels; an epoch asks for each image once
        return image


def decoded(items: Sequence[Any], most: float, shared: bool) -> tuple[Decoded | None, str]:
    """Room for the decoded images, and the line that says what it takes, or why there is none.

    Args:
        items: with `impath`.
        most: bytes. Shared memory that the batches need is left free.
    """
    key = "DATALOADER.DECODED_GB"
    if shared and SHARE / 2 * free_bytes() < most:
        most, key = SHARE / 2 * free_bytes(), "a quarter of the free shared memory"
    sizes, total = [], 0
    for item in items:
        try:
            with Image.open(item.impath) as image:  # reads the header alone
                sizes.append(image.size)
        except Exception:  # read_image will say it
            sizes.append((0, 0))
        total += 3 * sizes[-1][0] * sizes[-1][1]
        if total > most:
            return None, f"Training images are decoded in each epoch: they are more than {most / 1e9:.2g} GB ({key})"
    if not total:
        return None, ""
    line = f"Training images are decoded once and kept: {total / 1e6:,.0f} MB (DATALOADER.DECODED_GB)"
    try:
        return Decoded(sizes, shared), line
    except (RuntimeError, OSError) as error:
        return None, f"Training images are decoded in each epoch: {str(error).partition(chr(10))[0]}"
