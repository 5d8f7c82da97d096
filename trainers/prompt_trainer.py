"""What CoOp, CoCoOp and PLOT have in common: a frozen CLIP with a prompt learner, and its training.

A method's file adds its ``PromptLearner``, and a ``CustomCLIP`` that makes logits of image and text features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights

from .class_split import Head
from .clip.encoders import ImageEncoder, TextEncoder
from .clip.graphs import replay
from .clip.prompts import CONTEXT_LENGTH, POSITIONS, UserError, tokenize_texts
from .clip.weights import load_clip, weights_path
from .frozen import FrozenImageTrainer
from .method import Method, Option

PRECISIONS = ("fp16", "fp32", "amp", "bf16")
AMP_DTYPES = {"cpu": torch.bfloat16, "cuda": torch.float16}


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

    Args:
        local: whether the head reads local image features.
    Raises:
        UserError: INPUT.SIZE is not what the image tower was made for.
    """

    def __init__(self, cfg: Any, prompt_learner: nn.Module, clip_model: Any, local: bool = False) -> None:
        super().__init__()
        check_input_size(cfg, clip_model)
        self.prompt_learner: Any = prompt_learner
        self.image_encoder = ImageEncoder(clip_model.visual, local).requires_grad_(False)
        self.text_encoder = TextEncoder(clip_model).requires_grad_(False)
        self.logit_scale = clip_model.logit_scale.requires_grad_(False)
        self.dtype = clip_model.dtype
        self._text: tuple[Any, Tensor] | None = None
        self.train()

    def train(self, mode: bool = True) -> PromptedCLIP:
        """Only the prompt learner trains: CLIP's batch-norm statistics stay as they are."""
        super().train(mode)
        self.image_encoder.eval()
        self.text_encoder.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """image [batch, 3, h, w] -> logits [batch, n_cls]."""
        return self.logits(*self.image_encoder(image))

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        """pooled [batch, d], local [batch, M, d], as the image encoder gives them -> logits [batch, n_cls]."""
        raise NotImplementedError

    def text_features(self) -> Tensor:
        """Text features [G, n_cls, d], not normalized; without gradient they are kept until ctx changes."""
        ctx = self.prompt_learner.ctx
        state = (ctx.data_ptr(), ctx._version, ctx.dtype, ctx.device)
        if torch.is_grad_enabled():
            self._text = None
        elif self._text is not None and self._text[0] == state:
            return self._text[1]
        text = self.text_encoder(*self.prompt_learner(), self.prompt_learner.prompts.layout)
        if not torch.is_grad_enabled():
            self._text = (state, text)
        return text


def unit(x: Tensor) -> Tensor:
    """x / |x| along the last axis, in float32 or wider, for logits that rounding does not blur."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def check_input_size(cfg: Any, clip_model: Any) -> None:
    """Raises UserError if INPUT.SIZE is not the image tower's."""
    size = clip_model.visual.input_resolution
    if tuple(cfg.INPUT.SIZE) != (size, size):
        raise UserError(
            f"INPUT.SIZE {tuple(cfg.INPUT.SIZE)} does not fit the backbone '{cfg.MODEL.BACKBONE.NAME}', "
            f'whose pictures are {size} x {size}: set INPUT.SIZE "({size}, {size})"'
        )


def input_faults(cfg: Any) -> list[str]:
    """What keeps every trainer here from its batches of pictures, or from CLIP."""
    faults = []
    if cfg.INPUT.NO_TRANSFORM:
        faults.append("INPUT.NO_TRANSFORM is True; CLIP takes tensors, not pictures")
    if cfg.DATALOADER.K_TRANSFORMS != 1:
        faults.append(f"DATALOADER.K_TRANSFORMS is {cfg.DATALOADER.K_TRANSFORMS}; it must be 1 for this trainer")
    try:
        weights_path(cfg)
    except UserError as error:
        faults.append(str(error))
    return faults


def cpu_has_bf16() -> bool:
    """Whether oneDNN has bfloat16 products for this CPU; PyTorch's own take some 50 times as long as float32's."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return torch.backends.mkldnn.is_available() and bool(supported())


def precision(prec: str, device: torch.device) -> str:
    """PREC as it is computed: in place of what a CPU lacks fp32, and a line that says so."""
    if device.type != "cpu" or prec == "fp32" or (prec != "fp16" and cpu_has_bf16()):
        return prec
    print(f"PREC {prec} needs {'a GPU' if prec == 'fp16' else 'a CPU with bf16 products'}: computing in fp32")
    return "fp32"


class PromptTrainer(Method, FrozenImageTrainer):
    """Trains the prompt learner of ``custom_clip``, whose options stand in ``cfg.TRAINER.<node>``."""

    custom_clip: ClassVar[Any]
    model: Any

    @property
    def method_cfg(self) -> Any:
        return self.cfg.TRAINER[self.node]

    def check_cfg(self, cfg: Any) -> None:
        """Raises UserError with all that ``find_faults`` finds, an argument each."""
        if faults := self.find_faults(cfg):
            raise UserError(*faults)

    @classmethod
    def find_faults(cls, cfg: Any) -> list[str]:
        """Values of the config that do not suit the method."""
        faults, options = [*input_faults(cfg), *super().find_faults(cfg)], cfg.TRAINER[cls.node]
        try:
            tokenize_texts(options.get("CTX_INIT", ""), options.get("N", 1))
        except UserError as error:
            faults.append(f"TRAINER.{cls.node}.{error}")
        if cfg.OPTIM.STAGED_LR:
            faults.append("OPTIM.STAGED_LR is True; a prompt learner has no layers to learn at different rates")
        return faults

    def build_model(self) -> None:
        cfg = self.cfg
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip_model = load_clip(cfg)
        self.weights_sha256 = clip_model.weights_sha256
        prec = precision(self.method_cfg.PREC, self.device)
        if prec != "fp16":
            clip_model.float()
        self.amp = prec in ("amp", "bf16")
        self.amp_dtype = AMP_DTYPES[self.device.type] if prec == "amp" else torch.bfloat16
        print("Building the prompt learner; the image and the text encoder stay frozen")
        self.model = self.custom_clip(cfg, self.dm.dataset.classnames, clip_model)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.image_encoder = self.encode_training = self.model.image_encoder
        if self.device.type == "cuda" and cfg.TRAINER.CUDA_GRAPHS and not dist.is_initialized():
            self.encode_training = replay(self.model)
        # Our engine's hooks, for a run of several processes, whose gradients are averaged.
        if cfg.TRAINER.SPLIT_CLASSES and hasattr(self, "check_shares"):
            self.check_shares(len(self.dm.dataset.classnames), "classes")
        parallel = getattr(self, "parallel", lambda module: module)
        self.head = parallel(Head(self.model, split=cfg.TRAINER.SPLIT_CLASSES))
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        # bfloat16 has float32's range, so that only float16 needs its loss scaled
        scaled = self.amp and self.amp_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type) if scaled else None

    def forward_backward(self, batch: Any) -> dict[str, float]:
        image, label = self.parse_batch_train(batch)
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp):
            features = image if isinstance(image, dict) else self.encode_images(image, self.encode_training)
            output = self.head(**features)
        loss = F.cross_entropy(output.float() if self.amp else output, label)
        weighted = loss * getattr(self, "loss_weight", 1.0)  # our engine's: a process's share of the batch
        if self.scaler is None:
            self.model_backward_and_update(weighted)
        else:
            self.model_zero_grad()
            self.scaler.scale(weighted).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def logits(self, pooled: Tensor, local: Tensor | None = None) -> Tensor:
        return self.model.logits(pooled, local)

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
        path = _checkpoint(Path(directory) / "prompt_learner", epoch)
        checkpoint = load_checkpoint(str(path))
        learner = self.model.prompt_learner
        ours, theirs = learner.state_dict(), _learned(checkpoint, path)
        shapes = [{k: tuple(v.shape) for k, v in s.items()} for s in (theirs, ours)]
        if shapes[0] != shapes[1]:
            raise UserError(f"the checkpoint '{path}' holds {shapes[0]}, the config asks for {shapes[1]}")
        print(f"Loading the prompt learner from '{path}' (epoch {checkpoint.get('epoch')})")
        learner.load_state_dict(theirs)


def _learned(checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """What a checkpoint holds of a prompt learner; upstream's also have the class names' embeddings.

    Raises:
        UserError: it has no state dict of finite floating-point tensors.
    """
    state = checkpoint.get("state_dict")
    state = {k: v for k, v in state.items() if not str(k).startswith("token_")} if isinstance(state, dict) else {}

    def good(value: Any) -> bool:
        dense = isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point()
        return dense and bool(value.isfinite().all())

    if not state or not all(isinstance(k, str) and good(v) for k, v in state.items()):
        raise UserError(f"the checkpoint '{path}' holds no prompt learner: no state_dict of finite tensors by name")
    return state


def _checkpoint(folder: Path, epoch: int | None) -> Path:
    """The epoch's checkpoint in a folder; without an epoch the best, else the last."""
    epochs = {int(p.suffix[5:]): p for p in folder.glob("model.pth.tar-*") if p.suffix[5:].isdigit()}
    best = folder / "model-best.pth.tar"
    if epoch is None and (best.is_file() or epochs):
        return best if best.is_file() else epochs[max(epochs)]
    if epoch not in epochs:
        there = ", ".join(map(str, sorted(epochs))) or "none"
        wanted = "" if epoch is None else f" of epoch {epoch}"
        raise UserError(f"no checkpoint{wanted} in '{folder}' (epochs there: {there}); see --model-dir, --load-epoch")
    return epochs[epoch]
