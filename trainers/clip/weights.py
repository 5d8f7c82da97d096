"""CLIP's weights: OpenAI's by name, downloaded on first use and checked by SHA-256; open_clip's and Hugging Face's by
name; or a file or folder of the user's, of any of their formats.

State dicts are read with ``weights_only``, or with safetensors. A TorchScript archive can run code, so it needs a hash
of OpenAI's or the user's permission.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import urllib.error
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from clip.clip import _MODELS as OPENAI_URLS
from clip.model import CLIP
from torch import Tensor
from yacs.config import CfgNode

from . import hub
from .architecture import WIDEST, Architecture, build, by_openais_rule, check_names, library, named
from .formats import HUGGING_FACE, OPENAI, Format, State, converted, some
from .prompts import EOT, UserError

REPOSITORY = Path(__file__).resolve().parents[2]
OPENAI_SIZES = {"RN50x4": 288, "RN50x16": 384, "RN50x64": 448, "ViT-L/14@336px": 336}  # of pictures; others: 224
NESTED = ("state_dict", "model_state_dict", "model")  # what a checkpoint calls its state dict
LFS = b"version https://git-lfs"


def weights_path(cfg: CfgNode) -> Path:
    """The file of MODEL.BACKBONE.NAME, or the index of several; one that is downloaded may not be there yet.

    Raises:
        UserError: the name is neither known nor a file or folder of weights.
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
        return path
    nearest = difflib.get_close_matches(name, OPENAI_URLS, n=1, cutoff=0)[0]
    raise UserError(
        f"unknown backbone '{name}': neither a weights file (looked for {Path(name).expanduser().absolute()}) nor one "
        f"of {', '.join(OPENAI_URLS)}; the nearest is '{nearest}'. --backbone FILE says where a file has moved to; "
        "others' weights are open_clip:ARCH/TAG and hf:OWNER/NAME"
    )


def _find(name: str) -> Path | None:
    """A weights file, or that in a folder. UserError: the folder has none."""
    places = (Path(name).expanduser(), REPOSITORY / name)
    found = next((path for path in places if path.exists()), None) if name else None
    return hub.weights_in(found) if found and found.is_dir() else found


def sha256_of(name: str) -> str:
    """SHA-256 of a backbone, by its name or its file; "" if it is not there."""
    if name in OPENAI_URLS:
        return OPENAI_URLS[name].split("/")[-2]
    try:
        path = hub.find(name, download=False) if name.startswith(hub.NAMED) else _find(name)
        return _sha256(path) if path else ""
    except UserError:
        return ""


def pictures(cfg: CfgNode) -> dict[str, object]:
    """The pictures that the backbone was trained with, by the key of INPUT, as far as its name or config says.

    Raises:
        UserError: what it says is not computed here.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name in OPENAI_URLS:
        return {"INPUT.SIZE": (OPENAI_SIZES[name],) * 2} if name in OPENAI_SIZES else {}
    known = hub.stated(name, None if name.startswith(hub.NAMED) else _find(name))
    return dict(known.input) if known else {}


def load_clip(cfg: CfgNode) -> CLIP:
    """The CLIP model of MODEL.BACKBONE.NAME, on the CPU, in eval mode, in the weights' precision: half, or float32.

    Returns:
        clip.model.CLIP, with the file's hash as ``weights_sha256``, and ``plain_text``: MODEL.BACKBONE.PLAIN_TEXT.
    Raises:
        UserError: the weights cannot be downloaded or read, are not CLIP's, or not those of MODEL.BACKBONE.SHA256.
    """
    backbone, path = cfg.MODEL.BACKBONE, weights_path(cfg)
    url = OPENAI_URLS.get(backbone.NAME)
    if url is not None:
        _download(url, path)
    if backbone.NAME.startswith(hub.NAMED):
        path = hub.find(backbone.NAME, download=True) or path
    sha256, expected = _sha256(path), backbone.get("SHA256", "") or ""
    if expected not in ("", sha256):
        raise UserError(
            f"the weights '{path}' are not those that the run was trained with (SHA-256 {sha256[:12]}, "
            f"{expected[:12]} then); --backbone FILE names another file"
        )
    state, bare = _read(path, sha256, backbone.get("ALLOW_TORCHSCRIPT", False))
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"'{path}' is damaged: its '{name}' holds numbers that are not finite")
    form: Format | None = None
    try:
        form, prefix, ours = converted(_with_all_tokens(state))
        check_names(ours)
        architecture = _architecture(backbone, path, sha256, form, bare and not prefix, ours)
        model = build(ours, architecture)
    except Exception as error:  # wrong shapes fail in many ways
        seen = f"a CLIP in {form.what}" if form else "no format"
        if isinstance(error, Unstated):
            raise UserError(f"'{path}', {seen}, {error}") from None
        said = str(error) if isinstance(error, UserError) else _line(error)
        raise UserError(f"'{path}' holds no CLIP model that is known here (recognised: {seen}): {said}") from error
    if outside := sum(not name.startswith(prefix) for name in state):
        print(f"'{path}': {outside} tensors are left out, whose names do not begin with '{prefix}'")
    model.plain_text = backbone.get("PLAIN_TEXT", False)
    if not architecture.causal and not model.plain_text:
        raise UserError(
            f"the text tower of '{backbone.NAME}' is not causal ({architecture.source}): what all prompts share in "
            "front cannot be computed once; MODEL.BACKBONE.PLAIN_TEXT True computes all 77 tokens of each prompt"
        )
    model.weights_sha256 = sha256
    return model


class Unstated(Exception):
    """Nothing says what weights do not tell."""


def _architecture(backbone: CfgNode, path: Path, sha256: str, form: Format, bare: bool, state: State) -> Architecture:
    """What weights do not tell, from the config beside them, their name, MODEL.BACKBONE.ARCH, or OpenAI's rule.

    Args:
        bare: a state dict as OpenAI's code saves it.
    Raises:
        UserError: nothing says it, or two say different things.
    """
    openais, activation = _is_openais(sha256), backbone.get("ACTIVATION", "")
    known = None if openais else hub.stated(backbone.NAME, path, form)
    if backbone.get("ARCH", ""):
        asked = named(backbone.ARCH)
        if known and known.numbers != asked.numbers:
            raise Unstated(f"is {known.numbers} by {known.source}, and {asked.numbers} by {asked.source}")
        known = known or asked
    if known:
        return dataclasses.replace(known, activation=activation or known.activation)
    assumed = "quickgelu" if openais or (bare and form is OPENAI) else ""
    rule = by_openais_rule(state, activation or assumed)
    if rule is None or not rule.activation:
        missing = [] if rule else [f"its heads, which above a width of {WIDEST} are not 64 wide in all models"]
        missing += [] if activation or assumed else ["its activation"]
        beside = hub.CONFIG if form is HUGGING_FACE else hub.OPEN_CLIP_CONFIG
        raise Unstated(
            f"does not say {' and '.join(missing)}, and there is no {beside} beside it: set MODEL.BACKBONE.ARCH to "
            "open_clip's name of the architecture, such as ViT-B-16, or ViT-B-16-quickgelu if it has QuickGELU"
        )
    if not activation and not openais:
        print(f"'{path}' does not say its activation: QuickGELU is assumed; MODEL.BACKBONE.ACTIVATION gelu sets GELU")
    return rule


def _with_all_tokens(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Completes a token table of which the file holds only the rows of its ``token_ids``, as the embedded models' do.

    The other rows are of words that the model has not read. They are random numbers of CLIP's initial deviation, 0.02,
    that depend on nothing else (NumPy never changes this generator), so that different words stay different.
    """
    if "token_ids" not in state_dict:
        return dict(state_dict)
    rows = state_dict["token_embedding.weight"]
    bound = 0.02 * 3**0.5
    drawn = np.random.RandomState(0).uniform(-bound, bound, (EOT + 1, rows.shape[1]))
    table = torch.from_numpy(drawn).to(rows.dtype).index_copy(0, state_dict["token_ids"], rows)
    whole = {key: value for key, value in state_dict.items() if key != "token_ids"}
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


def _read(path: Path, sha256: str, allow_torchscript: bool) -> tuple[State, bool]:
    """The tensors of a file or of an index's files, and whether they are saved as OpenAI's code saves them.

    Raises:
        UserError: a file cannot be read, could run code, or does not hold what the index says.
    """
    if not path.name.endswith(hub.INDEX):
        return _read_file(path, sha256, allow_torchscript)
    state: State = {}
    for file in hub.shard_names(path):
        if not (path.parent / file).is_file():
            raise UserError(f"'{path}' names '{file}', which is not beside it")
        state |= _read_file(path.parent / file, "", False)[0]
    listed = hub.read_json(path)["weight_map"]
    if absent := [name for name in listed if name not in state]:
        raise UserError(f"'{path}' lists {len(absent)} tensors that its files do not hold: {some(absent)}")
    return state, False


def _read_file(path: Path, sha256: str, allow_torchscript: bool) -> tuple[State, bool]:
    with path.open("rb") as file:
        head = file.read(len(LFS))
    if head == LFS:
        raise UserError(f"'{path}' is a pointer of Git LFS, not the weights: 'git lfs pull' fetches them")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:  # the length of the header that follows
        safetensors = library("safetensors.torch")
        try:
            return safetensors.load_file(path), False
        except Exception as error:  # its own kinds, of damaged files
            raise UserError(f"'{path}' cannot be read as weights, it may be truncated: {_line(error)}") from error
    try:
        torchscript = zipfile.is_zipfile(path) and any("/code/" in n for n in zipfile.ZipFile(path).namelist())
        if torchscript and (allow_torchscript or _is_openais(sha256)):
            with warnings.catch_warnings():  # PyTorch deprecates TorchScript, OpenAI's format
                warnings.simplefilter("ignore")
                return torch.jit.load(str(path), map_location="cpu").state_dict(), True
        loaded = {} if torchscript else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds on damaged files
        raise UserError(f"'{path}' cannot be read as weights, it may be truncated: {_line(error)}") from error
    if torchscript:
        raise UserError(
            f"'{path}' is a TorchScript archive, not one of OpenAI's by its SHA-256, and loading it can run code; "
            "if you trust it, set MODEL.BACKBONE.ALLOW_TORCHSCRIPT True"
        )
    bare = True
    while isinstance(loaded, dict) and (key := next((k for k in NESTED if isinstance(loaded.get(k), dict)), "")):
        loaded, bare = loaded[key], bare and key == NESTED[0]
    items = loaded.items() if isinstance(loaded, dict) else ()
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}, bare


def _sha256(path: Path) -> str:
    """Of a file; of an index, of the hashes of its files, which stand in the order of their names."""
    if path.name.endswith(hub.INDEX):
        return hashlib.sha256(
            "".join(_sha256(path.parent / file) for file in hub.shard_names(path)).encode()
        ).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
