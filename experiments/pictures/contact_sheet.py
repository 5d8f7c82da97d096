"""Draws the README's sheet of `symbols`: a class per column, its plain pictures above, its four shifts below.

python -m experiments.pictures.contact_sheet            # writes assets/symbols.png in a second
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.glyphs import FONT_PATH, SHIFTS, SIZE, draw

CLASSES = (
    "chess pieces",
    "card suits",
    "weather",
    "music notes",
    "hebrew letters",
    "hazard signs",
    "stationery",
    "stars",
)
ROWS = ("plain", "plain", *SHIFTS)


def contact_sheet(cell: int) -> Image.Image:
    """A picture of len(ROWS) x len(CLASSES) cells under the classes' names, with the styles at the left."""
    margin_left, margin_top = 76, 22
    sheet = Image.new("RGB", (margin_left + cell * len(CLASSES), margin_top + cell * len(ROWS)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.truetype(str(FONT_PATH), 12)
    for column, theme in enumerate(CLASSES):
        left = margin_left + column * cell
        pen.text((left + cell // 2, margin_top // 2), theme, "black", font, anchor="mm")
        for row, style in enumerate(ROWS):
            picture = draw(theme, np.random.default_rng((0, row, column)), style)
            sheet.paste(picture.resize((cell - 3, cell - 3)), (left, margin_top + row * cell))
    for row, style in enumerate(ROWS):
        pen.text((4, margin_top + row * cell + cell // 2), style, "black", font, anchor="lm")
    return sheet.quantize(256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/symbols.png"))
    parser.add_argument("--cell", type=int, default=SIZE - 16, help="width of a picture on the sheet, pixels")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(args.cell).save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
