"""The loaders of a dataset. A batch is `{label, domain, impath, index, img}`.

A training image's augmentation is a function of (seed, epoch, index), so it is the same with any number of
workers, in any order of access, and after an interruption.
"""

import functools
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from yacs.config import CfgNode

from dassl.extras.distributed import BatchShare, broadcast, check_shares, launched, local_device, share
from dassl.extras.interrupts import follow_parent, kept_from_children
from dassl.utils import UserError, check_availability, read_image, seeded

from .datasets import build_dataset
from .decoded import Decoded, decoded
from .device import OnDevice, collate, on_device
from .samplers import SAMPLERS
from .transforms import build_transform
from .workers import FOLDER, by_pipe, collate_function, collated, free_bytes


def base_seed(cfg: CfgNode) -> int:
    """Returns cfg.SEED, or a number drawn from Python's generator if cfg.SEED is negative."""
    return cfg.SEED if cfg.SEED >= 0 else broadcast(random.getrandbits(62))


class Loader(DataLoader):
    """A DataLoader that raises a worker's UserError without the worker's traceback.

    The workers of training live from the first epoch until `close()`, and with DATALOADER.ON_DEVICE its batches are on
    ``device``. A ``sealed`` loader gives nothing.
    """

    sealed = ""  # why
    device = torch.device("cpu")
    finish: OnDevice | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.check_open()
        if isinstance(self.dataset, DatasetWrapper):
            self.dataset.keep_decoded(self.num_workers > 0)
        iterator = None
        try:
            with kept_from_children():
                iterator = super().__iter__()
            gather = functools.partial(collated, collate=collate if self.finish else default_collate)
            yield from on_device(map(gather, iterator), self.device, self.finish)
        except UserError as e:  # torch puts the worker's traceback in front of the message
            self.close()
            raise type(e)(str(e).rstrip().rpartition(f"{type(e).__name__}: ")[2]) from None
        finally:
            if not self.persistent_workers:
                _end_workers(iterator)

    def check_open(self) -> None:
        """Raises UserError if the loader is sealed."""
        if self.sealed:
            raise UserError(self.sealed)

    def close(self) -> None:
        if self._iterator is not None:
            _end_workers(self._iterator)
            self._iterator = None
        if isinstance(self.dataset, DatasetWrapper):
            self.dataset.decoded = None


def _end_workers(iterator: Any) -> None:
    """Ends the workers now. The garbage collector may break their queues first, and torch then waits 5 s for each."""
    if hasattr(iterator, "_shutdown_workers"):  # not where the data is loaded in this process
        iterator._shutdown_workers()


def order_of(loader: Any) -> Any:
    """Returns the sampler that decides the order of a loader's data, below its batch sampler if it has one."""
    return getattr(getattr(loader, "batch_sampler", None), "sampler", None) or getattr(loader, "sampler", None)


def available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str,
    data_source: Sequence[Any],
    batch_size: int,
    tfm: Any = None,
    is_train: bool = True,
    dataset_wrapper: Callable[..., Dataset[Any]] | None = None,
) -> Loader:
    """Returns a loader of `data_source`. Training drops a short last batch, unless it is the only one.

    Each process starts at most as many workers as it has CPUs. A worker runs torch on one thread.

    Raises:
        UserError: there are no data, or the batch size is less than 1.
    """
    if not data_source:
        raise UserError(f"dataset {cfg.DATASET.NAME!r} has no {'training' if is_train else 'test'} images")
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; expected a positive number")
    check_availability(sampler_type, SAMPLERS, "sampler (DATALOADER.*.SAMPLER)")
    workers = min(cfg.DATALOADER.NUM_WORKERS, available_cpus())
    # Python 3.14 forks workers from a server. Preloading torch there saves its import in each worker.
    multiprocessing.set_forkserver_preload(["__main__", "dassl.data"])
    if not is_train:  # each process of a run tests its share
        check_shares(len(data_source), "images to test")
        data_source = data_source[share(len(data_source)).start : share(len(data_source)).stop]
    dataset = (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)
    device, finish = torch.device("cpu"), None
    if is_train and cfg.DATALOADER.ON_DEVICE:
        device = local_device(cfg.USE_CUDA)
        if not isinstance(dataset, DatasetWrapper):
            raise UserError("DATALOADER.ON_DEVICE is True; it needs the engine's own reading of images")
        finish = dataset.on_device = OnDevice(tfm, device)
    sampler = SAMPLERS[sampler_type](data_source, base_seed(cfg))
    drop_last = is_train and len(data_source) >= batch_size
    order: dict[str, Any] = {"batch_size": batch_size, "sampler": sampler, "drop_last": drop_last}
    if is_train and launched():
        check_shares(min(batch_size, len(data_source)), "images in a batch")
        order = {"batch_sampler": BatchShare(sampler, batch_size, drop_last)}
    by_worker = collate_function(min(batch_size, len(data_source)), cfg.INPUT.SIZE, workers)
    loader = Loader(
        dataset,
        **order,
        num_workers=workers,
        collate_fn=by_worker or (collate if finish else None),
        worker_init_fn=follow_parent,
        persistent_workers=is_train and workers > 0,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
        generator=torch.Generator(),  # its draws must not shift the global one
    )
    loader.device, loader.finish = device, finish
    return loader


class DataManager:
    """Builds the dataset DATASET.NAME and its loaders `train_loader_x`, `val_loader` and `test_loader`.

    `val_loader` is None if the dataset has no validation data.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Any = None,
        custom_tfm_test: Any = None,
        dataset_wrapper: Callable[..., Dataset[Any]] | None = None,
    ) -> None:
        dataset = build_dataset(cfg)

        def loader(data: Sequence[Any], c: CfgNode, tfm: Any, is_train: bool) -> Loader:
            return build_data_loader(cfg, c.SAMPLER, data, c.BATCH_SIZE, tfm, is_train, dataset_wrapper)

        c = cfg.DATALOADER
        self.train_loader_x = loader(dataset.train_x, c.TRAIN_X, custom_tfm_train or build_transform(cfg), True)
        tfm_test = custom_tfm_test or build_transform(cfg, is_train=False)
        self.val_loader = loader(dataset.val, c.TEST, tfm_test, False) if dataset.val else None
        self.test_loader = loader(dataset.test, c.TEST, tfm_test, False)

        if by_pipe in (
            getattr(x, "collate_fn", None) for x in (self.train_loader_x, self.val_loader, self.test_loader)
        ):
            free = f"{free_bytes() / 1e6:,.0f} MB free"
            print(f"Shared memory ('{FOLDER}', {free}) is small for these batches: pictures go through pipes instead")

        self.dataset = dataset
        self.num_classes: int = dataset.num_classes
        self.lab2cname: dict[int, str] = dataset.lab2cname
        if cfg.VERBOSE:
            print(f"{cfg.DATASET.NAME}: {self.num_classes:,} classes")
            for split in ("train_x", "val", "test"):
                print(f"# {split:8} {len(getattr(dataset, split) or ()):,}")


class DatasetWrapper(Dataset[dict[str, Any]]):
    """Reads and transforms images. Those of training are decoded once, up to DATALOADER.DECODED_GB."""

    decoded: Decoded | None = None
    on_device: OnDevice | None = None
    most_decoded = 0.0  # bytes

    def __init__(self, cfg: CfgNode, data_source: Sequence[Any], transform: Any = None, is_train: bool = False) -> None:
        self.data_source = data_source
        self.transform = transform
        self.max_pixels = cfg.INPUT.MAX_PIXELS
        self.seed = base_seed(cfg)
        if is_train and cfg.OPTIM.MAX_EPOCH > 1:
            self.most_decoded = 1e9 * cfg.DATALOADER.DECODED_GB

    def keep_decoded(self, shared: bool) -> None:
        """Called before the first epoch; `shared` if worker processes will read the images."""
        if self.most_decoded:
            self.decoded, line = decoded(self.data_source, self.most_decoded, shared)
            self.most_decoded = 0.0
            print(line, end="\n" * bool(line))

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Returns the image and its description. UserError: the image is missing or cannot be decoded."""
        item = self.data_source[idx]

        def read() -> Image.Image:
            return read_image(item.impath, self.max_pixels)

        image = read() if self.decoded is None else self.decoded.get(int(idx), read)
        with seeded(self.seed, getattr(idx, "epoch", 0), int(idx)):
            if self.on_device is not None:
                given = self.on_device.crop(image)
            else:
                given = {"img": image if self.transform is None else self.transform(image)}
        return {"label": item.label, "domain": item.domain, "impath": item.impath, "index": int(idx), **given}
