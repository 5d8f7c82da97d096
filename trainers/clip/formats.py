"""State dicts of other libraries in OpenAI's names: open_clip's, also with a custom text tower, and Hugging Face's.

A format is recognised by the names of its tensors, whatever wrapped them. Its table turns their names into OpenAI's.
What is written otherwise is brought to OpenAI's form: separate queries, keys and values, projections as layers, and
LayerScale, which goes into the weights in front of it. ``logit_bias`` is left out: it adds one number to the logits of
all classes, which changes neither probabilities nor gradients.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .prompts import UserError

WRAPPERS = re.compile(r"((module|model|clip|clip_model|_orig_mod)\.)*")  # of DDP, Lightning, one's own, torch.compile
State = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """How a library names CLIP's tensors.

    Attributes:
        marks: names of tensors; any of them tells the format.
        names: parts of names and OpenAI's for them, replaced one after another.
        ignored: names of tensors that hold no weights.
    """

    what: str
    marks: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset({"input_resolution", "context_length", "vocab_size", "attn_mask", "logit_bias"})


OPENAI = Format("OpenAI's and open_clip's names", ("token_embedding.weight", "visual.conv1.weight"))
CUSTOM_TEXT = Format(
    "open_clip's names with a custom text tower",
    (
        "text.token_embedding.weight",
        "text.transformer.embeddings.word_embeddings.weight",  # BERT's and RoBERTa's
        "text.transformer.embed_tokens.weight",  # T5's and NLLB's
    ),
    {"text.": ""},
)
HUGGING_FACE = Format(
    "Hugging Face's names",
    ("text_model.embeddings.token_embedding.weight", "vision_model.embeddings.patch_embedding.weight"),
    {
        "text_model.embeddings.token_embedding.": "token_embedding.",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.encoder.layers.": "transformer.resblocks.",
        "text_model.final_layer_norm.": "ln_final.",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.": "visual.conv1.",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm.": "visual.ln_pre.",
        "vision_model.encoder.layers.": "visual.transformer.resblocks.",
        "vision_model.post_layernorm.": "visual.ln_post.",
        "visual_projection.": "visual.proj.",
        ".layer_norm1.": ".ln_1.",
        ".layer_norm2.": ".ln_2.",
        ".self_attn.": ".attn.",
        ".mlp.fc1.": ".mlp.c_fc.",
        ".mlp.fc2.": ".mlp.c_proj.",
    },
    frozenset({"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}),
)
FORMATS = (HUGGING_FACE, CUSTOM_TEXT, OPENAI)  # OpenAI's marks are the ends of others'


def recognise(names: Collection[str]) -> tuple[Format, str]:
    """The format of a state dict, and what stands in front of its names.

    Raises:
        UserError: it is none of a CLIP, or of several.
    """
    for form in FORMATS:
        ends = {name[: -len(mark)] for mark in form.marks for name in names if name.endswith(mark)}
        found = sorted(prefix for prefix in ends if WRAPPERS.fullmatch(prefix))
        if len(found) > 1:
            raise UserError(f"it holds several models, under {some(found)}; save one of them alone")
        if found:
            return form, found[0]
    raise UserError(
        f"its {len(names)} tensors are {some(names)}; looked for "
        + ", ".join(f"'{form.marks[0]}' ({form.what})" for form in FORMATS)
    )


def converted(state: Mapping[str, Tensor]) -> tuple[Format, str, State]:
    """The format, what stood in front of the names, and the tensors by OpenAI's names.

    Raises:
        UserError: no format is recognised.
    """
    form, prefix = recognise(state)
    ours: State = {}
    for name, tensor in state.items():
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and own not in form.ignored:
            for theirs, openais in form.names.items():
                own = own.replace(theirs, openais)
            if own not in form.ignored:
                ours[own] = tensor
    _join_attention(ours)
    _plain_projections(ours)
    fold_layer_scale(ours)
    if "logit_scale" in ours and ours["logit_scale"].numel() == 1:
        ours["logit_scale"] = ours["logit_scale"].reshape(())
    return form, prefix, ours


def _join_attention(state: State) -> None:
    """Queries, keys and values become the parts of one weight, and of one bias."""
    for name in [name for name in state if ".attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if all(part in state for part in parts):
            state[name.replace(".q_proj.", ".in_proj_")] = torch.cat([state.pop(part) for part in parts])


def _plain_projections(state: State) -> None:
    """Linear layers [d, width] without bias become OpenAI's matrices [width, d]."""
    for name in ("text_projection", "visual.proj"):
        if f"{name}.weight" in state:
            state[name] = state.pop(f"{name}.weight").t()


def fold_layer_scale(state: State) -> None:
    """x + gamma * (W h + b) = x + ((gamma W) h + gamma b)."""
    for scale, layer in (("ls_1.gamma", "attn.out_proj"), ("ls_2.gamma", "mlp.c_proj")):
        for name in [name for name in state if name.endswith(scale)]:
            gamma, block = state.pop(name).double(), name.removesuffix(scale)
            for kind, factor in (("weight", gamma[:, None]), ("bias", gamma)):
                if (own := f"{block}{layer}.{kind}") in state:
                    state[own] = (state[own].double() * factor).to(state[own].dtype)


def some(names: Collection[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(f"'{name:.60}'" for name in list(names)[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "none"
