"""CLIP's weights: OpenAI's by name, downloaded on first use and checked by SHA-256; open_clip's and Hugging Face's by
name; or a file or folder of the user's, of any of their formats.

A TorchScript archive can run code, so it needs a hash of OpenAI's or the user's permission.
"""

from __future__ import annotations

import dataclasses
import difflib
import urllib.error
from pathlib import Path

import numpy as np
import torch
from clip.clip import _MODELS as OPENAI_URLS
from clip.model import CLIP, convert_weights
from torch import Tensor, nn
from yacs.config import CfgNode

from . import hub
from .architecture import WIDEST, Architecture, build, by_openais_rule, check_names
from .configs import named
from .efficientnet import EFFICIENTNET
from .encoders import RESNET, VIT
from .files import one_line, read
from .files import sha256 as sha256_of_file
from .foreign import OpenCLIP
from .formats import HUGGING_FACE, Format, State, converted
from .prompts import CONTEXT_LENGTH, EOT, UserError
from .towers import Tower, tower_in, tower_of

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = {"photo": ("assets/photo_clip.pt", EFFICIENTNET)}  # names of models in this repository: file, image tower
OPENAI_ALONE = "input_resolution"  # a tensor in OpenAI's archives, and not in open_clip's files
OPENAI_SIZES = {"RN50x4": 288, "RN50x16": 384, "RN50x64": 448, "ViT-L/14@336px": 336}  # of pictures; others: 224


def weights_path(cfg: CfgNode) -> Path:
    """The file of MODEL.BACKBONE.NAME, or the index of several; one that is downloaded may not be there yet.

    Raises:
        UserError: the name is neither known nor a file or folder of weights, or what it needs is not installed.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if not name:
        raise UserError("no backbone: give --config-file, or --backbone with a name of OpenAI's or a weights file")
    if name in OPENAI_URLS:
        root = cfg.MODEL.BACKBONE.get("CLIP_ROOT", "") or "~/.cache/clip"
        return Path(root).expanduser() / Path(OPENAI_URLS[name]).name
    if name.startswith(hub.NAMED):
        return hub.find(name, download=False) or Path(name)
    if path := _find(name):
        if name in OURS:
            OURS[name][1].check()
        return path
    names = [*OPENAI_URLS, *OURS]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
    raise UserError(
        f"unknown backbone '{name}': neither a weights file (looked for {Path(name).expanduser().absolute()}) nor one "
        f"of {', '.join(names)}; the nearest is '{nearest}'. --backbone FILE says where a file has moved to; others' "
        "weights are open_clip:ARCH/TAG and hf:OWNER/NAME"
    )


def _find(name: str) -> Path | None:
    """A weights file, or that in a folder. UserError: the folder has none."""
    name = OURS[name][0] if name in OURS else name
    places = (Path(name).expanduser(), REPOSITORY / name)
    found = next((path for path in places if path.exists()), None) if name else None
    return hub.weights_in(found) if found and found.is_dir() else found


def tower_named(name: str) -> Tower | None:
    """The image tower of one of OpenAI's names or ours; None for a file, whose content tells it."""
    if name in OPENAI_URLS:
        return RESNET if name.startswith("RN") else VIT
    return OURS[name][1] if name in OURS else None


def sha256_of(name: str) -> str:
    """SHA-256 of a backbone, by its name or its file; "" if it is not there."""
    if name in OPENAI_URLS:
        return OPENAI_URLS[name].split("/")[-2]
    try:
        path = hub.find(name, download=False) if name.startswith(hub.NAMED) else _find(name)
        return sha256_of_file(path) if path else ""
    except UserError:
        return ""


def pictures(cfg: CfgNode) -> dict[str, object]:
    """The pictures that the backbone was trained with, by the key of INPUT, as far as its name or config says.

    Raises:
        UserError: what it says is not computed here, or not without MODEL.BACKBONE.PLAIN_TEXT.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name in OPENAI_URLS:
        return {"INPUT.SIZE": (OPENAI_SIZES[name],) * 2} if name in OPENAI_SIZES else {}
    known = hub.stated(name, None if name.startswith(hub.NAMED) else _find(name))
    if known and (needs := _needs_plain_text(cfg.MODEL.BACKBONE, known)):
        raise UserError(needs)
    return dict(known.input) if known else {}


def load_clip(cfg: CfgNode) -> CLIP:
    """The CLIP model of MODEL.BACKBONE.NAME, on the CPU, in eval mode, in the weights' precision: half, or float32.

    Returns:
        clip.model.CLIP, with the file's hash as ``weights_sha256``, and ``plain_text``: MODEL.BACKBONE.PLAIN_TEXT.
        ``stored_tokens`` are the tokens that the file has, if not all. With a tower of ours as ``visual`` it is in
        float32. A model that open_clip alone computes is an ``OpenCLIP``.
    Raises:
        UserError: the weights cannot be downloaded or read, are not CLIP's, or not those of MODEL.BACKBONE.SHA256.
    """
    backbone, path = cfg.MODEL.BACKBONE, weights_path(cfg)
    url = OPENAI_URLS.get(backbone.NAME)
    if url is not None:
        _download(url, path)
    if backbone.NAME.startswith(hub.NAMED):
        path = hub.find(backbone.NAME, download=True) or path
    sha256, expected = sha256_of_file(path), backbone.get("SHA256", "") or ""
    if expected not in ("", sha256):
        raise UserError(
            f"the weights '{path}' are not those that the run was trained with (SHA-256 {sha256[:12]}, "
            f"{expected[:12]} then); --backbone FILE names another file"
        )
    state = read(path, backbone.get("ALLOW_TORCHSCRIPT", False) or _is_openais(sha256))
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"'{path}' is damaged: its '{name}' holds numbers that are not finite")
    try:
        whole = _with_all_tokens(state)
        tower = tower_in(whole)
        openais = _is_openais(sha256) or OPENAI_ALONE in state or "token_ids" in state  # ours are as OpenAI's
        model = _with_our_tower(whole, tower) if tower else _of_any_format(backbone, path, whole, openais)
    except UserError:
        raise
    except Exception as error:  # wrong shapes fail in many ways
        raise UserError(f"'{path}' holds no CLIP model that is known here: {one_line(error)}") from error
    model.plain_text = backbone.get("PLAIN_TEXT", False)
    model.weights_sha256, model.stored_tokens = sha256, state.get("token_ids")
    return model


def _of_any_format(backbone: CfgNode, path: Path, state: State, openais: bool) -> CLIP:
    """The CLIP of a state dict of OpenAI's, open_clip's or Hugging Face's.

    Args:
        openais: of OpenAI's, whose activation is QuickGELU.
    Raises:
        UserError: it is none, or nothing says what weights do not tell.
    """
    form: Format | None = None
    try:
        form, prefix, ours = converted(state)
        architecture = _architecture(backbone, path, form, openais, ours)
        needs = _needs_plain_text(backbone, architecture)
        model = None if needs or architecture.foreign else build(ours, architecture)
    except Exception as error:  # wrong shapes fail in many ways
        seen = f"a CLIP in {form.what}" if form else "no format"
        if isinstance(error, Unstated):
            raise UserError(f"'{path}', {seen}, {error}") from None
        said = str(error) if isinstance(error, UserError) else one_line(error)
        raise UserError(f"'{path}' holds no CLIP model that is known here (recognised: {seen}): {said}") from error
    if outside := sum(not name.startswith(prefix) for name in state):
        print(f"'{path}': {outside} tensors are left out, whose names do not begin with '{prefix}'")
    if needs:
        raise UserError(needs)
    if model is None:
        own = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
        return OpenCLIP(own, architecture, path)
    return model


class Unstated(Exception):
    """Nothing says what weights do not tell."""


def _needs_plain_text(backbone: CfgNode, architecture: Architecture) -> str:
    """Why the text tower needs MODEL.BACKBONE.PLAIN_TEXT; "" if it does not, or has it."""
    if (architecture.foreign is None and architecture.causal) or backbone.get("PLAIN_TEXT", False):
        return ""
    not_causal = (
        f"the text tower of '{backbone.NAME}' is not causal ({architecture.source}): what all prompts share in front "
        "cannot be computed once"
    )
    return (
        f"{architecture.why if architecture.causal else not_causal}; MODEL.BACKBONE.PLAIN_TEXT True computes all "
        f"tokens of each prompt{'' if architecture.foreign is None else ', by modules of open_clip'}"
    )


def _architecture(backbone: CfgNode, path: Path, form: Format, openais: bool, state: State) -> Architecture:
    """What weights do not tell, from the config beside them, their name, MODEL.BACKBONE.ARCH, or OpenAI's rule.

    Args:
        openais: of OpenAI's, whose activation is QuickGELU.
    Raises:
        UserError: nothing says it, or two say different things.
    """
    activation = backbone.get("ACTIVATION", "")
    known = None if openais else hub.stated(backbone.NAME, path, form)
    if backbone.get("ARCH", ""):
        asked = named(backbone.ARCH)
        if known and known.numbers != asked.numbers:
            raise Unstated(f"is {known.numbers} by {known.source}, and {asked.numbers} by {asked.source}")
        known = known or asked
    if known:
        return dataclasses.replace(known, activation=activation or known.activation)
    check_names(state)
    rule = by_openais_rule(state, activation or ("quickgelu" if openais else ""))
    if rule is None or not rule.activation:
        missing = [] if rule else [f"its heads, which above a width of {WIDEST} are not 64 wide in all models"]
        missing += [] if activation or openais else ["its activation"]
        beside = hub.CONFIG if form is HUGGING_FACE else hub.OPEN_CLIP_CONFIG
        raise Unstated(
            f"does not say {' and '.join(missing)}, and there is no {beside} beside it: set MODEL.BACKBONE.ARCH to "
            "open_clip's name of the architecture, such as ViT-B-16, or ViT-B-16-quickgelu if it has QuickGELU"
        )
    if not openais:
        print(f"'{path}' does not say its heads: they are taken as 64 wide; MODEL.BACKBONE.ARCH says others")
    return rule


def in_half(model: CLIP) -> None:
    """Converts a CLIP to its half precision; one with a tower of ours, or computed by open_clip, stays in float32."""
    if isinstance(model, CLIP) and tower_of(model.visual).build is None:
        convert_weights(model)


def _with_our_tower(state: State, tower: Tower) -> CLIP:
    """CLIP's text tower in float32, and an image tower of ours."""
    assert tower.build is not None
    visual = {name.removeprefix("visual."): x for name, x in state.items() if name.startswith("visual.")}
    text = {name: x for name, x in state.items() if not name.startswith("visual.")}
    length, width = text["positional_embedding"].shape
    layers = len({name.split(".")[2] for name in text if name.startswith("transformer.resblocks.")})
    if length != CONTEXT_LENGTH:
        raise ValueError(f"its texts have {length} tokens, not {CONTEXT_LENGTH}")
    vocabulary, d = len(text["token_embedding.weight"]), text["text_projection"].shape[1]
    model = CLIP(d, 32, 0, 64, 32, length, vocabulary, width, width // 64, layers)  # its own ViT is replaced
    model.visual = nn.Identity()
    model.load_state_dict(text)
    model.visual = tower.build(visual)
    if model.visual.output_dim != d:
        raise ValueError(f"its texts have {d} dimensions, its pictures {model.visual.output_dim}")
    return model.eval()


def _with_all_tokens(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Completes a token table of which the file holds only the rows of its ``token_ids``, as the embedded models' do.

    The other rows are of words that the model has not read. A file's ``token_rest`` [d] is each of them. Without it
    they are random numbers of CLIP's initial deviation, 0.02, that depend on nothing else (NumPy never changes this
    generator), so that different words stay different.
    """
    if "token_ids" not in state_dict:
        return dict(state_dict)
    rows = state_dict["token_embedding.weight"]
    bound = 0.02 * 3**0.5
    if "token_rest" in state_dict:
        table = state_dict["token_rest"].to(rows.dtype).repeat(EOT + 1, 1)
    else:
        table = torch.from_numpy(np.random.RandomState(0).uniform(-bound, bound, (EOT + 1, rows.shape[1])))
    table = table.to(rows.dtype).index_copy(0, state_dict["token_ids"], rows)
    whole = {key: value for key, value in state_dict.items() if key not in ("token_ids", "token_rest")}
    return whole | {"token_embedding.weight": table}


def _download(url: str, path: Path) -> None:
    expected = url.split("/")[-2]
    if path.is_file() and sha256_of_file(path) == expected:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=expected)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"cannot download CLIP's weights from {url} ({one_line(error)}); get that file, SHA-256 {expected}, "
            f"by other means and put it at '{path}', or name its folder with --clip-root"
        ) from error


def _is_openais(sha256: str) -> bool:
    return any(sha256 == url.split("/")[-2] for url in OPENAI_URLS.values())
