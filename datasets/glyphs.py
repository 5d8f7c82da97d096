"""The pictures of `symbols`, the embedded default dataset: themes of glyphs, drawn with DejaVu Sans.

The font comes with matplotlib (its licence is beside it, in LICENSE_DEJAVU), so nothing has to be downloaded. Every
picture is a function of (seed, set, class, index). A class is a theme, and its pictures show a few of the theme's
glyphs among clutter. Four shifted test sets stand in for ImageNet's: `layout` (V2), `outline` (Sketch), `texture` (R)
and `occlusion` (A). The module needs Pillow, NumPy and matplotlib's font files, but neither torch nor dassl.
"""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

SIZE = 128  # a picture's height and width, pixels
SHIFTS = ("layout", "outline", "texture", "occlusion")
PER_CLASS = {"train": 24, "val": 4, "test": 25} | dict.fromkeys(SHIFTS, 10)
_CODEPOINTS = {
    "animal faces": "1f42d-1f42e 1f431 1f435 1f638-1f63b 1f640",
    "arabic letters": "628 62c 633 635 637 639 642 645 648 64a",
    "armenian letters": "531-532 534-536 538-539 53b-53e",
    "arrows": "2190-2191 2194 2196 2199 2794 27a1 27a4 27a6 21bb",
    "box drawing": "2554 2557 255a 255d 2560 2563 2566 2569 256c",
    "braille": "280f 281b 281e 282b 2835 283d 283f 282e",
    "card suits": "2660-2667",
    "check marks": "2610-2612 2713-2714 2717-2718",
    "chess pieces": "2654-2658 265a-265e",
    "circled digits": "2460-2464 277a-277e",
    "crosses": "2719-2720",
    "currency": "24 a3 a5 20a1 20a9-20aa 20ac 20b1 20b9",
    "cyrillic letters": "414 416 418 424 426 429 42b 42d-42f",
    "dice": "2680-2685",
    "dominoes": "1f032-1f035 1f03d-1f03f 1f045-1f046",
    "flowers": "2618 2698 273f-2741 2743 2766-2767 269c",
    "fractions": "bc-be 2153-2156 215b-215e",
    "gender signs": "2640 2642 26a2-26a9",
    "geometric shapes": "25a3 25a7 25b2-25b3 25c6-25c7 25cf-25d0 25ce 25e9",
    "georgian letters": "10d0-10d9",
    "greek letters": "394 398 39b 39e 3a3 3a8-3a9 3b1-3b2 3be",
    "hazard signs": "2620-2623 26a0-26a1",
    "hebrew letters": "5d0-5d2 5d7-5d8 5de 5e2 5e6-5e7 5e9",
    "keyboard symbols": "2318 2324-2328 232b 23ce-23cf 2387 21e7 21ea",
    "math operators": "2200 2203 2207-2208 220f 221a 221e 222b 2248 2260",
    "music notes": "2669-266f",
    "planets": "263f 2641 2643-2647 26b3-26b5",
    "playing cards": "1f0a1-1f0a5 1f0b6-1f0b9 1f0ae",
    "pointing hands": "261a-261f",
    "recycling": "2672-2675 2677 267a-267d",
    "religious symbols": "2626-262a 262f 2638 2721 2670",
    "roman numerals": "2161-2163 2165-2168 216a-216b",
    "smiling faces": "1f600-1f603 1f606-1f60a 1f60e",
    "stars": "2605-2606 2726-2727 272a 272d 272f-2730 2736 2738",
    "stationery": "2702-2704 2706 2709 270d-270f 2711-2712",
    "tifinagh letters": "2d31 2d33 2d3b 2d3d 2d3f 2d42-2d43 2d4b 2d5a 2d63",
    "tools": "2692-2697 2699 2690-2691",
    "weather": "2600-2604 2608 2614 263c 2744-2745",
    "yijing hexagrams": "4dc0-4dc7",
    "zodiac signs": "2648-2653",
}


def _characters(codepoints: str) -> list[str]:
    ranges = [[int(end, 16) for end in part.split("-")] for part in codepoints.split()]
    return [chr(code) for ends in ranges for code in range(ends[0], ends[-1] + 1)]


THEMES = {theme: _characters(codepoints) for theme, codepoints in _CODEPOINTS.items()}
FONT_PATH = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT_PATH), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _extent(char: str) -> int:
    """The longer side of the glyph's box, ink and advance, at font size 100, pixels."""
    left, top, right, bottom = _font(100).getbbox(char)
    return int(max(right - left, bottom - top))


def glyph_mask(char: str, side: int, angle: float = 0.0, bold: int = 0, outline: bool = False) -> Image.Image:
    """The glyph's ink as an 'L' picture, cropped; before the turn by `angle` (degrees) it fits a square of `side`."""
    font = _font(max(8, round(100 * side / _extent(char))))
    left, top, right, bottom = font.getbbox(char, stroke_width=bold)
    mask = Image.new("L", (int(right - left) + 6, int(bottom - top) + 6))
    ImageDraw.Draw(mask).text((3 - left, 3 - top), char, fill=255, font=font, stroke_width=bold)
    if outline:
        mask = ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(3)), mask.filter(ImageFilter.MinFilter(3)))
    mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    return mask.crop(mask.getbbox())


Colour = tuple[int, int, int]


def random_colour(rng: np.random.Generator, unlike: Colour | None = None) -> Colour:
    """A random colour. Its luminance differs from `unlike`'s by 70 of 255 or more."""
    while True:
        r, g, b = (int(v) for v in rng.integers(0, 256, 3))
        if unlike is None or abs(_luminance((r, g, b)) - _luminance(unlike)) >= 70:
            return r, g, b


def _luminance(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _texture(rng: np.random.Generator, first: Colour, second: Colour) -> Image.Image:
    """A whole picture of stripes, checks, waves or speckle in two colours."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 9)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind = rng.integers(4)
    if kind == 0:
        on = u % period < period / 2
    elif kind == 1:
        on = (u % period < period / 2) ^ (v % period < period / 2)
    elif kind == 2:
        on = np.sin(2 * np.pi * u / period + 2 * np.sin(v / 6)) > 0
    else:
        on = rng.random((SIZE, SIZE)) < 0.5
    return Image.fromarray(np.where(on[..., None], first, second).astype(np.uint8))


def _background(rng: np.random.Generator, base: Colour) -> Image.Image:
    """A gradient between two shades of one colour, with coarse and fine noise."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    slope = (x * np.cos(angle) + y * np.sin(angle))[..., None] * rng.uniform(-60, 60, 3)
    coarse = np.kron(rng.normal(0, rng.uniform(0, 14), (8, 8)), np.ones((SIZE // 8, SIZE // 8)))[..., None]
    noise = rng.normal(0, rng.uniform(0, 10), (SIZE, SIZE, 1))
    return Image.fromarray(np.clip(np.array(base) + slope + coarse + noise, 0, 255).astype(np.uint8))


def _clutter(image: Image.Image, theme: str, rng: np.random.Generator, base: Colour) -> None:
    """Draws lines, arcs, blobs, fragments and a few small glyphs of other themes."""
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 8))):
        x, y, dx, dy = (int(v) for v in rng.integers((0, 0, -45, -45), (SIZE, SIZE, 46, 46)))
        box = (min(x, x + dx), min(y, y + dy), max(x, x + dx), max(y, y + dy))
        colour, width, kind = random_colour(rng), int(rng.integers(1, 4)), rng.integers(4)
        if kind == 0:
            pen.line((x, y, x + dx, y + dy), colour, width)
        elif kind == 1:
            start = float(rng.uniform(0, 360))
            pen.arc(box, start, start + float(rng.uniform(60, 300)), colour, width)
        elif kind == 2:
            pen.ellipse((x, y, x + abs(dx) // 2, y + abs(dy) // 2), colour)
        else:
            pen.polygon([(x + int(a), y + int(b)) for a, b in rng.integers(-16, 17, (3, 2))], colour)
    others = [name for name in THEMES if name != theme]
    for _ in range(int(rng.integers(1, 3))):
        char = str(rng.choice(THEMES[str(rng.choice(others))]))
        mask = glyph_mask(char, int(rng.integers(12, 20)), float(rng.uniform(-40, 40)))
        x, y = (int(v) for v in rng.integers(0, SIZE - 16, 2))
        image.paste(random_colour(rng, base), (x, y), mask)


def _free_place(mask: Image.Image, taken: Image.Image, rng: np.random.Generator) -> tuple[int, int]:
    """The place with the least ink, out of eight random ones inside the picture."""
    room = np.maximum(1, np.array((SIZE, SIZE)) - mask.size)
    places = [(int(x), int(y)) for x, y in rng.integers(0, room, (8, 2))]
    ink = np.asarray(taken)
    return min(places, key=lambda p: int(ink[p[1] : p[1] + mask.height, p[0] : p[0] + mask.width].sum(dtype=int)))


def _arranged(rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres of many small glyphs: a ring, a grid, a line or a cross (the `layout` shift)."""
    kind, angle = rng.integers(4), rng.uniform(0, 2 * np.pi)
    if kind == 0:
        turns = angle + np.arange(7) * 2 * np.pi / 7
        points = np.stack([np.cos(turns), np.sin(turns)], 1) * 46
    elif kind == 1:
        points = np.stack(np.meshgrid([-38, 0, 38], [-38, 0, 38]), -1).reshape(-1, 2)
    else:
        line = np.linspace(-50, 50, 5)[:, None] * [np.cos(angle), np.sin(angle)]
        points = line if kind == 2 else np.concatenate([line, np.delete(line, 2, 0)[:, ::-1] * [-1, 1]])
    return [(float(x), float(y)) for x, y in points + SIZE / 2]


def draw(theme: str, rng: np.random.Generator, style: str = "plain") -> Image.Image:
    """Draws one picture [128, 128, RGB] of a theme, in the style `plain` or one of SHIFTS.

    It shows two to five of the theme's glyphs (five to nine small ones in `layout`).

    Raises:
        KeyError: unknown theme.
        ValueError: unknown style.
    """
    if style not in ("plain", *SHIFTS):
        raise ValueError(f"unknown style {style!r}: one of plain, {', '.join(SHIFTS)}")
    base = random_colour(rng)
    image = _background(rng, base)
    if style == "texture":
        r, g, b = (int(v) for v in np.clip(np.array(base) + rng.integers(-30, 31, 3), 0, 255))
        image = _texture(rng, base, (r, g, b))
    _clutter(image, theme, rng, base)
    taken = Image.new("L", (SIZE, SIZE))
    centres = _arranged(rng) if style == "layout" else []
    count = len(centres) or int(rng.integers(2, 6))
    for i, char in enumerate(rng.choice(THEMES[theme], count, replace=count > len(THEMES[theme]))):
        side = int(rng.integers(24, 31)) if centres else int(rng.integers(36, 63 - 3 * count))
        angle, bold = float(rng.uniform(-35, 35)), int(rng.integers(0, 2))
        mask = glyph_mask(str(char), side, angle, bold, style == "outline")
        if centres:
            place = (round(centres[i][0] - mask.width / 2), round(centres[i][1] - mask.height / 2))
        else:
            place = _free_place(mask, taken, rng)
        colour = random_colour(rng, base)
        ink = Image.new("RGB", (SIZE, SIZE), colour)
        if style == "texture":
            ink = _texture(rng, colour, random_colour(rng, base))
        image.paste(ink.crop((0, 0, *mask.size)), place, mask)
        taken.paste(255, place, mask)
    if style == "occlusion":
        _occlude(image, rng)
    return image


def _occlude(image: Image.Image, rng: np.random.Generator) -> None:
    """Covers about half of the picture with bars and blobs."""
    pen, covered = ImageDraw.Draw(image), np.zeros((SIZE, SIZE), bool)
    while covered.mean() < 0.45:
        x, y, w, h = (int(v) for v in rng.integers((-10, -10, 8, 8), (SIZE, SIZE, 48, 48)))
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + w, y + h), random_colour(rng))
        covered[max(y, 0) : y + h, max(x, 0) : x + w] = True


def write_symbols(root: Path, seed: int = 1, per_class: dict[str, int] | None = None) -> None:
    """Writes `root/symbols`: JPEG files, `split_zhou_Symbols.json` and a `split_<shift>.json` for each shifted set.

    The pictures of the first are in `images/`, those of a shifted set, all for testing, in `images_<shift>/`. The
    folder is drawn under a temporary name and then renamed. If another process was first, its folder stays.

    Args:
        per_class: pictures a class in each set; by default PER_CLASS.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    drawn = Path(tempfile.mkdtemp(prefix=".symbols-", dir=root))
    try:
        drawn.chmod(0o755)
        _write(drawn, seed, PER_CLASS if per_class is None else per_class)
        try:
            drawn.rename(root / "symbols")
        except OSError:
            if not (root / "symbols" / "split_zhou_Symbols.json").is_file():
                raise
    finally:
        shutil.rmtree(drawn, ignore_errors=True)


def _write(folder: Path, seed: int, per_class: dict[str, int]) -> None:
    split: dict[str, list[tuple[str, int, str]]] = {"train": [], "val": [], "test": []}
    for set_id, (name, count) in enumerate(per_class.items()):
        shift = name in SHIFTS
        items = []
        images = folder / (f"images_{name}" if shift else "images")
        for label, theme in enumerate(THEMES):
            (images / theme.replace(" ", "_")).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                rng = np.random.default_rng((seed, set_id, label, index))
                number = index if shift else index + sum(list(per_class.values())[:set_id])
                path = f"{theme.replace(' ', '_')}/{number + 1:04d}.jpg"
                draw(theme, rng, name if shift else "plain").save(images / path, quality=90)
                items.append((path, label, theme))
        if shift:
            shifted = {"train": [], "val": [], "test": items}
            (folder / f"split_{name}.json").write_text(json.dumps(shifted, indent=1) + "\n")
        else:
            split[name] = items
    (folder / "split_zhou_Symbols.json").write_text(json.dumps(split, indent=1) + "\n")
