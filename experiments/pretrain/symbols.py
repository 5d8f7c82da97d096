"""Pre-trains the small CLIP of the `symbols` dataset, OpenAI's architecture, on pictures of one glyph or two.

    python -m experiments.pretrain.symbols            # writes assets/symbols_clip.pt

Both towers learn by CLIP's loss, on tiles of one glyph and then on whole pictures of one glyph or two with a few
strokes for clutter; then the image tower is locked and the text tower learned anew (as in Zhai et al., "LiT", CVPR
2022), which is cheap, as features are kept. None of the dataset's pictures is used. Captions are bare: the glyphs'
Unicode names, or now and then their theme's, without a sentence around them. The result is a plain float16 state
dict, from which `clip.model.build_model` rebuilds the network.
"""

import argparse
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip
import numpy as np
import torch
from clip.model import CLIP
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from datasets.glyphs import SIZE, THEMES, glyph_mask

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
TILE = SIZE // 2  # one glyph is drawn on a tile, a picture is a tile or has a tile or two
CONTEXT = 32  # tokens of the longest caption here; the saved model has CLIP's 77
Batch = tuple[Tensor, list[str]]  # masks and captions
Seen = tuple[Tensor, list[str]]  # image features and captions
Pools = tuple[Tensor, Tensor]  # of glyphs and of clutter
GLYPHS = [(char, label) for label, chars in enumerate(THEMES.values()) for char in chars]


def glyph_pool(renditions: int, rng: np.random.Generator) -> Tensor:
    """Each glyph alone, in random size, turn and place: uint8 [glyph, rendition, TILE, TILE]."""
    pool = np.zeros((len(GLYPHS), renditions, TILE, TILE), np.uint8)
    for canvases, (char, _) in zip(pool, GLYPHS, strict=True):
        for canvas in canvases:
            side, angle = int(rng.integers(26, 56)), float(rng.uniform(-30, 30))
            mask = np.asarray(glyph_mask(char, side, angle, int(rng.integers(0, 2)), rng.random() < 0.1))[:TILE, :TILE]
            top, left = rng.integers(0, TILE - mask.shape[0] + 1), rng.integers(0, TILE - mask.shape[1] + 1)
            canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return torch.from_numpy(pool)


def clutter_pool(count: int, rng: np.random.Generator) -> Tensor:
    """A few strokes and blobs each: uint8 [count, TILE, TILE]."""
    pool = []
    for _ in range(count):
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

    `colour_share` leads from white glyphs on black (0) to any colour on any other (1): with colours from the start,
    the network does not find out in this little time that the shapes are what matters.
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
    """A caption of one glyph or two (places in GLYPHS); a part of those of a single theme name the theme alone."""
    shown = [first] if second is None else [first, second]
    themes = {GLYPHS[i][1] for i in shown}
    if len(themes) == 1 and rng.random() < theme_share:
        return f"{list(THEMES)[themes.pop()]}."
    return " and ".join(unicodedata.name(GLYPHS[i][0]).lower() for i in shown) + "."


def batch_of_tiles(size: int, pools: Pools, theme_share: float, rng: np.random.Generator) -> Batch:
    """Masks uint8 [size, 1, TILE, TILE] of one glyph each, and captions."""
    glyphs = pools[0]
    shown = rng.choice(len(GLYPHS), size, replace=size > len(GLYPHS))
    masks = glyphs[shown, rng.integers(0, glyphs.shape[1], size), None]
    return masks, [caption(int(i), None, theme_share, rng) for i in shown]


def batch_of_pictures(size: int, pools: Pools, theme_share: float, rng: np.random.Generator) -> Batch:
    """Masks uint8 [size, 4, SIZE, SIZE], clutter under one glyph or two (mostly of one theme), and captions."""
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
    """Pooled features of pictures of TILE pixels, taken to lie somewhere in a grid of the full size's positions."""
    grid, part = SIZE // 32, TILE // 32
    top, left = rng.integers(0, grid - part + 1, 2)
    places = (torch.arange(top, top + part)[:, None] * grid + torch.arange(left, left + part)).flatten() + 1
    position = model.visual.attnpool.positional_embedding[torch.cat([torch.zeros(1, dtype=torch.long), places])]
    return torch.func.functional_call(model.visual, {"attnpool.positional_embedding": position}, (tiles,))


def fit(model: CLIP, groups: list[dict[str, Any]], lr: float, steps: int, batch: Callable[[int], Seen]) -> None:
    """Minimizes CLIP's loss over `groups` of parameters; `batch(step)` gives image features and their captions."""
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.05)
    started = time.time()
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
            eta = (time.time() - started) / step * (steps - step)
            print(f"step {step}/{steps} loss {loss.item():.3f} matched {hit:.1%} eta {eta:.0f} s", flush=True)


def train_towers(model: CLIP, pools: Pools, args: argparse.Namespace) -> None:
    """First on tiles of one glyph, a quarter of a picture's cost, then on pictures of one or two."""
    rng, random = np.random.default_rng((args.seed, 1)), torch.Generator().manual_seed(args.seed)
    model.visual.to(memory_format=torch.channels_last)

    def batch(step: int) -> Seen:
        tiles = step <= args.tile_steps
        draw, size = (batch_of_tiles, args.batch) if tiles else (batch_of_pictures, args.picture_batch)
        masks, texts = draw(size, pools, args.theme_share, rng)
        images = render(masks, min(1.0, step / (0.4 * args.tile_steps)), random)
        images = images.contiguous(memory_format=torch.channels_last)
        return encode_tiles(model, images, rng) if tiles else model.visual(images), texts

    decayed = [p for p in model.visual.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if not any(p is d for d in decayed)]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.05}, {"params": rest}]
    fit(model, groups, args.lr, args.tile_steps + args.steps, batch)


def renew_text_tower(model: CLIP, pools: Pools, args: argparse.Namespace) -> CLIP:
    """A model with the image tower of `model`, locked, and a text tower trained from the start on its features."""
    rng, random = np.random.default_rng((args.seed, 2)), torch.Generator().manual_seed(args.seed)
    renewed = build()
    renewed.visual.load_state_dict(model.visual.half().state_dict())  # as it will be read from the file
    renewed.eval()
    features, captions = [], []
    with torch.no_grad():
        for _ in range(80):
            masks, texts = batch_of_pictures(64, pools, args.text_theme_share, rng)
            features.append(renewed.visual(render(masks, 1.0, random)))
            captions += texts
    kept = torch.cat(features)

    def batch(step: int) -> Seen:
        chosen = rng.choice(len(kept), args.batch, replace=False)
        return kept[chosen], [captions[i] for i in chosen]

    visual = {id(p) for p in renewed.visual.parameters()}
    fit(
        renewed, [{"params": [p for p in renewed.parameters() if id(p) not in visual]}], args.lr, args.text_steps, batch
    )
    return renewed.eval()


def save(model: CLIP, path: Path) -> None:
    state = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    tail = torch.randn(77 - CONTEXT, state["positional_embedding"].shape[1]) * 0.01
    state["positional_embedding"] = torch.cat([state["positional_embedding"], tail])
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/symbols_clip.pt"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tile-steps", type=int, default=1200, help="of batches of tiles, one glyph each")
    parser.add_argument("--steps", type=int, default=1000, help="of batches of whole pictures, after those")
    parser.add_argument("--text-steps", type=int, default=700, help="of the text tower, on the locked image tower")
    parser.add_argument("--image-tower", type=Path, help="a checkpoint whose image tower is taken, not trained")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--picture-batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--renditions", type=int, default=24, help="of each glyph, drawn once in the beginning")
    parser.add_argument("--theme-share", type=float, default=0.2, help="of the captions that could name a theme")
    parser.add_argument("--text-theme-share", type=float, default=0.1, help="the same, for the text tower learned anew")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    pools = glyph_pool(args.renditions, rng), clutter_pool(1000, rng)
    print(f"{len(GLYPHS)} glyphs of {len(THEMES)} themes, {args.renditions} renditions each", flush=True)
    model = build()
    if args.image_tower:
        state = torch.load(args.image_tower, weights_only=True)
        model.visual.load_state_dict({k.removeprefix("visual."): v for k, v in state.items() if "visual." in k})
    else:
        train_towers(model, pools, args)
    save(renew_text_tower(model, pools, args), args.out)


if __name__ == "__main__":
    main()
