"""CLIPs that open_clip computes by its own modules: SigLIP, EVA, MobileCLIP, text towers of Hugging Face.

``OpenCLIP`` stands for ``clip.model.CLIP``. Its text tower runs on whole prompts, whose embeddings are put in the place
of the tokens'. Its image tower is timm's, or the ViT of CLIP. The local feature of a position is what the tower's
pooling and projection make of that position alone. A ViT with a class token gives each patch token through its norm and
projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from clip.model import VisionTransformer
from torch import Tensor, nn

from .architecture import Architecture, check_shapes, library, n_layers, suit
from .files import one_line
from .formats import State, fold_layer_scale
from .prompts import CLIPS, CONTEXT_LENGTH, UserError, Words
from .towers import Encodes, Tower, register


class OpenCLIP(nn.Module):
    """What the methods use of ``clip.model.CLIP``, in float32, in eval mode, with ``words`` and ``text_tower``.

    Args:
        state: the tensors by open_clip's names.
        path: of the weights; a tokenizer beside them counts before the one that the config names.
    Raises:
        UserError: a tensor is missing, unknown or of another shape, the config asks for what is not computed, or a
            tokenizer or config cannot be had.
    """

    def __init__(self, state: State, architecture: Architecture, path: Path) -> None:
        super().__init__()
        config = architecture.foreign or {}
        image = {**config["vision_cfg"], "timm_model_pretrained": False}
        text = {**config["text_cfg"], "hf_model_pretrained": False, "output_tokens": False}
        self.words = _words(text, path.parent)
        if name := text.get("hf_model_name"):  # refuses a repository that brings code of its own
            with _saying(f"cannot get the config of the text tower '{name}'"):
                library("transformers").AutoConfig.from_pretrained(name, trust_remote_code=False)
        models, quick = library("open_clip").model, architecture.activation == "quickgelu"
        theirs = models.CustomTextCLIP(config["embed_dim"], image, text, quick_gelu=quick).eval()
        unused = ("logit_bias", "embeddings.position_ids")
        state = models.convert_to_custom_text_state_dict({k: x for k, x in state.items() if not k.endswith(unused)})
        if "logit_scale" in state and state["logit_scale"].numel() == 1:
            state["logit_scale"] = state["logit_scale"].reshape(theirs.logit_scale.shape)
        with _saying(f"'{path}' is not the CLIP of {architecture.source}"):
            check_shapes(theirs, state)
        theirs.load_state_dict(state)
        self.logit_scale = nn.Parameter(theirs.logit_scale.detach().reshape(()))
        self.text_tower = TextTower(theirs.text, self.words)
        if isinstance(theirs.visual, models.TimmModel):
            self.visual: nn.Module = Timm(theirs.visual, image["timm_model_name"], config["embed_dim"])
        else:
            self.visual = _vit(theirs.visual, architecture)

    @property
    def dtype(self) -> torch.dtype:
        return self.logit_scale.dtype

    @property
    def token_embedding(self) -> nn.Embedding:
        return self.text_tower.table

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(image)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text_tower.text(tokens)


class TextTower(nn.Module):
    """A text tower of open_clip on embeddings."""

    reads_dtype = True

    def __init__(self, text: Any, words: Words) -> None:
        super().__init__()
        self.text, self.words = text, words
        self.filler = min({0, 1, 2, 3} - {*words.start, words.end, words.pad})

    @property
    def table(self) -> nn.Embedding:
        hugging_face = hasattr(self.text, "pooler")
        return self.text.transformer.get_input_embeddings() if hugging_face else self.text.token_embedding

    def forward(self, part: str, *args: Tensor) -> Tensor:
        """As of the text tower here; ``part`` is plain_features."""
        return getattr(self, part)(*args)

    def plain_features(self, x: Tensor, end: Tensor) -> Tensor:
        """x [prompts, length, d], ``end`` [prompts] the place of the last token -> features [prompts, d_out].

        The tokens tell the tower where a prompt ends; what stands in front of the end is in x alone.
        """
        place, end = torch.arange(x.shape[1], device=x.device), end[:, None]
        tokens = torch.full(x.shape[:2], self.words.pad, device=x.device)
        tokens = tokens.masked_fill(place < end, self.filler).masked_fill(place == end, self.words.end)
        handle = self.table.register_forward_hook(lambda *_: x)
        try:
            return self.text(tokens)
        finally:
            handle.remove()


class Timm(nn.Module):
    """An image tower of timm as open_clip wraps it."""

    def __init__(self, visual: Any, name: str, output_dim: int) -> None:
        super().__init__()
        self.trunk, self.head, self.name = visual.trunk, visual.head, name
        self.input_resolution, self.output_dim = visual.image_size[0], output_dim
        if getattr(self.trunk, "output_fmt", "NCHW") == "NHWC":
            raise UserError(f"its image tower, timm's {name}, has channels last, which is not computed here")

    @property
    def conv1(self) -> nn.Module:
        return next(module for module in self.modules() if isinstance(module, nn.Conv2d))

    def extra_repr(self) -> str:
        """Kept features are told apart by it, where weights and layers are the same."""
        return self.name

    def forward(self, image: Tensor) -> Tensor:
        return self.encode(image, local=False)[0]

    def encode(self, image: Tensor, local: bool) -> tuple[Tensor, Tensor]:
        """pooled [batch, d], local [batch, M, d]; with ``local=False`` M = 0."""
        x = self.trunk.forward_features(image)  # [batch, others + M, c] or [batch, c, h, w]
        pooled, others = self._pool(x), getattr(self.trunk, "num_prefix_tokens", 0)
        if not local:
            return pooled, pooled[:, None][:, :0]
        if x.dim() == 4:
            each = x.flatten(2).transpose(1, 2).flatten(0, 1)[:, :, None, None]
        else:  # in the place of the class token too, if there is one
            each = x[:, others:].flatten(0, 1)[:, None].expand(-1, 1 + others, -1)
        return pooled, self._pool(each).unflatten(0, (len(x), -1))

    def _pool(self, x: Tensor) -> Tensor:
        return self.head(self.trunk.forward_head(x))


TIMM = register(Tower("a tower of timm", Timm, Encodes))


def _vit(theirs: Any, architecture: Architecture) -> VisionTransformer:
    """open_clip's ViT as clip's, which takes tokens."""
    state: State = dict(theirs.state_dict())
    if "class_embedding" not in state:
        raise UserError("its image tower is a ResNet beside a text tower of another library; not computed here")
    fold_layer_scale(state)
    layers, (width, heads) = n_layers(state, "transformer.resblocks"), architecture.image
    visual = VisionTransformer(theirs.image_size[0], theirs.patch_size[0], width, layers, heads, theirs.output_dim)
    suit(visual, state, architecture.activation)
    check_shapes(visual, state)
    visual.load_state_dict(state)
    return visual.eval()


def _words(text: Mapping[str, Any], folder: Path) -> Words:
    """The tokenizer of an open_clip ``text_cfg``; CLIP's, if it names none."""
    length, name = text.get("context_length", CONTEXT_LENGTH), text.get("hf_tokenizer_name")
    if not name:
        return CLIPS._replace(length=length)
    options = text.get("tokenizer_kwargs") or {}
    if text.get("tokenizer_mode") or not options.keys() <= {"clean"}:
        raise UserError(f"its tokenizer has the options {options or text['tokenizer_mode']}, not computed here")
    source = folder if (folder / "tokenizer_config.json").is_file() else name
    open_clip = library("open_clip")
    with _saying(f"cannot get the tokenizer '{source}'"):
        theirs = open_clip.tokenizer.HFTokenizer(str(source), length, **options, trust_remote_code=False)
        whole, clean = theirs.tokenizer, theirs.clean_fn
        *start, end = whole("").input_ids

    def encode(words: str) -> list[int]:
        return whole(clean(words), add_special_tokens=False).input_ids

    return Words(encode, tuple(start), end, whole.pad_token_id, length)


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Raises UserError, a line that begins with ``what``, for any exception."""
    try:
        yield
    except Exception as error:  # of open_clip, transformers and huggingface_hub
        raise UserError(f"{what}: {one_line(error)}") from error
