"""Symbols, the embedded default: pictures of themes, drawn on first use from the glyphs of the DejaVu fonts.

``glyphs.py`` draws them. The four shifted test sets stand in for ImageNetV2, -Sketch, -R and -A.
"""

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .glyphs import write_symbols


@DATASET_REGISTRY.register()
class Symbols(FewShotDataset):
    dataset_dir = "symbols"
    image_dir = "images"
    split_file = "split_zhou_Symbols.json"
    template = "a photo of {}."

    def prepare(self, root: Path) -> None:
        if not (root / self.dataset_dir / self.split_file).is_file():
            print(f"Drawing the symbols dataset into '{root / self.dataset_dir}' (once)")
            write_symbols(root)


@DATASET_REGISTRY.register()
class SymbolsLayout(Symbols):
    """New layouts, in the place of ImageNetV2."""

    image_dir = "images_layout"
    split_file = "split_layout.json"


@DATASET_REGISTRY.register()
class SymbolsOutline(Symbols):
    """Outlines only, in the place of ImageNet-Sketch."""

    image_dir = "images_outline"
    split_file = "split_outline.json"


@DATASET_REGISTRY.register()
class SymbolsTexture(Symbols):
    """Textured renditions, in the place of ImageNet-R."""

    image_dir = "images_texture"
    split_file = "split_texture.json"


@DATASET_REGISTRY.register()
class SymbolsOcclusion(Symbols):
    """Heavy occlusion, in the place of ImageNet-A."""

    image_dir = "images_occlusion"
    split_file = "split_occlusion.json"
