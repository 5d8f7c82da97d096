"""A CLIP built of weights in OpenAI's names, and what weights do not tell: activation, heads, causality, pictures.

The shapes of the tensors tell the sizes, widths and layers. The rest is stated by a config beside the weights, by the
name of the weights, or by MODEL.BACKBONE.ARCH.
"""

from __future__ import annotations

import difflib
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
    """What weights do not tell.

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


# open_clip's names: image width and heads, text width and heads. With "-quickgelu" behind it, QuickGELU, else GELU.
ARCHITECTURES = {
    **dict.fromkeys(("RN50", "RN101"), ((64, 32), (512, 8))),
    "RN50x4": ((80, 40), (640, 10)),
    "RN50x16": ((96, 48), (768, 12)),
    "RN50x64": ((128, 64), (1024, 16)),
    **dict.fromkeys(("ViT-B-32", "ViT-B-16"), ((768, 12), (512, 8))),
    **dict.fromkeys(("ViT-L-14", "ViT-L-14-336"), ((1024, 16), (768, 12))),
    "ViT-H-14": ((1280, 16), (1024, 16)),
    "ViT-g-14": ((1408, 16), (1024, 16)),
    "ViT-bigG-14": ((1664, 16), (1280, 20)),
}


def named(arch: str) -> Architecture:
    """The architecture that MODEL.BACKBONE.ARCH names: one of ARCHITECTURES, or any of the installed open_clip's.

    Raises:
        UserError: there is none of that name.
    """
    source, plain = f"MODEL.BACKBONE.ARCH {arch}", arch.removesuffix("-quickgelu")
    if plain in ARCHITECTURES:
        return Architecture(source, "gelu" if plain == arch else "quickgelu", *ARCHITECTURES[plain])
    try:
        config = library("open_clip").get_model_config(arch)
    except UserError:
        config = None
    if config is None:
        nearest = difflib.get_close_matches(arch, ARCHITECTURES, n=1, cutoff=0)[0]
        raise UserError(
            f"unknown architecture '{arch}' (MODEL.BACKBONE.ARCH): it is none of {', '.join(ARCHITECTURES)}, each also "
            f"with -quickgelu behind it, nor one of the installed open_clip's; the nearest is '{nearest}'"
        )
    return of_open_clip(config, {}, source)


def library(name: str) -> Any:
    """open_clip, huggingface_hub or safetensors.torch. UserError: it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name.partition('.')[0]} is not installed ({error}); {LIBRARIES}") from None


# Keys of open_clip's vision_cfg and text_cfg whose every value is computed here, or is of no effect in a test. Any
# other key must be absent, null, false or 0, or have the value given here; else open_clip computes the model, if its
# image tower is timm's or has such keys alone.
COMPUTED = {
    *("image_size", "patch_size", "width", "layers", "heads", "head_width", "mlp_ratio", "ls_init_value"),
    *("patch_dropout", "context_length", "vocab_size", "output_tokens", "pos_embed_type", "no_causal_mask", "eos_id"),
}
NEUTRAL = {"pool_type": ("tok", "argmax"), "proj_type": ("linear",), "block_type": ("default",)}
TIMM_POOLS = ("abs_attn", "rot_attn")  # their positions cannot be pooled one by one


def of_open_clip(config: Mapping[str, Any], pictures: Mapping[str, Any], source: str) -> Architecture:
    """What an open_clip config says.

    Args:
        config: its ``model_cfg``.
        pictures: its ``preprocess_cfg``, or the same keys of a pretrained tag.
    Raises:
        UserError: it is not understood, or asks for what neither we nor ``foreign.py`` compute.
    """
    try:
        image, text, why = config["vision_cfg"], config["text_cfg"], ""
        for part, values in (("vision_cfg", image), ("text_cfg", text)):
            for key, value in values.items():
                if key not in COMPUTED and value and value not in NEUTRAL.get(key, ()):
                    said = f"{source} says {part}.{key} {value!r}, which is not computed here"
                    if part == "vision_cfg" and (not image.get("timm_model_name") or value in TIMM_POOLS):
                        raise UserError(said)
                    why = why or said
        texts = text.get("context_length", CONTEXT_LENGTH), text.get("vocab_size", EOT + 1)
        if not why and texts != (CONTEXT_LENGTH, EOT + 1):
            why = f"{source} says texts of {texts[0]} tokens of {texts[1]}, which are not computed here"
        if "multimodal_cfg" in config:
            raise UserError(f"{source} is of a CoCa, which is not computed here")
        resnet, width = isinstance(image.get("layers"), list), image.get("width", 768)
        heads = width * (32 if resnet else 1) // image.get("head_width", HEAD)
        size = pictures.get("size") or image.get("image_size", 224)
        return Architecture(
            source,
            "quickgelu" if config.get("quick_gelu") or pictures.get("quick_gelu") else "gelu",
            (width, heads),
            (text.get("width", 512), text.get("heads", 8)),
            not text.get("no_causal_mask"),
            _input(size, pictures, "mean", "std", pictures.get("interpolation")),
            config if why else None,
            why,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source} is no config of open_clip: {type(error).__name__} {error}") from None


HF_ACTIVATIONS = {"quick_gelu": "quickgelu", "gelu": "gelu"}
HF_NEUTRAL = {"layer_norm_eps": 1e-5, "num_channels": 3}
HF_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def of_hugging_face(config: Mapping[str, Any], pictures: Mapping[str, Any], source: str) -> Architecture:
    """What a CLIPModel's config.json says, and its preprocessor_config.json; what they leave out is CLIPConfig's.

    Raises:
        UserError: it is not understood, or asks for what is not computed here.
    """
    try:
        if (kind := config.get("model_type")) != "clip":
            why = ": its text tower is not causal; SigLIP is read in open_clip's form" if "siglip" in str(kind) else ""
            raise UserError(f"{source} is of a model of type {kind!r}, which is not computed here{why}")
        towers, defaults = [], {"vision": (768, 12), "text": (512, 8)}
        for part, (width, heads) in defaults.items():
            given = config.get(f"{part}_config_dict")  # where it is there, it is the whole config
            own = (config.get(f"{part}_config") or {}) if given is None else given
            for key, value in HF_NEUTRAL.items():
                if own.get(key, value) != value:
                    raise UserError(f"{source} says {part}_config.{key} {own[key]!r}, which is not computed here")
            towers.append(
                (
                    own.get("hidden_act", "quick_gelu"),
                    own.get("hidden_size", width),
                    own.get("num_attention_heads", heads),
                )
            )
        (activation, *image), (of_text, *text) = towers
        if activation != of_text or activation not in HF_ACTIVATIONS:
            raise UserError(
                f"{source} says hidden_act {activation!r} and, for texts, {of_text!r}; computed here is one for both, "
                f"of {', '.join(HF_ACTIVATIONS)}"
            )
        size = pictures.get("crop_size") or pictures.get("size")
        size = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
        given = _input(size, pictures, "image_mean", "image_std", HF_RESAMPLING.get(pictures.get("resample", -1)))
        return Architecture(source, HF_ACTIVATIONS[activation], tuple(image), tuple(text), True, given)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source} is no config of a CLIPModel: {type(error).__name__} {error}") from None


def _input(size: Any, pictures: Mapping[str, Any], mean: str, std: str, mode: str | None) -> dict[str, Any]:
    """The values of INPUT that a config gives."""
    found: dict[str, Any] = {}
    if size:
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        found["INPUT.SIZE"] = (int(height), int(width))
    for key, name in (("INPUT.PIXEL_MEAN", mean), ("INPUT.PIXEL_STD", std)):
        if name in pictures:
            found[key] = [float(x) for x in pictures[name]]
    return found | ({"INPUT.INTERPOLATION": mode} if mode in ("nearest", "bilinear", "bicubic") else {})


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
