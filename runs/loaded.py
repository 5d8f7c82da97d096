"""A trained run in memory, for images of one's own: paths, PIL images and arrays.

    from predict import load
    run = load(RUN)
    run.classes(["my.jpg", picture, array])

``logits``, ``plans`` and ``features`` take the same images. RUN is a finished run, or a folder with a checkpoint that
CoOp, CoCoOp or PLOT wrote.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, fromarray
from torch import Tensor

from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import MAX_PIXELS, UserError, as_rgb, read_image
from trainers.diagnostics import HeadMeter

from .command_line import build_parser
from .config import read_cfg, setup_cfg
from .directory import method_options, say_not_compared, trained_with
from .result import check_classes, load_result

PUBLISHED = ("trainer", "config_file", "dataset_config_file", "root")  # flags for a checkpoint without a config.yaml
OneImage = str | Path | Image | np.ndarray
Images = OneImage | Iterable[OneImage] | Tensor


class _KeepPlans(HeadMeter):
    """Keeps the plans that the head computes, [batch, n_cls, M, N]."""

    def __init__(self) -> None:
        super().__init__(max_iter=0)
        self.plans: list[Tensor] = []

    def see_plan(self, plan: Tensor, similarity: Tensor, iterations: Tensor) -> None:
        self.plans.append(plan.float().cpu())

    def see_scores(self, score: Tensor, text: Tensor, scale: Tensor) -> None:
        pass


@dataclass(frozen=True)
class LoadedRun:
    """A trained run, ready to be asked.

    Its methods take one image, several, or what ``read`` made of several, [batch, 3, h, w]. They return float32 tensors
    on the CPU, and raise UserError for an image that cannot be read.
    """

    trainer: Any
    classnames: list[str]
    transform: Any
    batch_size: int = 32

    @property
    def method(self) -> str:
        return self.trainer.cfg.TRAINER.NAME

    def read(self, image: OneImage) -> Tensor:
        """An image as the model takes it [3, h, w]. An array is uint8, [h, w] or [h, w, 3].

        Raises:
            UserError: it cannot be read.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)) or image.ndim < 2:
                raise UserError(f"an array holds uint8 of [h, w] or [h, w, 3], not {image.dtype} of {image.shape}")
            image = fromarray(image)
        if not isinstance(image, Image):
            return self.transform(read_image(str(image), self.trainer.cfg.INPUT.MAX_PIXELS))
        try:
            return self.transform(as_rgb(image))
        except ValueError as error:
            raise UserError(f"cannot use a picture of {error}") from None

    def _batches(self, images: Images) -> Iterator[Tensor]:
        """[batch, 3, h, w] each."""
        if isinstance(images, Tensor):
            yield from images.split(self.batch_size)
            return
        several = [images] if isinstance(images, (str, Path, Image, np.ndarray)) else list(images)
        for start in range(0, len(several), self.batch_size):
            yield torch.stack([self.read(image) for image in several[start : start + self.batch_size]])

    @torch.no_grad()
    def logits(self, images: Images) -> Tensor:
        """Logits [images, n_cls], computed as a test does."""
        found = []
        for batch in self._batches(images):
            label = torch.zeros(len(batch), dtype=torch.long)
            input, _ = self.trainer.parse_batch_test({"img": batch, "label": label})
            found.append(self.trainer.model_inference(input).float().cpu())
        return torch.cat(found) if found else torch.empty(0, len(self.classnames))

    def classes(self, images: Images) -> list[str]:
        """The most probable class of each image."""
        return [self.classnames[k] for k in self.logits(images).argmax(dim=1).tolist()]

    def explained(self, images: Images) -> tuple[Tensor, Tensor]:
        """Logits [images, n_cls], and the transport plans behind them [images, n_cls, M, N].

        Raises:
            UserError: the head computes no plans, or does not keep them.
        """
        model, meter = self.trainer.model, _KeepPlans()
        if hasattr(model, "meter"):
            model.meter = meter
        try:
            logits = self.logits(images)
        finally:
            model.meter = None
        if not meter.plans:
            raise UserError(f"this run of {self.method} keeps no transport plans: there is nothing to draw")
        return logits, torch.cat(meter.plans)

    def plans(self, images: Images) -> Tensor:
        """Transport plans [images, n_cls, M, N]. UserError: there are none."""
        return self.explained(images)[1]

    @torch.no_grad()
    def features(self, images: Images) -> dict[str, Tensor]:
        """Image features by name, not normalized: pooled [images, d] and, if the head reads it, local [images, M, d].

        Raises:
            UserError: the trainer does not give them.
        """
        if not hasattr(self.trainer, "encode_images"):
            raise UserError(f"a run of {self.method} gives no image features: its trainer has no encode_images")
        found = [self.trainer.encode_images(batch.to(self.trainer.device)) for batch in self._batches(images)]
        return {name: torch.cat([part[name].float().cpu() for part in found]) for name in (found[0] if found else ())}

    @torch.no_grad()
    def text_features(self) -> Tensor:
        """Text features [N, n_cls, d]. UserError: they depend on the image, or the trainer has none."""
        text = getattr(self.trainer, "text", None)  # of hand-written prompts, unit length
        if text is None and hasattr(self.trainer.model, "text_features"):
            text = self.trainer.model.text_features()
        if text is None:
            raise UserError(f"a run of {self.method} gives no text features")
        return text.float().cpu().reshape(-1, *text.shape[-2:])


def load(
    run: str | Path,
    classes: Sequence[str] | None = None,
    backbone: str = "",
    flags: Sequence[str] = (),
    max_pixels: int = MAX_PIXELS,
) -> LoadedRun:
    """Loads a trained run, without its dataset, with the parameters that its test has.

    Args:
        run: its directory.
        classes: other class names, for the learned context.
        backbone: where the weights file is now, or an OpenAI name.
        flags: train.py's, for a published checkpoint: --trainer, --config-file, and --dataset-config-file and --root
            where ``classes`` do not name the classes.
        max_pixels: of an image; a larger one is refused.
    Raises:
        UserError: it is no run, unfinished or damaged, or its weights have changed since.
        TypeError: ``classes`` is one text, not a list of names.
    """
    if isinstance(classes, str):
        raise TypeError(f"classes is '{classes}'; it must be a list of names")
    if classes is not None:
        names = [name.strip() for name in classes]
        if not names or not all(names) or len(set(names)) < len(names):
            raise UserError(f"--classes is '{','.join(classes)}'; it must be different names, separated by commas")
        classes = names
    directory = Path(run)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        published = not (directory / "config.yaml").is_file() and any(directory.glob("*/model*.pth.tar*"))
        read = _read_published if published else _read_run
        cfg, classnames = read(directory, classes, backbone, flags)
        cfg.MODEL.INIT_WEIGHTS = ""  # what was trained from them comes from the checkpoint
        cfg.MODEL.BACKBONE.SHA256 = trained_with(directory)
        if backbone and not published and not cfg.MODEL.BACKBONE.SHA256:
            say_not_compared(directory, backbone)
        cfg.INPUT.MAX_PIXELS = max(cfg.INPUT.MAX_PIXELS, max_pixels)
        trainer = _trainer_of(cfg, classnames)
        if trainer.get_model_names():
            trainer.load_model(str(directory))
        trainer.set_model_mode("eval")
        trainer.before_test("test")
        if hasattr(trainer.model, "meter"):
            trainer.model.meter = None  # what a test also measures, nobody asks for here
        loaded = LoadedRun(trainer, list(classnames), build_transform(cfg, is_train=False))
    if published:  # a run of ours has said it in its training
        for line in said.getvalue().splitlines():
            if "is assumed" in line:
                print(line, file=sys.stderr)
    return loaded


def _read_run(directory: Path, classes: Sequence[str] | None, backbone: str, _: object) -> tuple[Any, Sequence[str]]:
    path = directory / "result.json"
    if not path.is_file():
        what = "is unfinished" if (directory / "config.yaml").is_file() else "is no run"
        raise UserError(f"'{directory}' {what}: looked for '{path}'; a run's own command finishes it")
    result = load_result(path)
    cfg = read_cfg(directory, backbone)
    if not (names := classes or result.get("classnames")):
        raise UserError(f"'{path}' names no classes; give them with --classes")
    check_classes(directory, cfg, names)
    return cfg, names


def _read_published(
    directory: Path, classes: Sequence[str] | None, backbone: str, flags: Sequence[str]
) -> tuple[Any, Sequence[str]]:
    """The config by ``flags``, with the options that the shape of the learned context gives."""
    args = build_parser().parse_args([*flags, *(("--backbone", backbone) if backbone else ())])
    if not (args.trainer and args.config_file and (classes or args.dataset_config_file)):
        raise UserError(
            f"'{directory}' has no config.yaml; a checkpoint that other code wrote needs --trainer, --config-file, "
            "and --classes or --dataset-config-file with --root"
        )
    cfg, _ = setup_cfg(args, needs_dataset=classes is None)
    kind = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if hasattr(kind, "options_of"):
        options = method_options(cfg)[1]
        options.update(kind.options_of(str(directory), options))
    return cfg, classes or build_dataset(cfg).classnames


def _trainer_of(cfg: Any, classnames: Sequence[str]) -> Any:
    """The run's trainer with its model, on given classes and no data."""
    kind = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)

    class WithoutData(kind):  # type: ignore[misc, valid-type]
        def build_data_loader(self) -> None:
            dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME) if cfg.DATASET.NAME else None
            template = getattr(dataset, "template", "a photo of a {}.")
            self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=list(classnames), template=template))
            self.num_classes = len(classnames)
            self.train_loader_x = self.val_loader = self.test_loader = None
            self.lab2cname = dict(enumerate(classnames))

    return WithoutData(cfg)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a program that loads a run: ``load_asked`` takes them."""
    add = parser.add_argument
    add("--classes", help="other class names, separated by commas, for the learned context")
    add("--backbone", default="", help="where the run's weights file is now; it is compared by SHA-256")
    add("--max-pixels", type=int, default=MAX_PIXELS, help=f"of a picture (default: {MAX_PIXELS})")
    about = "of a checkpoint that CoOp, CoCoOp or PLOT wrote: "
    add("--trainer", default="", help=f"{about}the method")
    add("--config-file", default="", help=f"{about}its config, configs/trainers/...")
    add("--dataset-config-file", default="", help=f"{about}the dataset whose class names it has")
    add("--root", default="", help=f"{about}folder that holds the datasets")


def load_asked(args: argparse.Namespace) -> LoadedRun:
    """The run ``args.run``. UserError: as ``load``."""
    classes = None if args.classes is None else args.classes.split(",")
    flags = [(f"--{name.replace('_', '-')}", getattr(args, name)) for name in PUBLISHED if getattr(args, name)]
    return load(args.run, classes, args.backbone, [word for flag in flags for word in flag], args.max_pixels)
