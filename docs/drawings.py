"""Draws the two figures of docs/plot.md into assets/: ``python -m docs.drawings``.

``batch.svg`` shows a batch's way to its loss. ``plan.svg`` shows a transport plan, computed here by the equations of
docs/plot.md for an invented image of 4 x 4 places and three prompts. Needs the standard library alone.
"""

from __future__ import annotations

import math
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets"
LEARNED, FROZEN, DATA = "#fde3c8", "#dbe7f3", "#ffffff"
SIDE, PROMPTS, EPS = 4, 3, 0.1
CENTRES = ((0.6, 0.8), (2.6, 0.7), (1.6, 2.7))  # the place that each prompt is most like
PROMPT_COLOURS = ("#b35806", "#1b7837", "#542788")


def svg(width: int, height: int, parts: list[str]) -> str:
    """A page with a white ground, which also shows where the reader's page is dark."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="14" fill="#222"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])


def text(x: float, y: float, words: str, size: int = 14, weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle" font-size="{size}" font-weight="{weight}">{words}</text>'


def box(x: int, y: int, title: str, lines: list[str], colour: str, width: int = 150, height: int = 74) -> list[str]:
    """A box with its upper left corner at (x, y)."""
    ground = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{colour}" stroke="#555"/>'
    middle = x + width / 2
    words = [text(middle, y + 44 + 17 * i, line, 12) for i, line in enumerate(lines)]
    return [ground, text(middle, y + 24, title, 14, "bold"), *words]


def arrow(points: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<polyline points="{points}" fill="none" stroke="#222" stroke-width="1.5" marker-end="url(#tip)"{dash}/>'


def batch() -> str:
    """The way of a batch: two towers, one head."""
    parts = [
        *box(20, 30, "images", ["img [batch, 3, h, w]"], DATA),
        *box(210, 30, "image encoder", ["CLIP, frozen"], FROZEN),
        *box(400, 30, "image features", ["f₀ pooled [batch, d]", "f local [batch, M, d]"], DATA, 160),
        *box(20, 190, "contexts", ["ctx [N, n_ctx, d]", "all that is learned"], LEARNED),
        *box(210, 190, "prompts", ["prefix: SOS, ctx", "suffixes: names, packed"], DATA),
        *box(400, 190, "text encoder", ["CLIP, frozen"], FROZEN, 160),
        *box(600, 190, "text features", ["g [N, n_cls, d]"], DATA),
        *box(600, 30, "head", ["cost, Sinkhorn, plan T", "logit = scale · Σ T f·g"], FROZEN),
        *box(790, 30, "logits", ["[batch, n_cls]", "cross-entropy"], DATA),
        arrow("170,67 208,67"), arrow("360,67 398,67"), arrow("560,67 598,67"), arrow("750,67 788,67"),
        arrow("170,227 208,227"), arrow("360,227 398,227"), arrow("560,227 598,227"), arrow("675,190 675,106"),
        arrow("865,104 865,300 95,300 95,266", dashed=True),
        text(480, 318, "gradient: through the text encoder, not the image encoder, and not through the plan", 12),
    ]  # fmt: skip
    return svg(960, 330, parts)


def transport() -> list[list[float]]:
    """The plan T [M, N]: T_mn = r_m K_mn c_n with marginals 1/M and 1/N."""
    places = [(column + 0.5, row + 0.5) for row in range(SIDE) for column in range(SIDE)]
    m, n = len(places), PROMPTS
    cost = [[1 - 0.3 * math.exp(-(math.dist(place, centre) ** 2) / 1.5) for centre in CENTRES] for place in places]
    kernel = [[math.exp(-c / EPS) for c in row] for row in cost]
    rows, columns = [1.0] * m, [1.0] * n
    for _ in range(100):
        rows = [1 / m / sum(k * c for k, c in zip(kernel[i], columns, strict=True)) for i in range(m)]
        columns = [1 / n / sum(kernel[i][j] * rows[i] for i in range(m)) for j in range(n)]
    return [[rows[i] * kernel[i][j] * columns[j] for j in range(n)] for i in range(m)]


def colour(weight: float) -> str:
    """Of a weight relative to the uniform one: white at 1, red above, blue below."""
    part = max(-1.0, min(1.0, weight - 1 if weight < 1 else (weight - 1) / 2))
    end = (178, 24, 43) if part > 0 else (33, 102, 172)
    return "#" + "".join(f"{round(255 + abs(part) * (c - 255)):02x}" for c in end)


def plan() -> str:
    """Places on the left, prompts in the middle, joined by lines as wide as the plan; its columns on the right."""
    found, uniform, cell = transport(), 1 / (SIDE**2 * PROMPTS), 40
    parts, lines = [text(100, 24, "M = 16 places of the image", 13, "bold")], []
    for i, row in enumerate(found):
        x, y = 20 + cell * (i % SIDE), 60 + cell * (i // SIDE)
        parts.append(f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="#f4f4f4" stroke="#888"/>')
        for j, weight in enumerate(row):
            line = f'x1="{x + cell / 2}" y1="{y + cell / 2}" x2="330" y2="{70 + 70 * j}"'
            width, stroke = 2.4 * weight / uniform, PROMPT_COLOURS[j]
            lines.append(f'<line {line} stroke="{stroke}" stroke-width="{width:.2f}" stroke-opacity="0.5"/>')
    parts += lines
    parts.append(text(370, 24, "N = 3 prompts", 13, "bold"))
    for j, stroke in enumerate(PROMPT_COLOURS):
        left = 490 + 155 * j
        parts.append(f'<circle cx="336" cy="{70 + 70 * j}" r="9" fill="{stroke}"/>')
        parts.append(text(372, 75 + 70 * j, f"g_{j + 1}"))
        parts.append(text(left + 64, 24, f"T of prompt {j + 1}", 13, "bold"))
        for i, row in enumerate(found):
            place = f'x="{left + 32 * (i % SIDE)}" y="{60 + 32 * (i // SIDE)}" width="32" height="32"'
            parts.append(f'<rect {place} fill="{colour(row[j] / uniform)}" stroke="#888"/>')
    note = "red: more than the uniform weight 1/(MN), blue: less, white: equal"
    return svg(960, 240, [*parts, text(708, 216, note, 12)])


if __name__ == "__main__":
    for name, drawn in (("batch", batch()), ("plan", plan())):
        (ASSETS / f"{name}.svg").write_text(drawn, encoding="utf-8")
        print(f"Written: {ASSETS / name}.svg")
