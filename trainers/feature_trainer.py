"""What the methods on frozen features have in common: CLIP as it is, hand-written prompts, and features by the image.

A method's file fits a ``FittedHead`` to the features of the training and validation images. No test image is read
before the test, unless the method says so (``test_selected``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from clip.model import CLIP
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.data.data_manager import build_data_loader
from dassl.utils import load_checkpoint

from .clip.encoders import ImageEncoder, TextEncoder
from .clip.prompts import PromptBuilder, UserError
from .clip.weights import in_half, load_clip
from .clip_trainer import CLIPTrainer, Features, check_input
from .method import Option
from .prompt_trainer import find_checkpoint, unit

# Zhou et al.'s selection of the prompts that Radford et al. wrote for ImageNet.
ENSEMBLE = (
    *("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}."),
    *("a {} in a video game.", "art of the {}.", "a photo of the small {}."),
)
TEMPLATES = ("own", "ensemble", "both")


def templates_option(default: str) -> Option:
    about = "hand-written prompts: the dataset's own, an ensemble of 7, or both"
    return Option("TEMPLATES", default, about, choices=TEMPLATES)


class FittedHead(nn.Module):
    """Tensors by name. Their sizes follow the images that they are fitted to, or the checkpoint.

    Args:
        classnames: saved with the tensors, which mean nothing for other classes.
        learned: parameters.
        fixed: buffers.
    """

    def __init__(self, classnames: Sequence[str], learned: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.classnames = list(classnames)
        for name, x in learned.items():
            self.register_parameter(name, nn.Parameter(x))
        for name, x in fixed.items():
            self.register_buffer(name, x)

    def put(self, **tensors: Tensor) -> None:
        """Replaces tensors by others of any size."""
        for name, x in tensors.items():
            own = getattr(self, name)
            if isinstance(own, nn.Parameter):
                own.data = x.to(own)
            else:
                setattr(self, name, x.to(own))

    def get_extra_state(self) -> dict[str, Any]:
        return {"classnames": self.classnames}

    def set_extra_state(self, state: Any) -> None:
        """Raises UserError: the tensors are of other classes."""
        if list(state["classnames"]) != self.classnames:
            raise UserError("it was fitted to other classes, and its head cannot serve these")


class FeatureTrainer(CLIPTrainer):
    """CLIP stays frozen. Subclasses build a ``FittedHead``, fit it, and make ``logits`` of features."""

    reads_local: ClassVar[bool] = False  # whether the head reads local features
    model: CLIP
    head: Any  # a FittedHead, whose tensors mypy does not know

    @classmethod
    def find_faults(cls, cfg: CfgNode) -> list[str]:
        faults, template = super().find_faults(cfg), cfg.DATASET.get("TEMPLATE", "")
        if template and ("{}" not in template or re.sub(r"[^{}]", "", template) != "{}"):
            faults.append(f"DATASET.TEMPLATE '{template}' has no {{}} for the class name, or more braces than that")
        if cls.learns and "TEST" in cfg and cfg.TEST.FINAL_MODEL != "last_step":
            faults.append(f"TEST.FINAL_MODEL is {cfg.TEST.FINAL_MODEL!r}; {cls.__name__} tests what it ends with")
        return faults

    @property
    def method_cfg(self) -> CfgNode:
        return self.cfg.TRAINER[self.node]

    @property
    def classnames(self) -> list[str]:
        return self.dm.dataset.classnames

    def build_model(self) -> None:
        cfg = self.cfg
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip_model = load_clip(cfg)
        self.weights_sha256 = clip_model.weights_sha256
        if self.device.type == "cpu":  # float16, as published, is for GPUs
            clip_model.float()
        else:
            in_half(clip_model)
        check_input(cfg, clip_model)
        self.model = clip_model.to(self.device).eval().requires_grad_(False)
        self.dtype = torch.promote_types(clip_model.dtype, torch.float32)  # of the heads
        self.image_encoder = ImageEncoder(self.model.visual, self.reads_local)
        self.build_head()
        if cfg.TRAINER.WHOLE_STEP_GRAPH:
            print("TRAINER.WHOLE_STEP_GRAPH needs a method that learns prompts: here it changes nothing")

    def build_head(self) -> None:
        """Makes what ``logits`` needs, before anything is fitted."""
        raise NotImplementedError

    def register_head(self, learned: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> None:
        self.head = FittedHead(self.classnames, learned, fixed).to(self.device)
        self.register_model("head", self.head)

    @torch.no_grad()
    def text_features(self, choice: str) -> Tensor:
        """Features [T, n_cls, d] of T hand-written prompts a class, not normalized; ``choice`` is one of TEMPLATES."""
        own = self.cfg.DATASET.get("TEMPLATE", "") or getattr(self.dm.dataset, "template", "a photo of a {}.")
        encoder, found = TextEncoder(self.model), []
        for template in {"own": (own,), "ensemble": ENSEMBLE, "both": (*ENSEMBLE, own)}[choice]:
            print(f"Prompt: {template}")
            prompts = [template.format(name.replace("_", " ")) for name in self.classnames]
            builder = PromptBuilder(prompts, self.model, end="").to(self.device)
            no_ctx = builder.embedding.new_empty(1, 0, builder.embedding.shape[1])
            found.append(encoder(*builder(no_ctx), builder.layout)[0])
        return torch.stack(found)

    def class_vectors(self, choice: str) -> Tensor:
        """Unit vectors [n_cls, d]: of each class the mean of its prompts' unit features."""
        return unit(unit(self.text_features(choice)).mean(dim=0))

    def validation_images(self, images: list[Any] | None = None) -> list[Any]:
        """The images, by default the few-shot validation images; [] if there are none, or one of them is tested."""
        dataset = self.dm.dataset
        tested = {item.impath for item in dataset.test}
        images = (dataset.val if images is None else images) or []
        return [] if any(item.impath in tested for item in images) else images

    def loader(self, images: Sequence[Any], augmented: bool = False) -> Any:
        """Images in their order, in the test's transform or in the training's.

        Raises:
            UserError: they are the test images, and the test's loader is sealed.
        """
        if images is self.dm.dataset.test and (why := getattr(self.test_loader, "sealed", "")):
            raise UserError(why)
        transform = (self.train_loader_x if augmented else self.test_loader).dataset.transform
        size = self.cfg.DATALOADER.TEST.BATCH_SIZE
        return build_data_loader(
            self.cfg, "SequentialSampler", data_source=images, batch_size=size, tfm=transform, is_train=False
        )

    @torch.no_grad()
    def features_of(self, loader: Any, view: int | None = None) -> tuple[Features, Tensor]:
        """All features of a loader by name, [n, ...] each, and the labels [n].

        Args:
            view: of an augmented loader, the number of the augmentation: a function of seed, view and image.
        """
        kept = getattr(self, "kept_features", lambda loader, view: loader)  # our engine's, from the feature store
        found, labels = [], []
        for batch in kept(loader, view):
            input, label = self.parse_batch_test(batch)
            found.append(input if isinstance(input, dict) else self.encode_images(input))
            labels.append(label)
        return {name: torch.cat([features[name] for features in found]) for name in found[0]}, torch.cat(labels)

    def check_training(self) -> None:
        if self.learns and dist.is_initialized() and dist.get_world_size() > 1:
            raise UserError(f"{type(self).__name__} is fitted in one process; start it without torchrun")

    def fit(self) -> None:
        """Fits the head; here there is nothing to fit."""

    def train(self) -> None:  # type: ignore[override]
        """For a method without epochs: fits, saves and tests."""
        seal = getattr(self, "seal_test", lambda sealed: None)  # our engine's
        seal(True)
        self.fit()
        seal(False)
        if self.get_model_names():
            self.save_model(0, self.output_dir)
        if not self.cfg.TEST.NO_TEST:
            self.test()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Loads a fitted head.

        Raises:
            UserError: there is no such checkpoint, it is damaged, or its head is of other classes.
        """
        if not directory:
            print("No model directory given: the head stays as it is")
            return
        path = find_checkpoint(Path(directory) / "head", epoch)
        state = load_checkpoint(str(path)).get("state_dict")
        own = self.head.state_dict()
        state = state if isinstance(state, dict) and state.keys() == own.keys() else {}
        tensors = {name: x for name, x in state.items() if isinstance(x, Tensor)}
        fits = all(x.dim() == own[name].dim() and bool(x.isfinite().all()) for name, x in tensors.items())
        if not fits or 1 + len(tensors) != len(own):
            raise UserError(f"the checkpoint '{path}' holds no head of {type(self).__name__}")
        self.head.put(**tensors)
        try:
            self.head.load_state_dict(state)
        except UserError as error:
            raise UserError(f"'{directory}': {error}") from None
        print(f"Loading the head from '{path}'")
