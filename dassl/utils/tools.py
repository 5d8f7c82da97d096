"""User errors, files, images, random seeds and a description of the machine."""

import hashlib
import json
import os
import os.path as osp
import platform
import random
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import torch
from PIL import Image


class UserError(ValueError):
    """A mistake by the user, as one clear line: what is wrong, what was looked for, what to do.

    Several mistakes are one argument each.
    """


class ImageError(UserError):
    """A picture that is missing or cannot be decoded."""


def cache_folder() -> Path:
    """The user's cache folder: $PLOT_CACHE, else plot/ in $XDG_CACHE_HOME (~/.cache)."""
    named = os.environ.get("PLOT_CACHE")
    return Path(named or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "plot")).expanduser()


def mkdir_if_missing(dirname: str) -> None:
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    items = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(items) if sort else items


def write_atomically(
    path: str | os.PathLike[str], content: str | bytes | Callable[[BinaryIO], object], replace: bool = True
) -> None:
    """Write a file beside `path` and rename it: `path` is the old file or the new one, never a part.

    Args:
        content: text, bytes, or a function that writes to the open binary file.
        replace: False keeps a `path` that exists by then, such as another process's.
    """
    # Processes on several machines may share the folder, so a process id alone is not unique.
    temporary = f"{os.fspath(path)}.tmp-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if not replace:
            with suppress(OSError):  # `path` exists, or the file system has no hard links
                os.link(temporary, path)
        if replace or not osp.exists(path):
            os.replace(temporary, path)
        _sync_folder(osp.dirname(path) or ".")
    except OSError as error:
        error.filename = error.filename or os.fspath(path)  # a full disk does not name the file
        raise
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    """Makes the new name outlast a power cut, before the caller removes an older file."""
    with suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(fpath: str) -> Any:
    with open(fpath, encoding="utf-8") as file:
        return json.load(file)


def write_json(obj: Any, fpath: str) -> None:
    mkdir_if_missing(osp.dirname(fpath))
    write_atomically(fpath, json.dumps(obj, indent=4))


MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # 178,956,970: Pillow refuses a larger picture, which may be a bomb
PLAIN_MODES = {"RGB", "L", "1", "P", "CMYK", "YCbCr"}  # Pillow converts them as one sees them


def read_image(path: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as RGB, 16-bit levels by their high byte.

    Args:
        max_pixels: raises Pillow's own limit, for the whole process.
    Raises:
        ImageError: it is missing, too large or cannot be decoded.
    """
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels // 2)
    try:
        with Image.open(path) as image:
            return as_rgb(image)
    except FileNotFoundError:
        raise ImageError(f"image not found: {path}") from None
    except Image.DecompressionBombError as e:
        reason = str(e).partition(",")[0]
        raise ImageError(f"image {path} is too large ({reason}); INPUT.MAX_PIXELS (--max-pixels) allows it") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ImageError(f"cannot decode image {path} ({reason}); replace the file or remove it") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB. ValueError: its mode is unusual and its levels do not fit, or RGB would hold one colour."""
    # Of colours of 16 bits, Pillow keeps the high bytes.
    cut = not image.mode.startswith("I") and any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    if image.mode in PLAIN_MODES and not cut:
        return image.convert("RGB")
    levels = np.asarray(image)
    if image.mode == "F" or image.mode.startswith("I"):
        low, high = levels.min(), levels.max()
        fits = 0 <= low <= high <= 255 and high > 1 if image.mode == "F" else 0 <= low <= high < 2**16
        if not fits:
            raise ValueError(f"mode {image.mode}, levels {low} to {high}: convert it to 8 bits")
        rgb = (image if image.mode == "F" else Image.fromarray((levels >> 8).astype(np.uint8))).convert("RGB")
    else:
        rgb = image.convert("RGB")
    of_one_colour = all(low == high for low, high in rgb.getextrema())  # type: ignore[misc]
    if of_one_colour and (cut or np.ptp(levels.reshape(image.width * image.height, -1), axis=0).any()):
        found = "16 bits a channel" if cut else f"levels {levels.min()} to {levels.max()}"
        raise ValueError(f"mode {image.mode}, {found}: as RGB it is of one colour")
    return rgb


def with_progress(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """A bar of tqdm's on stderr: disabled if that is no terminal, if standard output is a `Silence`, and in all but the
    first process of a run.
    """
    from tqdm import tqdm

    from dassl.extras.distributed import is_main

    shown = is_main() and sys.stderr.isatty() and not getattr(sys.stdout, "quiet", False)
    return tqdm(items, disable=not shown, **options)


def set_random_seed(seed: int) -> None:
    """Seed Python's, NumPy's (by its lowest 32 bits) and torch's generators, CUDA's included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, CUDA's included, as tensors and plain numbers."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": (version, list(words), gauss),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` returned; CUDA's states only if the number of devices is the same."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def derive_seed(*parts: int) -> int:
    """63 bits that depend on all parts and on nothing else."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """A scope in which the CPU's global generators start from `parts`. Their states are restored afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA as well
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def collect_env_info() -> str:
    """Versions and devices, one a line."""
    import torchvision

    lines = [
        f"OS: {platform.platform()}",
        f"Python: {platform.python_version()}",
        f"PyTorch: {torch.__version__}",
        f"torchvision: {torchvision.__version__}",
        f"NumPy: {np.__version__}",
        f"Pillow: {PIL.__version__}",
        f"CPUs: {os.cpu_count()} (torch threads: {torch.get_num_threads()})",
        f"CUDA: {torch.version.cuda if torch.cuda.is_available() else 'not available'}",
    ]
    lines += [f"GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return "\n".join(lines)
