"""Pre-trains the small CLIPs of the `symbols` dataset, of OpenAI's architecture, on pictures of one or two glyphs.

    python -m experiments.pretrain.symbols resnet     # writes assets/symbols_clip.pt
    python -m experiments.pretrain.symbols vit        # writes assets/symbols_vit_clip.pt

The ResNet and its text tower learn by CLIP's loss, first on tiles of one glyph, then on pictures of one or two glyphs
with strokes for clutter. Then a new text tower learns on the locked image tower (as in Zhai et al., "LiT", CVPR 2022),
whose features are cached. The ViT learns from the same tiles and pictures to tell the names that their captions are
made of, by the text features of the ResNet's model, whose text tower it shares. None of the dataset's pictures is used.
Captions are the glyphs' Unicode names or, in a small share, their theme's name. The result is a float16 state dict for
`trainers.clip.weights`, with the used rows of the token table.
"""

import argparse
import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clip
import numpy as np
import torch
from clip.model import CLIP
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional
from yacs.config import CfgNode

from datasets.glyphs import SIZE, THEMES, glyph_mask
from trainers.clip.weights import load_clip

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
TILE = SIZE // 2  # a glyph is drawn on a tile; a picture has one or two tiles
CONTEXT = 32  # tokens of the longest caption here; the saved model has CLIP's 77
TEXT_STEPS = 700
BATCH, PICTURE_BATCH = 64, 48
LEARNING_RATE = 1.5e-3
ECHO, KEPT = 3, 12
AND = " and "  # in a caption, between the names of two glyphs
SEED = 1
THEME_SHARE, TEXT_THEME_SHARE = 0.2, 0.1  # of the captions that could name a theme, for both towers and the new one
Batch = tuple[Tensor, list[str]]  # masks, and captions
Scored = list[tuple[Tensor, Tensor]]  # logits [batch, n], and the targets of cross-entropy
Pools = tuple[Tensor, Tensor]  # glyphs and clutter
GLYPHS = [(char, label) for label, chars in enumerate(THEMES.values()) for char in chars]
# Words of prompts that no caption has; their rows are as they were drawn.
PROMPTS = ("a photo of a this is a photo this is picture of one picture of a drawing of the",)


@dataclass(frozen=True)
class Tower:
    """An image tower, the training of it, and where the model is written."""

    out: str
    shape: dict[str, Any]  # CLIP's arguments
    tile_steps: int
    picture_steps: int
    renditions: int  # of each glyph
    teacher: str = ""  # the tower with which this one shares a text tower that has learned already


TOWERS = {
    "resnet": Tower(
        "assets/symbols_clip.pt",
        {"vision_layers": (1, 1, 1, 1), "vision_width": 16, "vision_patch_size": None},
        tile_steps=1200,
        picture_steps=1000,
        renditions=24,
    ),
    "vit": Tower(
        "assets/symbols_vit_clip.pt",
        {"vision_layers": 3, "vision_width": 128, "vision_patch_size": 16},
        tile_steps=3500,
        picture_steps=500,
        renditions=24,
        teacher="resnet",
    ),
}


def glyph_pool(renditions: int, rng: np.random.Generator) -> Tensor:
    """Each glyph in random sizes, angles and places: uint8 [glyph, rendition, TILE, TILE]."""
    pool = np.zeros((len(GLYPHS), renditions, TILE, TILE), np.uint8)
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
    return AND.join(unicodedata.name(GLYPHS[i][0]).lower() for i in shown) + "."


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


def build(tower: Tower) -> CLIP:
    return CLIP(
        embed_dim=128,
        image_resolution=SIZE,
        **tower.shape,
        context_length=CONTEXT,
        vocab_size=49408,
        transformer_width=96,
        transformer_heads=1,
        transformer_layers=3,
    )


def encode_part(visual: nn.Module, images: Tensor, place: np.ndarray) -> Tensor:
    """Pooled features of pictures or of tiles, at a place (top, left) of the picture, in units of 32 pixels."""
    ((name, position),) = [(n, p) for n, p in visual.named_parameters() if n.endswith("positional_embedding")]
    grid = math.isqrt(len(position) - 1)
    part, (top, left) = grid * images.shape[-1] // SIZE, place * grid * 32 // SIZE
    places = (torch.arange(top, top + part)[:, None] * grid + torch.arange(left, left + part)).flatten() + 1
    rows = position[torch.cat([torch.zeros(1, dtype=torch.long), places])]
    return torch.func.functional_call(visual, {name: rows}, (images,))


def encode_texts(model: CLIP, texts: list[str]) -> Tensor:
    return model.encode_text(clip.tokenize(texts, context_length=CONTEXT))


def fit(model: CLIP, groups: list[dict], steps: int, batch: Callable[[int], Scored]) -> None:
    """Minimizes the mean cross-entropy of what `batch(step)` gives, over `groups` of parameters."""
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.05)
    for step in range(1, steps + 1):
        scored = batch(step)
        loss = torch.stack([functional.cross_entropy(logits, target) for logits, target in scored]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        scheduler.step()
        model.logit_scale.data.clamp_(max=4.6052)  # a scale of 100, as in CLIP
        if step % 20 == 0 or step == steps:
            logits, target = scored[0]
            best = logits.argmax(1)
            right = best == target if target.dim() == 1 else target[torch.arange(len(best)), best] > 0
            hit = right.float().mean().item()
            print(f"step {step}/{steps} loss {loss.item():.3f} matched {hit:.1%}", flush=True)


def cosines(model: CLIP, seen: Tensor, said: Tensor) -> Tensor:
    """logit_scale cos(seen [batch, d], said [n, d])."""
    return model.logit_scale.exp() * functional.normalize(seen, dim=1) @ functional.normalize(said, dim=1).T


def clip_loss(model: CLIP, seen: Tensor, texts: list[str]) -> Scored:
    logits, target = cosines(model, seen, encode_texts(model, texts)), torch.arange(len(texts))
    return [(logits, target), (logits.T, target)]


def naming_loss(model: CLIP) -> Callable[[Tensor, list[str]], Scored]:
    """Of image features and captions, of which the one or two names are to be told from all others."""
    names = [*(unicodedata.name(char).lower() for char, _ in GLYPHS), *THEMES]
    shown = {f"{one}{AND}{other}.": [i, j] for i, one in enumerate(names) for j, other in enumerate(names)}
    shown |= {f"{name}.": [i] for i, name in enumerate(names)}
    with torch.no_grad():
        said = encode_texts(model, [f"{name}." for name in names])

    def loss(seen: Tensor, texts: list[str]) -> Scored:
        target = torch.zeros(len(texts), len(names))
        for row, text in zip(target, texts, strict=True):
            row[shown[text]] = 1 / len({*shown[text]})
        return [(cosines(model, seen, said), target)]

    return loss


def train_towers(model: CLIP, tower: Tower, pools: Pools) -> None:
    """Trains on tiles of one glyph, a quarter of a picture's cost, then on pictures.

    With a teacher the image tower alone learns: the names in the captions, and which picture has which of the teacher's
    image features. Drawn batches are used ECHO times in the mean, since the teacher costs as much as a step.
    """
    rng, random = np.random.default_rng((SEED, 1)), torch.Generator().manual_seed(SEED)
    model.visual.to(memory_format=torch.channels_last)
    teacher = read(TOWERS[tower.teacher], TOWERS[tower.teacher].out) if tower.teacher else None
    named = naming_loss(teacher) if teacher else None
    drawn: list[tuple[Tensor, list[str], np.ndarray, Tensor]] = []

    def draw(step: int) -> tuple[Tensor, list[str], np.ndarray]:
        tiles = step <= tower.tile_steps
        chosen, size = (batch_of_tiles, BATCH) if tiles else (batch_of_pictures, PICTURE_BATCH)
        masks, texts = chosen(size, pools, THEME_SHARE, rng)
        images = render(masks, min(1.0, step / (0.4 * tower.tile_steps)), random)
        place = rng.integers(0, (SIZE - TILE) // 32 + 1, 2) if tiles else np.zeros(2, int)
        return images.contiguous(memory_format=torch.channels_last), texts, place

    def batch(step: int) -> Scored:
        if teacher is None or named is None:
            images, texts, place = draw(step)
            return clip_loss(model, encode_part(model.visual, images, place), texts)
        if step == tower.tile_steps + 1:
            drawn.clear()
        if new := step % ECHO == 1 or not drawn:
            images, texts, place = draw(step)
            with torch.no_grad():
                drawn.append((images, texts, place, encode_part(teacher.visual, images, place)))
            del drawn[:-KEPT]
        images, texts, place, wanted = drawn[-1 if new else rng.integers(len(drawn))]
        seen, same = encode_part(model.visual, images, place), torch.arange(len(texts))
        logits = cosines(model, seen, wanted)
        return [*named(seen, texts) * 2, (logits, same), (logits.T, same)]

    decayed = [p for p in model.visual.parameters() if p.ndim > 1]
    learned = model.visual.parameters() if teacher else model.parameters()
    rest = [p for p in learned if not any(p is d for d in decayed)]
    steps = tower.tile_steps + tower.picture_steps
    fit(model, [{"params": decayed, "weight_decay": 0.05}, {"params": rest}], steps, batch)


def read(tower: Tower, path: str) -> CLIP:
    """A written model, as it was before its texts were given CLIP's length."""
    state = load_clip(CfgNode({"MODEL": {"BACKBONE": {"NAME": path}}})).state_dict()
    model = build(tower)
    model.load_state_dict({**state, "positional_embedding": state["positional_embedding"][:CONTEXT]})
    return model.eval()


def renew_text_tower(model: CLIP, tower: Tower, pools: Pools) -> CLIP:
    """A model with `model`'s image tower, locked, and a new text tower trained on its features."""
    rng, random = np.random.default_rng((SEED, 2)), torch.Generator().manual_seed(SEED)
    renewed = build(tower)
    renewed.visual.load_state_dict(model.visual.half().state_dict())  # rounded as in the file
    renewed.eval()
    features, captions = [], []
    with torch.no_grad():
        for _ in range(80):
            masks, texts = batch_of_pictures(64, pools, TEXT_THEME_SHARE, rng)
            features.append(renewed.visual(render(masks, 1.0, random)))
            captions += texts
    kept = torch.cat(features)

    def batch(step: int) -> Scored:
        chosen = rng.choice(len(kept), BATCH, replace=False)
        return clip_loss(renewed, kept[chosen], [captions[i] for i in chosen])

    learned = [p for name, p in renewed.named_parameters() if not name.startswith("visual.")]
    fit(renewed, [{"params": learned}], TEXT_STEPS, batch)
    return renewed.eval()


def used_tokens() -> list[int]:
    """The tokens of all captions and of PROMPTS."""
    names = [unicodedata.name(char).lower() for char, _ in GLYPHS]
    texts = [f"{text} and {text}." for text in (*names, *THEMES)] + [f"{text}." for text in (*names, *THEMES, *PROMPTS)]
    return sorted({token for text in clip.tokenize(texts).tolist() for token in text})


def save(model: CLIP, path: Path) -> None:
    """Writes float16 weights with the used rows of the token table."""
    state = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    tail = torch.randn(77 - CONTEXT, state["positional_embedding"].shape[1]) * 0.01
    state["positional_embedding"] = torch.cat([state["positional_embedding"], tail])
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    state["token_ids"] = torch.tensor(used_tokens())
    state["token_embedding.weight"] = state["token_embedding.weight"][state["token_ids"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tower", choices=TOWERS)
    parser.add_argument("--out", type=Path, help="by default in assets/")
    parser.add_argument("--image-tower", help="a model whose image tower is used, not trained")
    args = parser.parse_args()
    tower = TOWERS[args.tower]
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    pools = glyph_pool(tower.renditions, rng), clutter_pool(rng)
    shared = TOWERS.get(tower.teacher)
    model = build(tower)
    if shared:
        model, visual = read(shared, shared.out), model.visual
        model.visual = visual
    if args.image_tower:
        model = read(tower, args.image_tower)
    else:
        train_towers(model, tower, pools)
    save(model.eval() if tower.teacher else renew_text_tower(model, tower, pools), args.out or Path(tower.out))


if __name__ == "__main__":
    main()
