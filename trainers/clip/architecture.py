"""A CLIP built of weights in OpenAI's names and of an ``Architecture``, which says what the tensors do not.

The shapes of the tensors tell the sizes, widths and layers. The rest is stated by a config beside the weights, by their
name, or by MODEL.BACKBONE.ARCH: configs.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from clip.model import CLIP, ModifiedResNet, QuickGELU, ResidualAttentionBlock, VisionTransformer, convert_weights
from torch import Tensor, nn

from .formats import State, some
from .prompts import CONTEXT_LENGTH, EOT, UserError

HEAD = 64  # the width of an attention head in OpenAI's models, and in all published ones up to this width:
WIDEST = 1024
ACTIVATIONS = {"quickgelu": QuickGELU, "gelu": nn.GELU}
LIBRARIES = "it is an extra: pip install -e '.[backbones]'"


@dataclass(frozen=True)
class Architecture:
    """What the tensors do not tell.

    Attributes:
        source: who says so.
        activation: of the MLPs, one of ACTIVATIONS.
        image: width and number of heads of the image tower; of a ResNet width of the stem, and heads of the pooling.
        text: width and number of heads of the text tower.
        causal: whether a token of a text sees only those before it.
        input: the pictures that it was trained with, by the key of INPUT.
        foreign: open_clip's config of a model that open_clip alone computes, and ``why``.
    """

    source: str
    activation: str
    image: tuple[int, int]
    text: tuple[int, int]
    causal: bool = True
    input: Mapping[str, Any] = field(default_factory=dict)
    foreign: Mapping[str, Any] | None = None
    why: str = ""

    @property
    def numbers(self) -> tuple[object, ...]:
        return self.activation, self.image, self.text, self.causal


def library(name: str) -> Any:
    """open_clip, huggingface_hub or safetensors.torch. UserError: it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name.partition('.')[0]} is not installed ({error}); {LIBRARIES}") from None


def by_openais_rule(state: State, activation: str) -> Architecture | None:
    """A head for each 64 of the width, as in all published models up to 1,024; None for wider ones."""
    width, text = state["visual.conv1.weight"].shape[0], state["ln_final.weight"].shape[0]
    resnet = "visual.proj" not in state
    width *= 2 if resnet else 1  # the stem's first layer has half of the width
    image_heads, text_heads = width * (32 if resnet else 1) // HEAD, text // HEAD
    if max(width, text) > WIDEST or not image_heads or not text_heads or width % image_heads or text % text_heads:
        return None
    return Architecture("OpenAI's rule", activation, (width, image_heads), (text, text_heads))


NEEDED = {
    "": ("token_embedding.weight", "positional_embedding", "ln_final.weight", "text_projection", "logit_scale"),
    "visual.proj": ("visual.conv1.weight", "visual.positional_embedding"),
    "visual.attnpool.q_proj.weight": ("visual.conv1.weight", "visual.attnpool.positional_embedding"),
}


def check_names(state: State) -> None:
    """Raises UserError if what tells the sizes is not there."""
    image = next((name for name in NEEDED if name in state), "visual.proj")
    missing = [name for name in (*NEEDED[""], image, *NEEDED[image]) if name not in state]
    roots = ("visual.", "transformer.resblocks.", "token_embedding.", "ln_final.", "positional_", "text_proj", "logit_")
    unknown = [name for name in state if not name.startswith(roots)]
    if missing:
        raise UserError(f"missing: {some(missing)}; unknown: {some(unknown)}")


def build(state: State, architecture: Architecture) -> CLIP:
    """The CLIP of a state dict in OpenAI's names, on the CPU, in eval mode; half precision as CLIP has it, or float32.

    Where OpenAI's rule gives the heads, it draws random weights that the file's replace, as ``clip.build_model`` does:
    a seed's contexts depend on them.

    Raises:
        UserError: a tensor is missing, unknown or of another shape.
    """
    check_names(state)
    resnet = "visual.proj" not in state
    (image_width, image_heads), (text_width, text_heads) = architecture.image, architecture.text
    _check_widths(state, architecture, resnet)
    context, vocabulary = state["positional_embedding"].shape[0], state["token_embedding.weight"].shape[0]
    if (context, vocabulary) != (CONTEXT_LENGTH, EOT + 1):
        raise UserError(
            f"its texts have {context} tokens of {vocabulary}, CLIP's {CONTEXT_LENGTH} of {EOT + 1}: it has another "
            "tokenizer, for which prompts are not made here"
        )
    places = state["visual.attnpool.positional_embedding" if resnet else "visual.positional_embedding"].shape[0]
    grid, patch = round((places - 1) ** 0.5), 32 if resnet else state["visual.conv1.weight"].shape[-1]
    d, size = state["text_projection"].shape[-1], grid * patch
    texts = (context, vocabulary, text_width, text_heads, n_layers(state, "transformer.resblocks"))
    layers: Any = (
        tuple(n_layers(state, f"visual.layer{i}") for i in (1, 2, 3, 4))
        if resnet
        else n_layers(state, "visual.transformer.resblocks")
    )
    rule = by_openais_rule(state, architecture.activation)
    drawn = rule is not None and (rule.image, rule.text) == (architecture.image, architecture.text)
    with torch.device("cpu" if drawn else "meta"):
        if drawn:
            model = CLIP(d, size, layers, image_width, None if resnet else patch, *texts)
        else:
            model = CLIP(d, 32, 1, HEAD, 32, *texts)  # its image tower is replaced
            model.visual = (
                ModifiedResNet(layers, d, image_heads, size, image_width)
                if resnet
                else VisionTransformer(size, patch, image_width, layers, image_heads, d)
            )
        suit(model, state, architecture.activation)
    mask = model.build_attention_mask() if architecture.causal else None
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    check_shapes(model, state)
    model.load_state_dict(state, assign=True)
    half = state["text_projection"].dtype == torch.float16
    model.float().eval()
    if half:
        convert_weights(model)
    return model


def n_layers(state: State, prefix: str) -> int:
    return len({name.removeprefix(f"{prefix}.").partition(".")[0] for name in state if name.startswith(f"{prefix}.")})


def _check_widths(state: State, architecture: Architecture, resnet: bool) -> None:
    found = state["visual.conv1.weight"].shape[0] * (2 if resnet else 1), state["ln_final.weight"].shape[0]
    stated = architecture.image[0], architecture.text[0]
    if found != stated:
        raise UserError(
            f"its image and text towers are {found[0]} and {found[1]} wide, but {architecture.source} says "
            f"{stated[0]} and {stated[1]}"
        )


def suit(model: nn.Module, state: State, activation: str) -> None:
    """Gives the MLPs their activation and their hidden width, which is not always four times the tower's."""
    for name, block in model.named_modules():
        if isinstance(block, ResidualAttentionBlock):
            hidden = state.get(f"{name}.mlp.c_fc.bias", block.mlp.c_fc.bias).shape[0]
            width = block.attn.embed_dim
            if hidden != 4 * width:
                block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
            block.mlp.gelu = ACTIVATIONS[activation]()


def check_shapes(model: nn.Module, state: State) -> None:
    """Raises UserError if a tensor is missing, unknown or of another shape."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in expected:
        if name.endswith("num_batches_tracked"):  # frozen batch norms have none
            state.setdefault(name, torch.zeros((), dtype=torch.long))
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    other = [
        f"'{name}' is {list(state[name].shape)} of {state[name].dtype}, not {list(shape)}"
        for name, shape in expected.items()
        if name in state
        and (state[name].shape != shape or not (_is_float(state[name]) or name.endswith("num_batches_tracked")))
    ]
    if missing or unknown or other:
        shapes = f"; {len(other)} of another shape, such as {other[0]}" if other else ""
        raise UserError(f"missing: {some(missing)}; unknown: {some(unknown)}{shapes}")


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided
