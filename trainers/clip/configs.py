"""What is said of a model beside its weights: by open_clip's name of its architecture, or by a library's config."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from .architecture import HEAD, Architecture, library
from .prompts import CONTEXT_LENGTH, EOT, UserError

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
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{source} is no config of open_clip: {type(error).__name__} {error}") from None


HF_ACTIVATIONS = {"quick_gelu": "quickgelu", "gelu": "gelu"}
HF_NEUTRAL = {"layer_norm_eps": 1e-5, "num_channels": 3}
HF_RESAMPLING = {None: None, 0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def of_hugging_face(config: Mapping[str, Any], pictures: Mapping[str, Any], source: str) -> Architecture:
    """What a CLIPModel's config.json says, and its preprocessor_config.json; what they leave out is CLIPConfig's.

    Raises:
        UserError: it is not understood, or asks for what is not computed here.
    """
    try:
        if (kind := config.get("model_type")) != "clip":
            why = ": its text tower is not causal; SigLIP is read in open_clip's form" if "siglip" in str(kind) else ""
            raise UserError(f"{source} is of a model of type {kind!r}, which is not computed here{why}")
        towers, defaults, parts = [], {"vision": (768, 12), "text": (512, 8)}, {}
        for part, (width, heads) in defaults.items():
            given = config.get(f"{part}_config_dict")  # where it is there, it is the whole config
            parts[part] = own = (config.get(f"{part}_config") or {}) if given is None else given
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
        said = {"resample": pictures.get("resample"), "do_normalize": pictures.get("do_normalize")}
        if said["resample"] not in HF_RESAMPLING or said["do_normalize"] not in (None, True):
            raise UserError(f"beside {source}, pictures have {said}, which is not computed here")
        size = pictures.get("crop_size") or pictures.get("size") or parts["vision"].get("image_size")
        if isinstance(size, dict):
            size = [size[side] if side in size else size["shortest_edge"] for side in ("height", "width")]
        given = _input(size, pictures, "image_mean", "image_std", HF_RESAMPLING[said["resample"]])
        return Architecture(source, HF_ACTIVATIONS[activation], tuple(image), tuple(text), True, given)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
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
