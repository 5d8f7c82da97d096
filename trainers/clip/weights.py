"""CLIP's weights: OpenAI's by name, downloaded on first use and checked by SHA-256, or a file of the user's.

State dicts are read with ``weights_only``. A TorchScript archive can run code, so it needs a hash of OpenAI's or the
user's permission. A state dict does not say the activation of its MLPs: MODEL.BACKBONE.ACTIVATION does.
"""

from __future__ import annotations

import difflib
import hashlib
import urllib.error
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from clip.clip import _MODELS as OPENAI_URLS
from clip.model import CLIP, ResidualAttentionBlock, build_model
from torch import Tensor, nn
from yacs.config import CfgNode

from .efficientnet import EFFICIENTNET
from .encoders import RESNET, VIT
from .prompts import CONTEXT_LENGTH, EOT, UserError
from .towers import Tower, tower_in

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = {"photo": ("assets/photo_clip.pt", EFFICIENTNET)}  # names of models in this repository: file, image tower
ACTIVATIONS = ("", "quickgelu", "gelu")  # "": OpenAI's, which is QuickGELU


def weights_path(cfg: CfgNode) -> Path:
    """The file of MODEL.BACKBONE.NAME, which may not be there yet for one of OpenAI's names.

    Raises:
        UserError: the name is neither one of OpenAI's or ours nor a file, or its image tower is not installed.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if not name:
        raise UserError("no backbone: give --config-file, or --backbone with a name of OpenAI's or a weights file")
    if name in OPENAI_URLS:
        root = cfg.MODEL.BACKBONE.get("CLIP_ROOT", "") or "~/.cache/clip"
        return Path(root).expanduser() / Path(OPENAI_URLS[name]).name
    if path := _find(name):
        if name in OURS:
            OURS[name][1].check()
        return path
    names = [*OPENAI_URLS, *OURS]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
    raise UserError(
        f"unknown backbone '{name}': neither a weights file (looked for {Path(name).expanduser().absolute()}) nor one "
        f"of {', '.join(names)}; the nearest is '{nearest}'. --backbone FILE says where a file has moved to"
    )


def _find(name: str) -> Path | None:
    name = OURS[name][0] if name in OURS else name
    return next((path for path in (Path(name).expanduser(), REPOSITORY / name) if path.is_file()), None)


def tower_named(name: str) -> Tower | None:
    """The image tower of one of OpenAI's names or ours; None for a file, whose content tells it."""
    if name in OPENAI_URLS:
        return RESNET if name.startswith("RN") else VIT
    return OURS[name][1] if name in OURS else None


def sha256_of(name: str) -> str:
    """SHA-256 of a backbone, by its name or its file; "" if there is no such file."""
    if name in OPENAI_URLS:
        return OPENAI_URLS[name].split("/")[-2]
    path = _find(name)
    return _sha256(path) if path else ""


def load_clip(cfg: CfgNode) -> CLIP:
    """The CLIP model of MODEL.BACKBONE.NAME, on the CPU, in eval mode, in CLIP's float16.

    Returns:
        clip.model.CLIP, with the file's hash as ``weights_sha256``; with a tower of ours as ``visual`` in float32.
    Raises:
        UserError: the weights cannot be downloaded or read, are not CLIP's, or not those of MODEL.BACKBONE.SHA256.
    """
    path = weights_path(cfg)
    url = OPENAI_URLS.get(cfg.MODEL.BACKBONE.NAME)
    if url is not None:
        _download(url, path)
    sha256, expected = _sha256(path), cfg.MODEL.BACKBONE.get("SHA256", "") or ""
    if expected not in ("", sha256):
        raise UserError(
            f"the weights '{path}' are not those that the run was trained with (SHA-256 {sha256[:12]}, "
            f"{expected[:12]} then); --backbone FILE names another file"
        )
    state_dict = _state_dict(path, sha256, cfg.MODEL.BACKBONE.get("ALLOW_TORCHSCRIPT", False))
    for name, value in state_dict.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"'{path}' is damaged: its '{name}' holds numbers that are not finite")
    try:
        model = _build(_with_all_tokens(state_dict))
        if model.positional_embedding.shape[0] != CONTEXT_LENGTH:
            raise ValueError(f"its texts have {model.positional_embedding.shape[0]} tokens, not {CONTEXT_LENGTH}")
    except UserError:
        raise
    except Exception as error:  # build_model fails in many ways on wrong shapes
        raise UserError(f"'{path}' holds no CLIP model of OpenAI's architecture: {_line(error)}") from error
    activation = cfg.MODEL.BACKBONE.get("ACTIVATION", "")
    if activation == "gelu":
        for module in model.modules():
            if isinstance(module, ResidualAttentionBlock):
                module.mlp.gelu = nn.GELU()
    elif not activation and not _is_openais(sha256) and cfg.MODEL.BACKBONE.NAME not in OURS:
        print(f"'{path}' does not say its activation: QuickGELU is assumed; MODEL.BACKBONE.ACTIVATION gelu sets GELU")
    model.weights_sha256 = sha256
    return model


def _build(state: dict[str, Tensor]) -> CLIP:
    """OpenAI's model in float16, or one with a tower of ours in float32."""
    tower = tower_in(state)
    if tower is None or tower.build is None:
        return build_model(state)
    visual = {name.removeprefix("visual."): x for name, x in state.items() if name.startswith("visual.")}
    text = {name: x for name, x in state.items() if not name.startswith("visual.")}
    length, width = text["positional_embedding"].shape
    layers = len({name.split(".")[2] for name in text if name.startswith("transformer.resblocks.")})
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
    if path.is_file() and _sha256(path) == expected:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=expected)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"cannot download CLIP's weights from {url} ({_line(error)}); get that file, SHA-256 {expected}, "
            f"by other means and put it at '{path}', or name its folder with --clip-root"
        ) from error


def _is_openais(sha256: str) -> bool:
    return any(sha256 == url.split("/")[-2] for url in OPENAI_URLS.values())


def _state_dict(path: Path, sha256: str, allow_torchscript: bool) -> dict[str, Tensor]:
    try:
        torchscript = zipfile.is_zipfile(path) and any("/code/" in n for n in zipfile.ZipFile(path).namelist())
        if torchscript and (allow_torchscript or _is_openais(sha256)):
            with warnings.catch_warnings():  # PyTorch deprecates TorchScript, OpenAI's format
                warnings.simplefilter("ignore")
                return torch.jit.load(str(path), map_location="cpu").state_dict()
        loaded = {} if torchscript else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds on damaged files
        raise UserError(f"'{path}' cannot be read as weights, it may be truncated: {_line(error)}") from error
    if torchscript:
        raise UserError(
            f"'{path}' is a TorchScript archive, not one of OpenAI's by its SHA-256, and loading it can run code; "
            "if you trust it, set MODEL.BACKBONE.ALLOW_TORCHSCRIPT True"
        )
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    items = loaded.items() if isinstance(loaded, dict) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
