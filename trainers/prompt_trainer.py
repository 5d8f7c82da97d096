"""What CoOp, CoCoOp and PLOT have in common: a frozen CLIP with a prompt learner, and its training.

A method's file adds its ``PromptLearner``, and a ``CustomCLIP`` that makes logits of image and text features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights

from .class_split import Head
from .clip.encoders import NOTHING, Extra, ImageEncoder, TextEncoder
from .clip.graphs import WholeStep, replay
from .clip.prompts import CONTEXT_LENGTH, POSITIONS, UserError, tokenize_texts
from .clip.weights import in_half, load_clip
from .clip_trainer import AMP_DTYPES, Batch, CLIPTrainer, Features, check_input, precision
from .method import Option

PRECISIONS = ("fp16", "fp32", "amp", "bf16")


# The options that the methods share, with CoOp's names and defaults.
PROMPT_OPTIONS = (
    Option("N_CTX", 16, "context vectors a prompt", 1, CONTEXT_LENGTH - 3),
    Option("CSC", False, "class-specific contexts"),
    Option("CTX_INIT", "", "words to start from, in place of N_CTX random vectors"),
    Option("PREC", "fp16", "bf16 is amp in bfloat16, as amp is on a CPU", choices=PRECISIONS),
    Option("CLASS_TOKEN_POSITION", "end", "of the class name", choices=POSITIONS),
)


class PromptedCLIP(nn.Module):
    """A frozen CLIP and a prompt learner: what every ``CustomCLIP`` starts from.

    A method adds ``logits``, and overrides ``image_extra`` or ``text_extra`` where its learned tokens or weights reach
    into a tower.

    Args:
        local: whether the head reads local image features.
    Raises:
        UserError: INPUT.SIZE is not what the image tower was made for.
    """

    prompt_learner: Any

    def __init__(self, cfg: CfgNode, prompt_learner: nn.Module, clip_model: CLIP, local: bool = False) -> None:
        super().__init__()
        check_input(cfg, clip_model)
        self.prompt_learner = prompt_learner
        self.image_encoder = ImageEncoder(clip_model.visual, local).requires_grad_(False)
        self.text_encoder = TextEncoder(clip_model).requires_grad_(False)
        self.logit_scale = clip_model.logit_scale.requires_grad_(False)
        self.dtype = clip_model.dtype
        self._text: tuple[object, Tensor] | None = None
        self.train()

    def train(self, mode: bool = True) -> PromptedCLIP:
        """Only the prompt learner trains: CLIP's batch-norm statistics stay as they are."""
        super().train(mode)
        self.image_encoder.eval()
        self.text_encoder.eval()
        return self

    def image_extra(self) -> Extra:
        """What the method adds to the image tower."""
        return NOTHING

    def text_extra(self) -> Extra:
        """What the method adds to the text tower."""
        return NOTHING

    def encode(self, image: Tensor, encoder: Callable[..., tuple[Tensor, Tensor]] | None = None) -> Features:
        """image [batch, 3, h, w] -> pooled [batch, d] and, if the head reads it, local [batch, M, d]."""
        extra, encode = self.image_extra(), encoder or self.image_encoder
        pooled, local = encode(image, extra) if extra else encode(image)
        return {"pooled": pooled, "local": local} if self.image_encoder.local else {"pooled": pooled}

    def forward(self, image: Tensor) -> Tensor:
        """image [batch, 3, h, w] -> logits [batch, n_cls]."""
        return self.logits(**self.encode(image))

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        """pooled [batch, d], local [batch, M, d], as the image encoder gives them -> logits [batch, n_cls]."""
        raise NotImplementedError

    def text_parameters(self) -> Iterable[Tensor]:
        """The parameters and buffers that the text features depend on; a method may leave out others."""
        tensors = itertools.chain(self.named_parameters(), self.named_buffers())
        return (x for name, x in tensors if not name.startswith(("image_encoder.", "text_encoder.")))

    def asks_the_device(self) -> str:
        """What the config lacks for a training step that waits for no number from the device; "" for nothing."""
        return ""

    def encode_text(self) -> Tensor:
        """Text features [G, n_cls, d], not normalized."""
        learner = self.prompt_learner
        return self.text_encoder(*learner(), learner.prompts.layout, self.text_extra())

    def text_features(self) -> Tensor:
        """Text features [G, n_cls, d], not normalized; without gradient kept until a parameter of theirs changes."""
        parameters = list(self.text_parameters())
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        versions = [(p.data_ptr(), p._version, p.dtype, p.device) for p in parameters]
        state = (torch.is_autocast_enabled(self.logit_scale.device.type), versions)
        if not learning and self._text is not None and self._text[0] == state:
            return self._text[1]
        text = self.encode_text()
        self._text = None if learning else (state, text)
        return text


def unit(x: Tensor) -> Tensor:
    """x / |x| along the last axis, in float32 or wider, for logits that rounding does not blur."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """x [batch, d], y [n, d] -> cosines [batch, n], float32 or wider, under autocast too."""
    with torch.autocast(x.device.type, enabled=False):
        return unit(x) @ unit(y).t()


class PromptTrainer(CLIPTrainer):
    """Trains the prompt learner of ``custom_clip``, whose options stand in ``cfg.TRAINER.<node>``."""

    custom_clip: ClassVar[Callable[..., PromptedCLIP]]
    model: PromptedCLIP

    @property
    def method_cfg(self) -> CfgNode:
        return self.cfg.TRAINER[self.node]

    @classmethod
    def find_faults(cls, cfg: CfgNode) -> list[str]:
        """Values of the config that do not suit the method."""
        faults, options = super().find_faults(cfg), cfg.TRAINER[cls.node]
        try:
            cls.check_texts(options)
        except UserError as error:
            faults.append(f"TRAINER.{cls.node}.{error}")
        return faults

    @classmethod
    def check_texts(cls, options: CfgNode) -> None:
        """Raises UserError if CTX_INIT's texts do not suit the method."""
        tokenize_texts(options.get("CTX_INIT", ""), options.get("N", 1))

    def build_model(self) -> None:
        cfg = self.cfg
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip_model = load_clip(cfg)
        self.weights_sha256 = clip_model.weights_sha256
        prec = precision(self.method_cfg.PREC, self.device)
        if prec == "fp16":
            in_half(clip_model)
        else:
            clip_model.float()
        self.amp = prec in ("amp", "bf16")
        self.amp_dtype = AMP_DTYPES[self.device.type] if prec == "amp" else torch.bfloat16
        print("Building the prompt learner; the image and the text encoder stay frozen")
        self.model = self.custom_clip(cfg, self.dm.dataset.classnames, clip_model)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.image_encoder = self.model.image_encoder
        # Our engine's hooks, for a run of several processes, whose gradients are averaged.
        if cfg.TRAINER.SPLIT_CLASSES and hasattr(self, "check_shares"):
            self.check_shares(len(self.dm.dataset.classnames), "classes")
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        # bfloat16 has float32's range, so that only float16 needs its loss scaled
        scaled = self.amp and self.amp_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type) if scaled else None
        self.whole = cfg.TRAINER.WHOLE_STEP_GRAPH and self.can_be_whole()
        replays = self.device.type == "cuda" and cfg.TRAINER.CUDA_GRAPHS and not dist.is_initialized()
        self.replayed = replay(self.model) if replays and not self.whole else None
        self.wrap()

    def can_be_whole(self) -> bool:
        """Whether the step can be one CUDA graph; a line says what it lacks."""
        lacks = [
            ("a GPU", self.device.type != "cuda"),
            ("one process", dist.is_initialized()),
            ("OPTIM.NAME sgd", self.cfg.OPTIM.NAME != "sgd"),
            ("another PREC than amp, whose scaler asks for the gradients", self.scaler is not None),
            (asked := self.model.asks_the_device(), bool(asked)),
        ]
        first = next((what for what, lacking in lacks if lacking), "")
        if first:
            print(f"TRAINER.WHOLE_STEP_GRAPH needs {first}: the step is computed without it")
        return not first

    def wrap(self) -> None:
        """Makes the module to compute with in training; again where other parameters are to be learned than before."""
        parallel = getattr(self, "parallel", lambda module: module)
        self.head = parallel(Head(self.model, self.replayed, split=self.cfg.TRAINER.SPLIT_CLASSES))
        self.graphed_step = WholeStep(self.whole_step, self.optim) if self.whole else None

    def encode_images(self, image: Tensor) -> Features:
        return self.model.encode(image)

    def feature_key(self) -> dict[str, str] | None:
        """None where the method changes CLIP's image features, with constants too."""
        plain = not self.model.image_extra() and type(self.model).encode is PromptedCLIP.encode
        return super().feature_key() if plain else None

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """output [batch, n_cls], label [batch] -> the mean loss over the batch."""
        return F.cross_entropy(output, label)

    def outputs(self, input: Tensor | Features, label: Tensor) -> tuple[Tensor, Tensor]:
        """The logits [batch, n_cls] and their loss."""
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp):
            output = self.head(input)
        return output, self.loss(output.float() if self.amp else output, label)

    def whole_step(self, label: Tensor, image: Tensor | None = None, **features: Tensor) -> tuple[Tensor, Tensor]:
        """A step that asks the device for nothing. Returns loss and accuracy."""
        output, loss = self.outputs(features if image is None else image, label)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return loss.detach(), compute_accuracy(output, label)[0]

    def forward_backward(self, batch: Batch) -> dict[str, Any]:
        input, label = self.parse_batch_train(batch)
        last = self.batch_idx + 1 == self.num_batches
        if self.graphed_step is not None:
            loss, accuracy = self.graphed_step(label=label, **(input if isinstance(input, dict) else {"image": input}))
            if self.graphed_step.fails:
                self.whole, self.replayed = False, replay(self.model) if self.cfg.TRAINER.CUDA_GRAPHS else None
                self.wrap()
            if last:
                self.update_lr()
            return {"loss": loss, "acc": accuracy}  # on the device: our engine and upstream's take tensors
        output, loss = self.outputs(input, label)
        weighted = loss * getattr(self, "loss_weight", 1.0)  # our engine's: a process's share of the batch
        if self.scaler is None:
            self.model_backward_and_update(weighted)
        else:
            self.model_zero_grad()
            self.scaler.scale(weighted).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        if last:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        return self.model.logits(pooled, local)

    @classmethod
    def options_of(cls, directory: str, options: CfgNode) -> dict[str, object]:
        """The options that the learned contexts in a directory show by their shapes, where a published run says none.

        Args:
            options: those of the config.
        Raises:
            UserError: there is no checkpoint, or it holds no context.
        """
        path = find_checkpoint(Path(directory) / "prompt_learner", None)
        learned = _learned(load_checkpoint(str(path)), path)
        ctx, vision = learned.get("ctx"), learned.get("ctx_vision")
        own, of_n = {option.key for option in cls.options}, any(option.key == "N" for option in cls.options)
        if ctx is None or not 2 + of_n <= ctx.dim() <= 2 + of_n + ("CSC" in own):
            raise UserError(f"the checkpoint '{path}' holds no context of {cls.__name__}")
        found = {"N": ctx.shape[0], "N_CTX": ctx.shape[-2], "CTX_INIT": "", "CSC": ctx.dim() > 2 + of_n}
        if vision is not None and vision.dim() == 3:
            found |= {"M": vision.shape[0], "N_CTX_V": vision.shape[1]}
        return {key: value for key, value in found.items() if key in own}

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Loads a trained context; the embeddings of the class names stay those of the present classes.

        Args:
            directory: a run's, or one that CoOp or PLOT wrote.
            epoch: whose checkpoint; without it the best on the validation set, else the last.
        Raises:
            UserError: there is no such checkpoint, or it was trained with other options.
        """
        if not directory:
            print("No model directory given: the prompt learner stays as initialized")
            return
        path = find_checkpoint(Path(directory) / "prompt_learner", epoch)
        load_learner(self.model.prompt_learner, path)


def load_learner(learner: nn.Module, path: Path) -> None:
    """Loads what a prompt learner has learned.

    Raises:
        UserError: the checkpoint is damaged, or was trained with other options.
    """
    checkpoint = load_checkpoint(str(path))
    ours, theirs = learner.state_dict(), _learned(checkpoint, path)
    shapes = [{k: tuple(v.shape) for k, v in s.items()} for s in (theirs, ours)]
    if shapes[0] != shapes[1]:
        raise UserError(f"the checkpoint '{path}' holds {shapes[0]}, the config asks for {shapes[1]}")
    print(f"Loading the prompt learner from '{path}' (epoch {checkpoint.get('epoch')})")
    learner.load_state_dict(theirs)


def _learned(checkpoint: dict, path: Path) -> dict[str, Tensor]:
    """What a checkpoint holds of a prompt learner; published ones also hold the names' embeddings, or all of CLIP.

    Raises:
        UserError: it has no state dict of finite floating-point tensors.
    """
    state = checkpoint.get("state_dict")
    state = state if isinstance(state, dict) else {}
    prefix = "prompt_learner." if any(str(k).startswith("prompt_learner.") for k in state) else ""
    state = {k[len(prefix) :] if prefix else k: v for k, v in state.items() if str(k).startswith(prefix)}
    state = {k: v for k, v in state.items() if not str(k).startswith("token_")}

    def good(value: object) -> bool:
        if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
            return False
        return bool(value.isfinite().all())

    if not state or not all(isinstance(k, str) and good(v) for k, v in state.items()):
        raise UserError(f"the checkpoint '{path}' holds no prompt learner: no state_dict of finite tensors by name")
    return state


def find_checkpoint(folder: Path, epoch: int | None) -> Path:
    """The epoch's checkpoint in a folder; without an epoch the best, else the last. UserError: it is not there."""
    epochs = {int(p.suffix[5:]): p for p in folder.glob("model.pth.tar-*") if p.suffix[5:].isdigit()}
    best = folder / "model-best.pth.tar"
    if epoch is None and (best.is_file() or epochs):
        return best if best.is_file() else epochs[max(epochs)]
    if epoch not in epochs:
        there = ", ".join(map(str, sorted(epochs))) or "none"
        wanted = "" if epoch is None else f" of epoch {epoch}"
        raise UserError(f"no checkpoint{wanted} in '{folder}' (epochs there: {there}); see --model-dir, --load-epoch")
    return epochs[epoch]
