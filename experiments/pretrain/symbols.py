"""Pre-trains the small CLIP of the `symbols` dataset, of OpenAI's architecture, on pictures of one or two glyphs.

    python -m experiments.pretrain.symbols            # writes assets/symbols_clip.pt

Both towers learn by CLIP's loss, first on tiles of one glyph, then on pictures of one or two glyphs with strokes for
clutter. Then a new text tower learns on the locked image tower (as in Zhai et al., "LiT", CVPR 2022), whose features
are cached. None of the dataset's pictures is used. Captions are the glyphs' Unicode names or, in a small share, their
theme's name. The result is a float16 state dict for `clip.model.build_model`.
"""

import argparse
import unicodedata
from collections.abc import Callable
from pathlib import Path

import clip
import numpy as np
import torch
from clip.model import CLIP
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from datasets.glyphs import SIZE, THEMES, glyph_mask

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
TILE = SIZE // 2  # a glyph is drawn on a tile; a picture has one or two tiles
CONTEXT = 32  # tokens of the longest caption here; the saved model has CLIP's 77
TILE_STEPS, PICTURE_STEPS, TEXT_STEPS = 1200, 1000, 700
BATCH, PICTURE_BATCH = 64, 48
LEARNING_RATE = 1.5e-3
SEED = 1
RENDITIONS = 24  # of each glyph
THEME_SHARE, TEXT_THEME_SHARE = 0.2, 0.1  # of the captions that could name a theme, for both towers and the new one
Batch = tuple[Tensor, list[str]]  # masks or image features, and captions
Pools = tuple[Tensor, Tensor]  # glyphs and clutter
GLYPHS = [(char, label) for label, chars in enumerate(THEMES.values()) for char in chars]


def glyph_pool(rng: np.random.Generator) -> Tensor:
    """Each glyph in random sizes, angles and places: uint8 [glyph, rendition, TILE, TILE]."""
    pool = np.zeros((len(GLYPHS), RENDITIONS, TILE, TILE), np.uint8)
    for canvases, (char, _) in zip(pool, GLYPHS, strict=True):
        for canvas in canvases:
            side, angle = int(rng.integers(26, 56)), float(rng.uniform(-30, 30))
            mask = np.asarray(glyph_mask(char, side, angle, int(rng.integers(0, 2)), rng.random() < 0.1))[:TILE, :TILE]
            top, left = rng.integers(0, TILE - mask.shape[0] + 1), rng.integers(0, TILE - mask.shape[1] + 1)
            canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return torch.from_numpy(pool)


def clutter_pool(rng: np.random.Generator) -> Tensor:
    """Strokes and blobs: uint8 [1000, TILE, TILE]."""
    pool = []
    for _ in range(1000):
        canvas = Image.new("L", (TILE, TILE))
        pen = ImageDraw.Draw(canvas)
        for kind in rng.integers(0, 3, int(rng.integers(1, 4))):
            x, y, dx, dy = (int(v) for v in rng.integers((0, 0, -30, -30), (TILE, TILE, 31, 31)))
            if kind == 0:
                pen.line((x, y, x + dx, y + dy), 255, int(rng.integers(1, 4)))
            elif kind == 1:
                pen.ellipse((x, y, x + abs(dx) // 2, y + abs(dy) // 2), 255)
            else:
                start = float(rng.uniform(0, 360))
                pen.arc((x, y, x + abs(dx), y + abs(dy)), start, start + 180, 255, int(rng.integers(1, 4)))
        pool.append(np.asarray(canvas))
    return torch.from_numpy(np.stack(pool))


def render(masks: Tensor, colour_share: float, random: torch.Generator) -> Tensor:
    """Pictures [batch, 3, height, width], normalized, of masks uint8 [batch, layer, height, width] (0 shows nothing).

    `colour_share` goes from white glyphs on black (0) to any colours (1). With colours from the start, the network does
    not learn the shapes in this time.
    """
    batch, layers, size, _ = masks.shape
    loudness = colour_share * torch.rand(2, batch, 1, 1, 1, generator=random)
    ground = torch.rand(batch, 3, 1, 1, generator=random)
    coarse = torch.randn(batch, 3, 4, 4, generator=random) * 0.1 * loudness[0]
    image = colour_share * ground + functional.interpolate(coarse, size, mode="bilinear")
    for layer in range(layers):
        colour = torch.rand(batch, 3, 1, 1, generator=random)
        near = (colour - ground).abs().mean(1, keepdim=True) < 0.25
        colour = torch.where(near, (ground + 0.5) % 1, colour) * colour_share + 1 - colour_share
        image = torch.lerp(image, colour.expand_as(image), masks[:, layer, None].float() / 255)
    image = image + torch.randn(image.shape, generator=random) * 0.04 * loudness[1]
    image = torch.where(torch.rand(batch, 1, 1, 1, generator=random) < 0.5, image, image.flip(-1))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (image.clamp(0, 1) - mean) / std


def caption(first: int, second: int | None, theme_share: float, rng: np.random.Generator) -> str:
    """A caption of one or two glyphs (indices into GLYPHS); a share of the glyphs of one theme get the theme's name."""
    shown = [first] if second is None else [first, second]
    themes = {GLYPHS[i][1] for i in shown}
    if len(themes) == 1 and rng.random() < theme_share:
        return f"{list(THEMES)[themes.pop()]}."
    return " and ".join(unicodedata.name(GLYPHS[i][0]).lower() for i in shown) + "."


def batch_of_tiles(size: int, pools: Pools, theme_share: float, rng: np.random.Generator) -> Batch:
    """Masks uint8 [size, 1, TILE, TILE] of one glyph, and captions."""
    glyphs = pools[0]
    shown = rng.choice(len(GLYPHS), size, replace=size > len(GLYPHS))
    masks = glyphs[shown, rng.integers(0, glyphs.shape[1], size), None]
    return masks, [caption(int(i), None, theme_share, rng) for i in shown]


def batch_of_pictures(size: int, pools: Pools, theme_share: float, rng: np.random.Generator) -> Batch:
    """Masks uint8 [size, 4, SIZE, SIZE] of clutter and one or two glyphs, mostly of one theme, and captions."""
    glyphs, clutter = pools
    masks = torch.zeros(size, 4, SIZE, SIZE, dtype=torch.uint8)
    texts = []
    for picture, first in zip(masks, rng.choice(len(GLYPHS), size, replace=size > len(GLYPHS)), strict=True):
        second = None
        if rng.random() < 0.5:
            kin = [i for i, (_, label) in enumerate(GLYPHS) if label == GLYPHS[first][1]]
            second = int(rng.choice(kin if rng.random() < 0.8 else len(GLYPHS)))
        tiles = list(clutter[rng.integers(0, len(clutter), 2)])
        tiles += [glyphs[i, rng.integers(glyphs.shape[1])] for i in (first, second) if i is not None]
        for layer, tile in zip(picture, tiles, strict=False):
            top, left = rng.integers(0, SIZE - TILE + 1, 2)
            layer[top : top + TILE, left : left + TILE] = tile
        texts.append(caption(int(first), second, theme_share, rng))
    return masks, texts


def build() -> CLIP:
    return CLIP(
        embed_dim=128,
        image_resolution=SIZE,
        vision_layers=(1, 1, 1, 1),
        vision_width=16,
        vision_patch_size=None,
        context_length=CONTEXT,
        vocab_size=49408,
        transformer_width=96,
        transformer_heads=1,
        transformer_layers=3,
    )


def encode_tiles(model: CLIP, tiles: Tensor, rng: np.random.Generator) -> Tensor:
    """Pooled features of pictures of TILE pixels, at random positions of the full grid."""
    grid, part = SIZE // 32, TILE // 32
    top, left = rng.integers(0, grid - part + 1, 2)
    places = (torch.arange(top, top + part)[:, None] * grid + torch.arange(left, left + part)).flatten() + 1
    position = model.visual.attnpool.positional_embedding[torch.cat([torch.zeros(1, dtype=torch.long), places])]
    return torch.func.functional_call(model.visual, {"attnpool.positional_embedding": position}, (tiles,))


def fit(model: CLIP, groups: list[dict], steps: int, batch: Callable[[int], Batch]) -> None:
    """Minimizes CLIP's loss over `groups` of parameters; `batch(step)` gives image features and captions."""
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.05)
    for step in range(1, steps + 1):
        seen, texts = batch(step)
        said = model.encode_text(clip.tokenize(texts, context_length=CONTEXT))
        logits = model.logit_scale.exp() * functional.normalize(seen, dim=1) @ functional.normalize(said, dim=1).T
        target = torch.arange(len(texts))
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        scheduler.step()
        model.logit_scale.data.clamp_(max=4.6052)  # a scale of 100, as in CLIP
        if step % 20 == 0 or step == steps:
            hit = (logits.argmax(1) == target).float().mean().item()
            print(f"step {step}/{steps} loss {loss.item():.3f} matched {hit:.1%}", flush=True)


def train_towers(model: CLIP, pools: Pools) -> None:
    """Trains on tiles of one glyph, a quarter of a picture's cost, then on pictures."""
    rng, random = np.random.default_rng((SEED, 1)), torch.Generator().manual_seed(SEED)
    model.visual.to(memory_format=torch.channels_last)

    def batch(step: int) -> Batch:
        tiles = step <= TILE_STEPS
        draw, size = (batch_of_tiles, BATCH) if tiles else (batch_of_pictures, PICTURE_BATCH)
        masks, texts = draw(size, pools, THEME_SHARE, rng)
        images = render(masks, min(1.0, step / (0.4 * TILE_STEPS)), random)
        images = images.contiguous(memory_format=torch.channels_last)
        return encode_tiles(model, images, rng) if tiles else model.visual(images), texts

    decayed = [p for p in model.visual.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if not any(p is d for d in decayed)]
    fit(model, [{"params": decayed, "weight_decay": 0.05}, {"params": rest}], TILE_STEPS + PICTURE_STEPS, batch)


def renew_text_tower(model: CLIP, pools: Pools) -> CLIP:
    """A model with `model`'s image tower, locked, and a new text tower trained on its features."""
    rng, random = np.random.default_rng((SEED, 2)), torch.Generator().manual_seed(SEED)
    renewed = build()
    renewed.visual.load_state_dict(model.visual.half().state_dict())  # rounded as in the file
    renewed.eval()
    features, captions = [], []
    with torch.no_grad():
        for _ in range(80):
            masks, texts = batch_of_pictures(64, pools, TEXT_THEME_SHARE, rng)
            features.append(renewed.visual(render(masks, 1.0, random)))
            captions += texts
    kept = torch.cat(features)

    def batch(step: int) -> Batch:
        chosen = rng.choice(len(kept), BATCH, replace=False)
        return kept[chosen], [captions[i] for i in chosen]

    learned = [p for name, p in renewed.named_parameters() if not name.startswith("visual.")]
    fit(renewed, [{"params": learned}], TEXT_STEPS, batch)
    return renewed.eval()


def save(model: CLIP, path: Path) -> None:
    state = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    tail = torch.randn(77 - CONTEXT, state["positional_embedding"].shape[1]) * 0.01
    state["positional_embedding"] = torch.cat([state["positional_embedding"], tail])
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/symbols_clip.pt"))
    parser.add_argument("--image-tower", type=Path, help="a checkpoint whose image tower is used, not trained")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    pools = glyph_pool(rng), clutter_pool(rng)
    model = build()
    if args.image_tower:
        state = torch.load(args.image_tower, weights_only=True)
        model.visual.load_state_dict({k.removeprefix("visual."): v for k, v in state.items() if "visual." in k})
    else:
        train_towers(model, pools)
    save(renew_text_tower(model, pools), args.out)


if __name__ == "__main__":
    main()
