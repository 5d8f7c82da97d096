"""Checkpoints in Dassl's layout: `<dir>/model.pth.tar-<epoch>`, and `<dir>/checkpoint` names the newest.

Written whole or not at all, of tensors and numbers only (`torch.load(weights_only=True)` reads them), with their
SHA-256 as the zip's comment. Read by an unpickler that runs nothing: upstream's files hold scheduler objects, which
become inert stubs.
"""

import hashlib
import io
import os
import os.path as osp
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from .tools import UserError, mkdir_if_missing, write_atomically

ROLLING_KEPT = 2
_MARK = b"sha256:"  # then 64 hexadecimal digits, of all that stands before them; upstream's files have none


class Stub:
    """Stands for any object in a pickle that is neither tensor nor plain container; calls do nothing.

    `state` is what the object would have been restored from.
    """

    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> "Stub":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __call__(self, *args: Any, **kwargs: Any) -> "Stub":
        return Stub()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    add = update = append


class _Encode:
    """How pickles of protocol 2 spell bytes. Without attributes, as the two below: a pickle may try to set some."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        return text.encode("latin1")


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        return torch._utils._rebuild_tensor_v2(*args)


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        return torch._utils._rebuild_parameter(*args)


_FUNCTIONS = {
    ("_codecs", "encode"): _Encode(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
}
_PLAIN = {t.__name__: t for t in (set, frozenset, list, dict, tuple, complex, bytes, bytearray)}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in _PLAIN:
            return _PLAIN[name]
        if module == "collections" and name in ("OrderedDict", "Counter"):
            return OrderedDict if name == "OrderedDict" else dict
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        return type(name, (Stub,), {"__module__": module})


_INERT = SimpleNamespace(
    __name__="inert_pickle",
    Unpickler=_Unpickler,
    load=lambda file, **kwargs: _Unpickler(file, **kwargs).load(),
)


def load_checkpoint(fpath: str) -> dict[str, Any]:
    """The dictionary in a checkpoint, on the CPU. No code in the file is run.

    UserError, naming `fpath`: it is missing, truncated, altered, or no checkpoint.
    """
    if not osp.isfile(fpath):
        raise UserError(f"checkpoint not found: {fpath}")
    try:
        with open(fpath, "rb") as file:
            content = file.read()
        _check_sum(content)
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.load hands TorchScript to its interpreter
                if any(osp.basename(name) == "constants.pkl" for name in archive.namelist()):
                    raise UserError("it is a TorchScript archive")
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=_INERT)
    except Exception as e:  # torch raises a dozen kinds on damaged files
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise UserError(f"cannot read checkpoint {fpath}: truncated, altered or no checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{fpath} is no checkpoint: it holds a {type(checkpoint).__name__}, not a dictionary")
    return checkpoint


def _check_sum(content: bytes) -> None:
    """UserError unless an archive ends where it says it ends and its comment, if it has one, is our checksum of it."""
    end = content.rfind(b"PK\5\6")  # the archive's last record: 22 bytes, the last two of which count the comment's
    if end < 0:
        return  # upstream's files of before PyTorch 1.6, or none at all
    length, comment = int.from_bytes(content[end + 20 : end + 22], "little"), content[end + 22 :]
    if len(comment) != length or (comment and comment != _MARK + _hexdigest(content[:-64])):
        raise UserError("its checksum is another")


def _hexdigest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _to_bytes(state: Mapping[str, Any]) -> bytes:
    """What torch.save writes, closed by its checksum: a comment, as zip archives may have one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    length = (len(_MARK) + 64).to_bytes(2, "little")
    content = buffer.getvalue()[: -len(length)] + length + _MARK  # an archive ends in the length of its comment
    return content + _hexdigest(content)


def _without_module(state_dict: Mapping[str, Any]) -> "OrderedDict[str, Any]":
    """Without the prefix that nn.DataParallel puts before each name."""
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def _write_lines(fpath: str, lines: Iterable[str]) -> None:
    write_atomically(fpath, "".join(f"{line}\n" for line in lines))


def _read_lines(fpath: str) -> list[str]:
    if not osp.isfile(fpath):
        return []
    with open(fpath, encoding="utf-8", errors="replace") as file:
        return file.read().split()


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
    rolling: bool = False,
) -> None:
    """Write `state` (with `state_dict` and `epoch`) to `save_dir/model.pth.tar-<epoch>` or `model_name`.

    `is_best` also writes `model-best.pth.tar`. A `rolling` checkpoint is removed once two newer rolling ones
    exist; the file `rolling` lists those. The pointer `checkpoint` follows the epochs, not `model_name`.
    """
    mkdir_if_missing(save_dir)
    if remove_module_from_keys:
        state = {**state, "state_dict": _without_module(state["state_dict"])}
    content = _to_bytes(state)
    name = model_name or f"model.pth.tar-{state['epoch']}"
    # Listed before it is written, so that a kill at any point leaves none that is never removed.
    rolling_names = [] if model_name else _list_rolling(save_dir, name, rolling)
    write_atomically(osp.join(save_dir, name), content)
    if not rolling:
        print(f"Checkpoint saved to {osp.join(save_dir, name)}")
    if is_best:
        write_atomically(osp.join(save_dir, "model-best.pth.tar"), content)
    if not model_name:
        _write_lines(osp.join(save_dir, "checkpoint"), [name])
        for old in rolling_names[:-ROLLING_KEPT]:
            os.remove(osp.join(save_dir, osp.basename(old)))


def _list_rolling(save_dir: str, newest: str, rolling: bool) -> list[str]:
    """The rolling checkpoints there are, and `newest` if it is to be one, as the file `rolling` now lists."""
    listed = osp.join(save_dir, "rolling")
    before = _read_lines(listed)
    names = [name for name in before if name != newest and osp.isfile(osp.join(save_dir, osp.basename(name)))]
    names += [newest] * rolling
    if names != before:
        _write_lines(listed, names)
    return names


def remove_rolling(save_dir: str) -> None:
    """The rolling checkpoints, of no use once a training has come to its end, and the file that lists them."""
    listed = osp.join(save_dir, "rolling")
    for name in [*_read_lines(listed), "rolling"]:
        if osp.isfile(file := osp.join(save_dir, osp.basename(name))):
            os.remove(file)


def newest_checkpoint(fdir: str) -> str | None:
    """The file name that the pointer in `fdir` holds; None without a pointer."""
    lines = _read_lines(osp.join(fdir, "checkpoint"))
    return osp.basename(lines[0]) if lines else None


def save_interrupted(state: dict[str, Any], save_dir: str) -> str:
    """Write `state`, of an epoch's middle, to `save_dir/interrupted.pth.tar-<epochs>-<batches>`; that file's name."""
    name = f"interrupted.pth.tar-{state['epoch']}-{state['trainer']['batch']}"
    save_checkpoint(state, save_dir, model_name=name)
    remove_interrupted(save_dir, but=name)
    return name


def remove_interrupted(save_dir: str, but: str = "") -> None:
    for name in os.listdir(save_dir):
        if name.startswith("interrupted.pth.tar-") and name != but:
            os.remove(osp.join(save_dir, name))


def list_checkpoints(fdir: str) -> dict[tuple[int, int], str]:
    """File names by what they have finished: (epochs, batches of the next). None has more epochs than the pointer's."""
    found = {}
    for name in os.listdir(fdir) if osp.isdir(fdir) else []:
        if match := re.fullmatch(r"model\.pth\.tar-(\d+)|interrupted\.pth\.tar-(\d+)-(\d+)", name):
            epochs, begun, batches = match.groups()
            found[(int(epochs), 0) if epochs else (int(begun), int(batches))] = name
    newest = newest_checkpoint(fdir)
    last = next((epochs for (epochs, batches), name in found.items() if name == newest), None)
    return found if last is None else {done: name for done, name in found.items() if done[0] <= last}


def load_weights(model: nn.Module, state_dict: Mapping[str, Any], fpath: str, strict: bool = True) -> None:
    """`model.load_state_dict`; UserError, naming `fpath`, if the weights do not fit."""
    try:
        model.load_state_dict(state_dict, strict=strict)
    except (RuntimeError, TypeError, AttributeError) as e:
        reason = " ".join(str(e).split())
        raise UserError(f"the weights in {fpath} do not fit the model: {reason}") from None


def restore(
    checkpoint: Mapping[str, Any], fpath: str, model: nn.Module, optimizer: Any = None, scheduler: Any = None
) -> int:
    """Put a checkpoint, read from `fpath`, into model, optimizer and scheduler; the epochs it has finished.

    A scheduler that upstream saved as an object is set to that number of epochs instead.
    """
    missing = {"state_dict", "epoch"} - set(checkpoint)
    if missing:
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
            if any(isinstance(value, Stub) for value in state.values()):
                state = {"last_epoch": epoch}
            scheduler.load_state_dict(state)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError(f"the optimizer's or the scheduler's state in {fpath} does not fit: {e}") from None
    return epoch


def resume_from_checkpoint(fdir: str, model: nn.Module, optimizer: Any = None, scheduler: Any = None) -> int:
    """Load the newest checkpoint of `fdir`; the epoch to start from. UserError: there is none."""
    name = newest_checkpoint(fdir)
    if name is None:
        raise UserError(f"no checkpoint to resume from: {osp.join(fdir, 'checkpoint')} is not there")
    fpath = osp.join(fdir, name)
    print(f'Loading checkpoint from "{fpath}"')
    epoch = restore(load_checkpoint(fpath), fpath, model, optimizer, scheduler)
    print(f"Previous epoch: {epoch}")
    return epoch


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Load what fits, by name and size, from a checkpoint or a bare state dict; say what was left out.

    UserError: the file is missing or damaged, or nothing in it fits.
    """
    checkpoint = load_checkpoint(weight_path)
    weights = checkpoint.get("state_dict", checkpoint)
    given = _without_module({str(key): value for key, value in weights.items()} if isinstance(weights, dict) else {})
    wanted = model.state_dict()
    fitting = {
        key: value
        for key, value in given.items()
        if key in wanted and isinstance(value, torch.Tensor) and wanted[key].shape == value.shape
    }
    if not fitting:
        raise UserError(f"nothing in {weight_path} fits the model by name and size; it has {list(given)[:5]}")
    model.load_state_dict({**wanted, **fitting})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded := [key for key in given if key not in fitting]:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")
