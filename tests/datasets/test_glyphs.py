"""The drawing of `symbols`: every glyph is real, pictures are reproducible, and the written folder is CoOp's layout."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image

from datasets.glyphs import FONT_PATH, PER_CLASS, SHIFTS, SIZE, THEMES, draw, glyph_mask, write_symbols

pytestmark = pytest.mark.medium


def picture(theme: str, style: str, *seed: int) -> np.ndarray:
    return np.asarray(draw(theme, np.random.default_rng(seed), style))


def test_every_glyph_is_in_the_font_and_draws_ink_of_its_own():
    known = FT2Font(str(FONT_PATH)).get_charmap()
    glyphs = [char for chars in THEMES.values() for char in chars]
    assert [hex(ord(char)) for char in glyphs if ord(char) not in known] == []
    masks = {char: np.asarray(glyph_mask(char, 40)) for char in glyphs}
    assert [hex(ord(char)) for char, mask in masks.items() if (mask > 127).sum() < 40] == []
    assert [hex(ord(char)) for char, mask in masks.items() if not 12 <= max(mask.shape) <= 44] == []
    assert len({mask.tobytes() for mask in masks.values()}) == len(glyphs)


def test_themes_are_forty_distinct_sets_of_several_glyphs():
    assert len(THEMES) == 40
    assert min(len(chars) for chars in THEMES.values()) >= 5
    assert max(Counter(char for chars in THEMES.values() for char in chars).values()) == 1
    assert all(name == name.lower() for name in THEMES)
    assert PER_CLASS["test"] * len(THEMES) == 1000


@pytest.mark.parametrize("style", ["plain", *SHIFTS])
def test_a_picture_is_a_function_of_its_seed(style: str):
    first = picture("chess pieces", style, 1, 2, 3)
    assert style == "plain" or (first != picture("chess pieces", "plain", 1, 2, 3)).any()
    assert first.shape == (SIZE, SIZE, 3)
    np.random.seed(0)  # global state plays no part
    assert (first == picture("chess pieces", style, 1, 2, 3)).all()
    assert (first != picture("chess pieces", style, 1, 2, 4)).any()


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="unknown style 'sketch'"):
        draw("dice", np.random.default_rng(1), "sketch")


def test_an_outline_has_a_hollow_inside():
    filled, outline = (np.asarray(glyph_mask("♥", 60, outline=o)) for o in (False, True))
    middle = filled.shape[0] // 2, filled.shape[1] // 2
    assert filled[middle] == 255
    assert outline[middle] == 0 < (outline > 127).sum()


def test_the_written_folder_has_coops_layout(tmp_path: Path):
    write_symbols(tmp_path, per_class={"train": 2, "val": 1, "test": 1, "texture": 1})
    assert [entry.name for entry in tmp_path.iterdir()] == ["symbols"]
    root = tmp_path / "symbols"
    names = {"images", "images_texture", "split_zhou_Symbols.json", "split_texture.json"}
    assert {entry.name for entry in root.iterdir()} == names

    split = json.loads((root / "split_zhou_Symbols.json").read_text())
    assert {part: len(items) for part, items in split.items()} == {"train": 80, "val": 40, "test": 40}
    paths = [path for items in split.values() for path, _, _ in items]
    written = {str(path.relative_to(root / "images")) for path in (root / "images").rglob("*.jpg")}
    assert len(set(paths)) == len(paths) and set(paths) == written
    assert all(list(THEMES)[label] == name for items in split.values() for _, label, name in items)
    shifted = json.loads((root / "split_texture.json").read_text())
    assert (shifted["train"], shifted["val"], len(shifted["test"])) == ([], [], 40)

    path, label, name = split["test"][3]
    with Image.open(root / "images" / path) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (SIZE, SIZE), "RGB")
        drawn = picture(name, "plain", 1, 2, label, 0).astype(float)
        assert abs(np.asarray(image) - drawn).mean() < 12  # JPEG's loss, no other picture


def test_two_writers_at_once_leave_one_whole_folder(tmp_path: Path):
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write_symbols, tmp_path, 1, {"train": 1, "val": 1, "test": 1}) for _ in range(2)]
    assert [writer.exception() for writer in writers] == [None, None]
    assert [entry.name for entry in tmp_path.iterdir()] == ["symbols"]
    assert len(list((tmp_path / "symbols").rglob("*.jpg"))) == 3 * len(THEMES)
