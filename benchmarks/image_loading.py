"""Images a second that the training loader gives, by the number of workers.

    python -m benchmarks.image_loading [--workers 0 1 2] [--images 640] [--batch 32] [--json FILE]

JPEG pictures of 300 x 240 pixels of noise, with CoOp's transforms for training at 224 x 224 (random resized crop,
flip, normalization). The first batch of an epoch, for which workers have to start, is timed apart. "Decoded once" is
the second epoch with DATALOADER.DECODED_GB, whose images are in memory, and "on device" the same with
DATALOADER.ON_DEVICE. A loader delays the step where it gives fewer images a second than `benchmarks.step` takes.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import parser_of, save, show
from benchmarks.testing import make_cfg, make_data
from dassl.data import build_data_loader
from dassl.data.data_manager import available_cpus
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform


def measure(root: Path, items: list[Datum], batch: int, workers: int) -> dict[str, Any]:
    """Seconds to the first batch, and images a second after it: decoded in each epoch, or once, and on the device."""
    found: dict[str, Any] = {}
    for gigabytes, on_device in ((0.0, False), (8.0, False), (8.0, True)):
        cfg = make_cfg("PLOT", root, workers=workers)
        cfg.DATALOADER.DECODED_GB, cfg.DATALOADER.ON_DEVICE, cfg.USE_CUDA = gigabytes, on_device, on_device
        with contextlib.redirect_stdout(io.StringIO()):
            loader = build_data_loader(cfg, "RandomSampler", items, batch, tfm=build_transform(cfg), is_train=True)
            for _ in range(2 if gigabytes else 1):
                start = time.perf_counter()
                batches = iter(loader)
                next(batches)
                first = time.perf_counter()
                images = sum(len(one["label"]) for one in batches)
                if loader.device.type == "cuda":
                    torch.cuda.synchronize()
                rate = images / (time.perf_counter() - first)
        if gigabytes:
            found["on device, images a second" if on_device else "decoded once, images a second"] = rate
        else:
            found |= {"workers": loader.num_workers, "first batch s": first - start, "images a second": rate}
        loader.close()
    return found


def rates(images: int, batch: int, workers: list[int]) -> list[dict[str, Any]]:
    """A row for each number of workers, on new pictures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_data(root, images)
        items = [Datum(str(path)) for path in sorted(root.rglob("*.jpg"))[-images:]]
        return [measure(root, items, batch, n) for n in workers]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=list(range(available_cpus() + 1)))
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    if options.images < 2 * options.batch:
        parser.error("--images must be two batches or more")
    rows = rates(options.images, options.batch, options.workers)
    show(f"{options.images} images, batch {options.batch}, {available_cpus()} CPUs", rows)
    save(options, rows=rows)


if __name__ == "__main__":
    main()
