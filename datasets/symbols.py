"""Symbols, the embedded default, and its four shifted test sets, drawn on first use by ``glyphs.py``."""

import shutil
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import UserError, cache_folder, locked, needs_cache


@DATASET_REGISTRY.register()
class Symbols(FewShotDataset):
    dataset_dir = "symbols"
    split_file = "split_zhou_Symbols.json"
    template = "a photo of {}."

    @classmethod
    def locate(cls, root: Path) -> tuple[Path, Path]:
        """In the cache folder, unless the data root has it."""
        root = root if (root / cls.dataset_dir).exists() else cache_folder() / "datasets"
        folder = root / cls.dataset_dir
        if not folder.exists():
            print(f"Drawing the symbols dataset into '{folder}': once, it takes half a minute", flush=True)
            with needs_cache("the symbols dataset"):
                root.mkdir(parents=True, exist_ok=True)
                draw(root)
        elif not (folder / cls.split_file).is_file():
            raise UserError(f"'{folder}' has no '{cls.split_file}'; remove the folder, and it is drawn anew")
        return folder, folder / cls.image_dir


def draw(root: Path) -> None:
    """Draws ``root/symbols``, unless another process does or has done so; then it waits for that."""
    with locked(root / ".symbols.lock") as alone:
        for left in root.glob(".symbols-*") if alone else ():  # left by a killed process
            shutil.rmtree(left, ignore_errors=True)
        if not (root / "symbols").exists():
            from .glyphs import write_symbols  # matplotlib, for its font, takes half a second of every run

            write_symbols(root)


# In place of ImageNetV2, -Sketch, -R and -A.
for _shift in ("layout", "outline", "texture", "occlusion"):
    _fields = {"test_only": True, "image_dir": f"images_{_shift}", "split_file": f"split_{_shift}.json"}
    DATASET_REGISTRY.register()(type(f"Symbols{_shift.title()}", (Symbols,), _fields))
