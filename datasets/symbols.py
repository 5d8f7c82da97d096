"""Symbols, the embedded default: pictures of themes of glyphs, drawn on first use by ``glyphs.py``.

The four shifted test sets stand in for ImageNetV2, -Sketch, -R and -A.
"""

import shutil
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, UserError
from .files import one_at_a_time


@DATASET_REGISTRY.register()
class Symbols(FewShotDataset):
    dataset_dir = "symbols"
    split_file = "split_zhou_Symbols.json"
    template = "a photo of {}."

    def prepare(self, root: Path) -> None:
        folder = root / self.dataset_dir
        if not folder.exists():
            print(f"Drawing the symbols dataset into '{folder}': once, it takes half a minute", flush=True)
            root.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(root) as alone:
                for left in root.glob(".symbols-*") if alone else ():  # what a killed process has drawn
                    shutil.rmtree(left, ignore_errors=True)
                if not folder.exists():
                    from .glyphs import write_symbols  # matplotlib, for its font, takes half a second of every run

                    write_symbols(root)
        elif not (folder / self.split_file).is_file():
            raise UserError(f"'{folder}' has no '{self.split_file}'; remove the folder, and it is drawn anew")


class ShiftedSymbols(Symbols):
    test_only = True


@DATASET_REGISTRY.register()
class SymbolsLayout(ShiftedSymbols):
    """New layouts, in place of ImageNetV2."""

    image_dir = "images_layout"
    split_file = "split_layout.json"


@DATASET_REGISTRY.register()
class SymbolsOutline(ShiftedSymbols):
    """Outlines only, in place of ImageNet-Sketch."""

    image_dir = "images_outline"
    split_file = "split_outline.json"


@DATASET_REGISTRY.register()
class SymbolsTexture(ShiftedSymbols):
    """Textured renditions, in place of ImageNet-R."""

    image_dir = "images_texture"
    split_file = "split_texture.json"


@DATASET_REGISTRY.register()
class SymbolsOcclusion(ShiftedSymbols):
    """Heavy occlusion, in place of ImageNet-A."""

    image_dir = "images_occlusion"
    split_file = "split_occlusion.json"
