"""Epochs of real photographs through the training loader: decoded each time, decoded once, and resized on the device.

    python -m benchmarks.photographs DATA [--shots 16] [--workers 0] [--epochs 3] [--batch 32] [--json FILE]

Caltech-101 in the folder DATA, with CoOp's transforms at 224 x 224. Seconds are the median of the epochs after the
first; "SHA-256" is of all pixels of these, and so the same where the bits are. The hashing is not counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.report import parser_of, save, show
from benchmarks.testing import make_cfg
from dassl.data import build_data_loader
from dassl.data.data_manager import order_of
from dassl.data.datasets import build_dataset
from dassl.data.transforms import build_transform
from dassl.utils import UserError

MODES = {"decoded each epoch": (0.0, False), "decoded once": (8.0, False), "decoded once, ON_DEVICE": (8.0, True)}


def epochs(cfg: Any, items: list[Any], batch: int, count: int) -> dict[str, Any]:
    """Median seconds after the first epoch, wall and CPU (without the workers'), and the hash."""
    loader = build_data_loader(cfg, "RandomSampler", items, batch, tfm=build_transform(cfg), is_train=True)
    digest, took = hashlib.sha256(), list[tuple[float, float]]()
    for epoch in range(count):
        order_of(loader).set_epoch(epoch)
        batches, wall, cpu = iter(loader), 0.0, 0.0
        while True:
            start = time.perf_counter(), time.process_time()
            found = next(batches, None)
            wall, cpu = wall + time.perf_counter() - start[0], cpu + time.process_time() - start[1]
            if found is None:
                break
            if epoch:
                digest.update(found["img"].cpu().contiguous().numpy())
        took.append((wall, cpu))
    loader.close()
    walls, cpus = zip(*took[1:], strict=True)
    return {"s": statistics.median(walls), "CPU s": statistics.median(cpus), "SHA-256": digest.hexdigest()[:16]}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be 2 or more: the first decodes in every mode")
    rows = []
    for mode, (gigabytes, on_device) in MODES.items():
        cfg = make_cfg("PLOT", options.data, workers=options.workers)
        cfg.DATALOADER.DECODED_GB, cfg.DATALOADER.ON_DEVICE, cfg.USE_CUDA = gigabytes, on_device, on_device
        cfg.DATASET.NUM_SHOTS = options.shots
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                items = build_dataset(cfg).train_x
            except UserError as error:
                parser.error(str(error))
            rows.append({"mode": mode, **epochs(cfg, items, options.batch, options.epochs)})
    show(f"{len(items)} photographs, batch {options.batch}, {options.workers} workers", rows)
    save(options, rows=rows)


if __name__ == "__main__":
    main()
