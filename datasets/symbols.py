"""Symbols, the embedded default, and its four shifted test sets, drawn on first use by ``glyphs.py``."""

import shutil
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, UserError
from .files import locked


@DATASET_REGISTRY.register()
class Symbols(FewShotDataset):
    dataset_dir = "symbols"
    split_file = "split_zhou_Symbols.json"
    template = "a photo of {}."

    def prepare(self, root: Path) -> None:
        folder = root / self.dataset_dir
        if not folder.exists():
            print(f"Drawing the symbols dataset into '{folder}': once, it takes half a minute", flush=True)
            with locked(root / f".{self.dataset_dir}.lock") as alone:
                for left in root.glob(".symbols-*") if alone else ():  # left by a killed process
                    shutil.rmtree(left, ignore_errors=True)
                if not folder.exists():
                    from .glyphs import write_symbols  # matplotlib, for its font, takes half a second of every run

                    write_symbols(root)
        elif not (folder / self.split_file).is_file():
            raise UserError(f"'{folder}' has no '{self.split_file}'; remove the folder, and it is drawn anew")


# In place of ImageNetV2, -Sketch, -R and -A.
for _shift in ("layout", "outline", "texture", "occlusion"):
    _fields = {"test_only": True, "image_dir": f"images_{_shift}", "split_file": f"split_{_shift}.json"}
    DATASET_REGISTRY.register()(type(f"Symbols{_shift.title()}", (Symbols,), _fields))
