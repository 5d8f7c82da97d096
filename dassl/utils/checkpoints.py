"""Checkpoints in Dassl's layout: `<dir>/model.pth.tar-<epoch>`; the file `<dir>/checkpoint` names the newest.

A checkpoint is written atomically and holds tensors and plain values. The comment of its zip archive is a SHA-256.
It is read by `torch.load(weights_only=True)`. Inert stubs replace the objects that upstream pickled.
"""

import hashlib
import io
import os
import os.path as osp
import pickletools
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .tools import UserError, mkdir_if_missing, write_atomically

ROLLING_KEPT = 2
# The buffers of published prompt learners: embeddings of the class names, which ours makes anew.
CLASS_NAMES = ("token_prefix", "token_suffix")
LEARNER = "prompt_learner."
_ZIP = b"PK\3\4"  # torch.save writes a zip archive since PyTorch 1.6
_MARK = b"sha256:"  # 64 hexadecimal digits follow: the hash of all bytes before them


class Stub:
    """Replaces every class and function that a checkpoint names and `weights_only` refuses. It does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stubs(content: bytes) -> list[Any]:
    """Returns (replacement, "module.name") for each global that a checkpoint names and `weights_only` refuses."""
    file = io.BytesIO(content)
    if content.startswith(_ZIP):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    else:  # four pickles: magic number, version, machine, content; the tensors' bytes follow
        pickles = (pickletools.genops(file) for _ in range(4))
        found = [str(arg) for pickle in pickles for opcode, arg, _ in pickle if opcode.name == "GLOBAL"]
        names = [name.replace("__builtin__ ", "builtins ").replace(" ", ".", 1) for name in found]
    return [((lambda *_: {}) if name == "collections.defaultdict" else Stub, name) for name in names]


def load_checkpoint(fpath: str) -> dict[str, Any]:
    """Reads the dictionary in a checkpoint onto the CPU. No code in the file is run.

    The names in its ``state_dict`` are without the prefix that nn.DataParallel adds.

    Raises:
        UserError: the file is missing, truncated, altered or not a checkpoint. The message names `fpath`.
    """
    if not osp.isfile(fpath):
        raise UserError(f"checkpoint not found: {fpath}")
    try:
        content = Path(fpath).read_bytes()
        if content.startswith(_ZIP):
            _check_seal(content)
        with torch.serialization.safe_globals(_stubs(content)):
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many types on damaged files
        cause = e.__context__ or e  # torch.load puts the reason into advice to load without weights_only
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise UserError(f"cannot read checkpoint {fpath}: truncated, altered or no checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{fpath} is no checkpoint: it holds a {type(checkpoint).__name__}, not a dictionary")
    if isinstance(checkpoint.get("state_dict"), dict):
        checkpoint["state_dict"] = _without_module(checkpoint["state_dict"])
    return checkpoint


def _seal(archive: bytes) -> bytes:
    """Adds the checksum to a zip archive without a comment. The archive ends with the length of its comment."""
    archive = archive[:-2] + (len(_MARK) + 64).to_bytes(2, "little") + _MARK
    return archive + hashlib.sha256(archive).hexdigest().encode()


def _check_seal(content: bytes) -> None:
    """Raises UserError unless the archive is whole and has either no comment or our checksum."""
    end = content.rfind(b"PK\5\6") + 22  # the end record has 22 bytes
    bare = content[: end - 2] + bytes(2)
    if content not in (bare, _seal(bare)):
        raise UserError("wrong checksum")


def _without_module(state_dict: Mapping[Any, Any]) -> dict[str, Any]:
    """Removes the prefix that nn.DataParallel adds to each name."""
    return {str(key).removeprefix("module."): value for key, value in state_dict.items()}


def _of_learner(state_dict: Mapping[str, Any], own: Iterable[str]) -> Mapping[str, Any]:
    """The prompt learner's part of a checkpoint of all of CLIP, for a model that is the learner alone.

    The published PLOT++ saves such checkpoints.

    Args:
        own: the names in the model's state dict.
    """
    inner = {k.removeprefix(LEARNER): v for k, v in state_dict.items() if k.startswith(LEARNER)}
    return state_dict if not inner or any(name.startswith(LEARNER) for name in own) else inner


def _write_names(fpath: str, names: Iterable[str]) -> None:
    text = "".join(f"{name}\n" for name in names)
    write_atomically(fpath, text)


def _read_names(fpath: str) -> list[str]:
    """Returns the file names in a list; [] without the list."""
    text = Path(fpath).read_text(encoding="utf-8", errors="replace") if osp.isfile(fpath) else ""
    return [osp.basename(name) for name in text.split()]


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
    rolling: bool = False,
) -> None:
    """Writes a checkpoint to `save_dir/model.pth.tar-<epoch>`.

    Args:
        state: has at least `state_dict` and `epoch`.
        is_best: also write `model-best.pth.tar`.
        remove_module_from_keys: remove the prefix of nn.DataParallel.
        model_name: the file name instead; the pointer `checkpoint` then stays.
        rolling: this checkpoint is removed once two newer rolling ones exist. The file `rolling` lists them.
    """
    mkdir_if_missing(save_dir)
    if remove_module_from_keys:
        state = {**state, "state_dict": _without_module(state["state_dict"])}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = _seal(buffer.getvalue())
    name = model_name or f"model.pth.tar-{state['epoch']}"
    # The list is written before the file: a process that is killed leaves no file that is never removed.
    rolling_names = [] if model_name else _list_rolling(save_dir, name, rolling)
    for fname in [name, *["model-best.pth.tar"] * is_best]:
        write_atomically(osp.join(save_dir, fname), content)
    if not rolling:
        print(f"Checkpoint saved to {osp.join(save_dir, name)}")
    if not model_name:
        _write_names(osp.join(save_dir, "checkpoint"), [name])
        for old in rolling_names[:-ROLLING_KEPT]:
            os.remove(osp.join(save_dir, old))


def _list_rolling(save_dir: str, newest: str, rolling: bool) -> list[str]:
    """Updates the file `rolling` and returns its names: the existing rolling checkpoints, then `newest` if rolling."""
    listed = osp.join(save_dir, "rolling")
    before = _read_names(listed)
    names = [name for name in before if name != newest and osp.isfile(osp.join(save_dir, name))]
    names += [newest] * rolling
    if names != before:
        _write_names(listed, names)
    return names


def remove_rolling(save_dir: str) -> None:
    """Removes the rolling checkpoints and their list, at the end of a training."""
    for name in [*_read_names(osp.join(save_dir, "rolling")), "rolling"]:
        with suppress(FileNotFoundError):
            os.remove(osp.join(save_dir, name))


def newest_checkpoint(fdir: str) -> str | None:
    """Returns the file name in the pointer `checkpoint`, or None without a pointer."""
    return next(iter(_read_names(osp.join(fdir, "checkpoint"))), None)


def save_interrupted(state: dict[str, Any], save_dir: str) -> str:
    """Writes a state within an epoch; returns the file name, `interrupted.pth.tar-<epochs>-<batches>`."""
    name = f"interrupted.pth.tar-{state['epoch']}-{state['trainer']['batch']}"
    save_checkpoint(state, save_dir, model_name=name)
    remove_interrupted(save_dir, but=name)
    return name


def remove_interrupted(save_dir: str, but: str = "") -> None:
    for name in os.listdir(save_dir):
        if name.startswith("interrupted.pth.tar-") and name != but:
            os.remove(osp.join(save_dir, name))


def list_checkpoints(fdir: str) -> dict[tuple[int, int], str]:
    """Returns file names by (finished epochs, batches of the next epoch). Epochs beyond the pointer's are left out."""
    found = {}
    for name in os.listdir(fdir) if osp.isdir(fdir) else []:
        if match := re.fullmatch(r"(?:model|(interrupted))\.pth\.tar-(\d+)(?(1)-(\d+))", name):
            found[int(match[2]), int(match[3] or 0)] = name
    newest = newest_checkpoint(fdir)
    last = next((epochs for (epochs, _), name in found.items() if name == newest), None)
    return found if last is None else {done: name for done, name in found.items() if done[0] <= last}


def load_weights(model: nn.Module, state_dict: Mapping[str, Any], fpath: str) -> None:
    """Calls `model.load_state_dict`, without the class names' embeddings that the model lacks.

    Raises:
        UserError: the weights do not fit. The message names `fpath`.
    """
    try:
        own = model.state_dict()
        given = _of_learner(state_dict, own)
        fitting = {k: v for k, v in given.items() if k in own or k.rpartition(".")[2] not in CLASS_NAMES}
        model.load_state_dict(fitting)
    except (RuntimeError, TypeError, AttributeError) as e:
        raise UserError(f"the weights in {fpath} do not fit the model: {' '.join(str(e).split())}") from None


def restore(
    checkpoint: Mapping[str, Any], fpath: str, model: nn.Module, optimizer: Any = None, scheduler: Any = None
) -> int:
    """Loads a checkpoint, read from `fpath`, into model, optimizer and scheduler.

    Upstream's pickled scheduler objects are replaced by `last_epoch = epoch`.

    Returns:
        The number of finished epochs.
    Raises:
        UserError: a part is missing or does not fit. The message names `fpath`.
    """
    if missing := {"state_dict", "epoch"} - set(checkpoint):
        raise UserError(f"{fpath} cannot be resumed from: it has no {' and no '.join(sorted(missing))}")
    epoch = checkpoint["epoch"]
    if type(epoch) is not int or epoch < 0:
        raise UserError(f"{fpath} cannot be resumed from: its epoch is no number")
    load_weights(model, checkpoint["state_dict"], fpath)
    try:
        if optimizer is not None and checkpoint.get("optimizer") is not None:
            optimizer.load_state_dict(checkpoint["optimizer"])
        if scheduler is not None and checkpoint.get("scheduler") is not None:
            state = checkpoint["scheduler"]
            if isinstance(state, Stub) or any(isinstance(value, Stub) for value in state.values()):
                state = {"last_epoch": epoch}
            scheduler.load_state_dict(state)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError(f"the optimizer's or the scheduler's state in {fpath} does not fit: {e}") from None
    return epoch


def resume_from_checkpoint(fdir: str, model: nn.Module, optimizer: Any = None, scheduler: Any = None) -> int:
    """Loads the newest checkpoint of `fdir`; returns the epoch to start from. Raises UserError if there is none."""
    fpath = osp.join(fdir, newest_checkpoint(fdir) or "checkpoint")
    print(f'Loading checkpoint from "{fpath}"')
    epoch = restore(load_checkpoint(fpath), fpath, model, optimizer, scheduler)
    print(f"Previous epoch: {epoch}")
    return epoch


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Loads the weights that fit by name and shape from a checkpoint or a bare state dict, and prints the others.

    Raises:
        UserError: the file is missing or damaged, or nothing in it fits.
    """
    checkpoint = load_checkpoint(weight_path)
    weights = checkpoint.get("state_dict", checkpoint)
    wanted = model.state_dict()
    given = _of_learner(_without_module(weights if isinstance(weights, dict) else {}), wanted)
    shapes = {key: value.shape for key, value in wanted.items()}
    fitting = {k: v for k, v in given.items() if isinstance(v, torch.Tensor) and shapes.get(k) == v.shape}
    if not fitting:
        raise UserError(f"nothing in {weight_path} fits the model by name and size; it has {list(given)[:5]}")
    model.load_state_dict({**wanted, **fitting})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded := [key for key in given if key not in fitting and key.rpartition(".")[2] not in CLASS_NAMES]:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")
