"""Batches that carry image features in place of pixels.

A trainer with a frozen image encoder offers the hooks of ``Encoder``. Another trainer's batches are left as they are.
Rounding depends on the batch size, the machine and the versions, so they are part of the key: features from a file
equal computed ones bit for bit.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol, cast

import PIL
import torch
import torchvision
from torch import Tensor

from dassl.data import transforms
from dassl.data.data_manager import DatasetWrapper, Loader, order_of
from dassl.data.samplers import EpochIndex, SequentialSampler
from dassl.data.workers import collate_function
from dassl.utils import UserError, derive_seed, tools

from .store import Arrays, FeatureStore, Writer

# The hash is of the imported code: a forked process runs it even if the files have changed since.
_CODE = [hashlib.sha256(Path(module.__file__ or "").read_bytes()).hexdigest() for module in (transforms, tools)]


class Encoder(Protocol):
    """The hooks of a trainer."""

    cfg: Any
    device: torch.device
    feature_names: Sequence[str]  # what the head reads, e.g. ("pooled", "local")

    def feature_key(self) -> dict[str, Any] | None:
        """What the features depend on, besides the images and the machine; JSON. None: they are not kept."""

    def encode_images(self, image: Tensor) -> dict[str, Tensor]:
        """image [batch, 3, h, w] -> {name: [batch, ...]}, contiguous. A row depends on its own image only."""


def learned_parameters_reach(encoder: Any) -> bool:
    """Whether the features depend on a parameter of the trainer's models: then they change as it learns.

    One black picture is encoded under gradients, all these parameters requiring one, and the features are asked.
    """
    models = [encoder._models[name] for name in encoder.get_model_names()]
    before = [(p, p.requires_grad) for model in models for p in model.parameters() if p.is_floating_point()]
    image = torch.zeros(1, 3, *encoder.cfg.INPUT.SIZE, device=encoder.device)
    try:
        for p, _ in before:
            p.requires_grad_(True)
        with torch.enable_grad():
            return any(x.requires_grad for x in encoder.encode_images(image).values())
    finally:
        for p, required in before:
            p.requires_grad_(required)


def open_store(cfg: Any) -> FeatureStore:
    return FeatureStore(cfg.TEST.FEATURE_CACHE_DIR, 1e9 * cfg.TEST.FEATURE_CACHE_GB)


def with_features(trainer: Any, loader: Any, view: int | None = None) -> Iterable[dict[str, Any]]:
    """The batches of a sequential loader; ``features`` replace ``img`` if the trainer can use them.

    Args:
        view: the augmentation of which epoch, where the loader's transform is a training's.

    Raises:
        UserError: the loader is sealed.
    """
    if isinstance(loader, Loader):
        loader.check_open()
    if view is not None and hasattr(order_of(loader), "set_epoch"):
        order_of(loader).set_epoch(view)
    if not (hasattr(trainer, "encode_images") and trainer.cfg.TEST.FEATURE_CACHE):
        return loader
    if not isinstance(loader, Loader) or type(loader.sampler) is not SequentialSampler:
        return loader
    key = _key(trainer, loader.dataset, loader.batch_size)
    if key is not None and learned_parameters_reach(trainer):
        return loader
    if key is not None and view is not None:
        key |= {"seed": cast(DatasetWrapper, loader.dataset).seed, "view": view}
    return loader if key is None else KeptFeatures(trainer, loader, key)


def with_views(trainer: Any, loader: Any) -> Any:
    """A training loader whose batches hold features of one of DATALOADER.CACHED_VIEWS views of each image.

    Raises:
        UserError: the trainer or its data do not allow it.
    """
    views = trainer.cfg.DATALOADER.CACHED_VIEWS
    if views == 0 or loader is None or not hasattr(trainer, "forward_backward"):
        return loader
    if not hasattr(trainer, "encode_images") or learned_parameters_reach(trainer):
        raise UserError(f"DATALOADER.CACHED_VIEWS is {views}, but {type(trainer).__name__} has no frozen image encoder")
    if _key(trainer, loader.dataset, 1) is None:
        raise UserError(f"DATALOADER.CACHED_VIEWS is {views}; it needs the engine's own reading of images")
    return TrainingViews(trainer, loader, views)


class KeptFeatures:
    """A sequential loader's batches from the store. The first pass computes the features and puts them there."""

    def __init__(self, encoder: Encoder, loader: Loader, key: dict[str, Any]) -> None:
        self.encoder, self.loader, self.key = encoder, loader, key
        self.store = open_store(encoder.cfg)
        self.read = False  # whether the last pass read the features from the store

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with ExitStack() as scope:
            arrays = self.store.claim(self.key, self.encoder.feature_names, scope)
            self.read = arrays is not None
            if arrays is None:
                yield from _encoded(self.encoder, self.loader, self.store, self.key, scope)
                return
            scope.callback(arrays.close)
            if "view" not in self.key:
                print(f"Image features: read from {self.store.folder} (TEST.FEATURE_CACHE False computes them)")
            items, size = self.loader.dataset.data_source, self.loader.batch_size or 1  # type: ignore[attr-defined]
            for start in range(0, len(items), size):
                stop = min(start + size, len(items))
                yield {**_described(items, range(start, stop)), "features": arrays.read(start, stop)}


class TrainingViews:
    """A training loader's batches, with features of views of the images in place of pixels.

    View v of an image is its augmentation in epoch v. Epoch e < views shows view e. A later epoch shows a view drawn by
    (seed, epoch, index). The first use of a view encodes it for the whole training set, in the weights' precision.
    """

    def __init__(self, encoder: Encoder, loader: Loader, views: int) -> None:
        self.encoder, self.loader, self.views = encoder, loader, views
        self.sampler, self.dataset = order_of(loader), cast(DatasetWrapper, loader.dataset)
        self.store = open_store(encoder.cfg)
        self.arrays: dict[int, Arrays] = {}

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for indices in self.loader.batch_sampler or ():
            rows = [self._open(self._view(index)).read(index, index + 1) for index in indices]
            features = {name: torch.cat([row[name] for row in rows]) for name in self.encoder.feature_names}
            yield {**_described(self.dataset.data_source, indices), "features": features}

    def close(self) -> None:
        for arrays in self.arrays.values():
            arrays.close()
        self.arrays.clear()
        self.loader.close()

    def _view(self, index: Any) -> int:
        epoch = getattr(index, "epoch", 0)
        return epoch if epoch < self.views else derive_seed(self.dataset.seed, epoch, int(index)) % self.views

    def _open(self, view: int) -> Arrays:
        if view in self.arrays:
            return self.arrays[view]
        names, size = self.encoder.feature_names, self.encoder.cfg.DATALOADER.TEST.BATCH_SIZE
        key = {**(_key(self.encoder, self.dataset, size) or {}), "seed": self.dataset.seed, "view": view}
        with ExitStack() as lock:
            arrays = self.store.claim(key, names, lock)
            if arrays is None:
                loader = Loader(
                    self.dataset,
                    batch_size=size,
                    sampler=[EpochIndex(i, view) for i in range(len(self.dataset))],
                    num_workers=self.loader.num_workers,
                    collate_fn=collate_function(size, self.encoder.cfg.INPUT.SIZE, self.loader.num_workers),
                    generator=torch.Generator(),  # its draws must not shift the global one
                )
                for _ in _encoded(self.encoder, loader, self.store, key, lock):
                    pass
                arrays = self.store.open(key, names)
        if arrays is None:
            raise UserError(
                f"DATALOADER.CACHED_VIEWS: the features of a view could not be kept in '{self.store.folder}' "
                "(TEST.FEATURE_CACHE_DIR, TEST.FEATURE_CACHE_GB); with CACHED_VIEWS 0 none are needed"
            )
        self.arrays[view] = arrays
        return arrays


@torch.no_grad()
def _encoded(
    encoder: Encoder, loader: Loader, store: FeatureStore, key: dict[str, Any], lock: ExitStack
) -> Iterator[dict[str, Any]]:
    """The loader's batches with their features. The store has the features after the last batch."""
    with Writer(store, key, len(loader.dataset)) as writer:  # type: ignore[arg-type]
        for batch in loader:
            features = encoder.encode_images(batch.pop("img").to(encoder.device, non_blocking=True))
            writer.add(features)
            if writer.problem:
                lock.close()  # waiting processes will find nothing
            yield {**batch, "features": features}
    if writer.problem:
        print(f"Image features are not kept: {writer.problem.strerror} ('{store.folder}')")


def _described(items: Sequence[Any], indices: Iterable[int]) -> dict[str, Any]:
    """The loader's batch of these images, without pixels."""
    numbers = [int(i) for i in indices]
    chosen = [items[i] for i in numbers]
    return {
        "label": torch.tensor([item.label for item in chosen]),
        "domain": torch.tensor([item.domain for item in chosen]),
        "impath": [item.impath for item in chosen],
        "index": torch.tensor(numbers),
    }


def _key(encoder: Encoder, dataset: Any, batch_size: int | None) -> dict[str, Any] | None:
    """What the bits of the features depend on; None if that is not known."""
    features = encoder.feature_key()
    if features is None or type(dataset) is not DatasetWrapper or not _told_by_repr(dataset.transform):
        return None
    cuda = encoder.device.type == "cuda"
    return {
        "encoder": features,
        "images": _files(dataset.data_source),
        "transform": [repr(dataset.transform), *_CODE],
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name(encoder.device) if cuda else _cpu(),
        "cpu": None if cuda else [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
        "versions": [torch.__version__, torchvision.__version__, PIL.__version__],
    }


@functools.cache
def _cpu() -> str:
    """The CPU's model. The libraries of products and convolutions choose their code by it."""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _told_by_repr(transform: Any) -> bool:
    """Whether a transform's repr determines its result. It does for torchvision's, except around a function."""
    kind = type(transform)
    known = kind.__module__.startswith("torchvision.transforms.") and kind.__name__ != "Lambda"
    return known and " at 0x" not in repr(transform) and all(map(_told_by_repr, getattr(transform, "transforms", ())))


def _files(items: Sequence[Any]) -> str:
    """Hash of the images' paths, sizes and modification times, in order. UserError: one is missing."""
    digest = hashlib.sha256()
    for item in items:
        try:
            stat = os.stat(item.impath)
        except OSError:
            raise UserError(f"image not found: {item.impath}") from None
        digest.update(f"{os.path.abspath(item.impath)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()
