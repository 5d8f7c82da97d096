"""Weights that other libraries download and keep: open_clip:ARCH/TAG, hf:OWNER/NAME; folders, and configs in them.

The downloads, their caches and mirrors (HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE) are open_clip's and huggingface_hub's.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from .architecture import Architecture, library
from .configs import of_hugging_face, of_open_clip
from .formats import HUGGING_FACE, Format, some
from .prompts import UserError

OPEN_CLIP, HF = "open_clip:", "hf:"
NAMED = (OPEN_CLIP, HF)
INDEX = ".index.json"
HF_WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
WEIGHTS = (*OPEN_CLIP_WEIGHTS, *HF_WEIGHTS)  # the first that is there: beside open_clip's may be timm's by HF's names
CONFIG, PICTURES, OPEN_CLIP_CONFIG = "config.json", "preprocessor_config.json", "open_clip_config.json"
ENDINGS = (".safetensors", ".bin", ".pt", ".pth")


def find(name: str, download: bool) -> Path | None:
    """The weights of a name in the library's cache; without ``download`` None if they are not there.

    Raises:
        UserError: the name is unknown, its library not installed, or the download failed.
    """
    if name.startswith(HF):
        return _find_hf(_repository(name), download)
    _, tag = open_clip_configs(name)
    if not download:
        repository, _, file = tag.get("hf_hub", "").rpartition("/")
        files = [file] if file else OPEN_CLIP_WEIGHTS
        kept = (_hf_file(repository, file, False) for file in files) if repository else iter(())
        url = Path("~/.cache/clip").expanduser() / Path(tag.get("url", "")).name  # open_clip's
        return next(filter(None, kept), url if url.is_file() else None)
    library("huggingface_hub.utils").logging.set_verbosity_error()
    try:
        return Path(library("open_clip").download_pretrained(tag))
    except Exception as error:  # of urllib, httpx and huggingface_hub
        raise UserError(_not_downloaded(name, str(error) or type(error).__name__)) from error


def open_clip_configs(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's config and the tag's of open_clip:ARCH/TAG. UserError: open_clip is not there, or has no such tag."""
    open_clip = library("open_clip")
    arch, _, tag = name.removeprefix(OPEN_CLIP).rpartition("/")
    arch = arch.replace("/", "-")
    found = open_clip.get_model_config(arch), open_clip.get_pretrained_cfg(arch, tag)
    if not all(found):
        known = ["/".join(pair) for pair in open_clip.list_pretrained()]
        near = difflib.get_close_matches(f"{arch}/{tag}", known, n=3, cutoff=0)
        raise UserError(f"open_clip has no weights '{arch}/{tag}'; the nearest are {', '.join(near)}")
    return found


def _repository(name: str) -> str:
    """OWNER/NAME of hf:OWNER/NAME."""
    owner, slash, repository = name.removeprefix(HF).partition("/")
    if not (owner and slash and repository) or "/" in repository:
        raise UserError(f"'{name}' is no repository: the form is {HF}OWNER/NAME")
    return f"{owner}/{repository}"


def _find_hf(repository: str, download: bool) -> Path | None:
    """The weights file of a repository, or its index; its configs are beside it."""
    if download:
        _like_weights(repository)
    found = next(filter(None, (_hf_file(repository, file, download) for file in WEIGHTS)), None)
    if found and found.name.endswith(INDEX):
        shards = [_hf_file(repository, file, download) for file in shard_names(found)]
        found = found if all(shards) else None
    if found is None and download:
        where = "the cache" if _offline() else "the repository"
        reason = f"{where} has none of {', '.join(WEIGHTS)}, or not all that an index names"
        raise UserError(_not_downloaded(f"{HF}{repository}", reason))
    return found


def _offline() -> bool:
    """HF_HUB_OFFLINE, by the library."""
    return bool(library("huggingface_hub.constants").HF_HUB_OFFLINE)


def _hf_file(repository: str, file: str, download: bool) -> Path | None:
    """A file of a repository, kept or downloaded; None if the repository is known to have no such file.

    Raises:
        UserError: the download failed.
    """
    hub, errors = library("huggingface_hub"), library("huggingface_hub.errors")
    kept = hub.try_to_load_from_cache(repository, file)
    if isinstance(kept, str):
        return Path(kept)
    if kept is hub._CACHED_NO_EXIST or not download or _offline():
        return None
    library("huggingface_hub.utils").logging.set_verbosity_error()  # it tells of each of its attempts
    try:
        return Path(hub.hf_hub_download(repository, file))
    except Exception as error:  # of httpx and of the library: not there, no connection, no access
        absent = isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError)
        if absent:
            return None
        raise UserError(_not_downloaded(f"{HF}{repository}", str(error) or type(error).__name__)) from error


def _not_downloaded(name: str, reason: str) -> str:
    said = " ".join(reason.split())[:200]
    return (
        f"cannot get the weights '{name}': {said}; HF_ENDPOINT names a mirror, and MODEL.BACKBONE.NAME also takes a "
        "file or a folder"
    )


def shard_names(index: Path) -> list[str]:
    """The files that an index names, which are beside it. UserError: it is no index, or names files elsewhere."""
    weights = read_json(index).get("weight_map")
    files = sorted(set(map(str, weights.values()))) if isinstance(weights, dict) else []
    if not files or any(Path(file).name != file or file.endswith(INDEX) for file in files):
        raise UserError(f"'{index}' is no index of weights: its 'weight_map' must name files beside it")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError if it is no JSON mapping."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"'{path}' cannot be read: it is no mapping")
    return loaded


def weights_in(folder: Path) -> Path:
    """The weights file in a folder, or its index. UserError: there is none, or several."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.name for path in folder.iterdir())
    files = [name for name in there if name.endswith(ENDINGS)]
    if len(files) != 1:
        raise UserError(
            f"the folder '{folder}' holds {'no' if not files else 'several'} weights ({some(files or there)}); looked "
            f"for {', '.join(WEIGHTS)}, or one file that ends in {', '.join(ENDINGS)}"
        )
    return folder / files[0]


def _like_weights(repository: str) -> Path | None:
    """Where a repository's weights would be, beside its configs, which are downloaded."""
    config, _, other = (_hf_file(repository, file, True) for file in (CONFIG, PICTURES, OPEN_CLIP_CONFIG))
    return other.with_name(OPEN_CLIP_WEIGHTS[0]) if other else config.with_name(HF_WEIGHTS[0]) if config else None


def stated(name: str, path: Path | None, form: Format | None = None) -> Architecture | None:
    """What the config beside the weights says, else the name; None if neither says anything.

    Args:
        path: the weights file, or None; of hf:OWNER/NAME the configs are downloaded.
        form: the weights' format, which tells whose config counts; without it their name tells.
    Raises:
        UserError: what it says is not computed here.
    """
    if name.startswith(OPEN_CLIP):
        return of_open_clip(*open_clip_configs(name), name)
    if path is None and name.startswith(HF):
        path = _like_weights(_repository(name))
    if path is None:
        return None
    theirs = path.name in HF_WEIGHTS if form is None else form is HUGGING_FACE
    config = path.parent / (CONFIG if theirs else OPEN_CLIP_CONFIG)
    if not config.is_file():
        return None
    if theirs:
        pictures = path.parent / PICTURES
        return of_hugging_face(read_json(config), read_json(pictures) if pictures.is_file() else {}, f"'{config}'")
    whole = read_json(config)
    return of_open_clip(whole.get("model_cfg", whole), whole.get("preprocess_cfg") or {}, f"'{config}'")
