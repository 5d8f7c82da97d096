"""A dataset's loaders: batches `{label, domain, impath, index, img}`.

A training image's augmentation is a function of (seed, epoch, index), so it is the same with any number of
workers, in any order of access, and after an interruption.
"""

import multiprocessing
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from yacs.config import CfgNode

from dassl.extras.distributed import BatchShare, broadcast, check_shares, launched, share
from dassl.extras.interrupts import follow_parent, kept_from_children
from dassl.utils import UserError, read_image, seeded

from .datasets import build_dataset
from .samplers import build_sampler
from .transforms import INTERPOLATION_MODES, build_transform


def base_seed(cfg: CfgNode) -> int:
    """cfg.SEED, or, when that is negative, a number drawn from Python's generator."""
    return cfg.SEED if cfg.SEED >= 0 else broadcast(random.getrandbits(62))


class Loader(DataLoader):
    """A DataLoader in which a worker's UserError arrives as that, without the worker's traceback.

    In training its workers live from the first epoch until `close()`.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        iterator = None
        try:
            with kept_from_children():
                iterator = super().__iter__()
            yield from iterator
        except UserError as e:  # torch puts a worker's whole traceback into the message; its end is ours
            self.close()
            raise type(e)(str(e).rstrip().rpartition(f"{type(e).__name__}: ")[2]) from None
        finally:
            if not self.persistent_workers:
                _end_workers(iterator)

    def close(self) -> None:
        if self._iterator is not None:
            _end_workers(self._iterator)
            self._iterator = None


def _end_workers(iterator: Any) -> None:
    """Left to the garbage collector, which may break their queues first, torch waits 5 s for each worker."""
    if hasattr(iterator, "_shutdown_workers"):  # not where the data is loaded in this process
        iterator._shutdown_workers()


def order_of(loader: Any) -> Any:
    """The sampler that says in which order a loader goes through its data, whatever makes batches of it."""
    return getattr(getattr(loader, "batch_sampler", None), "sampler", None) or getattr(loader, "sampler", None)


def available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Any] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Any = None,
    is_train: bool = True,
    dataset_wrapper: Callable[..., Dataset[Any]] | None = None,
) -> Loader:
    """A loader of `data_source`. In training the last short batch is dropped, unless it is the only one.

    Not more workers than CPUs are started (torch warns of those); each runs torch on one thread.
    UserError: no data, or a batch size under 1.
    """
    if not data_source:
        raise UserError(f"dataset {cfg.DATASET.NAME!r} has no {'training' if is_train else 'test'} images")
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; expected a positive number")
    workers = min(cfg.DATALOADER.NUM_WORKERS, available_cpus())  # of each process
    # Python 3.14 forks workers off a server; with torch imported there, each need not import it again.
    multiprocessing.set_forkserver_preload(["__main__", "dassl.data"])
    if not is_train:  # each process of a run tests its share
        check_shares(len(data_source), "images to test")
        data_source = data_source[share(len(data_source)).start : share(len(data_source)).stop]
    dataset = (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins, seed=base_seed(cfg))
    drop_last = is_train and len(data_source) >= batch_size
    order: dict[str, Any] = {"batch_size": batch_size, "sampler": sampler, "drop_last": drop_last}
    if is_train and launched():
        check_shares(min(batch_size, len(data_source)), "images in a batch")
        order = {"batch_sampler": BatchShare(sampler, batch_size, drop_last)}
    return Loader(
        dataset,
        **order,
        num_workers=workers,
        worker_init_fn=follow_parent,
        persistent_workers=is_train and workers > 0,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
        generator=torch.Generator(),  # its draws must not shift the global one
    )


class DataManager:
    """Builds the dataset cfg names, with `train_loader_x`, `train_loader_u`, `val_loader`, `test_loader`.

    `train_loader_u` and `val_loader` are None where the dataset has no such data.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Any = None,
        custom_tfm_test: Any = None,
        dataset_wrapper: Callable[..., Dataset[Any]] | None = None,
    ) -> None:
        dataset = build_dataset(cfg)
        if custom_tfm_train is not None:
            print("* Using custom transform for training")
        if custom_tfm_test is not None:
            print("* Using custom transform for testing")
        tfm_train = build_transform(cfg) if custom_tfm_train is None else custom_tfm_train
        tfm_test = build_transform(cfg, is_train=False) if custom_tfm_test is None else custom_tfm_test

        def train_loader(data_source: Sequence[Any], c: CfgNode) -> Loader:
            return build_data_loader(
                cfg,
                c.SAMPLER,
                data_source,
                c.BATCH_SIZE,
                c.N_DOMAIN,
                c.N_INS,
                tfm_train,
                True,
                dataset_wrapper,
            )

        def test_loader(data_source: Sequence[Any]) -> Loader:
            c = cfg.DATALOADER.TEST
            return build_data_loader(
                cfg,
                c.SAMPLER,
                data_source,
                c.BATCH_SIZE,
                tfm=tfm_test,
                is_train=False,
                dataset_wrapper=dataset_wrapper,
            )

        c = cfg.DATALOADER
        self.train_loader_x = train_loader(dataset.train_x, c.TRAIN_X)
        self.train_loader_u = None
        if dataset.train_u:
            self.train_loader_u = train_loader(dataset.train_u, c.TRAIN_X if c.TRAIN_U.SAME_AS_X else c.TRAIN_U)
        self.val_loader = test_loader(dataset.val) if dataset.val else None
        self.test_loader = test_loader(dataset.test)

        self.dataset = dataset
        self.num_classes: int = dataset.num_classes
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self.lab2cname: dict[int, str] = dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        rows = [("Dataset", cfg.DATASET.NAME)]
        rows += [("Source", str(cfg.DATASET.SOURCE_DOMAINS))] if cfg.DATASET.SOURCE_DOMAINS else []
        rows += [("Target", str(cfg.DATASET.TARGET_DOMAINS))] if cfg.DATASET.TARGET_DOMAINS else []
        rows.append(("# classes", f"{self.num_classes:,}"))
        for split in ("train_x", "train_u", "val", "test"):
            if data_source := getattr(self.dataset, split):
                rows.append((f"# {split}", f"{len(data_source):,}"))
        rule = "-" * 9 + "  " + "-" * max(len(value) for _, value in rows)
        print("\n".join([rule, *(f"{name:9}  {value}" for name, value in rows), rule]))


class DatasetWrapper(Dataset[dict[str, Any]]):
    """Reads and transforms images. `transform` may be a list: its results are `img`, `img2`, ...

    In training each transform is applied K_TRANSFORMS times (more than once gives a list), and RETURN_IMG0
    adds `img0`, the image resized only.
    """

    def __init__(self, cfg: CfgNode, data_source: Sequence[Any], transform: Any = None, is_train: bool = False) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.seed = base_seed(cfg)
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise UserError(f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform to apply")
        if self.return_img0:
            mode = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
            steps = [T.Resize(cfg.INPUT.SIZE, interpolation=mode), T.ToTensor()]
            if "normalize" in cfg.INPUT.TRANSFORMS:
                steps.append(T.Normalize(mean=cfg.INPUT.PIXEL_MEAN, std=cfg.INPUT.PIXEL_STD))
            self.to_tensor = T.Compose(steps)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """UserError: the image is missing or cannot be decoded."""
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": int(idx)}
        img0 = read_image(item.impath)
        with seeded(self.seed, getattr(idx, "epoch", 0), int(idx)):
            if self.transform is None:
                output["img"] = img0
            else:
                tfms = self.transform if isinstance(self.transform, (list, tuple)) else [self.transform]
                for i, tfm in enumerate(tfms):
                    output[f"img{i + 1}" if i else "img"] = self._apply(tfm, img0)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def _apply(self, tfm: Callable[[Image.Image], Any], img0: Image.Image) -> Any:
        images = [tfm(img0) for _ in range(self.k_tfm)]
        return images[0] if len(images) == 1 else images
